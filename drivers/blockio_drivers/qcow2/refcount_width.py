"""Another width of all refcounts: the whole refcount structure built anew beside the present one.

New blocks and a new table are written into free clusters, which both structures count. When all that is stable, one
write inside the header's first sector leads to the new table and says its width; then the old structure is given back.
**A crash leaves the old structure or the new one, and clusters that leaked.**
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from blockio.buffers import is_zero
from blockio.errors import OptionError
from blockio_drivers.qcow2.refcounts import RefcountCodec
from blockio_drivers.qcow2.tables import REFCOUNT_TABLE_OFFSET_MASK, table_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image

__all__ = ["RefcountWidth"]


class RefcountWidth:
    """One change of the width to ``1 << order`` bits. Everything is settled, and nobody else changes the image."""

    def __init__(
        self, image: Image, allocator: Allocator, order: int, progress: Callable[[int, int], None] | None
    ) -> None:
        self._image = image
        self._allocator = allocator
        self._bits = image.geometry.cluster_bits
        self._old = RefcountCodec.of(image.geometry.refcount_order)
        self._new = RefcountCodec.of(order)
        self._old_entries = self._old.entries(image.geometry.cluster_size)
        self._new_entries = self._new.entries(image.geometry.cluster_size)
        self._progress = progress
        self._blocks: dict[int, int] = {}
        self._rooms: list[tuple[int, int]] = []
        self.table = array("Q")
        """The new refcount table, once it is built, and where it lies; ``left`` are the old structure's clusters."""
        self.offset = 0
        self.left: list[tuple[int, int]] = []

    async def build(self) -> None:
        """Build it, and make it stable. The image still has the old one.

        OptionError where a refcount does not fit; any I/O error. Then, and when cancelled, nothing has changed.
        """
        image, allocator = self._image, self._allocator
        try:
            await self._verify()
            self.offset, clusters = await self._make_room()
            await allocator.write()
            await self._write_blocks()
            self.table = array("Q", bytes(clusters << self._bits))
            for index, block in self._blocks.items():
                self.table[index] = block
            await image.write(self.offset, table_to_bytes(self.table))
            await image.barrier()
        except BaseException:
            for first, count in self._rooms:
                allocator.give_back(first, count)
            raise
        header = image.header
        self.left = [(header.refcount_table_offset >> self._bits, header.refcount_table_clusters)]
        self.left += [((entry & REFCOUNT_TABLE_OFFSET_MASK) >> self._bits, 1) for entry in allocator.table if entry]

    async def turn(self) -> None:
        """Let the header lead to what was built. Where that fails it says which of the two is the image's."""
        await self._image.set_refcounts(self.offset, len(self.table) * 8 >> self._bits, self._new.order)

    async def _verify(self) -> None:
        """Every refcount fits into the new width."""
        if self._new.bits >= self._old.bits:
            return
        for index in self._old_indexes():
            values = self._old.decode(await self._allocator.block(index))
            if max(values) > self._new.maximum:
                at, value = next((at, value) for at, value in enumerate(values) if value > self._new.maximum)
                cluster = index * self._old_entries + at
                raise OptionError(
                    f"Cannot decrease refcount entry width to {self._new.bits} bits: Cluster at offset "
                    f"{cluster << self._bits:#x} has a refcount of {value}"
                )

    def _old_indexes(self) -> list[int]:
        return [index for index, entry in enumerate(self._allocator.table) if entry]

    async def _make_room(self) -> tuple[int, int]:
        """Room for the blocks that will be needed, and for a table; the answer is where the table is, in clusters.

        What is handed out must be counted too, so that more blocks may be needed.
        """
        clusters = offset = 0
        while True:
            missing = [index for index in await self._counting() if index not in self._blocks]
            needed = self._image.geometry.clusters(8 * (max((*self._blocks, *missing)) + 1))
            if not missing and needed <= clusters:
                return offset, clusters
            if missing:
                first = await self._allocate(len(missing), "refcount block")
                self._blocks |= {index: first + (place << self._bits) for place, index in enumerate(missing)}
            if needed > clusters:
                if clusters:
                    self._allocator.give_back(*self._rooms.pop(self._rooms.index((offset >> self._bits, clusters))))
                clusters = needed
                offset = await self._allocate(clusters, "refcount table")

    async def _allocate(self, count: int, what: str) -> int:
        offset = (await self._allocator.allocate(count, what)).offset
        self._rooms.append((offset >> self._bits, count))
        return offset

    async def _counting(self) -> set[int]:
        """The new blocks that count something."""
        found: set[int] = set()
        for index in self._old_indexes():
            first = index * self._old_entries
            if self._new_entries >= self._old_entries and first // self._new_entries in found:
                continue
            block = await self._allocator.block(index)
            step = min(self._new_entries, self._old_entries)
            nbytes = step * self._old.bits // 8
            for place in range(self._old_entries // step):
                if not is_zero(memoryview(block)[place * nbytes : (place + 1) * nbytes]):
                    found.add((first + place * step) // self._new_entries)
        return found

    async def _write_blocks(self) -> None:
        for done, (index, offset) in enumerate(sorted(self._blocks.items())):
            if self._progress is not None:
                self._progress(done, len(self._blocks))
            await self._image.write(offset, self._new.encode(await self._counts(index)))

    async def _counts(self, index: int) -> array[int]:
        """The refcounts of the new block *index*."""
        first = index * self._new_entries
        if self._new_entries <= self._old_entries:
            values = await self._old_counts(first // self._old_entries)
            start = first % self._old_entries
            return values[start : start + self._new_entries]
        counts = array("Q")
        for old in range(first // self._old_entries, (first + self._new_entries) // self._old_entries):
            counts.extend(await self._old_counts(old))
        return counts

    async def _old_counts(self, index: int) -> array[int]:
        table = self._allocator.table
        if index >= len(table) or not table[index]:
            return array("Q", bytes(8 * self._old_entries))
        return array("Q", self._old.decode(await self._allocator.block(index)))
