"""I/O status: whether the device's requests have failed since somebody last looked.

Stands on the system *iostatus* of the reference document.
"""

from __future__ import annotations

import errno
from enum import StrEnum
from typing import TYPE_CHECKING

from blockio.backend.core import BackendCore
from blockio.backend.error_policy import ErrorPolicy, OnError
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext

__all__ = ["IoStatus", "IoStatusKeeping"]


class IoStatus(StrEnum):
    """QMP's BlockDeviceIoStatus."""

    OK = "ok"
    FAILED = "failed"
    NOSPACE = "nospace"


class IoStatusKeeping(BackendCore):
    """The status, and when it is kept.

    Invariant: the first error sticks: once the status is not OK only a reset, or enabling anew, changes it.
    """

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """Not tracked; errors on reads are reported, those on writes too unless there is no space left."""
        super().__init__(perm, shared, context)
        self.error_policy = ErrorPolicy()
        """What is done about errors; change it with ``set_on_error``."""
        self._iostatus_enabled = False
        self._iostatus = IoStatus.OK

    def iostatus_enable(self) -> None:
        """Track it; it is OK now. It counts only while a policy can stop the machine: see ``iostatus_is_enabled``."""
        self._iostatus_enabled = True
        self._iostatus = IoStatus.OK

    def iostatus_disable(self) -> None:
        """Track it no longer; what it was stays readable."""
        self._iostatus_enabled = False

    def iostatus_is_enabled(self) -> bool:
        """Whether it is tracked, and a policy may stop the machine (write: enospc or stop; read: stop)."""
        policy = self.error_policy
        return self._iostatus_enabled and (
            policy.on_write_error in (OnError.ENOSPC, OnError.STOP) or policy.on_read_error is OnError.STOP
        )

    def iostatus(self) -> IoStatus:
        """What it is now."""
        return self._iostatus

    def iostatus_reset(self) -> None:
        """OK again, where it is enabled; the operator has seen it."""
        if self.iostatus_is_enabled():
            self._iostatus = IoStatus.OK

    def iostatus_set_err(self, error: int) -> None:
        """A request failed with *error*, a positive errno. RuntimeError where the status is not enabled."""
        if not self.iostatus_is_enabled():
            raise RuntimeError(
                f"{self._describe()} keeps no I/O status; call iostatus_enable(), and set_on_error() with a policy "
                "that can stop the machine"
            )
        if self._iostatus is IoStatus.OK:
            self._iostatus = IoStatus.NOSPACE if error == errno.ENOSPC else IoStatus.FAILED
