"""Repairing an image: refcounts made equal to the references, COPIED flags to the refcounts.

The order is one that a crash at any point leaves no worse than it was: refcounts are raised first; then, behind a
barrier, lowered; then, behind another, the COPIED flags follow; the dirty and corrupt bits go last. Where the
refcount structure itself is broken a new one is built in clusters that nothing refers to, and the header is
turned to it by one write inside a sector; until then the old one stands untouched.
"""

from __future__ import annotations

import errno
import struct
from array import array
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec.structs import replace

from blockio.buffers import IoVector, is_zero
from blockio.driver.base import CheckFix, CheckResult
from blockio.errors import BlockError, LimitExceeded
from blockio.types import HostOffset, Limits
from blockio_drivers.qcow2.check import Checker, Progress, Report
from blockio_drivers.qcow2.header import INCOMPATIBLE_FEATURES_OFFSET, Header, Incompatible
from blockio_drivers.qcow2.tables import (
    COPIED,
    L1_OFFSET_MASK,
    REFCOUNT_TABLE_OFFSET_MASK,
    table_from_bytes,
    table_to_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockio.driver.child import Child
    from blockio_drivers.qcow2.snapshot_table import SnapshotEntry

__all__ = ["MendSnapshots", "repair_image"]

MendSnapshots: TypeAlias = "Callable[[list[SnapshotEntry], int], object]"

_REFCOUNT_TABLE_FIELDS: Final = 48
_NEED_REBUILD: Final = "ERROR need to rebuild refcount structures"


async def repair_image(
    file: Child,
    header: Header,
    fix: CheckFix,
    *,
    trust: Limits,
    report: Report,
    progress: Progress | None = None,
    mend_snapshots: MendSnapshots | None = None,
) -> tuple[CheckResult, Header]:
    """Check the image in *file* and mend what *fix* allows; the answer is what was found and the header as it is now.

    LEAKS only lowers refcounts that are too high (and mends COPIED flags where nothing else is wrong); ALL also raises
    refcounts, rebuilds the refcount structure and mends flags and crooked zero clusters. The dirty and corrupt bits are
    cleared when no corruption is left. A snapshot table that must be written anew is handed to *mend_snapshots* in the
    end, with the size it has. ``result.corruptions`` and ``leaks`` are what remains.

    Nobody else may use the image meanwhile, and whoever caches its metadata must read it anew afterwards, also after an
    error or a cancellation: some of it may be mended then, none of it is worse. Raises BlockError EIO where LEAKS
    meets a broken refcount structure, and any I/O error.
    """
    repair = _Repair(file, header, fix, trust, report, progress)
    repair.mend_snapshots = mend_snapshots
    return await repair.run()


class _Repair:
    """One repair. ``result`` follows QEMU's accounting: a mended corruption is taken from ``corruptions``."""

    def __init__(
        self, file: Child, header: Header, fix: CheckFix, trust: Limits, report: Report, progress: Progress | None
    ) -> None:
        self.file = file
        self.header = header
        self.fix = fix
        self.trust = trust
        self.report = report
        self.progress = progress
        self.all = fix is CheckFix.ALL
        self.result = CheckResult()
        self.snapshots: tuple[list[SnapshotEntry], int] | None = None
        self.snapshot_mistakes = 0
        self.mend_snapshots: MendSnapshots | None = None
        self._blocks_of: Checker | None = None
        self._blocks: frozenset[int] = frozenset()

    async def run(self) -> tuple[CheckResult, Header]:
        checker = self._checker()
        crooked: list[tuple[int, int, int]] = []
        bitmaps: list[tuple[int, int, int]] = []
        if self.fix is not CheckFix.NONE:
            checker.fix_compressed_bitmap = lambda *where: bitmaps.append(where)
        if self.all:
            checker.mending = True
            checker.fix_misaligned_zero = lambda *where: crooked.append(where)
        await checker.count()
        self.result = checker.result
        if self.all:
            self.snapshots = checker.snapshots
            self.snapshot_mistakes = checker.snapshot_mistakes
            self._mended(checker.snapshot_mistakes)  # by whoever can write the table anew, see ``mend_snapshots``
        await self._straighten(checker, crooked)
        if self.all:
            await self._clear_bitmaps(checker, bitmaps)
        before = replace(self.result)
        await checker.compare()
        if self.fix is CheckFix.NONE:
            pass
        elif checker.rebuild:
            if not self.all:
                self.report(_NEED_REBUILD)
                raise BlockError(_NEED_REBUILD, errno.EIO)
            checker = await self._rebuild(checker, before.check_errors)
        elif self.result.corruptions != before.corruptions or self.result.leaks != before.leaks:
            self.result.corruptions, self.result.leaks = before.corruptions, before.leaks
            await self._adjust(checker)
        await self._mend_copied(checker)
        await self.file.co_flush()
        if not self.result.check_errors and not self.result.corruptions and self.fix is not CheckFix.NONE:
            await self._mark_sound()
        if self.snapshots is not None and self.snapshot_mistakes and self.mend_snapshots is not None:
            self.mend_snapshots(*self.snapshots)
        return self.result, self.header

    def _checker(self) -> Checker:
        checker = Checker(self.file, self.header, trust=self.trust, report=self.report, progress=self.progress)
        checker.snapshots = self.snapshots
        return checker

    async def _write(self, offset: int, data: bytes) -> None:
        await self.file.co_pwritev(offset, IoVector.of(data))

    def _mended(self, corruptions: int) -> None:
        self.result.corruptions -= corruptions
        self.result.corruptions_fixed += corruptions

    # -- L2 entries

    def _table_is_exposed(self, checker: Checker, offset: int) -> bool:
        """Whether the L2 table at *offset* shares its cluster with other metadata, so that writing it destroys that."""
        end = offset + checker.geometry.cluster_size
        if self._blocks_of is not checker:
            self._blocks_of = checker
            self._blocks = frozenset(entry & REFCOUNT_TABLE_OFFSET_MASK for entry in checker.refcount_table)
        exposed = offset in self._blocks or any(
            area.offset < end and offset < area.offset + area.nbytes for area in checker.metadata
        )
        if exposed:
            self.report("ERROR: Could not write L2 table; metadata overlap check failed: Input/output error")
            self.result.check_errors += 1
        return exposed

    async def _straighten(self, checker: Checker, crooked: list[tuple[int, int, int]]) -> None:
        """Zero clusters whose reserve is no cluster become plain zero clusters; they hold no data to lose.

        With extended entries it is the bitmap that says zero, and stays.
        """
        plain = checker.geometry.zero_bit.to_bytes(8, "big")
        for table, index, weight in crooked:
            if not self._table_is_exposed(checker, table):
                await self._write(table + index * checker.geometry.l2_entry_bytes, plain)
                self._mended(weight)

    async def _clear_bitmaps(self, checker: Checker, compressed: list[tuple[int, int, int]]) -> None:
        """Compressed clusters have no subclusters: the bitmap that says otherwise goes, the data stays."""
        for table, index, weight in compressed:
            if not self._table_is_exposed(checker, table):
                await self._write(table + index * checker.geometry.l2_entry_bytes + 8, bytes(8))
                self._mended(weight)

    async def _mend_copied(self, checker: Checker) -> None:
        """Make the COPIED flags of the active tables say what the refcounts say; only report it where that is unsafe.

        The refcounts are right where everything could be mended; a lesser repair touches no flags while
        something else is wrong.
        """
        result = self.result
        sound = not (result.check_errors or result.corruptions or result.leaks)
        mend = self.all or (self.fix is CheckFix.LEAKS and sound)
        await self.file.co_flush()
        if not mend:
            if checker.copied_mistakes:
                await checker.report_copied()
            return
        geometry = checker.geometry
        async for index, entry in checker.active_l1_entries():
            offset = entry & L1_OFFSET_MASK
            if not offset:
                continue
            refcount = await checker.stored_refcount(offset >> geometry.cluster_bits)
            if refcount >= 0 and (refcount == 1) != bool(entry & COPIED):
                checker.error(
                    f"Repairing OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount={refcount}"
                )
                await self._write(self.header.l1_table_offset + index * 8, (entry ^ COPIED).to_bytes(8, "big"))
                self._mended(1)
            if checker.readable(offset) and not await self._mend_l2(checker, offset):
                return

    async def _mend_l2(self, checker: Checker, offset: int) -> bool:
        """Mend the flags of one L2 table; False where it cannot be written."""
        geometry = checker.geometry
        data = await checker.read(offset, geometry.cluster_size)
        await checker.breathe(geometry.l2_entries)
        if is_zero(data):
            return True
        table = table_from_bytes(data)
        changed = []
        words = geometry.l2_entry_bytes // 8
        for index, entry in zip(range(0, len(table), words), table[::words], strict=True):
            if (refcount := await checker.contradicted(entry)) is not None:
                checker.error(f"Repairing OFLAG_COPIED data cluster: l2_entry={entry:x} refcount={refcount}")
                table[index] = entry ^ COPIED
                changed.append(index)
        if not changed:
            return True
        if self._table_is_exposed(checker, offset):
            return False
        await self._write(offset + changed[0] * 8, table_to_bytes(table, changed[0], changed[-1] + 1))
        self._mended(len(changed))
        return True

    # -- refcounts in place

    async def _adjust(self, checker: Checker) -> None:
        """Write the right refcounts into the blocks there are: first those too low, then those too high."""
        if self.all:
            await self._adjust_some(checker, raising=True)
            await self.file.co_flush()
        else:
            async for cluster, stored, references in checker.differences():
                if stored < references:
                    checker.error(f"ERROR cluster {cluster} refcount={stored} reference={references}")
        await self._adjust_some(checker, raising=False)

    async def _adjust_some(self, checker: Checker, *, raising: bool) -> None:
        per_block = checker.geometry.refcount_block_entries
        block = -1
        changes: dict[int, int] = {}
        async for cluster, stored, references in checker.differences():
            if (stored < references) != raising:
                continue
            if cluster // per_block != block:
                await self._write_refcounts(checker, block, changes)
                block, changes = cluster // per_block, {}
            changes[cluster] = references
            self.report(f"Repairing cluster {cluster} refcount={stored} reference={references}")
            if raising:
                self.result.corruptions_fixed += 1
            else:
                self.result.leaks_fixed += 1
        await self._write_refcounts(checker, block, changes)

    async def _write_refcounts(self, checker: Checker, block: int, changes: dict[int, int]) -> None:
        if not changes:
            return
        geometry, codec = checker.geometry, checker.codec
        offset = checker.refcount_table[block] & REFCOUNT_TABLE_OFFSET_MASK
        data = await checker.read(offset, geometry.cluster_size)
        first = block * geometry.refcount_block_entries
        for cluster, refcount in changes.items():
            codec.put(data, cluster - first, refcount)
        # Whole sectors, so that no crash leaves a part of one.
        low = ((min(changes) - first) * codec.bits >> 3) & ~511
        high = -(-((max(changes) - first + 1) * codec.bits) // (512 * 8)) * 512
        await self._write(offset + low, bytes(data[low:high]))
        for cluster, refcount in changes.items():
            checker.stored[cluster] = min(refcount, 255)

    # -- the refcount structure anew

    async def _rebuild(self, broken: Checker, check_errors: int) -> Checker:
        """Build the refcounts anew, turn the header to them, and check again; the answer is the new check."""
        self.report("Rebuilding refcount structure")
        old = self.result
        counting = Checker(
            self.file, self.header, trust=self.trust, report=lambda _message: None, with_refcount_structure=False
        )
        counting.snapshots = self.snapshots
        await counting.count()
        table_cluster, table_clusters = await self._write_structure(counting, broken)
        await self.file.co_flush()
        table_offset = table_cluster << counting.geometry.cluster_bits
        # Offset and length of the table stand side by side in one sector: both change or neither does.
        await self._write(_REFCOUNT_TABLE_FIELDS, struct.pack(">QI", table_offset, table_clusters))
        await self.file.co_flush()
        self.header = self.header.with_(
            refcount_table_offset=HostOffset(table_offset), refcount_table_clusters=table_clusters
        )
        after = self._checker()
        await after.count()
        await after.compare()
        if after.rebuild:
            self.report("ERROR rebuilt refcount structure is still broken")
        self.result = after.result
        # Refcount blocks that could not be read are gone; errors met before comparing remain.
        self.result.check_errors += check_errors
        self.result.corruptions_fixed = old.corruptions_fixed + max(0, old.corruptions - self.result.corruptions)
        self.result.leaks_fixed = old.leaks_fixed + max(0, old.leaks - self.result.leaks)
        return after

    async def _write_structure(self, counting: Checker, broken: Checker) -> tuple[int, int]:
        """Write blocks and table into a gap between what is referred to or at the end; nothing points there yet.

        *broken* has counted the old structure too, which must stay whole until the header leaves it.
        """
        geometry = counting.geometry
        counts = counting.references.counts
        per_block = geometry.refcount_block_entries
        used = {
            index
            for index in range(-(-len(counts) // per_block))
            if not is_zero(memoryview(counts)[index * per_block : (index + 1) * per_block])
        }
        room = 0
        while True:
            taken = max(len(broken.references.counts), len(counts))
            start = broken.references.counts.find(bytes(room)) if room else taken
            start = taken if start < 0 else start
            blocks = sorted(used | set(range(start // per_block, (start + max(room, 1) - 1) // per_block + 1)))
            table_clusters = geometry.clusters((blocks[-1] + 1) * 8)
            if table_clusters + len(blocks) <= room:
                break
            room = table_clusters + len(blocks)
        if table_clusters << geometry.cluster_bits > self.trust.max_refcount_table_bytes:
            raise LimitExceeded("ERROR allocating reftable: File too large")
        room = table_clusters + len(blocks)
        table = array("Q", bytes(table_clusters << geometry.cluster_bits))
        place = start + table_clusters
        for index in blocks:
            values = self._block(counting, index, range(start, start + room))
            await self._write(place << geometry.cluster_bits, counting.codec.encode(values))
            table[index] = place << geometry.cluster_bits
            place += 1
            await counting.breathe(per_block)
        await self._write(start << geometry.cluster_bits, table_to_bytes(table))
        return start, table_clusters

    @staticmethod
    def _block(counting: Checker, index: int, fresh: range) -> array[int]:
        """The refcounts of block *index*: the references, and 1 for each cluster of the new structure."""
        per_block = counting.geometry.refcount_block_entries
        first = index * per_block
        part = counting.references.counts[first : first + per_block].ljust(per_block, b"\0")
        values = array("B", part) if counting.codec.bits <= 8 else array("Q", list(part))
        for cluster, references in counting.references.more.items():
            if first <= cluster < first + per_block:
                values[cluster - first] = references
        for cluster in range(max(fresh.start, first), min(fresh.stop, first + per_block)):
            values[cluster - first] = 1
        return values

    # -- the end

    async def _mark_sound(self) -> None:
        """Clear the dirty and corrupt bits; everything they warned of is mended and stable."""
        features = self.header.incompatible & ~(Incompatible.DIRTY | Incompatible.CORRUPT)
        if features != self.header.incompatible:
            await self._write(INCOMPATIBLE_FEATURES_OFFSET, features.to_bytes(8, "big"))
            await self.file.co_flush()
            self.header = self.header.with_(incompatible=int(features))
