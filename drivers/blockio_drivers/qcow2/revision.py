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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from operator import add
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.errors import BlockError, CorruptImage
from blockio.types import HostOffset
from blockio_drivers.qcow2.image import finish
from blockio_drivers.qcow2.refcounts import RefcountCodec
from blockio_drivers.qcow2.snapshot_table import SnapshotEntry, encode_snapshots
from blockio_drivers.qcow2.strides import run_length
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

_NARROW: Final = "b"
_WIDE: Final = "q"
_TAKEN: Final = L2_OFFSET_MASK | COMPRESSED
_TOP: Final = bytes((0x80,))
"""What COPIED is in an entry's first byte."""
_ONE: Final = b"\1"
_BELOW_ZERO: Final = bytes(byte > 127 for byte in range(256))
"""A translation: 1 for a signed byte below 0, else 0."""
_TO_TOP: Final = bytes(0x80 if byte else 0 for byte in range(256))


class _Counts:
    """Refcounts as they will be: those in memory and the changes to them, block by block.

    Whole tables and blocks at once wherever it can be, since there is one for each cluster of the image.
    """

    def __init__(self, image: Image, allocator: Allocator) -> None:
        self._allocator = allocator
        geometry = image.geometry
        self._codec = RefcountCodec.of(geometry.refcount_order)
        self._bits = geometry.refcount_block_bits
        self._entries = geometry.refcount_block_entries
        self.changes: dict[int, array[int]] = {}
        """By number of the block; one byte for each cluster, more in those blocks for which that is too little."""
        self._sole: dict[int, bytes] = {}

    def _parts(self, cluster: int, count: int) -> Iterator[tuple[int, int, int]]:
        """*count* clusters from *cluster* on, block by block: its index, and where in it they start and stop."""
        while count > 0:
            at = cluster & (self._entries - 1)
            stop = min(at + count, self._entries)
            yield cluster >> self._bits, at, stop
            cluster += stop - at
            count -= stop - at

    def change(self, cluster: int, weight: int, count: int = 1) -> None:
        """*weight* more references to each of *count* clusters. CorruptImage where nothing counts one of them."""
        table = self._allocator.table
        for index, at, stop in self._parts(cluster, count):
            changes = self.changes.get(index)
            if changes is None:
                if index >= len(table) or not table[index]:
                    lost = (index << self._bits) + at
                    raise CorruptImage(
                        f"Cluster {lost} is in use and has no refcount; the image must be repaired first"
                    )
                changes = self.changes[index] = array(_NARROW, bytes(self._entries))
            self._sole.pop(index, None)
            try:
                _add(changes, at, stop, weight)
            except OverflowError:
                changes = self.changes[index] = array(_WIDE, changes)
                _add(changes, at, stop, weight)

    async def after(self, index: int) -> bytes:
        """Block *index* as it will be. BlockError EINVAL: a refcount is too much, or below 0."""
        block: bytes | bytearray = await self._allocator.block(index)
        changes = self.changes.get(index)
        try:
            if changes is not None and changes.typecode == _WIDE:
                values = self._codec.decode(block)
                return self._codec.encode(array(values.typecode, map(add, values, changes)))
            for weight, where in _by_weight(changes.tobytes() if changes is not None else b""):
                block = self._codec.raised(block, where, weight)
        except OverflowError:
            raise BlockError(errno=errno.EINVAL) from None
        return bytes(block)

    async def sole(self, cluster: int, count: int) -> bytes:
        """For each of *count* clusters a byte: 1 where its refcount will be 1, else 0."""
        found = b""
        for index, at, stop in self._parts(cluster, count):
            sole = self._sole.get(index)
            if sole is None:
                sole = self._sole[index] = self._codec.ones(await self.after(index))
            found += sole[at:stop]
        return found

    def gone(self, index: int, after: bytes) -> list[tuple[int, int]]:
        """Runs of clusters, (first, count), that lose their last reference in block *index*, which will be *after*."""
        changes = self.changes[index]
        narrow = changes.typecode == _NARROW
        lowered = changes.tobytes().translate(_BELOW_ZERO) if narrow else bytes(map((0).__gt__, changes))
        if _ONE not in lowered:
            return []
        nothing = self._codec.low_bytes(after).translate(_only(0))
        found = (int.from_bytes(lowered, "big") & int.from_bytes(nothing, "big")).to_bytes(self._entries, "big")
        runs: list[tuple[int, int]] = []
        start = found.find(_ONE)
        while start >= 0:
            end = found.find(0, start)
            end = end if end >= 0 else self._entries
            runs.append(((index << self._bits) + start, end - start))
            start = found.find(_ONE, end)
        return runs

    async def verify(self) -> None:
        """Raise what speaks against the changes, before anything is written."""
        for index in self.changes:
            self._sole[index] = self._codec.ones(await self.after(index))

    def forget(self) -> None:
        """Clusters were handed out meanwhile: what is known of refcounts that do not change is out of date."""
        self._sole.clear()


def _add(changes: array[int], at: int, stop: int, weight: int) -> None:
    """*weight* more in each of *changes* from *at* to *stop*. OverflowError where one has no room: then in none."""
    if stop - at == 1:
        changes[at] += weight
        return
    code, part = changes.typecode, changes[at:stop]
    if part == array(code, part[:1]) * (stop - at):
        changes[at:stop] = array(code, [part[0] + weight]) * (stop - at)
    else:
        changes[at:stop] = array(code, map(weight.__add__, part))


def _by_weight(changes: bytes) -> Iterator[tuple[int, bytes]]:
    """Each change there is among *changes*, one signed byte each, and a 1 for every place that has it."""
    left = changes.translate(None, b"\0")
    while left:
        code = left[:1]
        yield int.from_bytes(code, signed=True), changes.translate(_only(code[0]))
        left = left.translate(None, code)


@cache
def _only(code: int) -> bytes:
    """A translation: 1 for the byte *code*, else 0."""
    return bytes(byte == code for byte in range(256))


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
        self._gone: list[tuple[int, int]] = []
        """Runs of clusters, (first, count), that nothing will refer to."""
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
            moved = await self._move_tables()
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
            words = table_from_bytes(await self._l2_table(offset))[:: self._words]
            for at, count in self._runs(words):
                if words[at] & COMPRESSED:
                    where = self._image.geometry.compressed(words[at])
                    first, last = where.offset >> self._bits, (where.offset + where.nbytes - 1) >> self._bits
                    self._counts.change(first, weight, last - first + 1)
                else:
                    self._counts.change((words[at] & L2_OFFSET_MASK) >> self._bits, weight, count)
            self._counts.change(offset >> self._bits, weight)
        await self._counts.verify()

    def _runs(self, words: array[int]) -> Iterator[tuple[int, int]]:
        """Where in an L2 table clusters lie side by side, or one is compressed, and how many."""
        at = 0
        while at < len(words):
            entry = words[at] & _TAKEN
            count = 1
            if not entry & COMPRESSED:
                count = run_length(words, at, len(words), _TAKEN, self._cluster if entry else 0)
            if entry:
                yield at, count
            at += count

    async def _l2_table(self, offset: int) -> bytearray:
        if offset & (self._cluster - 1):
            raise CorruptImage(f"L2 table offset {offset:#x} unaligned", errno.EIO)
        return await self._image.read(offset, self._cluster)

    async def _move_tables(self) -> dict[int, int]:
        """Write those L2 tables of the new active L1 table anew whose flags have to change: old offset to new."""
        moved: dict[int, int] = {}
        for offset in sorted(set(self._active or ())):
            if offset:
                table, changed = await self._flagged(offset)
                if changed:
                    moved[offset] = await self._room(1, "L2 table")
                    await self._image.write(moved[offset], table)
        return moved

    async def _flagged(self, offset: int) -> tuple[bytearray, bool]:
        """The L2 table at *offset* with the flags that will be right, and whether that changes it."""
        table = await self._l2_table(offset)
        words = table_from_bytes(table)[:: self._words]
        # The flag is in the first byte of an entry: these, those of clusters that can have it, and those that will.
        tops = table[:: 8 * self._words]
        plain, copied = bytearray(len(words)), bytearray(len(words))
        for at, count in self._runs(words):
            if not words[at] & COMPRESSED:
                plain[at : at + count] = _TOP * count
                sole = await self._counts.sole((words[at] & L2_OFFSET_MASK) >> self._bits, count)
                copied[at : at + count] = sole.translate(_TO_TOP)
        here, there, flags = (int.from_bytes(part, "big") for part in (tops, plain, copied))
        right = here & ~there | flags
        if right != here:
            table[:: 8 * self._words] = right.to_bytes(len(words), "big")
        return table, right != here

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
        """Write the active L1 table; the answer is where, 0 where nothing of it changes."""
        if self._active is None:
            return 0
        for at, entry in enumerate(self._active):
            if entry:
                place = moved.get(entry, entry)
                sole = await self._counts.sole(place >> self._bits, 1)
                self._active[at] = place | COPIED if sole[0] else place
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
            after = await counts.after(index)
            await self._image.write(place, after)
            if self._pass_discard:
                self._gone += counts.gone(index, after)
        await self._image.write(offset, table_to_bytes(table))
        header = self._image.header
        self.let_go(header.refcount_table_offset, header.refcount_table_clusters << self._bits)
        self._fields |= {"refcount_table_offset": HostOffset(offset), "refcount_table_clusters": clusters}
        return table, clusters

    async def _switch(self, table: array[int], clusters: int) -> None:
        image, allocator = self._image, self._allocator
        before = image.header
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
        for first, count in self._gone:
            with suppress(OSError):  # a hint: the file may not know discards
                await image.file.co_pdiscard(first << self._bits, count << self._bits)
        for first, count in self._old:
            allocator.replaced(first, count)
