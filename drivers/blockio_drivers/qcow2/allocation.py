"""The writing half of *mapping first*: where a write's bytes go, and how they become the guest's.

Invariants:

* A write goes in place only where the L2 entry is COPIED, its data plain and no metadata. Everything else gets new
  clusters, or what a cluster of our own has in reserve (an allocated zero cluster, subclusters without data), that
  nobody sees before ``link``.
* While such room is not linked its guest clusters are held in ``locks``: nobody else allocates, zeroes or
  discards them, and its L2 slice is pinned, so that ``link`` changes memory only and cannot fail.
* A write in place counts as a reader of its host clusters: a discard meanwhile cannot give them to somebody else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.aio.ranges import RangeHold, RangeLocks
from blockio.driver.base import Allocation
from blockio_drivers.qcow2.entries import InvalidEntry, Plan
from blockio_drivers.qcow2.tables import COMPRESSED, L2_OFFSET_MASK

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Sequence

    from blockio.aio.hauling import Put
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
        super().__init__(image.data, offset, length, host_offset)
        self._image = image
        self._token = image.retired.enter()

    async def link(self) -> None:
        """The clusters may be freed again."""
        self._image.retired.exit(self._token)

    async def abandon(self) -> None:
        """As ``link``."""
        self._image.retired.exit(self._token)


class NewRoom(Allocation):
    """Clusters from ``room`` on that take the place of what the subclusters of ``plan`` had."""

    __slots__ = ("_end", "_hold", "_plan", "_room", "_slice", "_writer")

    def __init__(
        self,
        writer: Writer,
        offset: int,
        length: int,
        *,
        room: int,
        plan: Plan,
        fresh: bool,
        found: Slice[array[int]],
        first: int,
        hold: RangeHold,
    ) -> None:
        geometry = writer.image.geometry
        bits = geometry.subcluster_bits
        inside = offset & geometry.subcluster_mask
        super().__init__(
            writer.image.data,
            offset,
            length,
            room + (offset & geometry.cluster_mask),
            cow_head=inside + ((first - plan.start) << bits),
            # Also past the disk's end: whoever makes it longer expects zeroes there, not what the cluster held before.
            cow_tail=((plan.end - first) << bits) - inside - length,
            fresh=fresh,
            divisible=writer.divisible and not plan.room,
        )
        self._writer = writer
        self._slice = found
        self._plan = plan
        self._hold = hold
        self._room = room
        self._end = room + hold.end - hold.start

    async def link(self) -> None:
        """Put the clusters into the L2 table (in memory; written back in order), let go of what was there."""
        self.enter()
        self.leave()

    def keep(self, nbytes: int) -> None:
        """Before anything is written: others that ask for room get what is not needed, right behind it."""
        end = self._room + ((nbytes + self._writer.mask) & ~self._writer.mask)
        if end < self._end:
            self._writer.spare(end, self._end - end)
            self._end = end

    @property
    def room_end(self) -> int:
        """To the last cluster's end."""
        return self._end - self.host_offset

    async def link_parts(self, puts: Sequence[Put]) -> None:
        """As ``link`` for the clusters that *puts* reach; the others were never anybody's."""
        writer, used = self._writer, self._room
        for start, stop, at in puts:
            first = self.host_offset + at - ((self.offset + start) & writer.mask)
            if first > used:
                writer.give_back(used, first - used)
            writer.enter_part(self._slice, self.offset + start, stop - start, first)
            used = (self.host_offset + at + stop - start + writer.mask) & ~writer.mask
        if used < self._end:
            writer.give_back(used, self._end - used)
        self.leave()

    async def reserve(self) -> None:
        """As ``link``, for clusters that read as zeroes: where the layout can say so they hold no data yet."""
        self._writer.enter(self._slice, self._plan, self._room, data=False)
        self.leave()

    async def abandon(self) -> None:
        """Give the clusters back."""
        if not self._plan.room:
            self._writer.give_back(self._room, self._end - self._room)
        self.leave()

    def enter(self) -> None:
        """The first half of ``link``: the clusters are the guest's."""
        self._writer.enter(self._slice, self._plan, self._room)

    def leave(self) -> None:
        """The second half: others may have the guest clusters."""
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
        self.divisible = not (image.geometry.extended_l2 or image.geometry.data_file)
        """New clusters can be used one by one: each all for data or for nothing, and anywhere."""
        self._bits = image.geometry.cluster_bits
        self._cluster = image.geometry.cluster_size
        self.mask = image.geometry.cluster_mask
        self._sub_bits = image.geometry.subcluster_bits
        self._sub_mask = image.geometry.subcluster_mask

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
        start = offset & ~self.mask
        waited = False
        while True:
            found = mapping.writable(key)
            if found is None:
                await mapping.make_writable(key)
                continue
            place = self._in_place(found.table, offset, nbytes)
            if place is not None:
                await self._confirm(place)
                return place
            if not await self.wait_for(start, self._cluster, again=waited):
                break
            waited = True
        return await self._new_room(found, offset, nbytes)

    def _in_place(self, table: array[int], offset: int, nbytes: int) -> InPlace | None:
        at, stop = self._mapping.span(offset, nbytes)
        try:
            reach, host = self._mapping.entries.in_place(table, at, stop)
        except InvalidEntry as error:
            raise self._mapping.corruption(error, offset, at) from None
        if not reach:
            return None
        inside = offset & self._sub_mask
        length = min(nbytes, (reach << self._sub_bits) - inside)
        self._look_at(host + inside, offset, length)
        return InPlace(self.image, offset, length, host + inside)

    def _look_at(self, host: int, offset: int, length: int) -> None:
        """Raise Corruption where guest *offset* may not be written to at *host*."""
        self.image.guard.check(host, length)

    async def _confirm(self, place: InPlace) -> None:
        """Raise Corruption, with *place* abandoned, where it is none of the file's."""
        if place.host_offset >= self.image.file.length:
            try:
                await self._allocator.belongs(place.host_offset, "Data cluster")
            except BaseException:
                await place.abandon()
                raise

    async def _room(self, plan: Plan, start: int, nbytes: int) -> tuple[int, bool]:
        """Where *plan* for *nbytes* of whole clusters from guest offset *start* on can be, and whether it is fresh."""
        if not plan.room:
            return await self._allocator.allocate(nbytes >> self._bits, "data cluster")
        self.image.guard.check(plan.room, nbytes)
        await self._allocator.belongs(plan.room, "Preallocated cluster")
        return plan.room, False

    async def _new_room(self, found: Slice[array[int]], offset: int, nbytes: int) -> NewRoom:
        mapping = self._mapping
        start = offset & ~self.mask
        busy = self.locks.overlapping(start, offset - start + nbytes)
        if busy:  # not the first cluster: our caller made sure of that
            nbytes = busy[0].start - offset
        at, stop = mapping.span(offset, nbytes)
        try:
            plan = mapping.entries.plan(found.table, at, stop)
        except InvalidEntry as error:
            raise mapping.corruption(error, offset, at) from None
        inside = offset & self._sub_mask
        end = offset - inside + ((plan.end - at) << self._sub_bits)
        held = ((end + self.mask) & ~self.mask) - start
        hold = self.locks.hold(start, held)
        found.pins += 1
        try:
            room, fresh = await self._room(plan, start, held)
        except BaseException:
            found.pins -= 1
            hold.release()
            raise
        length = min(nbytes, (plan.reach << self._sub_bits) - inside)
        return NewRoom(self, offset, length, room=room, plan=plan, fresh=fresh, found=found, first=at, hold=hold)

    def enter(self, found: Slice[array[int]], plan: Plan, room: int, *, data: bool = True) -> None:
        """*plan* was carried out with the clusters from host offset *room* on: they are the guest's."""
        self.let_go(self._mapping.entries.enter(found.table, plan, room, data=data), discard=False)
        self._mapping.mark(found, plan.start, plan.end)
        self.image.unstable = True  # the data we now point at

    def enter_part(self, found: Slice[array[int]], offset: int, nbytes: int, room: int) -> None:
        """As ``enter``, for guest bytes that fill clusters from host offset *room* on, or reach into the disk's end."""
        at, stop = self._mapping.span(offset, nbytes)
        self.enter(found, self._mapping.entries.plan(found.table, at, stop), room)

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

    def spare(self, room: int, nbytes: int) -> None:
        """Room that nothing was written to is free."""
        self._allocator.spare(room >> self._bits, nbytes >> self._bits)

    def give_back(self, room: int, nbytes: int) -> None:
        """Room that nothing ever named is free."""
        self._allocator.give_back(room >> self._bits, nbytes >> self._bits)
