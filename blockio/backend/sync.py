"""Requests for code outside any loop: plain calls that wait.

Stands on the system *sync-wrappers* of the reference document. The request runs in the backend's own loop while the
calling thread waits. In the loop's own thread that would wait for itself, so it raises RuntimeError at once.

This is what an anyio blocking portal does, without needing one started in every context. Its promises hold: the
caller's memory is free when the call returns or raises, even on KeyboardInterrupt, which cancels the request and waits
for its end; a loop that is gone raises instead of hanging.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import Future as ThreadFuture
from typing import TYPE_CHECKING, Any, Final, TypeVar

from blockio.backend.requests import Requests, readable_vector
from blockio.errors import OutOfRange
from blockio.types import INT_MAX, PreallocMode

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.buffers import BufferLike
    from blockio.types import RequestFlags

__all__ = ["SyncForms", "run_sync"]

_T = TypeVar("_T")

_LOOK_AGAIN: Final = 1.0
"""Seconds between looks whether the loop still exists. Nothing waits for it but a caller whose loop was torn down."""


class _Crossing:
    """One coroutine run over there while this thread waits."""

    def __init__(self, context: AioContext, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.context = context
        self.make = make
        self.answer: ThreadFuture[Any] = ThreadFuture()
        self.task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        """Over there."""
        self.task = self.context.loop.create_task(self.make())
        self.task.add_done_callback(self.ended)

    def ended(self, task: asyncio.Task[Any]) -> None:
        """Over there."""
        if task.cancelled():
            self.answer.set_exception(CancelledError())
        elif (error := task.exception()) is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(task.result())

    def cancel(self) -> None:
        """Over there."""
        if self.task is not None:
            self.task.cancel()

    def wait(self) -> Any:
        """Here, until the answer is there, or can never be."""
        while True:
            try:
                return self.answer.result(timeout=_LOOK_AGAIN)
            except TimeoutError:
                if self.answer.done():
                    return self.answer.result()
                if self.context.loop.is_closed():
                    raise RuntimeError(f"the event loop of {self.context!r} was closed before the call ended") from None


def run_sync(context: AioContext, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run the coroutine that *make* makes in *context* and wait for what it returns or raises.

    RuntimeError in the context's own thread, and where its loop does not run.
    """
    if context.is_current:
        raise RuntimeError("this call waits for the event loop of its own thread; await the co_ form instead")
    if not context.loop.is_running():
        raise RuntimeError(f"the event loop of {context!r} does not run")
    crossing = _Crossing(context, make)
    context.schedule_bh(crossing.start)
    try:
        result: _T = crossing.wait()
    except BaseException:
        if not crossing.answer.done() and not context.loop.is_closed():
            # Interrupted here, not over there: the caller's memory is still in use.
            context.schedule_bh(crossing.cancel)
            try:
                crossing.wait()
            except BaseException as error:  # ours, which is on its way, is the one that counts
                del error
        raise
    return result


class SyncForms(Requests):
    """The plain form of every request. RuntimeError in the thread of the backend's own loop."""

    def pread(self, offset: int, nbytes: int) -> bytes:
        """The *nbytes* bytes from *offset* on. Errors as ``co_preadv``."""
        if nbytes < 0:
            raise ValueError(f"a request of {nbytes} bytes")
        if nbytes > INT_MAX:
            raise OutOfRange  # before the memory for it is taken
        memory = bytearray(nbytes)
        run_sync(self._context, lambda: self.co_preadv(offset, memory))
        return bytes(memory)

    def pread_into(self, offset: int, iov: BufferLike) -> int:
        """Fill *iov* from *offset*; returns how many bytes that were (``blk_pread``)."""
        run_sync(self._context, lambda: self.co_preadv(offset, iov))
        return readable_vector(iov).nbytes

    def pwrite(self, offset: int, data: BufferLike, flags: RequestFlags | int = 0) -> int:
        """Write *data* at *offset*; returns how many bytes that were (``blk_pwrite``). Errors as ``co_pwritev``."""
        vector = readable_vector(data)
        run_sync(self._context, lambda: self.co_pwritev(offset, vector, flags))
        return vector.nbytes

    def pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """Make *nbytes* from *offset* read as zeroes."""
        run_sync(self._context, lambda: self.co_pwrite_zeroes(offset, nbytes, flags))

    def pdiscard(self, offset: int, nbytes: int) -> None:
        """The bytes are no longer needed."""
        run_sync(self._context, lambda: self.co_pdiscard(offset, nbytes))

    def flush(self) -> None:
        """Put every completed write onto stable storage."""
        run_sync(self._context, self.co_flush)

    def truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """Set the disk's length."""
        run_sync(self._context, lambda: self.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags))
