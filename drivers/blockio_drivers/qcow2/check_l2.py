"""Counting what one L2 table refers to: long runs at once, the rest entry by entry, in the words of ``qemu-img check``.

Stands on *Standard Cluster Descriptor*, *Compressed Clusters Descriptor* and *Extended L2 Entries* of QEMU's
``docs/interop/qcow2.txt``.
"""

from __future__ import annotations

import sys
from array import array
from itertools import compress
from typing import TYPE_CHECKING, Final

from blockio.buffers import is_zero
from blockio_drivers.qcow2.strides import LANES, any_shown, run_length, run_starts, shifted
from blockio_drivers.qcow2.tables import COMPRESSED, COPIED, L2_OFFSET_MASK, L2_RESERVED_MASK

if TYPE_CHECKING:
    from blockio_drivers.qcow2.check import Checker

__all__ = ["L2Walk"]

_PIECE: Final = 64
"""A part of an L2 table this short is looked at entry by entry."""
_ALL: Final = (1 << 64) - 1
_LOW_HALF: Final = 0 if sys.byteorder == "little" else 1


class L2Walk:
    """Counts the references of one L2 table, ``weight`` times each."""

    def __init__(self, checker: Checker, offset: int, table: array[int], weight: int, *, active: bool) -> None:
        """*table* is all of the L2 table at *offset*."""
        self.checker = checker
        self.offset = offset
        self.weight = weight
        self.active = active
        self.next_offset = 0
        """Where the guest's next cluster would lie if the table were not fragmented; 0 before the first."""
        self._table = table
        self._data = self._zero = array("I")
        """With extended entries the halves of all bitmaps: which subclusters have data, and which read as zeroes."""
        self._plain = True
        """No subcluster has both."""
        if checker.geometry.extended_l2:
            self._table = table[0::2]
            halves = array("I", table[1::2].tobytes())
            self._data, self._zero = halves[_LOW_HALF::2], halves[1 - _LOW_HALF :: 2]
            self._plain = not int.from_bytes(self._data, "big") & int.from_bytes(self._zero, "big")

    def count(self, start: int, stop: int) -> None:
        """Count entries *start* to *stop*.

        Most tables are long runs: nothing at all, or clusters side by side that only this table owns. Both are
        told from their ends and one comparison; what is neither, nor many single clusters, is halved until little is
        left to go through.
        """
        pending = [(start, stop)]
        while pending:
            low, high = pending.pop()
            if self._nothing(low, high) or self._side_by_side(low, high):
                continue
            if high - low > _PIECE:
                if self._scattered(low, high):
                    continue
                middle = (low + high) // 2
                pending += [(middle, high), (low, middle)]
                continue
            for index in range(low, high):
                self._entry(index, self._table[index])

    def _nothing(self, low: int, high: int) -> bool:
        table = self._table
        return not table[low] and not table[high - 1] and is_zero(table[low:high]) and is_zero(self._data[low:high])

    def _side_by_side(self, low: int, high: int) -> bool:
        """Plain clusters in a row, all met equally often before, with flags that are right: count them at once."""
        checker, table = self.checker, self._table
        geometry, references = checker.geometry, checker.references
        first, count, step = table[low], high - low, geometry.cluster_size
        offset = first & ~COPIED
        if not self._plain or offset & (COMPRESSED | L2_RESERVED_MASK | geometry.cluster_mask):
            return False
        # The flags of tables that only snapshots have mean nothing.
        mask = _ALL if self.active else ~COPIED & _ALL
        if run_length(table, low, high, mask, step) < count:
            return False
        if geometry.data_file:  # nothing is counted there
            sound = self.active and self.weight == 1 and bool(first & COPIED)
            if sound:
                self._note_allocated(offset, count)
            return sound
        begin = offset >> geometry.cluster_bits
        end = begin + count
        if not offset or end > checker.clusters:
            return False
        if self.active:
            stored = checker.stored[begin]
            if (stored == 1) != bool(first & COPIED) or checker.stored[begin:end] != bytes((stored,)) * count:
                return False
        if not references.add_run(begin, end, self.weight):
            return False
        self._note_allocated(offset, count)
        return True

    def _scattered(self, low: int, high: int) -> bool:
        """Plain clusters or none, in short runs, each met for the first time in this table: count them at once."""
        checker, geometry = self.checker, self.checker.geometry
        if geometry.data_file or geometry.extended_l2 or high - low > LANES:
            return False
        words = self._table[low:high]
        if not all(words):
            words = array("Q", filter(None, words))
        starts = run_starts(words, 0, len(words), ~COPIED & _ALL, geometry.cluster_size)
        odd = COMPRESSED | L2_RESERVED_MASK | geometry.cluster_mask
        if len(starts) <= (high - low) // _PIECE or any_shown(words, odd):
            return False
        bits = geometry.cluster_bits
        clusters = shifted(words, ~COPIED & _ALL, bits).tolist()
        inside = min(clusters) > 0 and max(clusters) < checker.clusters
        if not inside or not checker.references.add_each(clusters, self.weight):
            return False
        if self.active:
            stored = bytes(map(checker.stored.__getitem__, clusters))
            ours = [word >= COPIED for word in words]
            right = bytes(compress(stored, ours)).count(1)
            checker.copied_mistakes += stored.count(1) + sum(ours) - 2 * right
            self._note_allocated(clusters[0] << bits, len(words))
            checker.result.fragmented_clusters += len(starts) - 1
            self.next_offset = (clusters[-1] + 1) << bits
        return True

    def _note_allocated(self, offset: int, clusters: int) -> None:
        if self.active:
            result = self.checker.result
            result.allocated_clusters += clusters
            if self.next_offset and offset != self.next_offset:
                result.fragmented_clusters += 1
            self.next_offset = offset + (clusters << self.checker.geometry.cluster_bits)

    def _entry(self, index: int, entry: int) -> None:
        checker, geometry = self.checker, self.checker.geometry
        data, zero = (self._data[index], self._zero[index]) if geometry.extended_l2 else (0, 0)
        if entry & COMPRESSED:
            self._compressed(index, entry, bitmap=bool(data or zero))
            return
        if entry & L2_RESERVED_MASK:
            checker.error(f"ERROR found l2 entry with reserved bits set: {entry:x}", self.weight)
        offset = entry & L2_OFFSET_MASK
        if not offset and not (geometry.data_file and entry & COPIED and not entry & geometry.zero_bit):
            if data:
                checker.error("ERROR: Unallocated cluster has non-zero subcluster allocation map", self.weight)
            return
        if data & zero:
            checker.error(
                f"ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap", self.weight
            )
        has_data = bool(data) if geometry.extended_l2 else not entry & geometry.zero_bit
        if offset & geometry.cluster_mask and self._misaligned(index, offset, has_data=has_data):
            return
        self._note_allocated(offset, 1)
        if geometry.data_file:
            checker.copied_mistakes += not entry & COPIED
            return
        checker.add_region(offset, geometry.cluster_size, self.weight)
        if self.active:
            checker.note_copied(entry, offset >> geometry.cluster_bits)

    def _compressed(self, index: int, entry: int, *, bitmap: bool) -> None:
        checker = self.checker
        place = checker.geometry.compressed(entry)
        if entry & COPIED:
            checker.error(
                f"ERROR: coffset=0x{place.offset:x}: copied flag must never be set for compressed clusters",
                self.weight,
            )
        if checker.geometry.data_file:
            checker.error(f"ERROR compressed cluster {index} with data file, entry=0x{entry & ~COPIED:x}", self.weight)
            return
        if bitmap:
            checker.error(
                f"ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, "
                f"entry=0x{entry & ~COPIED:x}",
                self.weight,
            )
            if checker.fix_compressed_bitmap is None:
                return  # as QEMU counts; a repair must not free what the entry still names
            checker.fix_compressed_bitmap(self.offset, index, self.weight)
        checker.add_region(place.offset, place.nbytes, self.weight)
        if self.active:
            result = checker.result
            result.allocated_clusters += 1
            result.compressed_clusters += 1
            result.fragmented_clusters += 1

    def _misaligned(self, index: int, offset: int, *, has_data: bool) -> bool:
        """Report a crooked offset; True where the entry will be mended, so that it refers to nothing."""
        checker = self.checker
        if has_data:
            checker.error(
                f"ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted.", self.weight
            )
            return False
        checker.error(
            f"{checker.verb} offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted.",
            self.weight,
        )
        if checker.fix_misaligned_zero is None:
            return False
        checker.fix_misaligned_zero(self.offset, index, self.weight)
        return True
