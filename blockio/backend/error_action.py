"""Acting on a failed request: the I/O status, the event, the stop request.

Stands on the system *error-policy* of the reference document. The device asks, not the backend: it alone knows whether
a request was the guest's or, say, a job's. ``get_error_action`` says what to do; ``error_action`` does the backend's
part.
"""

from __future__ import annotations

import errno
import os

from blockio.backend.error_policy import OnError
from blockio.backend.events import BlockIoError, ErrorAction, EventSource, IoOperation
from blockio.backend.iostatus import IoStatusKeeping
from blockio.backend.run_state import Machine, MachineState

__all__ = ["ErrorHandling"]


class ErrorHandling(EventSource, Machine, IoStatusKeeping):
    """``set_on_error`` to ``error_action``."""

    def set_on_error(self, on_read_error: OnError | str, on_write_error: OnError | str) -> None:
        """What to do about errors of reads and of writes. ValueError for a policy that does not exist."""
        read, write = OnError(on_read_error), OnError(on_write_error)
        self.error_policy.on_read_error = read
        self.error_policy.on_write_error = write

    def get_on_error(self, is_read: bool) -> OnError:
        """The policy for reads, or for writes."""
        return self.error_policy.on_read_error if is_read else self.error_policy.on_write_error

    def get_error_action(self, is_read: bool, error: int) -> ErrorAction:
        """What the policy says about *error*, a positive errno. RuntimeError while it is ``auto``."""
        return self.error_policy.action(is_read, error)

    def error_action(self, action: ErrorAction | str, is_read: bool, error: int) -> None:
        """Do the backend's part of *action* about *error*, a positive errno.

        STOP: the I/O status is set, the event sent, then the machine asked to stop, in this order: who hears of the
        stop knows why, and who then looks finds the status. An operator who lets the machine go on because of the
        event, before the request is made, is not overruled by it. Else: the event.

        RuntimeError for a STOP without an I/O status to set (``iostatus_enable``), ValueError for a negative *error*;
        nothing was done then.
        """
        action = ErrorAction(action)
        if error < 0:
            raise ValueError(f"an errno is positive here; pass {-error} instead of {error}")
        if action is not ErrorAction.STOP:
            self._send_error_event(action, is_read, error)
            return
        self.iostatus_set_err(error)
        ticket = self.run_state.prepare_stop()
        self._send_error_event(action, is_read, error)
        self.run_state.request_stop(MachineState.IO_ERROR, ticket)

    def _send_error_event(self, action: ErrorAction, is_read: bool, error: int) -> None:
        node = self.bs
        self.emit(
            BlockIoError(
                device=self._name,
                node_name=None if node is None else node.node_name,
                operation=IoOperation.READ if is_read else IoOperation.WRITE,
                action=action,
                nospace=error == errno.ENOSPC if self.iostatus_is_enabled() else None,
                reason=os.strerror(error),
            )
        )
