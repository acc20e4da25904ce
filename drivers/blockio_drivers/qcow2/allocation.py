"""The writing half of *mapping first*: where a write's bytes go, and how they become the guest's.

Invariants:

* A write goes in place only where the L2 entry is COPIED, plain and no metadata. Everything else gets new clusters (or
  the reserved ones of an allocated zero cluster) that nobody sees before ``link``.
* While such room is not linked its guest clusters are held in ``locks``: nobody else allocates, zeroes or
  discards them, and its L2 slice is pinned, so that ``link`` changes memory only and cannot fail.
* A write in place counts as a reader of its host clusters: a discard meanwhile cannot give them to somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.aio.ranges import RangeHold, RangeLocks
from blockio.driver.base import Allocation
from blockio_drivers.qcow2.tables import COMPRESSED, COPIED, L2_OFFSET_MASK, ZERO

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.cache import Slice
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping
    from blockio_drivers.qcow2.writeback import WriteBack

__all__ = ["InPlace", "NewRoom", "Writer"]


class InPlace(Allocation):
    """Bytes that are the guest's already: there is nothing to link."""

    __slots__ = ("_image", "_token")

    def __init__(self, image: Image, offset: int, length: int, host_offset: int) -> None:
        super().__init__(image.file, offset, length, host_offset)
        self._image = image
        self._token = image.retired.enter()

    async def link(self) -> None:
        """The clusters may be freed again."""
        self._image.retired.exit(self._token)

    async def abandon(self) -> None:
        """As ``link``."""
        self._image.retired.exit(self._token)


class NewRoom(Allocation):
    """Clusters that take the place of what the guest clusters from ``slice``'s entry ``first`` on had."""

    __slots__ = ("_first", "_hold", "_room", "_slice", "_writer")

    def __init__(
        self,
        writer: Writer,
        offset: int,
        length: int,
        *,
        room: int,
        reused: bool,
        fresh: bool,
        found: Slice[array[int]],
        first: int,
        hold: RangeHold,
    ) -> None:
        image = writer.image
        head = offset & image.geometry.cluster_mask
        super().__init__(
            image.file,
            offset,
            length,
            room + head,
            cow_head=head,
            # Also past the disk's end: whoever makes it longer expects zeroes there, not what the cluster held before.
            cow_tail=hold.end - (offset + length),
            fresh=fresh,
        )
        self._writer = writer
        self._slice = found
        self._first = first
        self._hold = hold
        self._room = -1 if reused else room

    async def link(self) -> None:
        """Put the clusters into the L2 table (in memory; written back in order), let go of what was there."""
        self._writer.enter(self._slice, self._first, self.host_offset - self.cow_head, self._clusters)
        self._end()

    async def abandon(self) -> None:
        """Give the clusters back."""
        if self._room >= 0:
            self._writer.give_back(self._room, self._clusters)
        self._end()

    @property
    def _clusters(self) -> int:
        return (self._hold.end - self._hold.start) >> self._writer.image.geometry.cluster_bits

    def _end(self) -> None:
        self._slice.pins -= 1
        self._hold.release()


class Writer:
    """Finds and makes room for writes; see the module's docstring for what is kept true."""

    def __init__(self, image: Image, mapping: Mapping, allocator: Allocator, write_back: WriteBack) -> None:
        self.image = image
        self.locks = RangeLocks()
        self._queue = RangeLocks()
        self._mapping = mapping
        self._allocator = allocator
        self._write_back = write_back
        self._bits = image.geometry.cluster_bits
        self._cluster = image.geometry.cluster_size
        self._mask = image.geometry.cluster_mask

    async def wait_for(self, start: int, nbytes: int, *, again: bool) -> bool:
        """Wait for room in that (cluster-aligned) range that is not linked yet; True: we waited, look *again*.

        Whoever waits is queued, so that a stream of writers cannot starve it. Whose turn has come then only looks at
        what is held, not at those queued behind it: two that did would let each other pass forever.
        """
        if not self.locks.conflicts(start, nbytes) and (again or not self._queue.conflicts(start, nbytes)):
            return False
        async with self._queue.hold(start, nbytes):
            # Let go of at once, because what follows happens without an await.
            (await self.locks.acquire(start, nbytes)).release()
        return True

    async def allocate(self, offset: int, nbytes: int) -> Allocation:
        """Room for the first bytes of a write, as ``FormatDriver.co_allocate`` says."""
        if self.image.retired_clusters:
            await self._write_back.relieve()
        mapping = self._mapping
        key = offset >> mapping.slice_shift
        start = offset & ~self._mask
        first = (offset >> self._bits) & (mapping.slice_entries - 1)
        last = min(mapping.slice_entries, first + ((offset - start + nbytes + self._mask) >> self._bits))
        waited = False
        while True:
            found = mapping.writable(key)
            if found is None:
                await mapping.make_writable(key)
                continue
            place = self._in_place(found.table, first, last, offset, nbytes)
            if place is not None:
                if place.host_offset >= self.image.file.length:
                    try:
                        await self._allocator.belongs(place.host_offset, "Data cluster")
                    except BaseException:
                        await place.abandon()
                        raise
                return place
            if not await self.wait_for(start, self._cluster, again=waited):
                break
            waited = True
        return await self._new_room(found, first, last, offset, nbytes)

    def _in_place(self, table: array[int], first: int, last: int, offset: int, nbytes: int) -> InPlace | None:
        entry = table[first]
        host = entry & L2_OFFSET_MASK
        if not entry & COPIED or entry & (COMPRESSED | ZERO) or not host:
            return None
        self._mapping.validate(entry, offset)
        at = first + 1
        while at < last and table[at] == entry + ((at - first) << self._bits):
            at += 1
        inside = offset & self._mask
        length = min(nbytes, ((at - first) << self._bits) - inside)
        self.image.guard.check(host + inside, length)
        return InPlace(self.image, offset, length, host + inside)

    def _replaced(self, entry: int) -> bool:
        """Whether a write to *entry*'s cluster needs a new one."""
        return not entry & COPIED or bool(entry & COMPRESSED) or not entry & L2_OFFSET_MASK

    async def _new_room(self, found: Slice[array[int]], first: int, last: int, offset: int, nbytes: int) -> Allocation:
        table = found.table
        entry = table[first]
        start = offset & ~self._mask
        if not entry & COMPRESSED:
            self._mapping.validate(entry, offset)
        reused = not self._replaced(entry)  # an allocated zero cluster of our own
        busy = self.locks.overlapping(start, (last - first) << self._bits)
        if busy:  # not the first cluster: our caller made sure of that
            last = first + ((busy[0].start - start) >> self._bits)
        at = first + 1
        while at < last:
            if reused:
                if table[at] != entry + ((at - first) << self._bits):
                    break
            elif not self._replaced(table[at]):
                break
            elif not table[at] & COMPRESSED and table[at] & L2_OFFSET_MASK:
                self._mapping.validate(table[at], start + ((at - first) << self._bits))
            at += 1
        count = at - first
        hold = self.locks.hold(start, count << self._bits)
        found.pins += 1
        try:
            if reused:
                room, fresh = entry & L2_OFFSET_MASK, False
                self.image.guard.check(room, count << self._bits)
                await self._allocator.belongs(room, "Preallocated cluster")
            else:
                room, fresh = await self._allocator.allocate(count, "data cluster")
        except BaseException:
            found.pins -= 1
            hold.release()
            raise
        length = min(nbytes, (count << self._bits) - (offset - start))
        return NewRoom(self, offset, length, room=room, reused=reused, fresh=fresh, found=found, first=first, hold=hold)

    def enter(self, found: Slice[array[int]], first: int, room: int, count: int) -> None:
        """Make *count* clusters at host offset *room* those of the guest clusters from entry *first* on."""
        table = found.table
        old = table[first : first + count]
        for at in range(count):
            table[first + at] = (room + (at << self._bits)) | COPIED
        if old[0] & L2_OFFSET_MASK != room:  # else it was ours before: an allocated zero cluster that is data now
            self.let_go(old, discard=False)
        self._mapping.cache.mark(found, first * 8, (first + count) * 8)
        self.image.unstable = True  # the data we now point at

    def let_go(self, entries: Iterable[int], *, discard: bool) -> None:
        """No L2 entry in memory is one of *entries* any more: free what they held, when that is safe."""
        bits = self._bits
        start = end = 0  # host clusters side by side, freed as one
        for entry in entries:
            if entry & COMPRESSED:
                where = self.image.geometry.compressed(entry)
                first, last = where.offset >> bits, (where.offset + where.nbytes - 1) >> bits
            elif entry & L2_OFFSET_MASK:
                first = last = (entry & L2_OFFSET_MASK) >> bits
            else:
                continue
            if first == end and end:
                end = last + 1
                continue
            if end:
                self.image.retire(start, end - start, discard=discard)
            start, end = first, last + 1
        if end:
            self.image.retire(start, end - start, discard=discard)

    def give_back(self, room: int, count: int) -> None:
        """Room that nothing ever named is free."""
        self._allocator.give_back(room >> self._bits, count)
