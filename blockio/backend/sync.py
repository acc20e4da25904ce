"""Requests for code outside any loop: plain calls that wait.

Stands on the system *sync-wrappers* of the reference document. The request crosses into the backend's own loop through
anyio's ``from_thread`` while the calling thread waits. In the loop's own thread that would wait for itself, so it
raises RuntimeError at once. What anyio leaves to its caller is kept here: the caller's memory is free when the call
returns or raises, even on KeyboardInterrupt, which cancels the request and waits for its end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

from blockio.backend.blockers import OpBlockers
from blockio.backend.copy_range import CopyRange
from blockio.backend.ioctl import Ioctl
from blockio.backend.limits import LimitsAndProbes
from blockio.backend.memory import readable_vector
from blockio.backend.plug import Plug
from blockio.backend.snapshots import Snapshots
from blockio.backend.vmstate import VmState
from blockio.errors import OutOfRange
from blockio.types import INT_MAX, PreallocMode

if TYPE_CHECKING:
    from anyio.lowlevel import EventLoopToken
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.buffers import BufferLike
    from blockio.types import BlockSizes, Geometry, RequestFlags

__all__ = ["SyncForms", "run_sync"]

_T = TypeVar("_T")


def _token(context: AioContext) -> EventLoopToken:
    """anyio's name for *context*'s loop. Asking is a hop: whatever was sent there before has begun when it is back."""
    from anyio.lowlevel import current_token  # only threads without a loop need anyio

    async def ask() -> EventLoopToken:
        return current_token()

    return asyncio.run_coroutine_threadsafe(ask(), context.loop).result()


def run_sync(context: AioContext, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run the coroutine that *make* makes in *context* and wait for what it returns or raises.

    RuntimeError in the context's own thread, and where its loop does not run; ``concurrent.futures.CancelledError``
    where somebody over there cancelled it.
    """
    from anyio import from_thread

    if context.is_current:
        raise RuntimeError("this call waits for the event loop of its own thread; await the co_ form instead")
    if not context.loop.is_running():
        raise RuntimeError(f"the event loop of {context!r} does not run")
    task: asyncio.Task[Any] | None = None
    ended = threading.Event()

    async def cross() -> _T:
        nonlocal task
        task = asyncio.current_task()
        try:
            return await make()
        finally:
            ended.set()

    token = _token(context)
    try:
        return from_thread.run(cross, token=token)
    except asyncio.CancelledError as error:
        raise CancelledError from error  # of a task over there; this thread knows nothing of asyncio
    except BaseException:
        if not ended.is_set() and context.loop.is_running():
            # Interrupted here, not over there: the caller's memory may still be in use.
            _token(context)
            if task is not None:
                context.schedule_bh(task.cancel)
                ended.wait()
        raise


class SyncForms(Ioctl, VmState, Snapshots, CopyRange, LimitsAndProbes, OpBlockers, Plug):
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

    def pwrite_compressed(self, offset: int, data: BufferLike) -> None:
        """Write *data* compressed."""
        vector = readable_vector(data)
        run_sync(self._context, lambda: self.co_pwrite_compressed(offset, vector))

    def make_zero(self, flags: RequestFlags | int = 0) -> None:
        """Make the whole disk read as zeroes."""
        run_sync(self._context, lambda: self.co_make_zero(flags))

    def make_empty(self) -> None:
        """Let go of everything the top layer holds."""
        run_sync(self._context, self.co_make_empty)

    def ioctl(self, request: int, buf: Buffer | int = 0) -> int:
        """The device's answer to its own *request*."""
        return run_sync(self._context, lambda: self.co_ioctl(request, buf))

    def save_vmstate(self, data: BufferLike, pos: int) -> int:
        """Keep *data* beside the disk; returns how many bytes that is."""
        return run_sync(self._context, lambda: self.co_save_vmstate(data, pos))

    def load_vmstate(self, iov: BufferLike, pos: int) -> int:
        """Fill *iov* with what is kept there; returns how many bytes that is."""
        return run_sync(self._context, lambda: self.co_load_vmstate(iov, pos))

    def probe_blocksizes(self) -> BlockSizes:
        """The block sizes of the device at the bottom."""
        return run_sync(self._context, self.co_probe_blocksizes)

    def probe_geometry(self) -> Geometry:
        """The geometry of the device at the bottom."""
        return run_sync(self._context, self.co_probe_geometry)
