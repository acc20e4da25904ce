"""Error policies: what a device does about a failed request.

Stands on the system *error-policy* of the reference document; ``error_action.py`` carries out what is said here.
"""

from __future__ import annotations

import errno
import os
from enum import StrEnum

import msgspec

from blockio.backend.events import ErrorAction

__all__ = ["ErrorPolicy", "OnError"]


class OnError(StrEnum):
    """A policy (QMP's BlockdevOnError)."""

    REPORT = "report"
    IGNORE = "ignore"
    ENOSPC = "enospc"
    """Stop where there is no space left, report everything else."""
    STOP = "stop"
    AUTO = "auto"
    """Left to the device, which must say what it means by it before errors happen."""


class ErrorPolicy(msgspec.Struct):
    """The two policies of a backend, and what they say."""

    on_read_error: OnError = OnError.REPORT
    on_write_error: OnError = OnError.ENOSPC

    def action(self, is_read: bool, error: int) -> ErrorAction:
        """What to do about *error*, a positive errno. RuntimeError where the policy is still ``auto``."""
        if error < 0:
            raise ValueError(
                f"an errno is positive here, {error} is not; pass {-error}, which is {os.strerror(-error)}"
            )
        policy = self.on_read_error if is_read else self.on_write_error
        if policy is OnError.ENOSPC:
            return ErrorAction.STOP if error == errno.ENOSPC else ErrorAction.REPORT
        if policy is OnError.AUTO:
            raise RuntimeError("the error policy is still 'auto'; call set_on_error() with what the device means by it")
        return ErrorAction(policy.value)
