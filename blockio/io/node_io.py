"""The request path of one node: counts, tracking, and the two lanes.

Slow lane (``co_``): check -> count -> pad -> wait behind serialising requests -> ``data``, ``zero`` … -> driver.
Fast lane (``try_``): two comparisons and the driver's own ``try_`` function; whenever there is a doubt that function is
replaced by one that answers False, so that the lane itself asks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias

from blockio.aio.context import on_new_stack
from blockio.aio.flight import no_flight
from blockio.buffers import fill_zero
from blockio.driver.base import BlockDriver, FormatDriver
from blockio.driver.debug import DebugDriver
from blockio.errors import NoMedium, ReadOnly, UnsupportedFeature
from blockio.graph.drain import RequestScope, current_requests
from blockio.graph.edge import Edge
from blockio.io import data, flush, status, zero
from blockio.io.align import Padding
from blockio.io.limits import check_range, check_transfer, merged_limits
from blockio.io.tracked import Ticket, TrackedRequests
from blockio.types import (
    BlockInfo,
    BlockLimits,
    BlockStatus,
    BlockStatuses,
    Capability,
    DetectZeroes,
    PreallocMode,
    RequestFlags,
    Role,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul, Put
    from blockio.buffers import IoVector
    from blockio.driver.child import Child
    from blockio.driver.debug import DebugListener
    from blockio.graph.holes import Holes
    from blockio.graph.node import BlockNode
    from blockio.graph.path import Cargo

__all__ = ["NodeIO"]

TryTransfer: TypeAlias = "Callable[[int, Sequence[Buffer], int], bool]"
TryRead: TypeAlias = "Callable[[int, Sequence[Buffer], int], bool | Child]"

_COPY_ON_READ: Final = int(RequestFlags.COPY_ON_READ)
_PREFETCH: Final = int(RequestFlags.PREFETCH)
_SERIALISING: Final = int(RequestFlags.SERIALISING)
_NO_WAIT: Final = int(RequestFlags.NO_WAIT)
_NO_FALLBACK: Final = int(RequestFlags.NO_FALLBACK)
_MAY_UNMAP: Final = int(RequestFlags.MAY_UNMAP)
_FUA: Final = int(RequestFlags.FUA)
_COMPRESSED: Final = int(RequestFlags.WRITE_COMPRESSED)
_STACK: Final = 32
"""How many nodes of a chain share a call stack: a read makes some five calls in each, and Python allows 1000."""
_LIMITING_ROLES: Final = Role.DATA | Role.FILTERED | Role.COW


def _never(_offset: int, _bufs: Sequence[Buffer], _nbytes: int) -> bool:
    return False


class _Nothing:
    """What a node without a driver is as long as: no request fits."""

    length = -1


class NodeIO:
    """Implements ``graph.path.RequestPath`` for one node.

    Invariants:

    * ``tracked`` has the requests that have entered and not left, slow or started; the one that leaves it empty
      kicks the node. Every entry is paired in a ``finally``, so failing and being cancelled leave too.
    * ``write_gen`` grows with each write that ended, well or not, in either lane; ``flushed_gen`` is a generation all
      of whose writes are on stable storage.
    * ``_try_read`` and ``_try_write`` are the driver's functions only while nothing speaks against the fast lane: see
      ``refresh_lanes``. While a serialising request is in flight both are ``_never``.
    """

    __slots__ = (
        "_lane_read",
        "_lane_write",
        "_mask",
        "_sized",
        "_start_read",
        "_start_write",
        "_try_read",
        "_try_write",
        "_unmarked_write",
        "cluster_size",
        "debug_event",
        "flushed_gen",
        "flushes",
        "height",
        "limits",
        "maps_reads",
        "maps_status",
        "maps_writes",
        "marks",
        "native_fua",
        "node",
        "starts_stack",
        "tracked",
        "wr_highest_offset",
        "write_gen",
    )

    def __init__(self, node: BlockNode) -> None:
        """For a node whose driver is about to open; when it has, ``refresh_limits`` opens the lanes."""
        self.node = node
        self.limits = BlockLimits()
        self.cluster_size = 0
        """The driver's cluster size in bytes, or its block size where it has none; known while copying on read."""
        self.tracked = TrackedRequests()
        self.flushes = TrackedRequests()
        self.write_gen = 0
        self.flushed_gen = 0
        self.wr_highest_offset = 0
        """The end of the highest write so far, in bytes (``query-blockstats``)."""
        # The driver, where the framework reads, writes or answers status through its mapping.
        self.maps_reads: FormatDriver | None = None
        self.maps_writes: FormatDriver | None = None
        self.maps_status: FormatDriver | None = None
        self.native_fua = False
        self.debug_event: DebugListener | None = None
        """Where the driver hears what happens to its node's requests; None where it does not care."""
        self.marks = False
        """There are dirty bitmaps to record writes in."""
        self.height = 0
        """The longest way down from here, in edges."""
        self.starts_stack = False
        """What goes down from here does so on a call stack of its own: a chain is longer than one."""
        self._mask = 0
        self._sized: BlockDriver | _Nothing = _Nothing()
        self._lane_read: TryRead = _never
        self._lane_write: TryTransfer = _never
        self._try_read: TryRead = _never
        self._try_write: TryTransfer = _never
        self._unmarked_write: TryTransfer = _never

    # -- what the parts of the path ask

    @property
    def in_flight(self) -> int:
        """How many requests have entered and not left, but for those of the fast lane, which never suspend."""
        return len(self.tracked.requests)

    def driver(self) -> BlockDriver:
        """The node's driver; NoMedium when it is gone. Asked anew after an await: a corruption may take it away."""
        driver = self.node.driver
        if driver is None:
            raise NoMedium
        return driver

    def request(self, start: int, end: int, *, serialising: bool = False, no_wait: bool = False) -> _Request:
        """``async with io.request(start, end):`` one counted and tracked request, entered behind those in its way."""
        return _Request(self, start, end, serialising, no_wait)

    def written(self, offset: int, nbytes: int, *, ok: bool, unchanged: bool = False) -> None:
        """A write of *nbytes* at *offset* ended. With *ok* it may have made the node longer: the parents hear of it.

        It is recorded in the dirty bitmaps unless it left the disk reading as before (*unchanged*).
        """
        self.write_gen += 1
        end = offset + nbytes
        if ok and nbytes:
            if end > self.wr_highest_offset:  # noqa: PLR1730  # max() would be a call for each write
                self.wr_highest_offset = end
            driver = self.node.driver
            if driver is not None and end > driver.length:
                driver.length = end
                self.node.length_changed()
        if self.marks and not unchanged:
            self.node.dirty_bitmaps.mark(offset, nbytes)

    async def measured_again(self, end: int) -> None:
        """A write up to *end* failed or was cancelled: what the storage took of it may still have made it longer.

        Without this the bytes that did arrive would read as zeroes until somebody else's write reaches as far.
        """
        driver = self.node.driver
        if driver is not None and end > driver.length:
            before = driver.length
            after = await driver.co_getlength()
            if after != before:
                self.node.length_changed()
                self.node.dirty_bitmaps.mark(before, max(after - before, 0))

    # -- entering and leaving

    def _enter(self, start: int, end: int, serialising: bool) -> tuple[int, RequestScope | None]:
        """Count and track a request. Nothing here suspends, so requests queue in the order of the calls."""
        scope = current_requests.get()
        if scope is None or not scope.active:
            # The outermost request speaks for those it makes below: a drain looks at everything above its node.
            scope = RequestScope(self.node)
            scope.__enter__()
        else:
            scope = None
        if serialising:
            self._try_read = self._try_write = _never
        return self.tracked.enter(start, end, serialising=serialising), scope

    def _leave(self, ticket: Ticket, scope: RequestScope | None) -> None:
        tracked = self.tracked
        if tracked.serialising:
            tracked.leave(ticket)
            if not tracked.serialising:
                self._try_read = self._lane_read
                self._try_write = self._lane_write
        else:
            tracked.leave(ticket)
        if scope is not None:
            scope.__exit__(None, None, None)
        if not tracked.requests:
            self.node.kick()

    # -- slow lane

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Fill *iov* from *offset*; past the end of the disk there are zeroes.

        COPY_ON_READ keeps what came from below; with PREFETCH that is all, and *iov* may be an ``IoVector`` without
        views. OutOfRange for what is no request, NoMedium without a driver.
        """
        nbytes = iov.nbytes
        check_transfer(offset, nbytes)
        node = self.node
        if node.driver is None:
            raise NoMedium
        if not nbytes:
            return
        keep = False
        if flags or node.copy_on_read:
            flags = int(flags)
            keep = bool(flags & _COPY_ON_READ or node.copy_on_read) and not (node.flags.inactive or node.read_only)
            if flags & _PREFETCH and not keep:
                from blockio.io.copy_on_read import hand_down_prefetch  # few nodes keep what they read

                await hand_down_prefetch(self, offset, nbytes)
                return
        if (offset | nbytes) & self._mask:
            padding = Padding(offset, nbytes, self._mask + 1)
            iov = padding.around(iov)
            offset = padding.start
        if keep:
            await self._read_and_keep(offset, iov, bool(flags & _PREFETCH))
            return
        tracked = self.tracked
        ticket, scope = self._enter(offset, offset + iov.nbytes, False)
        try:
            if tracked.serialising:
                await tracked.wait(ticket)
            if self.starts_stack:
                await on_new_stack(data.read_blocks(self, offset, iov))
            else:
                await data.read_blocks(self, offset, iov)
        finally:
            self._leave(ticket, scope)

    async def _read_and_keep(self, offset: int, iov: IoVector, prefetch: bool) -> None:
        from blockio.io.copy_on_read import read_and_keep  # as above

        if not self.cluster_size:
            info = await self.driver().co_get_info()
            self.cluster_size = max(info.cluster_size, self._mask + 1)
        size = self.cluster_size
        start = offset // size * size
        end = -(-(offset + iov.nbytes) // size) * size
        async with self.request(start, end, serialising=True):
            await read_and_keep(self, start, end, offset, iov, prefetch=prefetch)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Write *iov* at *offset*; past the end it makes a protocol node longer.

        ReadOnly (EPERM), OutOfRange, NoMedium; BlockError(EBUSY) under SERIALISING and NO_WAIT where another request is
        in the way. After a failure or cancellation each block holds its old or its new content.
        """
        nbytes = iov.nbytes
        check_transfer(offset, nbytes)
        if self.node.driver is None:
            raise NoMedium
        if flags:
            flags = int(flags)
            if not nbytes and flags & _COMPRESSED:
                await self._end_compressed(offset, iov, flags)
                return
        if not nbytes:
            return
        self._must_be_writable()
        if self.node.detect_zeroes is not DetectZeroes.OFF and not flags & _COMPRESSED and self._counts_as_zero(iov):
            unmap = _MAY_UNMAP if self.node.detect_zeroes is DetectZeroes.UNMAP else 0
            await self.co_pwrite_zeroes(offset, nbytes, flags | unmap)
            return
        padding: Padding | None = None
        start, end = offset, offset + nbytes
        if (offset | nbytes) & self._mask:
            padding = Padding(offset, nbytes, self._mask + 1)
            start, end = padding.start, padding.end
        tracked = self.tracked
        ticket, scope = self._enter(start, end, padding is not None or bool(flags & _SERIALISING))
        ok = False
        try:
            if tracked.serialising:
                await tracked.wait(ticket, no_wait=bool(flags & _NO_WAIT))
            try:
                if padding is not None:
                    await padding.read_edges(self._read_blocks, self.debug_event)
                    iov = padding.around(iov)
                needs_flush = await data.write_blocks(self, start, iov, flags)
                ok = True
            finally:
                self.written(start, end - start, ok=ok)
                if not ok:
                    await self.measured_again(end)
            if needs_flush:
                await flush.flush(self)
        finally:
            self._leave(ticket, scope)

    def _counts_as_zero(self, iov: IoVector) -> bool:
        """For detect-zeroes: whether writing *iov* had better be a zero write."""
        return self.driver().capabilities.write_zeroes is Capability.NATIVE and iov.is_zero()

    async def _read_blocks(self, offset: int, iov: IoVector) -> None:
        await data.read_blocks(self, offset, iov)

    async def _end_compressed(self, offset: int, iov: IoVector, flags: int) -> None:
        """An empty compressed write ends the stream: it goes to the driver although it moves nothing."""
        self._must_be_writable()
        async with self.request(offset, offset):
            await data.write_blocks(self, offset, iov, flags)

    def _must_be_writable(self) -> None:
        flags = self.node.flags
        if flags.read_only:
            raise ReadOnly
        if flags.inactive:
            raise RuntimeError(f"a write to the inactive node '{self.node.name}'")

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """Make *nbytes* from *offset* read as zeroes. MAY_UNMAP counts only on a node opened with ``discard=unmap``.

        Raises as ``co_pwritev`` does; under NO_FALLBACK UnsupportedFeature where zeroes would have to be written.
        """
        check_range(offset, nbytes)
        driver = self.driver()
        flags = int(flags)
        if flags & _MAY_UNMAP and not self.node.flags.unmap:
            flags &= ~_MAY_UNMAP
        misaligned = (offset | nbytes) & self._mask
        if flags & _NO_FALLBACK and misaligned:
            raise UnsupportedFeature
        if not nbytes:
            return
        self._must_be_writable()
        zero.check_end(self, driver, offset + nbytes)
        padding = Padding(offset, nbytes, self._mask + 1) if misaligned else None
        start, end = (offset, offset + nbytes) if padding is None else (padding.start, padding.end)
        low, high = zero.touched(self, driver, start, end)
        serialising = padding is not None or (low, high) != (start, end) or bool(flags & _SERIALISING)
        async with self.request(low, high, serialising=serialising, no_wait=bool(flags & _NO_WAIT)):
            ok = False
            try:
                if padding is None:
                    needs_flush = await zero.zero_blocks(self, offset, nbytes, flags)
                else:
                    await padding.read_edges(self._read_blocks, self.debug_event)
                    needs_flush = await zero.zero_padded(self, padding, flags)
                ok = True
            finally:
                self.written(start, end - start, ok=ok)
                if not ok:
                    await self.measured_again(end)
            if needs_flush:
                await flush.flush(self)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """Say that the bytes are not needed. Does nothing unless the node was opened with ``discard=unmap``."""
        from blockio.io.discard import discard  # few processes discard

        check_range(offset, nbytes)
        driver = self.driver()
        if not nbytes or not self.node.flags.unmap or driver.capabilities.discard is Capability.NONE:
            return
        self._must_be_writable()
        async with self.request(offset, offset + nbytes):
            try:
                await discard(self, offset, nbytes)
            finally:
                self.written(offset, nbytes, ok=False)  # a discard past the end makes nothing longer

    async def co_flush(self) -> None:
        """Put every write that completed so far onto stable storage, in this node and in those below it."""
        self.driver()
        async with self.request(0, 0):
            await flush.flush(self)

    async def co_truncate(
        self, length: int, *, exact: bool = False, prealloc: PreallocMode | str = "off", flags: RequestFlags | int = 0
    ) -> None:
        """Set the length; see ``blockio.io.truncate``."""
        from blockio.io.truncate import truncate  # few processes resize

        await truncate(self, length, exact=exact, prealloc=PreallocMode(prealloc), flags=int(flags))

    async def co_getlength(self) -> int:
        """The length in bytes, asked anew where it can have changed behind our back."""
        driver = self.driver()
        async with self.request(0, 0):
            return await driver.co_getlength()

    async def co_get_info(self) -> BlockInfo:
        """The driver's cluster size and state."""
        driver = self.driver()
        async with self.request(0, 0):
            return await driver.co_get_info()

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        """What the first bytes from *offset* hold in this layer; see ``blockio.io.status``."""
        check_range(offset, nbytes)
        self.driver()
        async with self.request(0, 0):
            return await status.block_status(self, offset, nbytes, want_zero=want_zero)

    async def co_block_statuses(self, offset: int, nbytes: int, holes: Holes | None = None) -> list[BlockStatuses]:
        """Several answers in a row, for whoever looks at the whole disk; see ``blockio.io.status``."""
        check_range(offset, nbytes)
        self.driver()
        async with self.request(0, 0):
            return await status.block_statuses(self, offset, nbytes, holes)

    async def co_is_allocated_above(self, base: BlockNode | None, offset: int, nbytes: int) -> tuple[int, int]:
        """Which layer above *base* has the first bytes from *offset*; see ``blockio.io.status``."""
        check_range(offset, nbytes)
        self.driver()
        async with self.request(0, 0):
            return await status.is_allocated_above(self.node, base, offset, nbytes)

    async def co_copy_range_to(
        self, offset: int, target: Edge, target_offset: int, nbytes: int, haul: Haul | None = None
    ) -> None:
        """Copy to *target* inside the storage, or by *haul*; UnsupportedFeature where it must be read and written."""
        from blockio.io.copy import copy_to  # few copy without looking, here as below

        check_transfer(offset, nbytes)
        check_transfer(target_offset, nbytes)
        self.driver()
        if nbytes:
            await copy_to(self, offset, target, target_offset, nbytes, haul)

    async def co_copy_range_from(self, cargo: Cargo, offset: int, nbytes: int, *, packed: int = 0) -> list[Put]:
        """Take bytes that lie elsewhere; the other end of ``co_copy_range_to``. See ``blockio.io.copy.copy_from``."""
        from blockio.io.copy import copy_from

        check_transfer(offset, nbytes)
        return await copy_from(self, cargo, offset, nbytes, packed=packed)

    # -- fast lane

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Fill *bufs* (*nbytes* in all) now, or answer False: then ``co_preadv`` is the way."""
        end = offset + nbytes
        if offset < 0 or end > self._sized.length:
            return False
        found = self._try_read(offset, bufs, nbytes)
        while type(found) is Edge:  # a turn for each overlay that holds nothing here
            path = found.path
            if type(path) is not NodeIO:
                break
            length = path._sized.length
            if end > length:  # behind the end of a backing file there are zeroes
                return 0 <= length <= offset and fill_zero(bufs)
            found = path._try_read(offset, bufs, nbytes)
        return found if found is True or found is False else found.try_preadv(offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Write *bufs* now, within the disk, or answer False having written nothing."""
        end = offset + nbytes
        if offset < 0 or end > self._sized.length:
            return False
        if self._try_write(offset, bufs, nbytes):
            self.write_gen += 1
            self.wr_highest_offset = max(self.wr_highest_offset, end)
            return True
        return False

    # -- the fast lane's way down, but to an engine that takes its time

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Begin to fill *bufs*, or answer None having done nothing: then ``co_preadv`` is the way.

        What is under way is in flight and tracked as any request. No scope for drains inside it is needed: nothing of
        its own runs until it has ended.
        """
        end = offset + nbytes
        tracked = self.tracked
        if offset < 0 or end > self._sized.length or (offset | nbytes) & self._mask or tracked.serialising:
            return None
        flight = self._start_read(offset, bufs, nbytes)
        if flight is not None:
            tracked.requests[flight] = (offset, end)
            flight.legs.append(self._landed)
        return flight

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Begin to write *bufs* within the disk, or answer None having written nothing."""
        end = offset + nbytes
        tracked = self.tracked
        if offset < 0 or end > self._sized.length or (offset | nbytes) & self._mask or tracked.serialising:
            return None
        flight = self._start_write(offset, bufs, nbytes)
        if flight is not None:
            tracked.requests[flight] = (offset, end)
            flight.legs.append(self._landed_write)
        return flight

    def _landed(self, flight: Flight, ok: bool) -> None:
        tracked = self.tracked
        if tracked.serialising or tracked.waiters:
            self._leave(flight, None)
            return
        del tracked.requests[flight]
        if not tracked.requests:
            self.node.kick()

    def _landed_write(self, flight: Flight, ok: bool) -> None:
        start, end = self.tracked.requests[flight]
        if ok and not self.marks and end <= self._sized.length:  # what ``written`` does, without the call
            self.write_gen += 1
            if end > self.wr_highest_offset:  # noqa: PLR1730  # as there
                self.wr_highest_offset = end
        else:
            self.written(start, end - start, ok=ok)
        self._landed(flight, ok)

    def _try_write_marking(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """The fast write of a node with dirty bitmaps: recorded as in the slow lane, well or not."""
        wrote = True
        try:
            wrote = self._unmarked_write(offset, bufs, nbytes)
        finally:
            if wrote:
                self.node.dirty_bitmaps.mark(offset, nbytes)
        return wrote

    def _try_whole_blocks(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """The fast read of a node with blocks: whole ones only."""
        if (offset | nbytes) & self._mask:
            return False
        driver = self.node.driver
        return driver is not None and driver.try_preadv(offset, bufs, nbytes)

    def _try_write_whole_blocks(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        if (offset | nbytes) & self._mask:
            return False
        driver = self.node.driver
        return driver is not None and driver.try_pwritev(offset, bufs, nbytes)

    # -- what changes seldom

    def refresh_limits(self) -> None:
        """Merge the driver's limits with its children's anew."""
        driver = self.node.driver
        if driver is not None:
            children = self.node.children.values()
            below = [edge.limits for edge in children if edge.role & _LIMITING_ROLES]
            self.limits = merged_limits(driver.limits(), below)
            paths = [edge.node.path for edge in children]
            self.height = 1 + max((path.height for path in paths if isinstance(path, NodeIO)), default=-1)
            self.starts_stack = self.height > 0 and self.height % _STACK == 0
        self._mask = self.limits.request_alignment - 1
        self.cluster_size = 0
        self.refresh_lanes()

    def refresh_lanes(self) -> None:
        """Find out anew how the driver is served, and whether the fast lane is open.

        It is closed for good reasons only: no driver, copy-on-read, an inactive node, one so high in a chain that what
        goes down from it needs a stack of its own; for writes also a read-only node and detect-zeroes. A serialising
        request closes it for its time.
        """
        node = self.node
        driver = node.driver
        self.marks = bool(node.dirty_bitmaps)
        self.debug_event = driver.co_debug_event if isinstance(driver, DebugDriver) else None
        self._lane_read = self._lane_write = _never
        self._start_read = self._start_write = no_flight
        self._sized = _Nothing()
        self.maps_reads = self.maps_writes = self.maps_status = None
        if driver is not None:
            kind = type(driver)
            if isinstance(driver, FormatDriver):
                self.maps_reads = driver if kind.co_preadv is FormatDriver.co_preadv else None
                self.maps_writes = driver if kind.co_pwritev is FormatDriver.co_pwritev else None
                self.maps_status = driver if kind.co_block_status is FormatDriver.co_block_status else None
            # A format's own FUA would have to be the framework's, which writes for it: a flush.
            self.native_fua = driver.capabilities.fua is Capability.NATIVE and self.maps_writes is None
            self._sized = driver
            if not (node.copy_on_read or node.flags.inactive or self.starts_stack):
                if self._mask and kind.try_preadv is not BlockDriver.try_preadv:
                    self._lane_read = self._try_whole_blocks
                elif kind.try_descend is not BlockDriver.try_descend:
                    self._lane_read = driver.try_descend
                elif kind.try_preadv is not BlockDriver.try_preadv:
                    self._lane_read = driver.try_preadv
                writable = not node.flags.read_only and node.detect_zeroes is DetectZeroes.OFF
                if writable and kind.try_pwritev is not BlockDriver.try_pwritev:
                    self._lane_write = self._try_write_whole_blocks if self._mask else driver.try_pwritev
                    if self.marks:
                        self._unmarked_write, self._lane_write = self._lane_write, self._try_write_marking
                if not self.limits.max_transfer:  # nothing cuts a transfer here
                    self._start_read = driver.start_preadv
                    self._start_write = driver.start_pwritev if writable else no_flight
        if not self.tracked.serialising:
            self._try_read = self._lane_read
            self._try_write = self._lane_write


class _Request:
    """One counted and tracked request as an async context manager; see ``NodeIO.request``."""

    __slots__ = ("_end", "_io", "_no_wait", "_scope", "_serialising", "_start", "_ticket")

    def __init__(self, io: NodeIO, start: int, end: int, serialising: bool, no_wait: bool) -> None:
        self._io = io
        self._start = start
        self._end = end
        self._serialising = serialising
        self._no_wait = no_wait

    async def __aenter__(self) -> None:
        io = self._io
        self._ticket, self._scope = io._enter(self._start, self._end, self._serialising)
        if io.tracked.serialising:
            try:
                await io.tracked.wait(self._ticket, no_wait=self._no_wait)
            except BaseException:
                io._leave(self._ticket, self._scope)
                raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._io._leave(self._ticket, self._scope)
