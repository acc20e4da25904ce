"""Guest data in a file of its own: the data file.

Stands on *External data file bit* and *Raw external data bit* of QEMU's ``docs/interop/qcow2.txt``: "clusters in the
external data file are not refcounted", and each lies at its guest offset. So room for a write need not be found, and
a cluster that the guest lets go of is nobody else's.

Invariants:

* What was let go of is discarded only when the L2 entry that let go of it is on stable storage, and only if it has not
  been taken again by then; see ``writeback``. Meanwhile its guest clusters are held.
* A **raw** data file reads as the disk does, whenever somebody looks, also after a crash. So zeroes are written to it
  before an L2 entry says so; and where an entry does not say *data* yet, it must have said so on stable storage before
  any data comes: the place reads as zeroes then. Writes in place are held, so that no zeroes overtake them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from blockio.types import RequestFlags
from blockio_drivers.qcow2.allocation import InPlace, Writer
from blockio_drivers.qcow2.entries import InvalidEntry

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from blockio.aio.ranges import RangeHold, RangeLocks
    from blockio.driver.base import Allocation
    from blockio_drivers.qcow2.cache import Slice
    from blockio_drivers.qcow2.entries import Plan
    from blockio_drivers.qcow2.image import Image

__all__ = ["DataFile", "DataFileWriter"]


class DataFile:
    """What of one data file was taken, and what need not be kept; clusters by number."""

    def __init__(self, image: Image, locks: RangeLocks) -> None:
        """*locks*: guest clusters that somebody is busy with."""
        self._image = image
        self._locks = locks
        self._bits = image.geometry.cluster_bits
        self._touched = 0
        self._dropped: dict[int, None] = {}
        self.leaving: dict[int, None] = {}
        """Those whose L2 entries the write-back under way, or one that failed, has let go of."""

    def take(self, offset: int, nbytes: int) -> bool:
        """Whole clusters will be written; whether they read as zeroes until then."""
        if self._dropped or self.leaving:
            for cluster in range(offset >> self._bits, (offset + nbytes) >> self._bits):
                self._dropped.pop(cluster, None)
                self.leaving.pop(cluster, None)
        data = self._image.data
        fresh = offset >= max(self._touched, data.length) and data.has_zero_init()
        self._touched = max(self._touched, offset + nbytes)
        return fresh

    def busy(self, offset: int, nbytes: int) -> bool:
        """Whether a write in place would come between what must be done together."""
        return self._image.raw and self._locks.conflicts(offset, nbytes)

    def drop(self, cluster: int) -> None:
        """No L2 entry in memory names *cluster* any more, and it may be discarded."""
        self._dropped[cluster] = None

    def begin(self) -> None:
        """L2 entries as they are at this moment are going to be written."""
        self.leaving.update(self._dropped)
        self._dropped.clear()

    async def discard(self) -> None:
        """The entries are on stable storage: discard what is left. Only a hint: failures are the file's affair."""
        bits = self._bits
        for first in sorted(self.leaving):
            end = first
            while end in self.leaving:  # what was taken meanwhile is not
                del self.leaving[end]
                end += 1
            # Who is busy there has taken it; and who comes waits for us.
            hold = self._locks.try_hold(first << bits, (end - first) << bits) if end > first else None
            if hold is not None:
                try:
                    with suppress(OSError):
                        await self._image.data.co_pdiscard(first << bits, (end - first) << bits)
                finally:
                    hold.release()


class _HeldInPlace(InPlace):
    """Written in place, and held until it is: for a raw data file."""

    __slots__ = ("_hold",)

    def __init__(self, image: Image, offset: int, length: int, hold: RangeHold) -> None:
        super().__init__(image, offset, length, offset)
        self._hold = hold

    async def link(self) -> None:
        await super().link()
        self._hold.release()

    async def abandon(self) -> None:
        await super().abandon()
        self._hold.release()


class DataFileWriter(Writer):
    """The ``Writer`` of an image with a data file."""

    async def allocate(self, offset: int, nbytes: int) -> Allocation:
        """As ``Writer.allocate``; for a raw data file all room is in place."""
        if not self.image.raw:
            return await super().allocate(offset, nbytes)
        mapping = self._mapping
        key = offset >> mapping.slice_shift
        waited = False
        while True:
            found = mapping.writable(key)
            if found is None:
                await mapping.make_writable(key)
                continue
            length = self._length_in_place(found, offset, nbytes)
            start, held = (offset, length) if length else (offset & ~self.mask, self._cluster)
            if await self.wait_for(start, held, again=waited):
                waited = True
            elif length:
                return _HeldInPlace(self.image, offset, length, self.locks.hold(offset, length))
            else:
                await self._claim(found, offset, nbytes)

    def _length_in_place(self, found: Slice[array[int]], offset: int, nbytes: int) -> int:
        at, stop = self._mapping.span(offset, nbytes)
        try:
            reach, host = self._mapping.entries.in_place(found.table, at, stop)
        except InvalidEntry as error:
            raise self._mapping.corruption(error, offset, at) from None
        if not reach:
            return 0
        inside = offset & self._sub_mask
        self._look_at(host, offset - inside, 0)
        return min(nbytes, (reach << self._sub_bits) - inside)

    async def _claim(self, found: Slice[array[int]], offset: int, nbytes: int) -> None:
        """Let L2 entries from *offset* on say *data* where they do not yet, on stable storage; it is zeroes."""
        room = await self._new_room(found, offset, nbytes)
        try:
            start, end = room.offset - room.cow_head, room.offset + room.length + room.cow_tail
            if start < self.image.length:  # else the disk is getting longer
                end = min(end, self.image.length)
            # It should read so already; if it does not, this is where the guest would begin to see it.
            await self.image.data.co_pwrite_zeroes(start, end - start, RequestFlags.MAY_UNMAP)
            self.image.unstable = True
            room.enter()
            await self._write_back.run()
            await self.image.barrier()
        finally:
            room.leave()

    def _look_at(self, host: int, offset: int, length: int) -> None:
        self._mapping.must_be_there(host, offset)

    async def _confirm(self, place: InPlace) -> None:
        """A data file may be shorter than the disk."""

    async def _room(self, plan: Plan, start: int, nbytes: int) -> tuple[int, bool]:
        assert self.image.data_file is not None
        if plan.room:
            self._mapping.must_be_there(plan.room, start)
        return start, self.image.data_file.take(start, nbytes) and not plan.room

    def let_go(self, entries: Iterable[int], *, discard: bool) -> None:
        """Clusters of a data file have no refcounts; what may be discarded is said by who lets go."""

    def give_back(self, room: int, nbytes: int) -> None:
        """It is where it was."""
