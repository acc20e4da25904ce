"""A new state of the whole image, built beside the present one, that takes its place in one write.

Snapshots are taken, applied and deleted by this: each changes the refcounts of very many clusters, the COPIED flags
that follow from them, the L1 table and the snapshot table, and QEMU's checker wants all four to agree. So everything
that changes is written anew, into clusters that were free: the refcount blocks and the refcount table, those L2 tables
whose flags change, the L1 table, the snapshot table. When all of that is stable, one write inside the header's first
sector leads to it. **A crash leaves the old state or the new one, and clusters that leaked; a failure or a cancellation
before that write leaves the old one.** The old tables are given back afterwards.

Invariant: from ``settled`` on no request changes the image, so that what is on disk is the truth about mappings, and
the allocator's memory is it about refcounts.
"""

from __future__ import annotations

import errno
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.errors import BlockError, CorruptImage
from blockio.types import HostOffset
from blockio_drivers.qcow2.image import finish
from blockio_drivers.qcow2.refcounts import RefcountCodec
from blockio_drivers.qcow2.snapshot_table import SnapshotEntry, encode_snapshots
from blockio_drivers.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L1_OFFSET_MASK,
    L2_OFFSET_MASK,
    table_from_bytes,
    table_to_bytes,
)

if TYPE_CHECKING:
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping

__all__ = ["Revision"]

_KEPT_BLOCKS: Final = 8


class _Counts:
    """Refcounts as they will be: those in memory and the changes to them, block by block."""

    def __init__(self, image: Image, allocator: Allocator) -> None:
        self._allocator = allocator
        geometry = image.geometry
        self.codec = RefcountCodec.of(geometry.refcount_order)
        self._bits = geometry.refcount_block_bits
        self._entries = geometry.refcount_block_entries
        self.changes: dict[int, array[int]] = {}
        self._known: dict[int, array[int]] = {}

    def change(self, cluster: int, weight: int) -> None:
        """*weight* more references to *cluster*. CorruptImage where nothing counts that cluster."""
        index = cluster >> self._bits
        changes = self.changes.get(index)
        if changes is None:
            if index >= len(self._allocator.table) or not self._allocator.table[index]:
                raise CorruptImage(f"Cluster {cluster} is in use and has no refcount; the image must be repaired first")
            changes = self.changes[index] = array("i", bytes(4 * self._entries))
        try:
            changes[cluster & (self._entries - 1)] += weight
        except OverflowError:
            raise BlockError(errno=errno.EINVAL) from None

    async def before(self, index: int) -> array[int]:
        """The refcounts of block *index* as they are."""
        return self.codec.decode(await self._allocator.block(index))

    async def after(self, index: int) -> array[int]:
        """The refcounts of block *index* as they will be. BlockError EINVAL: one is too much, or below 0."""
        values = await self.before(index)
        changes = self.changes.get(index)
        if changes is not None:
            maximum = self.codec.maximum
            for at, change in enumerate(changes):
                if change:
                    value = values[at] + change
                    if not 0 <= value <= maximum:
                        raise BlockError(errno=errno.EINVAL)
                    values[at] = value
        return values

    async def known(self, cluster: int) -> array[int]:
        """The block of *cluster* as it will be, as long as nothing more is changed; kept while it is asked for."""
        index = cluster >> self._bits
        found = self._known.get(index)
        if found is None:
            if len(self._known) >= _KEPT_BLOCKS:
                self._known.clear()
            found = self._known[index] = await self.after(index)
        return found

    async def verify(self) -> None:
        """Raise what speaks against the changes, before anything is written."""
        for index in self.changes:
            await self.after(index)
        self.forget()

    def forget(self) -> None:
        """What ``known`` knows is out of date."""
        self._known.clear()


class Revision:
    """One new state. Say what changes, then ``publish``; once.

    With *pass_discard* clusters that lose their last reference are discarded in the file.
    """

    def __init__(self, image: Image, mapping: Mapping, allocator: Allocator, *, pass_discard: bool) -> None:
        self._image = image
        self._mapping = mapping
        self._allocator = allocator
        self._pass_discard = pass_discard
        self._bits = image.geometry.cluster_bits
        self._cluster = image.geometry.cluster_size
        self._words = image.geometry.l2_entry_bytes // 8
        self._counts = _Counts(image, allocator)
        self._weights: Counter[int] = Counter()
        self._rooms: list[tuple[int, int]] = []
        self._old: list[tuple[int, int]] = []
        self._active: array[int] | None = None
        self._kept: array[int] | None = None
        self._fields: dict[str, int] = {}
        self._listed: list[SnapshotEntry] | None = None
        self.snapshots: list[SnapshotEntry] | None = None
        """The new list of snapshots, once it is the image's."""

    # -- what changes

    def count(self, l1: Iterable[int], weight: int) -> None:
        """Everything that the L1 table *l1* leads to has *weight* more references."""
        for entry in l1:
            if entry & L1_OFFSET_MASK:
                self._weights[entry & L1_OFFSET_MASK] += weight

    def activate(self, l1: Iterable[int], *, size: int | None = None) -> None:
        """*l1* will be the active L1 table, and the disk *size* bytes long, if given."""
        self._active = array("Q", [entry & L1_OFFSET_MASK for entry in l1])
        if size is not None:
            self._fields["size"] = size

    def keep(self, l1: Iterable[int]) -> None:
        """A copy of *l1* is made for a new snapshot, the last in the list."""
        self._kept = array("Q", [entry & L1_OFFSET_MASK for entry in l1])

    def let_go(self, offset: int, nbytes: int) -> None:
        """The table at *offset* is no more the image's."""
        if nbytes:
            self._old.append((offset >> self._bits, self._image.geometry.clusters(nbytes)))

    # -- the work

    async def publish(self, snapshots: Sequence[SnapshotEntry] | None, old_table_bytes: int = 0) -> None:
        """Build it all and switch over. *snapshots* is the new list, None where it does not change.

        The old table has *old_table_bytes*. ``snapshots`` is the list as it was written, from the switch on.

        BlockError EINVAL where a refcount would overflow, CorruptImage where the image contradicts itself, any I/O
        error: then, and when cancelled, nothing has changed.
        """
        image, allocator = self._image, self._allocator
        header = image.header
        try:
            await self._count_all()
            moved = await self._plan_tables()
            self._count_moved(moved)
            active_offset = await self._write_active(moved)
            kept_offset = await self._write_kept(moved)
            if snapshots is not None:
                if kept_offset:
                    last = msgspec.structs.replace(snapshots[-1], l1_table_offset=kept_offset)
                    snapshots = [*snapshots[:-1], last]
                self._listed = list(snapshots)
                await self._write_snapshots(snapshots, old_table_bytes)
            table, clusters = await self._write_refcounts()
            await image.barrier()
        except BaseException:
            for first, count in self._rooms:
                allocator.give_back(first, count)
            raise
        if active_offset:
            self.let_go(header.l1_table_offset, header.l1_size * 8)
            assert self._active is not None
            self._fields |= {"l1_table_offset": HostOffset(active_offset), "l1_size": len(self._active)}
        # Cancelled in between, the header would lead to tables that memory does not have.
        await finish(self._switch(table, clusters))

    async def _count_all(self) -> None:
        for offset, weight in self._weights.items():
            if not weight:
                continue
            for entry in (await self._l2_table(offset))[:: self._words]:
                if entry & COMPRESSED:
                    where = self._image.geometry.compressed(entry)
                    last = where.offset + where.nbytes - 1
                    for cluster in range(where.offset >> self._bits, (last >> self._bits) + 1):
                        self._counts.change(cluster, weight)
                elif entry & L2_OFFSET_MASK:
                    self._counts.change((entry & L2_OFFSET_MASK) >> self._bits, weight)
            self._counts.change(offset >> self._bits, weight)
        await self._counts.verify()

    async def _l2_table(self, offset: int) -> array[int]:
        if offset & (self._cluster - 1):
            raise CorruptImage(f"L2 table offset {offset:#x} unaligned", errno.EIO)
        return table_from_bytes(await self._image.read(offset, self._cluster))

    async def _plan_tables(self) -> dict[int, int]:
        """Room for each L2 table of the new active L1 table whose flags will have to change: old offset to new."""
        moved: dict[int, int] = {}
        for offset in sorted(set(self._active or ())):
            if offset and (await self._flagged(offset))[1]:
                moved[offset] = await self._room(1, "L2 table")
        return moved

    async def _flagged(self, offset: int) -> tuple[array[int], bool]:
        """The L2 table at *offset* with the flags that will be right, and whether that changes it."""
        table = await self._l2_table(offset)
        mask = self._image.geometry.refcount_block_entries - 1
        block_bits = self._image.geometry.refcount_block_bits
        changed = False
        block, counts = -1, array("Q")
        for at, entry in zip(range(0, len(table), self._words), table[:: self._words], strict=True):
            if entry & COMPRESSED or not entry & L2_OFFSET_MASK:
                continue
            cluster = (entry & L2_OFFSET_MASK) >> self._bits
            if cluster >> block_bits != block:
                block = cluster >> block_bits
                counts = await self._counts.known(cluster)
            if (counts[cluster & mask] == 1) != bool(entry & COPIED):
                table[at] = entry ^ COPIED
                changed = True
        return table, changed

    def _count_moved(self, moved: dict[int, int]) -> None:
        """The new tables take over the references that the active and the new L1 table have."""
        if not moved:
            return
        found: Counter[int] = Counter()
        for table in (self._active, self._kept):
            found.update(entry for entry in table or () if entry in moved)
        for offset, references in found.items():
            self._counts.change(offset >> self._bits, -references)
            if references > 1:
                self._counts.change(moved[offset] >> self._bits, references - 1)
        self._counts.forget()

    async def _write_active(self, moved: dict[int, int]) -> int:
        """Write the L2 tables that move, and the L1 table; the answer is where, 0 where nothing of it changes."""
        if self._active is None:
            return 0
        for offset, place in moved.items():
            table, _ = await self._flagged(offset)
            await self._image.write(place, table_to_bytes(table))
        mask = self._image.geometry.refcount_block_entries - 1
        for at, entry in enumerate(self._active):
            if entry:
                place = moved.get(entry, entry)
                counts = await self._counts.known(place >> self._bits)
                copied = counts[(place >> self._bits) & mask] == 1
                self._active[at] = place | COPIED if copied else place
        if self._active == self._image.l1:
            return 0
        return await self._store(table_to_bytes(self._active), "L1 table")

    async def _write_kept(self, moved: dict[int, int]) -> int:
        if self._kept is None:
            return 0
        table = array("Q", [moved.get(entry, entry) for entry in self._kept])
        return await self._store(table_to_bytes(table), "snapshot L1 table")

    async def _write_snapshots(self, snapshots: Sequence[SnapshotEntry], old_table_bytes: int) -> None:
        offset = await self._store(encode_snapshots(snapshots), "snapshot table") if snapshots else 0
        self.let_go(self._image.header.snapshots_offset, old_table_bytes)
        self._fields |= {"nb_snapshots": len(snapshots), "snapshots_offset": HostOffset(offset)}

    async def _room(self, count: int, what: str) -> int:
        offset = (await self._allocator.allocate(count, what)).offset
        self._rooms.append((offset >> self._bits, count))
        return offset

    async def _store(self, data: bytes, what: str) -> int:
        """*data*, filled up with zeroes to whole clusters, in a place of its own; 0 for nothing."""
        count = self._image.geometry.clusters(len(data))
        if not count:
            return 0
        offset = await self._room(count, what)
        await self._image.write(offset, data.ljust(count << self._bits, b"\0"))
        return offset

    async def _write_refcounts(self) -> tuple[array[int], int]:
        """The refcount blocks that change, and a refcount table that leads to them."""
        allocator, counts = self._allocator, self._counts
        if not counts.changes:
            await allocator.write()
            return allocator.table, 0
        places = {index: await self._room(1, "refcount block") for index in sorted(counts.changes)}
        clusters = len(allocator.table) * 8 >> self._bits
        offset = await self._room(clusters, "refcount table")
        while clusters != len(allocator.table) * 8 >> self._bits:  # making room for it made it longer
            allocator.give_back(*self._rooms.pop())
            clusters = len(allocator.table) * 8 >> self._bits
            offset = await self._room(clusters, "refcount table")
        table = allocator.table[:]
        for index, place in places.items():
            self._old.append((table[index] >> self._bits, 1))
            table[index] = place
        # Nothing is allocated from here on. What the other blocks count must be true on disk as well.
        await allocator.write()
        for index, place in places.items():
            await self._image.write(place, counts.codec.encode(await counts.after(index)))
        await self._image.write(offset, table_to_bytes(table))
        header = self._image.header
        self.let_go(header.refcount_table_offset, header.refcount_table_clusters << self._bits)
        self._fields |= {"refcount_table_offset": HostOffset(offset), "refcount_table_clusters": clusters}
        return table, clusters

    async def _switch(self, table: array[int], clusters: int) -> None:
        image, allocator = self._image, self._allocator
        before = image.header
        freed = await self._freed() if self._pass_discard else []
        try:
            await image.set_tables(**self._fields)
        finally:
            # Where only the flush failed the new state is the image's; the old clusters stay untouched all the same.
            if image.header is not before:
                self.snapshots = self._listed
                if clusters:
                    allocator.adopt(table, self._counts.changes)
                if self._active is not None:
                    image.l1 = self._active
                self._mapping.cache.drop()
                self._mapping.protect()
        for first, count in freed:
            with suppress(OSError):  # a hint: the file may not know discards
                await image.file.co_pdiscard(first << self._bits, count << self._bits)
        for first, count in self._old:
            allocator.replaced(first, count)

    async def _freed(self) -> list[tuple[int, int]]:
        """Runs of clusters that lose their last reference."""
        runs: list[tuple[int, int]] = []
        entries = self._image.geometry.refcount_block_entries
        for index, changes in self._counts.changes.items():
            if min(changes) >= 0:
                continue
            after = await self._counts.after(index)
            for at, change in enumerate(changes):
                if change < 0 and not after[at]:
                    cluster = index * entries + at
                    if runs and sum(runs[-1]) == cluster:
                        runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                    else:
                        runs.append((cluster, 1))
        return runs
