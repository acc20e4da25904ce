"""Requests as coroutines: checks, parking, and the two lanes at their top.

Stands on the systems *request-checks*, *co-read-write*, *zeroes*, *discard*, *flush* and *truncate* of the reference
document. Offsets and lengths are bytes; the memory says how long a read or write is. Each request

1. tries the fast lane, a plain function from here down to the file engine that never suspends;
2. otherwise is counted as in flight, parks while the backend is drained, is checked in the document's order, and goes
   down the root edge.

Cancelling one is safe at every await: it takes effect once the memory is no longer in use, and the backend works on.
From a loop that is not the backend's own the call hops over and comes back.
"""

from __future__ import annotations

import asyncio
from functools import partial
from operator import index
from threading import get_ident
from typing import TYPE_CHECKING, Final, TypeVar

from blockio.backend.accounting import FAIRNESS_BUDGET, REQUEST_COST, STARTED_RUN
from blockio.backend.core import Entered
from blockio.backend.memory import readable_vector, writable_vector
from blockio.backend.node_accounting import NodeAccounting
from blockio.backend.parking import Moved
from blockio.errors import OutOfRange, ReadOnly
from blockio.graph.drain import drained
from blockio.types import INT_MAX, Perm, PreallocMode, RequestFlags, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blockio.aio.flight import Flight, Start
    from blockio.backend.accounting import Counters
    from blockio.backend.parking import Place
    from blockio.buffers import BufferLike, IoVector
    from blockio.graph.edge import Edge
    from blockio.throttle.groups import ThrottleMember
    from blockio.types import BlockInfo, BlockLimits, BlockStatus

__all__ = ["Requests"]

_T = TypeVar("_T")

# Plain integers: combining IntFlags costs a microsecond.
_FUA: Final = int(RequestFlags.FUA)
_WRITE_UNCHANGED: Final = int(RequestFlags.WRITE_UNCHANGED)
_WRITES: Final = int(Perm.WRITE)
_WRITES_UNCHANGED: Final = int(Perm.WRITE | Perm.WRITE_UNCHANGED)
_SECTOR: Final = 512
_ZERO: Final = int(StatusFlags.ZERO)
_LARGE: Final = FAIRNESS_BUDGET >> 4
"""Bytes from which on a copy is worth the hand-over to the kernel's worker (``ASYNC_TRANSFER`` of the ring)."""
_PIECE: Final = 1 << 30
"""Bytes that ``co_make_zero`` asks about at a time."""


class Requests(NodeAccounting):
    """The coroutine form of every request, and ``try_preadv``/``try_pwritev`` for who wants only the fast lane."""

    async def _enter(
        self,
        work: Callable[[], Awaitable[_T]],
        counters: Counters | None = None,
        nbytes: int = 0,
        place: Place | None = None,
    ) -> _T:
        """Run *work* as a request of this backend: in its loop, counted, behind those that are parked.

        *place*: its place in the line, if it has one already. A backend that moves while a request is parked takes its
        place along, and the request follows.
        """
        if self._elsewhere():
            try:
                return await self._context.run(self._enter(work, counters, nbytes, place))
            except asyncio.CancelledError:
                if place is not None:  # the cancellation may have come before the first step over there
                    self._forsake(place)
                raise
        try:
            with Entered(self, counters, nbytes, parked=place is not None):
                if place is not None:
                    await self._unpark(place)
                elif self._must_park():
                    await self._unpark(self._park())
                return await work()
        except Moved as moved:
            if isinstance(moved.__cause__, asyncio.CancelledError):
                raise moved.__cause__ from None
            place = moved.place
        return await self._enter(work, counters, nbytes, place)

    def _depart(self, start: Start, offset: int, iov: BufferLike, counters: Counters) -> Flight | None:
        """Start a request whose memory is one buffer, as one of this backend; None, having done nothing, for others.

        When it lands it is counted as it ended, or not at all where the slow lane must do it.
        """
        if isinstance(iov, memoryview):
            nbytes = iov.nbytes
        elif type(iov) is bytearray:  # as in ``fast_lane``
            nbytes = len(iov)
        else:
            return None
        if not nbytes or get_ident() != self._context.thread_id:  # of the thread, as in ``fast_lane``
            return None
        flight = start(offset, (iov,), nbytes)
        if flight is not None:
            self._in_flight += 1
            counters.started += 1
            if not counters.started % STARTED_RUN:
                self._look_at_lanes(counters)
            stats = self.stats
            flight.note = (counters, stats.clock() if stats.timing else 0)
            flight.legs.append(self._landed)
        return flight

    def _landed(self, flight: Flight, ok: bool) -> None:
        """The leg of each request that was started."""
        counters, began = flight.note
        try:
            if ok:
                counters.landed += 1
                if began or self.stats.timing:
                    self.stats.ended(counters, flight.length, began, None)
                else:  # the same by hand: two calls less
                    counters.operations += 1
                    counters.weight += flight.length + REQUEST_COST
            elif flight.error is not None:
                self.stats.ended(counters, flight.length, began, flight.error)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle()

    def _look_at_lanes(self, counters: Counters) -> None:
        """Ask the fast lane first, or no longer: see ``Counters.only_started``."""
        in_vain = counters.only_started()
        if counters is self._reads:
            self._first_read = None if in_vain else self._fast_read
        else:
            self._first_write = None if in_vain else self._fast_write

    async def _give_a_turn(self, counters: Counters, iov: BufferLike) -> None:
        """Inline completions never suspend: without this a busy reader would starve the loop.

        Whoever reads while we wait is not alone. Large copies of several readers are started, so that the kernel's
        worker makes them beside the loop instead of the loop all by itself; as long as it is busy, file engines
        go on like that.
        """
        counters.due = counters.weight + FAIRNESS_BUDGET
        if counters is self._writes or readable_vector(iov).nbytes < _LARGE:
            await asyncio.sleep(0)
            return
        self._first_read = None
        try:
            await asyncio.sleep(0)
        finally:
            self._first_read = self._fast_read

    # -- reads

    def try_preadv(self, offset: int, iov: BufferLike) -> bool:
        """Fill *iov* from *offset* now if that needs no waiting at all; else answer False, having done nothing.

        False also in any thread but the backend's own, while drained, and for requests that are in error: ``co_preadv``
        tells which.
        """
        lane = self._fast_read
        return lane is not None and lane(offset, iov)

    async def co_preadv(self, offset: int, iov: BufferLike, flags: RequestFlags | int = 0) -> None:
        """Fill *iov* (one writable buffer or a list of them) with the disk's bytes from *offset* on.

        OutOfRange (EIO) for a request of more than 2^31-1 bytes, at a negative offset or past the end; NoMedium;
        TypeError for memory that cannot be written to; any error of the layers below.
        """
        lane = self._first_read
        if flags or lane is None or not lane(offset, iov):
            start = None if flags else self._start_read
            flight = None if start is None else self._depart(start, offset, iov, self._reads)
            if flight is not None and await flight.land():
                return
            vector = writable_vector(iov)
            # No closure: its cells would be made for each request, also for those that end above.
            work = partial(self._do_preadv, index(offset), vector, flags)
            await self._enter(work, self._reads, vector.nbytes)
        elif self._reads.weight > self._reads.due:
            await self._give_a_turn(self._reads, iov)

    async def _do_preadv(self, offset: int, vector: IoVector, flags: RequestFlags | int) -> None:
        edge = self._check_byte_request(offset, vector.nbytes)
        if self._throttled is not None:
            await _may_go(self._throttled, vector.nbytes, writes=False)
        await edge.co_preadv(offset, vector, flags)

    # -- writes

    def try_pwritev(self, offset: int, iov: BufferLike) -> bool:
        """Write *iov* at *offset* now if that needs no waiting; else answer False, having written nothing."""
        lane = self._fast_write
        return lane is not None and lane(offset, iov)

    async def co_pwritev(self, offset: int, iov: BufferLike, flags: RequestFlags | int = 0) -> None:
        """Write *iov* (one buffer or a list of them) at *offset*. With the write cache off it is durable afterwards.

        Errors as ``co_preadv``; also ReadOnly (EPERM). After an error or a cancellation each byte of the range is
        either the old or the new one.
        """
        lane = self._first_write
        if flags or lane is None or not lane(offset, iov):
            start = None if flags else self._start_write
            flight = None if start is None else self._depart(start, offset, iov, self._writes)
            if flight is not None and await flight.land():
                return
            vector = readable_vector(iov)
            # No closure: its cells would be made for each request, also for those that end above.
            work = partial(self._do_pwritev, index(offset), vector, flags)
            await self._enter(work, self._writes, vector.nbytes)
        elif self._writes.weight > self._writes.due:
            await self._give_a_turn(self._writes, iov)

    async def co_pwritev_part(
        self, offset: int, nbytes: int, iov: BufferLike, iov_offset: int, flags: RequestFlags | int = 0
    ) -> None:
        """Write the *nbytes* bytes of *iov* that begin at its byte *iov_offset*. ValueError where *iov* is shorter."""
        await self.co_pwritev(offset, readable_vector(iov).slice(iov_offset, nbytes).views, flags)

    async def _do_pwritev(self, offset: int, vector: IoVector, flags: RequestFlags | int) -> None:
        edge = self._check_write(offset, vector.nbytes, flags)
        if self._throttled is not None:
            await _may_go(self._throttled, vector.nbytes, writes=True)
        if not self._enable_write_cache:
            flags = flags | _FUA
        await edge.co_pwritev(offset, vector, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """Make *nbytes* from *offset* read as zeroes, by whatever is cheapest; MAY_UNMAP allows giving space back.

        NO_FALLBACK: UnsupportedFeature instead of writing zeroes by hand. Errors as ``co_pwritev``.
        """
        at, count = index(offset), index(nbytes)
        _not_negative(count)
        await self._enter(lambda: self._do_pwrite_zeroes(at, count, flags), self._writes, count)

    async def _do_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        edge = self._check_write(offset, nbytes, flags)
        if self._throttled is not None:
            await _may_go(self._throttled, nbytes, writes=True)
        if not self._enable_write_cache:
            flags = flags | _FUA
        await edge.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pwrite_compressed(self, offset: int, iov: BufferLike) -> None:
        """Write *iov* compressed: whole clusters, or up to the disk's end; an empty one ends the stream.

        UnsupportedFeature (ENOTSUP) where the driver cannot compress. Else as ``co_pwritev``.
        """
        await self.co_pwritev(offset, iov, RequestFlags.WRITE_COMPRESSED)

    async def co_make_zero(self, flags: RequestFlags | int = 0) -> None:
        """Make the whole disk read as zeroes, leaving out what does already (``blk_make_zero``). Not throttled.

        Each piece is a request of its own, so a drained section may come between; what was zeroed by then stays so
        when it is cancelled or fails.
        """
        offset = 0

        async def piece() -> int:
            edge = self._check_write(offset, 0, flags)
            left = edge.length - offset
            if left <= 0:
                return 0
            status = await edge.co_block_status(offset, min(left, _PIECE))
            if status.length and not status.flags & _ZERO:
                await edge.co_pwrite_zeroes(offset, status.length, flags)
            return status.length

        while done := await self._enter(piece):
            offset += done

    # -- discard, flush, truncate

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """The disk's user no longer needs these bytes. Does nothing unless the image was opened with discard=unmap."""
        at, count = index(offset), index(nbytes)
        _not_negative(count)
        await self._enter(lambda: self._do_pdiscard(at, count), self.stats.unmap, count)

    async def _do_pdiscard(self, offset: int, nbytes: int) -> None:
        edge = self._check_write(offset, nbytes, 0)
        await edge.co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        """Put every write that has completed so far onto stable storage. NoMedium while empty."""
        await self._enter(self._do_flush, self.stats.flush)

    async def _do_flush(self) -> None:
        await self._edge().co_flush()

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """Set the disk's length in bytes; new bytes read as zeroes. *exact*: no longer than that either.

        NoMedium ("No medium inserted"); ReadOnly; UnsupportedFeature. As in the reference document it neither parks
        nor counts as a request of the backend, so that a drained backend can be resized.
        """
        if self._elsewhere():
            await self._context.run(self.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags))
            return
        if index(length) < 0:
            raise ValueError(f"a disk cannot be {length} bytes long")
        edge = self._edge("No medium inserted")
        await edge.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)

    async def co_make_empty(self) -> None:
        """Let go of everything the root's own layer holds, so that its backing file shows. Drained meanwhile.

        NoMedium ("No medium inserted"); ReadOnly; UnsupportedFeature for formats that cannot. RuntimeError inside a
        request. Cancelled: parts of the layer are gone.
        """
        from blockio.io.driver_calls import make_empty  # few processes empty a layer

        if self._elsewhere():
            await self._context.run(self.co_make_empty())
            return
        edge = self._edge("No medium inserted")
        if edge.read_only or not self._perm & (Perm.WRITE | Perm.WRITE_UNCHANGED):
            raise ReadOnly
        async with drained(edge.node):
            await make_empty(edge.node)

    # -- facts

    def getlength(self) -> int:
        """The disk's length in bytes as last known (``blk_getlength``). NoMedium while empty. Never suspends."""
        return self._edge().length

    async def co_getlength(self) -> int:
        """The disk's length in bytes, asked anew where it can change behind our back. NoMedium while empty."""
        if self._elsewhere():
            return await self._context.run(self.co_getlength())
        return await self._edge().co_getlength()

    def nb_sectors(self) -> int:
        """The length in units of 512 bytes, rounded up. NoMedium while empty."""
        return -(-self.getlength() // _SECTOR)

    def get_geometry(self) -> int:
        """The length in units of 512 bytes; 0 while empty."""
        return 0 if self._root is None else self.nb_sectors()

    @property
    def limits(self) -> BlockLimits:
        """What the root takes in one request before it is split or padded. NoMedium while empty."""
        return self._edge().limits

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        """What the first bytes from *offset* hold, as far as one answer reaches; see ``BlockStatus``.

        Counted, parked and checked like a read.
        """
        _not_negative(nbytes)

        async def ask() -> BlockStatus:
            edge = self._check_byte_request(offset, nbytes)
            return await edge.co_block_status(offset, nbytes, want_zero=want_zero)

        return await self._enter(ask)

    async def co_get_info(self) -> BlockInfo:
        """Cluster size and state of the root's driver. NoMedium while empty."""
        if self._elsewhere():
            return await self._context.run(self.co_get_info())
        return await self._edge().co_get_info()

    # -- switches

    @property
    def enable_write_cache(self) -> bool:
        """Whether a write may be acknowledged before it is durable; while off every write carries FUA."""
        return self._enable_write_cache

    def set_enable_write_cache(self, wce: bool) -> None:
        """Turn the write cache on or off for the writes that begin from now on."""
        self._enable_write_cache = wce
        self._bind_lanes()

    def set_allow_write_beyond_eof(self, allow: bool) -> None:
        """Whether requests may reach past the end of the disk (image creation needs that)."""
        self._allow_write_beyond_eof = allow

    def set_disable_request_queuing(self, disable: bool) -> None:
        """True lets requests run while drained instead of parking them. Those already parked stay."""
        self._queuing = not disable

    # -- checks

    def _check_byte_request(self, offset: int, nbytes: int) -> Edge:
        """The reference document's checks in its order (``blk_check_byte_request``); zero bytes at the end are fine."""
        if nbytes > INT_MAX:
            raise OutOfRange(f"a request of {nbytes} bytes is larger than {INT_MAX}")
        edge = self._edge()
        if offset < 0:
            raise OutOfRange(f"offset {offset} is before the disk's beginning")
        if not self._allow_write_beyond_eof:
            length = edge.length
            if offset > length or length - offset < nbytes:
                raise OutOfRange(f"{nbytes} bytes at {offset} reach past the disk's end at {length}")
        return edge

    def _check_write(self, offset: int, nbytes: int, flags: RequestFlags | int) -> Edge:
        edge = self._check_byte_request(offset, nbytes)
        if edge.read_only:
            raise ReadOnly
        # The document asserts this one: a user of the backend who never asked to write.
        if not int(self._perm) & (_WRITES_UNCHANGED if flags & _WRITE_UNCHANGED else _WRITES):
            raise ReadOnly(f"{self._describe()} was opened without the permission to write")
        return edge


async def _may_go(member: ThrottleMember, nbytes: int, *, writes: bool) -> None:
    """Wait until the limits of *member*'s group allow as much."""
    from blockio.throttle.buckets import Direction  # few backends are in a group

    await member.intercept(Direction.WRITE if writes else Direction.READ, nbytes)


def _not_negative(nbytes: int) -> None:
    if nbytes < 0:
        raise ValueError(f"a request of {nbytes} bytes")
