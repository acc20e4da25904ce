"""Nothing is written over metadata: the check before every write that could.

QEMU's classes and words. ``overlap-check`` says which classes are looked at: one by one, or by a template: ``none``;
``constant`` (header, active L1, refcount table, snapshot table, bitmap directory); ``cached``, the default (also L2
tables, refcount blocks and snapshots' L1 tables); ``all`` (also snapshots' L2 tables). The encryption header, which
QEMU has no class for, counts as a part of the header.

Invariant: ``l2_tables`` and ``refcount_blocks`` are sorted and hold what the L1 table and the refcount table in
memory point at, each once. Eight bytes for each, so that a hostile table cannot cost more than its own size again.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from heapq import merge
from typing import TYPE_CHECKING, Final

from blockio_drivers.qcow2.areas import Area
from blockio_drivers.qcow2.image import Corruption

if TYPE_CHECKING:
    from blockio_drivers.qcow2.header import Header
    from blockio_drivers.qcow2.image import Image

__all__ = ["OverlapGuard", "SortedOffsets"]

_PART: Final = 1 << 16
_NO_END: Final = 1 << 64


class SortedOffsets:
    """Cluster offsets in ascending order, each once.

    Invariant: none lies from ``gap_start`` up to ``gap_end``, the place between two neighbours where the last question
    was answered. Tables are few, so that most of the next questions are about the same place.
    """

    __slots__ = ("gap_end", "gap_start", "offsets")

    def __init__(self, table: Sequence[int] = (), mask: int = -1) -> None:
        """The offsets in *table*'s entries under *mask*; 0 is none."""
        self.gap_start = self.gap_end = 0
        parts = []
        for start in range(0, len(table), _PART):  # in parts, so that the largest table costs no large set
            found = {entry & mask for entry in table[start : start + _PART]}
            found.discard(0)
            parts.append(array("Q", sorted(found)))
        if len(parts) == 1:
            self.offsets = parts[0]
            return
        self.offsets = array("Q")
        last = 0
        for offset in merge(*parts):
            if offset != last:
                self.offsets.append(offset)
                last = offset

    def add(self, offset: int) -> None:
        """Put *offset* in, if it is not there."""
        at = bisect_left(self.offsets, offset)
        if at == len(self.offsets) or self.offsets[at] != offset:
            self.offsets.insert(at, offset)
            self.gap_start = self.gap_end = 0

    def remove(self, offset: int) -> None:
        """Take *offset* out, if it is there."""
        at = bisect_left(self.offsets, offset)
        if at < len(self.offsets) and self.offsets[at] == offset:
            del self.offsets[at]

    def any_in(self, start: int, end: int) -> bool:
        """Whether one lies in start..end (not included). *start* is at a cluster's boundary."""
        offsets = self.offsets
        at = bisect_left(offsets, start)
        last = at == len(offsets)
        if not last and offsets[at] < end:
            return True
        self.gap_start = offsets[at - 1] + 1 if at else 0
        self.gap_end = _NO_END if last else offsets[at]
        return False


class OverlapGuard:
    """Says whether a write would hit metadata. Cheap: a few comparisons and two binary searches."""

    def __init__(self, image: Image, classes: frozenset[str]) -> None:
        """*classes* as ``OverlapChecks`` names them."""
        self._image = image
        self._mask = image.geometry.cluster_mask
        self.choose(classes)
        self.l2_tables = SortedOffsets()
        self.refcount_blocks = SortedOffsets()
        self.inactive_l1: list[Area] = []
        self.inactive_l2 = SortedOffsets()
        self.snapshot_table_bytes = 0
        self._seen: Header | None = None
        self._fixed_end = 0
        self._directory_start = 0
        self._directory_end = 0
        self._encryption = Area(0, 0)
        self._encryption_end = 0

    def choose(self, classes: frozenset[str]) -> None:
        """Protect *classes* from now on."""
        self._classes = classes
        self._look_at_inactive_l2 = "inactive_l2" in classes

    def refresh(self) -> None:
        """What the guard was told of snapshots changed."""
        self._seen = None

    def clear(self, start: int, end: int) -> bool:
        """The common answer, quickly: behind all tables of fixed place, and no cluster of metadata in between.

        False says nothing: ``hit`` knows. *start* is at a cluster's boundary.
        """
        header = self._image.header
        if header is not self._seen:
            self._seen = header
            self._fixed_end = max(
                header.cluster_size,
                header.l1_table_offset + header.l1_size * 8,
                header.refcount_table_offset + (header.refcount_table_clusters << header.cluster_bits),
                header.snapshots_offset + self.snapshot_table_bytes,
                *(at + size for at, size in self.inactive_l1),
            )
            found = header.bitmaps
            self._directory_start = 0 if found is None else found.directory_offset
            self._directory_end = 0 if found is None else found.directory_offset + found.directory_size
            luks = header.encryption
            self._encryption = Area(0, 0) if luks is None else Area(luks.offset, luks.length)
            self._encryption_end = sum(self._encryption)
        if (
            start < self._fixed_end
            or self._look_at_inactive_l2
            or (start < self._directory_end and self._directory_start < end)
            or (start < self._encryption_end and self._encryption.offset < end)
        ):
            return False
        tables, blocks = self.l2_tables, self.refcount_blocks
        if (start < tables.gap_start or end > tables.gap_end) and tables.any_in(start, end):
            return False
        return (blocks.gap_start <= start and end <= blocks.gap_end) or not blocks.any_in(start, end)

    def hit(self, offset: int, nbytes: int, ignore: str = "") -> str | None:
        """The kind of metadata that *nbytes* at *offset* would overwrite, in QEMU's words; None: none."""
        classes = self._classes
        if not classes or nbytes <= 0:
            return None
        mask = self._mask
        end = (offset + nbytes + mask) & ~mask
        start = offset & ~mask
        if self.clear(start, end):
            return None
        header = self._image.header

        def in_table(at: int, size: int) -> bool:
            return bool(size) and at < end and start < at + size

        if start == 0 and "main_header" in classes:
            return "qcow2_header"
        if "main_header" in classes and in_table(*self._encryption):
            return "encryption header"

        def looked_at(name: str, words: str) -> bool:
            return name in classes and words != ignore

        if looked_at("active_l1", "active L1 table") and in_table(header.l1_table_offset, header.l1_size * 8):
            return "active L1 table"
        if looked_at("active_l2", "active L2 table") and self.l2_tables.any_in(start, end):
            return "active L2 table"
        table_bytes = header.refcount_table_clusters << header.cluster_bits
        if looked_at("refcount_table", "refcount table") and in_table(header.refcount_table_offset, table_bytes):
            return "refcount table"
        if looked_at("refcount_block", "refcount block") and self.refcount_blocks.any_in(start, end):
            return "refcount block"
        if "snapshot_table" in classes and in_table(header.snapshots_offset, self.snapshot_table_bytes):
            return "snapshot table"
        directory = header.bitmaps
        if (
            directory is not None
            and looked_at("bitmap_directory", "bitmap directory")
            and in_table(directory.directory_offset, directory.directory_size)
        ):
            return "bitmap directory"
        if "inactive_l1" in classes and any(in_table(at, size) for at, size in self.inactive_l1):
            return "inactive L1 table"
        if "inactive_l2" in classes and self.inactive_l2.any_in(start, end):
            return "inactive L2 table"
        return None

    def check(self, offset: int, nbytes: int, ignore: str = "") -> None:
        """Raise Corruption, before anything is written, where the write would overwrite metadata."""
        kind = self.hit(offset, nbytes, ignore)
        if kind is not None:
            raise Corruption(f"Preventing invalid write on metadata (overlaps with {kind})", offset=offset, size=nbytes)
