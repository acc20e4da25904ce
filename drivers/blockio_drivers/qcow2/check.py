"""Checking an image: what its tables refer to, compared with the reference counts it stores.

The references are counted from the header, the active L1 table and those of snapshots with all their L2 tables,
the snapshot table, the refcount table and blocks, the encryption header and the bitmaps. Messages and counts
are those of ``qemu-img check``. Nothing is written here; see ``repair``.

Memory is two bytes for each host cluster, in zeroed memory that costs nothing where the file is a hole, plus one
L1 and one L2 table. An L2 table that several L1 entries share is read once. The loop gets its turn after
every ``_TURN`` entries.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.buffers import IoVector, is_zero
from blockio.driver.base import CheckResult
from blockio.errors import ImageError, LimitExceeded
from blockio.types import INT_MAX, Limits
from blockio_drivers.qcow2.areas import Area
from blockio_drivers.qcow2.bitmap_directory import decode_directory
from blockio_drivers.qcow2.check_l2 import L2Walk
from blockio_drivers.qcow2.refcounts import RefcountCodec
from blockio_drivers.qcow2.snapshot_table import SnapshotEntry, parse_snapshots
from blockio_drivers.qcow2.tables import (
    BITMAP_TABLE_OFFSET_MASK,
    COMPRESSED,
    COPIED,
    L1_OFFSET_MASK,
    L1_RESERVED_MASK,
    L2_OFFSET_MASK,
    REFCOUNT_TABLE_OFFSET_MASK,
    REFCOUNT_TABLE_RESERVED_MASK,
    Geometry,
    table_from_bytes,
)

if TYPE_CHECKING:
    from blockio.driver.child import Child
    from blockio_drivers.qcow2.header import Header

__all__ = ["Checker", "References", "check_image"]

Progress = Callable[[int, int], None]
Report = Callable[[str], None]

_INT64_MAX: Final = 2**63 - 1
_TURN: Final = 1 << 16
"""After so many table entries the loop gets its turn."""
_SATURATED: Final = 255
_CHUNK: Final = 1 << 16
"""How many refcounts are compared at once."""


async def check_image(
    file: Child, header: Header, *, trust: Limits, report: Report, progress: Progress | None = None
) -> CheckResult:
    """Compare the references of the image in *file* with its refcounts, as ``qemu-img check`` does.

    *report* gets one line for each thing found. *progress* is told (done, total) in L2 tables. Nothing is
    written. Raises LimitExceeded for a file of more clusters than can be checked, and any read error; may be cancelled.
    """
    checker = Checker(file, header, trust=trust, report=report, progress=progress)
    await checker.count()
    await checker.compare()
    if checker.copied_mistakes:
        await checker.report_copied()
    return checker.result


class References:
    """How often each host cluster is referred to: a byte for each, and a dict for what exceeds it.

    Invariant: ``counts[i]`` is the count of cluster *i* where that is below 255, else 255 and ``more[i]`` is it.
    """

    __slots__ = ("counts", "maximum", "more")

    def __init__(self, clusters: int, maximum: int) -> None:
        self.counts = bytearray(clusters)
        self.more: dict[int, int] = {}
        self.maximum = maximum
        """What a refcount of this image can hold; counts stop there."""

    def get(self, cluster: int) -> int:
        """The references to *cluster*."""
        count = self.counts[cluster]
        return count if count != _SATURATED else self.more[cluster]

    def put(self, cluster: int, count: int) -> None:
        """Set the references to *cluster*."""
        if count < _SATURATED:
            self.counts[cluster] = count
            self.more.pop(cluster, None)
        else:
            self.counts[cluster] = _SATURATED
            self.more[cluster] = count

    def add(self, cluster: int, weight: int) -> int:
        """Count *weight* more references; the answer is how many of them no refcount can hold."""
        total = self.get(cluster) + weight
        excess = max(0, total - self.maximum)
        self.put(cluster, total - excess)
        return excess

    def add_run(self, begin: int, end: int, weight: int) -> bool:
        """Count *weight* more for each cluster from *begin* to *end*; False: not done, they must be counted singly."""
        seen = self.counts[begin]
        total = seen + weight
        count = end - begin
        if total >= _SATURATED or total > self.maximum or self.counts[begin:end] != bytes((seen,)) * count:
            return False
        self.counts[begin:end] = bytes((total,)) * count
        return True

    def add_each(self, clusters: Sequence[int], weight: int) -> bool:
        """Count *weight* more for each of *clusters*; False: not done, they must be counted singly."""
        counts = self.counts
        most = max(map(counts.__getitem__, clusters)) + weight
        if most > min(_SATURATED - 1, self.maximum) or len(set(clusters)) < len(clusters):
            return False
        for cluster in clusters:
            counts[cluster] += weight
        return True


class _L1Table(NamedTuple):
    offset: int
    entries: int
    active: bool


class Checker:
    """One check of one image. ``count``, then ``compare``; ``references``, ``stored`` and ``result`` stay to be used.

    ``rebuild`` says that the refcount structure cannot be mended in place.
    """

    def __init__(
        self,
        file: Child,
        header: Header,
        *,
        trust: Limits,
        report: Report,
        progress: Progress | None = None,
        with_refcount_structure: bool = True,
    ) -> None:
        self.file = file
        self.header = header
        self.geometry = Geometry.of(header)
        self.trust = trust
        self.report = report
        self.progress = progress
        self.result = CheckResult()
        self.rebuild = False
        self.copied_mistakes = 0
        self.file_length = 0
        self.clusters = 0
        self.refcount_table: array[int] = array("Q")
        self.codec = RefcountCodec.of(header.refcount_order)
        self.references = References(0, self.codec.maximum)
        self.stored = bytearray()
        """The refcounts the image stores, one byte each; 255 stands for 255 and more, see ``stored_refcount``."""
        self.metadata: list[Area] = []
        """Header and tables, but neither L2 tables nor refcount blocks: what a repair must not write L2 tables over."""
        self.fix_misaligned_zero: Callable[[int, int, int], None] | None = None
        """Told (L2 table, index, weight) of zero clusters with a crooked reserve, which ``repair`` will mend."""
        self.fix_compressed_bitmap: Callable[[int, int, int], None] | None = None
        """Told (L2 table, index, weight) of compressed clusters with a bitmap, which ``repair`` will take away."""
        self.snapshots: tuple[list[SnapshotEntry], int] | None = None
        """The snapshot table's entries and size, as they were read, or would be after a repair."""
        self.snapshot_mistakes = 0
        """What writing the snapshot table anew would mend."""
        self.mending = False
        """A repair of everything stands behind: some things are said to be mended, not to be errors."""
        self._with_refcount_structure = with_refcount_structure
        self._turn = 0
        self._unreadable: set[int] = set()

    # -- small things

    @property
    def verb(self) -> str:
        """How a line about something a repair mends begins."""
        return "Repairing" if self.mending else "ERROR"

    async def read(self, offset: int, nbytes: int) -> bytearray:
        """*nbytes* from *offset*; past the file's end they are zeroes."""
        data = bytearray(nbytes)
        if nbytes and offset < self.file_length:
            await self.file.co_preadv(offset, IoVector.of(data))
        return data

    async def breathe(self, entries: int) -> None:
        """Account for *entries* of work; let the loop run when enough has come together."""
        self._turn += entries
        if self._turn >= _TURN:
            self._turn = 0
            await asyncio.sleep(0)

    def error(self, message: str, count: int = 1) -> None:
        """Report a corruption."""
        self.report(message)
        self.result.corruptions += count

    # -- counting

    async def count(self) -> None:
        """Load the stored refcounts and count all references.

        LimitExceeded for more clusters than QEMU takes too; CheckResult.check_errors for tables that cannot be read.
        """
        # A file that ends inside a sector counts to the sector's end, as for QEMU.
        self.file_length = -(-await self.file.co_getlength() // 512) * 512
        self.clusters = self.geometry.clusters(self.file_length)
        if self.clusters > INT_MAX:
            raise LimitExceeded("The image file is too large to be checked")
        # The last cluster may be referred to before it is written to its end, or at all: one more than there are.
        self.references = References(self.clusters + 1, self.codec.maximum)
        self.result.total_clusters = self.geometry.clusters(self.header.disk_size)
        await self._load_refcounts()
        self._add_table(0, self.geometry.cluster_size)
        snapshots, table_bytes = await self._snapshots()
        await self._count_l1_tables(snapshots)
        self._add_table(self.header.snapshots_offset, table_bytes)
        if self.header.encryption is not None:
            self._add_table(self.header.encryption.offset, self.header.encryption.length)
        await self._count_bitmaps()
        if self._with_refcount_structure:
            await self._count_refcount_structure()

    def _add_table(self, offset: int, nbytes: int) -> None:
        self.metadata.append(Area(offset, nbytes))
        self.add_region(offset, nbytes)

    def add_region(self, offset: int, nbytes: int, weight: int = 1) -> None:
        """Count references to all clusters that *nbytes* from *offset* touch."""
        if nbytes <= 0:
            return
        if offset + nbytes - self.file_length >= self.geometry.cluster_size:
            self.error(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: "
                f"offset 0x{offset:x} size 0x{nbytes:x}",
                weight,
            )
            return
        bits = self.geometry.cluster_bits
        for cluster in range(offset >> bits, ((offset + nbytes - 1) >> bits) + 1):
            if excess := self.references.add(cluster, weight):
                self.error(
                    f"ERROR: overflow cluster offset=0x{cluster << bits:x}\n"
                    "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean "
                    "copy if the image cannot be opened for writing",
                    excess,
                )

    async def _snapshots(self) -> tuple[list[SnapshotEntry], int]:
        """The snapshot table, which is read once: a second count after a repair takes it from ``snapshots``."""
        if self.snapshots is not None:
            return self.snapshots
        header, before = self.header, self.result.corruptions
        try:
            entries, nbytes = await parse_snapshots(
                self.read,
                header.snapshots_offset,
                header.nb_snapshots,
                self.geometry.cluster_size,
                self.trust,
                disk_size=header.disk_size,
                mend=self.error if self.mending else None,
            )
        except ImageError as error:
            read = "failed to read the snapshot table: " if error.message.startswith("Too much") else ""
            self.report(f"ERROR {read}{error}")
            self.result.check_errors += 1
            raise
        if header.version >= 3:
            for index, entry in enumerate(entries):
                if entry.extra_data_size < 16:
                    self.error(f"{self.verb} snapshot table entry {index} is incomplete")
        self.snapshots = entries, nbytes
        self.snapshot_mistakes = self.result.corruptions - before
        return entries, nbytes

    async def _count_l1_tables(self, snapshots: list[SnapshotEntry]) -> None:
        tables = [_L1Table(self.header.l1_table_offset, self.header.l1_size, True)]
        for snapshot in snapshots:
            name = snapshot.label
            if snapshot.l1_table_offset & self.geometry.cluster_mask:
                self.error(
                    f"ERROR {name} l1_offset={snapshot.l1_table_offset:#x}: L1 table is not cluster aligned; "
                    "snapshot table entry corrupted"
                )
            elif snapshot.l1_size * 8 > self.trust.max_l1_bytes:
                self.error(
                    f"ERROR {name} l1_size={snapshot.l1_size:#x}: L1 table is too large; snapshot table entry corrupted"
                )
            else:
                tables.append(_L1Table(snapshot.l1_table_offset, snapshot.l1_size, False))
        # How many L1 entries lead to each L2 table, so that every table is read once with its weight.
        weights = References(self.clusters + 1, 1 << 62)
        for table in tables:
            await self._count_l1(table, weights)
        total = len(weights.counts) - weights.counts.count(0) if self.progress else 0
        done = 0
        for table in tables:
            async for _, entry in self._l1_entries(table):
                offset = entry & L1_OFFSET_MASK
                cluster = offset >> self.geometry.cluster_bits
                if self.readable(offset) and (weight := weights.get(cluster)):
                    weights.put(cluster, 0)
                    await self._count_l2(offset, weight, active=table.active)
                    done += 1
                    if self.progress is not None:
                        self.progress(done, total)

    async def _count_l1(self, table: _L1Table, weights: References) -> None:
        self._add_table(table.offset, table.entries * 8)
        async for _, entry in self._l1_entries(table):
            if entry & L1_RESERVED_MASK:
                self.error(f"ERROR found L1 entry with reserved bits set: {entry:x}")
            offset = entry & L1_OFFSET_MASK
            self.add_region(offset, self.geometry.cluster_size)
            if offset & self.geometry.cluster_mask:
                self.error(f"ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted")
            elif offset < self.file_length:
                weights.add(offset >> self.geometry.cluster_bits, 1)
            if table.active and offset:
                self.note_copied(entry, offset >> self.geometry.cluster_bits)

    async def _l1_entries(self, table: _L1Table) -> AsyncIterator[tuple[int, int]]:
        """The entries of an L1 table that are not zero, with their index."""
        for start in range(0, table.entries, _CHUNK):
            count = min(_CHUNK, table.entries - start)
            data = await self.read(table.offset + start * 8, count * 8)
            await self.breathe(count)
            if not is_zero(data):
                for index, entry in enumerate(table_from_bytes(data), start):
                    if entry:
                        yield index, entry

    def readable(self, l2_offset: int) -> bool:
        """Whether an L2 table can be there at all: at a cluster's start, in the file."""
        return not l2_offset & self.geometry.cluster_mask and l2_offset < self.file_length

    def active_l1_entries(self) -> AsyncIterator[tuple[int, int]]:
        """(index, entry) of the active L1 table's entries that are not zero."""
        return self._l1_entries(_L1Table(self.header.l1_table_offset, self.header.l1_size, True))

    async def _count_l2(self, offset: int, weight: int, *, active: bool) -> None:
        data = await self.read(offset, self.geometry.cluster_size)
        if not is_zero(data):
            walk = L2Walk(self, offset, table_from_bytes(data), weight, active=active)
            for start in range(0, self.geometry.l2_entries, _TURN):
                walk.count(start, min(start + _TURN, self.geometry.l2_entries))
                await self.breathe(_TURN)

    def note_copied(self, entry: int, cluster: int) -> None:
        """Compare the COPIED flag of an active *entry* with the refcount of *cluster* of the image's file."""
        # Only counted here, so that a sound image is read once; ``report_copied`` goes back for the words.
        stored = self.stored[cluster] if cluster < len(self.stored) else 0
        if (stored == 1) != bool(entry & COPIED):
            self.copied_mistakes += 1

    async def _count_bitmaps(self) -> None:
        found = self.header.bitmaps
        if found is None:
            return
        self._add_table(found.directory_offset, found.directory_size)
        try:
            entries = decode_directory(
                bytes(await self.read(found.directory_offset, found.directory_size)),
                found.nb_bitmaps,
                self.geometry.cluster_size,
                self.header.disk_size,
            )
        except ImageError as error:
            self.error(f"ERROR {error}")
            self.result.check_errors += 1
            return
        for entry in entries:
            table = Area(entry.table_offset, entry.table_size * 8)
            self._add_table(*table)
            await self._count_bitmap(table)

    async def _count_bitmap(self, table: Area) -> None:
        for start in range(0, table.nbytes, _CHUNK * 8):
            data = await self.read(table.offset + start, min(_CHUNK * 8, table.nbytes - start))
            for entry in table_from_bytes(data):
                place = entry & BITMAP_TABLE_OFFSET_MASK
                reserved = entry & ~BITMAP_TABLE_OFFSET_MASK
                if reserved & ~(0 if place else 1) or place & self.geometry.cluster_mask:
                    self.result.corruptions += 1
                elif place:
                    self.add_region(place, self.geometry.cluster_size)
            await self.breathe(_CHUNK)

    # -- the refcount structure

    async def _load_refcounts(self) -> None:
        """Read the refcount table and all blocks that speak of clusters in the file."""
        header, geometry = self.header, self.geometry
        nbytes = header.refcount_table_clusters << geometry.cluster_bits
        self.refcount_table = table_from_bytes(await self.read(header.refcount_table_offset, nbytes))
        self.stored = bytearray(self.clusters + 1)
        per_block = geometry.refcount_block_entries
        wanted = -(-len(self.stored) // per_block)
        for index, entry in enumerate(self.refcount_table[:wanted]):
            offset = entry & REFCOUNT_TABLE_OFFSET_MASK
            if offset & geometry.cluster_mask or offset >= _INT64_MAX - geometry.cluster_size:
                self._unreadable.add(index)
            elif offset and offset < self.file_length:
                start = index * per_block
                room = min(per_block, len(self.stored) - start)
                low = self.codec.low_bytes(await self.read(offset, -(-room * self.codec.bits // 8)))
                self.stored[start : start + room] = low[:room]
                await self.breathe(room >> 3)

    async def _count_refcount_structure(self) -> None:
        header, geometry = self.header, self.geometry
        self._add_table(header.refcount_table_offset, header.refcount_table_clusters << geometry.cluster_bits)
        for index, entry in enumerate(self.refcount_table):
            if not entry:
                continue
            offset = entry & REFCOUNT_TABLE_OFFSET_MASK
            cluster = offset >> geometry.cluster_bits
            if entry & REFCOUNT_TABLE_RESERVED_MASK:
                self.error(f"ERROR refcount table entry {index} has reserved bits set")
                self.rebuild = True
            elif offset & geometry.cluster_mask:
                self.error(f"ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted")
                self.rebuild = True
            elif cluster >= self.clusters:
                self.error(f"{self.verb} refcount block {index} is outside image")
                self.rebuild = self.rebuild or self.mending
            else:
                self.add_region(offset, geometry.cluster_size)
                if (count := self.references.get(cluster)) != 1:
                    self.error(f"ERROR refcount block {index} refcount={count}")
                    self.rebuild = True

    async def stored_refcount(self, cluster: int) -> int:
        """The refcount that the image stores for *cluster*, exactly; -1 where its refcount block cannot be one."""
        index, within = divmod(cluster, self.geometry.refcount_block_entries)
        if index in self._unreadable:
            return -1
        if cluster < len(self.stored) and (low := self.stored[cluster]) != _SATURATED:
            return low
        offset = self.refcount_table[index] & REFCOUNT_TABLE_OFFSET_MASK if index < len(self.refcount_table) else 0
        if offset & self.geometry.cluster_mask or offset >= _INT64_MAX - self.geometry.cluster_size:
            return -1
        if not offset:
            return 0
        # One entry of at most eight bytes; below a byte, the byte it is in.
        at = (within << self.codec.order) >> 3
        per_byte = max(1, 8 >> self.codec.order)
        data = await self.read(offset + at, max(1, self.codec.bits >> 3))
        return self.codec.get(data, within % per_byte if self.codec.order < 3 else 0)

    # -- comparing

    async def compare(self) -> None:
        """Compare stored refcounts with references, in the order of clusters; notes the image's end."""
        if not self.references.counts[self.clusters]:
            # Nothing refers past the end of the file: what is stored for there is not looked at.
            del self.references.counts[self.clusters :]
            del self.stored[self.clusters :]
        async for cluster, stored, references in self.differences():
            if stored == 0:
                # A refcount block may be missing, and there is nowhere to put what it should say.
                self.rebuild = True
            if stored < references:
                self.error(f"ERROR cluster {cluster} refcount={stored} reference={references}")
            else:
                self.report(f"Leaked cluster {cluster} refcount={stored} reference={references}")
                self.result.leaks += 1
        self.result.image_end_offset = (self._highest_cluster() + 1) << self.geometry.cluster_bits

    def _highest_cluster(self) -> int:
        """The last cluster that is referred to or stored as used, where the refcount blocks can be read."""
        per_block = self.geometry.refcount_block_entries
        for index in range((len(self.stored) - 1) // per_block, -1, -1):
            part = slice(index * per_block, (index + 1) * per_block)
            used = max(len(data[part].rstrip(b"\0")) for data in (self.stored, self.references.counts))
            if used and index not in self._unreadable:
                return index * per_block + used - 1
        return 0

    async def differences(self) -> AsyncIterator[tuple[int, int, int]]:
        """(cluster, stored, references) wherever the two differ."""
        counts, stored = self.references.counts, self.stored
        per_block = self.geometry.refcount_block_entries
        for index in sorted(self._unreadable):
            for cluster in range(index * per_block, min((index + 1) * per_block, self.clusters)):
                self.report(f"Can't get refcount for cluster {cluster}: Input/output error")
                self.result.check_errors += 1
                await self.breathe(1)
        for start in range(0, len(counts), _CHUNK):
            mine, theirs = counts[start : start + _CHUNK], stored[start : start + _CHUNK]
            await self.breathe(_CHUNK >> 6)
            if mine == theirs and _SATURATED not in mine:
                continue
            for cluster, (one, other) in enumerate(zip(mine, theirs, strict=True), start):
                if one == other != _SATURATED or cluster // per_block in self._unreadable:
                    continue
                references = self.references.get(cluster)
                refcount = await self.stored_refcount(cluster)
                if references != refcount:
                    yield cluster, refcount, references
                await self.breathe(1)

    # -- the COPIED flags

    async def report_copied(self) -> None:
        """Say which COPIED flags contradict the stored refcounts, table by table."""
        bits = self.geometry.cluster_bits
        async for index, entry in self.active_l1_entries():
            if not (offset := entry & L1_OFFSET_MASK):
                continue
            refcount = await self.stored_refcount(offset >> bits)
            if refcount >= 0 and (refcount == 1) != bool(entry & COPIED):
                self.error(f"ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}")
            table = table_from_bytes(await self.read(offset, self.geometry.cluster_size))
            for l2_entry in filter(self._seems_mistaken, table[:: self.geometry.l2_entry_bytes // 8]):
                if (right := await self.contradicted(l2_entry)) is not None:
                    self.error(f"ERROR OFLAG_COPIED data cluster: l2_entry={l2_entry:x} refcount={right}")
            await self.breathe(self.geometry.l2_entries)

    async def contradicted(self, entry: int) -> int | None:
        """The refcount that the COPIED flag of an L2 *entry* contradicts; None: it does not, as far as can be told."""
        if not self._seems_mistaken(entry):
            return None
        if self.geometry.data_file:
            return 1
        refcount = await self.stored_refcount((entry & L2_OFFSET_MASK) >> self.geometry.cluster_bits)
        return refcount if refcount >= 0 and (refcount == 1) != bool(entry & COPIED) else None

    def _seems_mistaken(self, entry: int) -> bool:
        """Whether the COPIED flag of an L2 *entry* (most likely) contradicts the refcounts in memory."""
        if entry & COMPRESSED or not entry & L2_OFFSET_MASK:
            return False
        if self.geometry.data_file:  # where all clusters count as if their refcount were 1
            return not entry & COPIED
        cluster = (entry & L2_OFFSET_MASK) >> self.geometry.cluster_bits
        return cluster >= len(self.stored) or (self.stored[cluster] == 1) != bool(entry & COPIED)
