"""Requests that start now and call back: the ``aio_`` form.

Stands on the system *aio-callbacks* of the reference document: the callback runs exactly once, never before the call
that started the request has returned, with 0 or a negative errno; only then is the request no longer in flight and do
those go on who await it. Only in the backend's own loop.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Generator
from operator import index
from typing import TYPE_CHECKING, Any

from blockio.aio.context import finish
from blockio.backend.ioctl import Ioctl
from blockio.backend.memory import readable_vector, writable_vector
from blockio.backend.parking import Moved
from blockio.errors import BlockError
from blockio.graph.drain import RequestScope

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.backend.accounting import Counters
    from blockio.backend.parking import Place
    from blockio.buffers import BufferLike
    from blockio.types import RequestFlags

__all__ = ["AioForms", "AioRequest"]

_HOW = "use the co_ form, which hops over, or blk.context.schedule_bh"


class AioRequest:
    """One request under way. Await it for its end (its result, or its error), or let it call back.

    Invariant: from its making until its callback has returned it is either parked on its backend or in flight there;
    ``_place`` is its place in the line until its task begins to wait. One that is parked while its backend moves is in
    flight over there, and calls back here, in the loop that started it (``_gone``). Cancelling who awaits it cancels
    the request, and lets the awaiter go once the memory is no longer in use.
    """

    __slots__ = (
        "__weakref__",
        "_began",
        "_blk",
        "_cb",
        "_counters",
        "_error",
        "_gone",
        "_looked_at",
        "_loop",
        "_nbytes",
        "_place",
        "_ret",
        "_task",
        "_waiter",
    )

    def __init__(
        self,
        blk: AioForms,
        start: Callable[[], Coroutine[Any, Any, int | None]] | None,
        cb: Callable[[int], object] | None,
        counters: Counters | None = None,
        nbytes: int = 0,
        *,
        error: BlockError | None = None,
    ) -> None:
        """Not for callers. *start* None: the request is over already (fast lane, *error*); completes in the next turn.

        Else it is counted in *counters* when it ends, as one of *nbytes*.
        """
        self._blk = blk
        self._counters = counters
        self._nbytes = nbytes
        self._began = blk.stats.begin()
        self._loop = blk.context.loop
        self._gone = False
        self._cb = cb
        self._ret: int | None = None
        self._error: BaseException | None = None
        self._looked_at = cb is not None
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[int | None] | None = None
        self._place: Place | None = None
        blk.inc_in_flight()
        if start is None:
            blk.context.call_soon(self._complete, error)
            return
        if blk._must_park():
            # Here and not in the task, which runs later: the order of arrival is the order of the calls.
            self._place = blk._park()
        self._task = self._loop.create_task(self._run(start))
        self._task.add_done_callback(self._ended)

    async def _run(self, start: Callable[[], Coroutine[Any, Any, int | None]]) -> int | None:
        blk = self._blk
        if self._place is not None:
            place, self._place = self._place, None
            try:
                await blk._unpark(place)
            except Moved as moved:
                # Counted there from here on; only the callback is still to be made here.
                counters, self._counters, self._gone = self._counters, None, True
                if isinstance(moved.__cause__, asyncio.CancelledError):
                    raise moved.__cause__ from None
                return await blk._enter(start, counters, self._nbytes, moved.place)
        with RequestScope(blk):
            return await start()

    @property
    def ret(self) -> int | None:
        """0 (an ioctl: its result), a negative errno (-ECANCELED: it was cancelled), or None while under way."""
        return self._ret

    @property
    def context(self) -> AioContext:
        """Where its backend lives now (``blk_aiocb_get_aio_context``)."""
        return self._blk.context

    def done(self) -> bool:
        """Whether it has completed and called back."""
        return self._ret is not None

    def cancel_async(self) -> None:
        """Ask it to end early (``blk_aio_cancel_async``). It completes, and calls back, as soon as it may."""
        if self._task is not None:
            self._task.cancel()

    async def cancel(self) -> None:
        """Ask it to end early and wait until it has completed and called back (``blk_aio_cancel``).

        Raises nothing of the request's own: see ``ret`` for how it ended.
        """
        self._looked_at = True
        self.cancel_async()
        if self._ret is None:
            await finish(self._end())

    def __await__(self) -> Generator[Any, None, int]:
        return self._wait().__await__()

    async def _wait(self) -> int:
        self._looked_at = True
        if self._ret is None:
            await finish(self._end(), self.cancel_async)
        if self._error is not None:
            raise self._error
        assert self._ret is not None
        return self._ret

    def _end(self) -> asyncio.Future[None]:
        if self._waiter is None:
            self._waiter = self._loop.create_future()
        return self._waiter

    def _ended(self, task: asyncio.Task[int | None]) -> None:
        if self._place is not None:  # cancelled before its first step: nothing of _run was run
            if self._blk.context.loop is self._loop:
                self._blk._unpark_unseen(self._place)
            else:
                self._counters, self._gone = None, True
                self._blk._forsake(self._place)
            self._place = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._counters is not None:
            self._blk.stats.ended(self._counters, self._nbytes, self._began, error)
        self._complete(error, (task.result() if error is None else None) or 0)

    def _complete(self, error: BaseException | None, result: int = 0) -> None:
        self._error = error
        if error is None:
            self._ret = result
        elif isinstance(error, asyncio.CancelledError):
            self._ret = -errno.ECANCELED
            self._looked_at = True
        else:
            self._ret = -((error.errno if isinstance(error, OSError) else None) or errno.EIO)
        self._task = None
        try:
            if self._cb is not None:
                self._cb(self._ret)
        finally:  # an error of the callback's is the loop's to report
            if not self._gone:
                self._blk.dec_in_flight()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def __del__(self) -> None:
        if not self._looked_at and self._error is not None:
            self._loop.call_exception_handler(
                {"message": "An AioRequest failed and nobody looked", "exception": self._error}
            )


class AioForms(Ioctl):
    """The ``aio_`` form of every request. Checks and errors are those of the ``co_`` form."""

    def aio_preadv(
        self, offset: int, iov: BufferLike, flags: RequestFlags | int = 0, cb: Callable[[int], object] | None = None
    ) -> AioRequest:
        """Start filling *iov* from *offset*; *iov* belongs to the request until it has called back."""
        self._must_be_home("aio_preadv", _HOW)
        if not flags and self.try_preadv(offset, iov):
            return AioRequest(self, None, cb)
        vector, at = writable_vector(iov), index(offset)
        return AioRequest(self, lambda: self._do_preadv(at, vector, flags), cb, self._reads, vector.nbytes)

    def aio_pwritev(
        self, offset: int, iov: BufferLike, flags: RequestFlags | int = 0, cb: Callable[[int], object] | None = None
    ) -> AioRequest:
        """Start writing *iov* at *offset*; *iov* must not change until the request has called back."""
        self._must_be_home("aio_pwritev", _HOW)
        if not flags and self.try_pwritev(offset, iov):
            return AioRequest(self, None, cb)
        vector, at = readable_vector(iov), index(offset)
        return AioRequest(self, lambda: self._do_pwritev(at, vector, flags), cb, self._writes, vector.nbytes)

    def aio_pwrite_zeroes(
        self, offset: int, nbytes: int, flags: RequestFlags | int = 0, cb: Callable[[int], object] | None = None
    ) -> AioRequest:
        """Start making *nbytes* from *offset* read as zeroes."""
        self._must_be_home("aio_pwrite_zeroes", _HOW)
        at, count = index(offset), _count(nbytes)
        return AioRequest(self, lambda: self._do_pwrite_zeroes(at, count, flags), cb, self._writes, count)

    def aio_pdiscard(self, offset: int, nbytes: int, cb: Callable[[int], object] | None = None) -> AioRequest:
        """Start discarding *nbytes* from *offset*."""
        self._must_be_home("aio_pdiscard", _HOW)
        at, count = index(offset), _count(nbytes)
        return AioRequest(self, lambda: self._do_pdiscard(at, count), cb, self.stats.unmap, count)

    def aio_flush(self, cb: Callable[[int], object] | None = None) -> AioRequest:
        """Start a flush of every write that has completed before this call."""
        self._must_be_home("aio_flush", _HOW)
        return AioRequest(self, self._do_flush, cb, self.stats.flush)

    def aio_ioctl(self, request: int, buf: Buffer | int = 0, cb: Callable[[int], object] | None = None) -> AioRequest:
        """Start it; awaiting it gives the device's answer, and so does the callback."""
        self._must_be_home("aio_ioctl", _HOW)
        number = index(request)
        return AioRequest(self, lambda: self._do_ioctl(number, buf), cb)

    def abort_aio_request(self, cb: Callable[[int], object] | None, ret: int) -> AioRequest:
        """A request that has failed before it began: it completes in the next turn with *ret*, a negative errno.

        For devices that find a request bad and must answer as if it had been sent; in flight until then, with or
        without a medium. ValueError for a *ret* that is no error.
        """
        self._must_be_home("abort_aio_request", _HOW)
        if ret >= 0:
            raise ValueError(f"a request aborted with {ret}; pass a negative errno")
        return AioRequest(self, None, cb, error=BlockError(errno=-ret))


def _count(nbytes: int) -> int:
    count = index(nbytes)
    if count < 0:
        raise ValueError(f"a request of {count} bytes")
    return count
