"""FileEngine: how one descriptor's bytes are moved.

The ladder, from the fastest step down:

1. **inline**: ``preadv2(RWF_NOWAIT)`` in the caller's own turn of the loop. Serves what the page cache holds and never
   blocks; says no to everything else. ext4 knows it for buffered reads only, xfs and btrfs for writes too.
2. **io_uring**: a ring per context (``blockio.aio.uring``). ``start_preadv`` and ``start_pwritev`` hand it a transfer
   in a plain call and answer with a ``Flight``.
3. **threads**: workers (``blockio.aio.threads``).

Users name the slow step with ``aio=threads|io_uring|native``. Unnamed, it is io_uring wherever the kernel lets us,
silently threads elsewhere (seccomp in containers, old kernels): a hand-over to a thread and back costs 50 to 100
microseconds and a switch of the interpreter lock, a batch through the ring some 8 microseconds a request.
``native`` (Linux AIO) is served by io_uring under the rule QEMU has for it: only with ``cache.direct=on``.

Which one it is is decided, and loaded, by the first request that the page cache cannot serve: who looks at a small
image's metadata and ends needs neither.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, TypeVar, TypeVarTuple

from blockio.aio.context import AioContext
from blockio.aio.flight import ASYNC_TRANSFER, Start, no_flight
from blockio.aio.threads import WorkerPool
from blockio.errors import BlockError, OptionError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.hauling import Haul, Part, Put
    from blockio.aio.uring import Uring

__all__ = ["IOV_MAX", "AioMode", "FileEngine", "choose_engine"]

AioMode: TypeAlias = Literal["threads", "native", "io_uring"]

IOV_MAX: Final = 1024
"""How many buffers one system call takes (Linux ``UIO_MAXIOV``)."""

INLINE_MAX: Final = 64 << 10
"""Bytes up to which a hand-over to a thread costs more than trying to copy from the page cache in place."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

Try: TypeAlias = "Callable[[int, Sequence[Buffer], int], bool]"


class _Slow(Protocol):
    """What the two slow steps have in common; one system call's worth each."""

    @property
    def name(self) -> str: ...

    async def read(self, fd: int, offset: int, views: list[memoryview], batch: int) -> int: ...
    async def write(self, fd: int, offset: int, views: list[memoryview], rwf: int, batch: int) -> int: ...
    async def fdatasync(self, fd: int) -> None: ...
    async def fallocate(self, fd: int, mode: int, offset: int, nbytes: int) -> None: ...
    def plug(self) -> None: ...
    def unplug(self) -> None: ...


def _never(_offset: int, _bufs: Sequence[Buffer], _nbytes: int) -> bool:
    return False


def _kernel_is_busy(context: AioContext) -> bool:
    from blockio.aio.uring import Uring  # whoever moves as much is about to need it anyway

    return Uring.busy(context)


def _inline(
    call: Callable[[int, Sequence[Buffer], int, int], int], fd: int, context: AioContext
) -> tuple[Try, Callable[[], None]]:
    """The inline step over ``os.preadv`` or ``os.pwritev``, and what switches it off for good.

    A closure over the descriptor: the step is a third of a microsecond, and attribute look-ups would show. While the
    kernel has work of ours a large copy is left to it too, so that the loop goes on feeding it: 5 % of a conversion.
    """
    nowait = os.RWF_NOWAIT
    possible = True

    def attempt(offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        nonlocal possible
        if not possible or (nbytes >= ASYNC_TRANSFER and _kernel_is_busy(context)):
            return False
        try:
            # A short transfer means that the rest is not cached, or not there: the slow lane does all of it again.
            return call(fd, bufs, offset, nowait) == nbytes
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}:
                possible = error.errno == errno.EINVAL and len(bufs) > IOV_MAX
            return False

    def stop() -> None:
        nonlocal possible
        possible = False

    return attempt, stop


class FileEngine:
    """The engine of one descriptor in one context. The descriptor stays its owner's.

    Invariant: ``_ring`` and ``_pool`` are shares of ``context`` that ``detach`` gives back, and ``_slow`` is one of
    them; all are None until first needed, and again while detached. The ``try_`` functions answer False while detached,
    so that a reused descriptor number is never touched.
    """

    def __init__(
        self,
        fd: int,
        context: AioContext,
        *,
        aio: AioMode | None = None,
        direct: bool = False,
        max_batch: int = 0,
        alignment: int = 1,
    ) -> None:
        """Callers want ``choose_engine``. *max_batch* 0: a turn of the loop is a batch."""
        self.fd = fd
        self._alignment = alignment
        self.context = context
        self.aio = aio
        self.direct = direct
        self.max_batch = max_batch
        self._slow: _Slow | None = None
        self._ring: Uring | None = None
        self._pool: WorkerPool | None = None
        self._plugs = 0
        self._buffers: list[memoryview] = []
        self._reserves: bool | None = None
        self.try_preadv: Try = _never
        self.try_pwritev: Try = _never
        self.start_preadv: Start = no_flight
        self.start_pwritev: Start = no_flight
        self._stops: list[Callable[[], None]] = []
        self.attach(context)

    def __repr__(self) -> str:
        return f"<FileEngine fd={self.fd} {self._slow.name if self._slow else self.aio or 'undecided'}>"

    # -- life

    def attach(self, context: AioContext) -> None:
        """Serve in *context* from now on."""
        self.context = context
        self._stops = []
        if not self.direct:  # with O_DIRECT the inline step would wait for the device
            self.try_preadv, stop_reads = _inline(os.preadv, self.fd, context)
            # os.pwritev has the same shape as os.preadv, but for what it does with the buffers
            self.try_pwritev, stop_writes = _inline(os.pwritev, self.fd, context)
            self._stops = [stop_reads, stop_writes]

    def detach(self) -> None:
        """Let go of the context; the owner has no request under way."""
        for stop in self._stops:
            stop()
        self.try_preadv = self.try_pwritev = _never
        self.start_preadv = self.start_pwritev = no_flight
        slow, self._slow = self._slow, None
        ring, self._ring = self._ring, None
        if ring is not None:
            for memory in self._buffers:
                ring.unregister_buf(memory)
        pool, self._pool = self._pool, None
        while self._plugs:
            self._plugs -= 1
            if slow is not None:
                slow.unplug()
        if ring is not None:
            self.context.unshare(type(ring))
        if pool is not None:
            self.context.unshare(WorkerPool)

    def close(self) -> None:
        """For good; the descriptor is not closed. May be called again."""
        self.detach()

    # -- which step

    @property
    def name(self) -> str:
        """``io_uring`` or ``threads``: the slow step. Asks the kernel on first use."""
        return self._step().name

    def _step(self) -> _Slow:
        if self._slow is None:
            self._slow = self._choose()
            for _ in range(self._plugs):
                self._slow.plug()
            if self._ring is not None:
                for memory in self._buffers:
                    self._ring.register_buf(memory)
                starter = partial(
                    self._ring.starter,
                    self.fd,
                    direct=self.direct,
                    alignment=self._alignment,
                    batch=self.max_batch,
                )
                self.start_preadv = starter(writes=False)
                self.start_pwritev = starter(writes=True)
        return self._slow

    def _choose(self) -> _Slow:
        if self.aio == "threads":
            return self._workers()
        from blockio.aio.uring import Uring  # with what it needs 4 ms, and the page cache may have had it all

        try:
            self._ring = Uring.acquire(self.context)
        except OSError as error:
            if self.aio is None:
                return self._workers()
            what = "native AIO: failed to create linux AIO context"
            if self.aio == "io_uring":
                what = "io_uring: failed to init linux io_uring ring"
            raise BlockError(f"Unable to use {what}: {error.strerror}", error.errno) from error
        return self._ring

    def _workers(self) -> WorkerPool:
        if self._pool is None:
            context = self.context
            self._pool = context.share(WorkerPool, lambda: WorkerPool(context))
        return self._pool

    # -- bytes

    async def preadv(self, offset: int, views: list[memoryview]) -> int:
        """Fill *views* from *offset*: how many bytes there were before the end of the file.

        Short transfers are continued. BlockError with the kernel's errno; the memory's content is then undefined.
        Cancelled: the memory is the caller's again when CancelledError arrives.
        """
        total = 0
        for view in views:
            total += view.nbytes
        if self._ring is None and total <= INLINE_MAX and self.try_preadv(offset, views, total):
            return total
        slow = self._slow or self._step()
        done = 0
        try:
            while done < total:
                part = views if len(views) <= IOV_MAX else views[:IOV_MAX]
                got = await slow.read(self.fd, offset + done, part, self.max_batch)
                done += got
                if not got or done == total:
                    break
                views = _advanced(views, got)
        except OSError as error:
            if not (done and self.direct and error.errno == errno.EINVAL and self._ends_by(offset + done)):
                raise _blamed(error) from error
            # The file ends inside a block, and O_DIRECT refuses to look behind that end.
        return done

    def _ends_by(self, offset: int) -> bool:
        """Whether a regular file is no longer than *offset*: what was cut short elsewhere must not read as zeroes."""
        info = os.fstat(self.fd)
        return stat.S_ISREG(info.st_mode) and info.st_size <= offset

    async def pwritev(self, offset: int, views: list[memoryview], *, dsync: bool = False) -> int:
        """Write all of *views* at *offset*, with *dsync* durably (RWF_DSYNC); returns how many bytes that is.

        Short transfers are continued, so that a full disk shows as ENOSPC. After BlockError or CancelledError any
        part of the range may hold the new bytes.
        """
        total = 0
        for view in views:
            total += view.nbytes
        slow = self._slow or self._step()
        rwf = os.RWF_DSYNC if dsync else 0
        done = 0
        try:
            while done < total:
                part = views if len(views) <= IOV_MAX else views[:IOV_MAX]
                put = await slow.write(self.fd, offset + done, part, rwf, self.max_batch)
                done += put
                if done == total:
                    break
                if not put:
                    raise BlockError(errno=errno.ENOSPC)  # as in QEMU: a file that takes nothing is full
                views = _advanced(views, put)
        except OSError as error:
            raise _blamed(error) from error
        return done

    async def fdatasync(self) -> None:
        """Put what was written onto stable storage (not the times of the file)."""
        try:
            await (self._slow or self._step()).fdatasync(self.fd)
        except OSError as error:
            raise _blamed(error) from error

    async def fallocate(self, mode: int, offset: int, nbytes: int) -> None:
        """``fallocate(2)`` with FALLOC_FL flags *mode*; BlockError ENOTSUP where the file system cannot."""
        try:
            await (self._slow or self._step()).fallocate(self.fd, mode, offset, nbytes)
        except OSError as error:
            raise _blamed(error) from error

    async def copy_file_range(self, offset: int, target: FileEngine, target_offset: int, nbytes: int) -> int:
        """Copy inside the kernel: how many bytes, 0 at the end of the file.

        BlockError ENOTSUP (EXDEV, EINVAL, ENOSYS … all mean it) where these two files cannot.
        """
        try:
            return await self.run(os.copy_file_range, self.fd, target.fd, nbytes, offset, target_offset)
        except OSError as error:
            if error.errno in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ETXTBSY}:
                raise BlockError(errno=errno.ENOTSUP) from error
            raise _blamed(error) from error

    async def haul(
        self,
        job: Haul,
        parts: Sequence[Part],
        target: FileEngine,
        target_offset: int,
        nbytes: int,
        phase: int,
        *,
        packed: int,
    ) -> list[Put]:
        """Copy through the memory of a worker; see ``blockio.aio.hauling.haul``.

        BlockError of either side, UnsupportedFeature where the file ends before. Cancelled: stopped at the next piece
        and awaited.
        """
        from blockio.aio import hauling  # whole disks are copied by few

        if target._reserves is None:
            target._reserves = hauling.reserves_by_page(target.fd)
        work = partial(
            hauling.haul, job, self.fd, parts, target.fd, target_offset, nbytes, phase, packed=packed,
            reserve=target._reserves,
        )  # fmt: skip
        working = asyncio.ensure_future(self.run(work))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            job.stopped = True
            while not working.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([working])
            working.exception()  # which nobody needs any more
            raise
        except OSError as error:
            raise _blamed(error) from error

    async def run(self, fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """A blocking call in a worker thread; its exceptions come through unchanged. See ``WorkerPool.run``."""
        return await (self._pool or self._workers()).run(fn, *args)

    # -- batches

    def plug(self) -> None:
        """Hold submissions of this context's ring back until ``unplug``; nests. Never await in between."""
        self._plugs += 1
        self._step().plug()

    def unplug(self) -> None:
        """Undo one ``plug``; the last one submits. RuntimeError where none is in."""
        if not self._plugs:
            raise RuntimeError("unplug without plug")
        self._plugs -= 1
        self._step().unplug()

    # -- registered buffers

    def register_buf(self, memory: memoryview) -> bool:
        """Let the ring keep *memory* pinned, so that requests in it need not pin it each time; page-aligned gains most.

        False where there is no ring or it cannot: then it changes nothing. Follows the engine into other contexts.
        Pair with ``unregister_buf``; may be registered more than once.
        """
        self._step()
        self._buffers.append(memory)
        return self._ring is not None and self._ring.register_buf(memory)

    def unregister_buf(self, memory: memoryview) -> None:
        """Undo one ``register_buf`` of that very object. ValueError where it was not registered."""
        at = next((at for at, other in enumerate(self._buffers) if other is memory), None)
        if at is None:
            raise ValueError("this memory was never registered, or is no longer")
        del self._buffers[at]
        if self._ring is not None:
            self._ring.unregister_buf(memory)


def _advanced(views: list[memoryview], nbytes: int) -> list[memoryview]:
    """What is left of *views* behind the first *nbytes*."""
    for index, view in enumerate(views):
        if nbytes < view.nbytes:
            return [view[nbytes:], *views[index + 1 :]]
        nbytes -= view.nbytes
    return []


def _blamed(error: OSError) -> BlockError:
    """A worker's plain OSError as the project's own; EOPNOTSUPP and ENOTSUP are one number on Linux."""
    return error if isinstance(error, BlockError) else BlockError(errno=error.errno)


def choose_engine(
    fd: int,
    context: AioContext | None = None,
    *,
    aio: AioMode | None = None,
    direct: bool = False,
    max_batch: int = 0,
    alignment: int = 1,
) -> FileEngine:
    """The engine for *fd* in *context* (the running loop's by default); *alignment* is what *direct* asks of memory.

    *aio* forces the slow step as users name it: OptionError for ``native`` without *direct* (O_DIRECT), BlockError
    where io_uring is asked for and cannot be had. Unnamed, the step is probed when it is first needed.
    """
    if aio == "native" and not direct:
        raise OptionError("aio=native was specified, but it requires cache.direct=on, which was not specified.")
    engine = FileEngine(
        fd, context or AioContext.current(), aio=aio, direct=direct, max_batch=max_batch, alignment=alignment
    )
    if aio in {"native", "io_uring"}:
        try:
            engine._step()
        except BaseException:
            engine.close()
            raise
    return engine
