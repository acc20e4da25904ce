"""Making an image fit for version 2, which knows no zero clusters.

A zero cluster becomes a cluster of zeroes, or where nothing could show through it, none; where data is encrypted, where
zeroes in the file are noise to the guest, none or the downgrade is refused. This goes L2 table by L2
table, those of snapshots included: what a table will name is written and stable, refcounts and all, before the table
is written in place, and either of its entries reads as zeroes. **A crash leaves a sound image of version 3, and
clusters that leaked.** Only then may the header say version 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.errors import CorruptImage, UnsupportedFeature
from blockio_drivers.qcow2.header import CompressionType
from blockio_drivers.qcow2.image import Corruption, finish, hexadecimal
from blockio_drivers.qcow2.overlap import SortedOffsets
from blockio_drivers.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L1_OFFSET_MASK,
    L2_OFFSET_MASK,
    ZERO,
    table_from_bytes,
    table_to_bytes,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Awaitable, Callable

    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.snapshots import Snapshots

__all__ = ["ZeroExpansion"]

_EIO: Final = 5


class ZeroExpansion:
    """The zero clusters of an image without subclusters. Everything is settled, and nobody else changes the image."""

    def __init__(
        self, image: Image, allocator: Allocator, *, backed: bool, progress: Callable[[int, int], None] | None
    ) -> None:
        self._image = image
        self._allocator = allocator
        self._backed = backed
        self._progress = progress
        self._bits = image.geometry.cluster_bits
        self._cluster = image.geometry.cluster_size

    async def run(self, snapshots: Snapshots) -> None:
        """Expand them in all L2 tables, those of *snapshots* too.

        UnsupportedFeature, with nothing changed, where there are compressed clusters of a kind that version 2 does not
        have, or encrypted clusters would have to be made. Failed or cancelled, some tables are done, and the image is
        sound.
        """
        if self._image.header.compression_type is not CompressionType.ZLIB:
            await self._for_each_table(snapshots, self._refuse_compressed)
        if self._image.encryption is not None and self._backed:
            await self._for_each_table(snapshots, self._refuse_zero)
        await self._for_each_table(snapshots, self._expand)

    async def _for_each_table(self, snapshots: Snapshots, work: Callable[[int], Awaitable[None]]) -> None:
        """Await *work* for the offset of each L2 table; one that several L1 tables share comes again."""
        done, total = 0, len(self._image.l1) + sum(entry.l1_size for entry in snapshots.entries)
        for entry in (None, *snapshots.entries):
            l1 = self._image.l1 if entry is None else await snapshots.l1_table(entry)
            for offset in SortedOffsets(l1, L1_OFFSET_MASK).offsets:
                await work(offset)
                done += 1
                if self._progress is not None:
                    self._progress(done, total)

    async def _refuse_compressed(self, offset: int) -> None:
        if any(entry & COMPRESSED for entry in await self._read(offset)):
            raise UnsupportedFeature(
                "Cannot downgrade an image with zstd compression type and existing compressed clusters"
            )

    async def _refuse_zero(self, offset: int) -> None:
        if any(entry & ZERO and not entry & COMPRESSED for entry in await self._read(offset)):
            raise UnsupportedFeature("Cannot downgrade an encrypted image with zero clusters and a backing file")

    async def _read(self, offset: int) -> array[int]:
        if offset & (self._cluster - 1):
            raise CorruptImage(f"L2 table offset {offset:#x} unaligned", _EIO)
        return table_from_bytes(await self._image.read(offset, self._cluster))

    async def _expand(self, offset: int) -> None:
        table = await self._read(offset)
        zero = [at for at, entry in enumerate(table) if entry & ZERO and not entry & COMPRESSED]
        if not zero:
            return
        image, allocator = self._image, self._allocator
        if image.guard.hit(offset, self._cluster, "active L2 table") not in (None, "inactive L2 table"):
            image.guard.check(offset, self._cluster, "active L2 table")
        references = await allocator.refcount(offset)
        copied = COPIED if references == 1 else 0
        taken: list[int] = []
        left: list[int] = []
        try:
            for at in zero:
                host = table[at] & L2_OFFSET_MASK
                if host & (self._cluster - 1):
                    raise Corruption(
                        f"Cluster allocation offset {host:#x} unaligned (L2 offset: {offset:#x}, L2 index: "
                        f"{hexadecimal(at)})"
                    )
                await allocator.belongs(host, "Data cluster")
                if host and image.encryption is None and await allocator.refcount(host) == references:
                    # Nobody comes to it but through this table.
                    image.guard.check(host, self._cluster)
                    await image.write_zeroes(host, self._cluster)
                    table[at] = host | copied
                    continue
                if host:
                    left.append(host)
                table[at] = (await self._zeroes(references, taken)) | copied if self._backed else 0
            await allocator.write()
            await image.barrier()
        except BaseException:
            for host in taken:
                allocator.give_back(host >> self._bits, 1)
            raise
        # Cancelled in between, nobody would know whose the clusters are.
        await finish(self._turn(offset, table, left * references))

    async def _turn(self, offset: int, table: array[int], left: list[int]) -> None:
        """Write the table; each of *left* is one reference that it had."""
        await self._image.write(offset, table_to_bytes(table))
        await self._image.barrier()
        for host in left:
            self._allocator.give_back(host >> self._bits, 1)

    async def _zeroes(self, references: int, taken: list[int]) -> int:
        """A new cluster of zeroes with so many references, each of which is in *taken*."""
        room = await self._allocator.allocate(1, "zero cluster")
        taken.append(room.offset)
        if references > 1:
            await self._allocator.refer(room.offset, references - 1)
            taken.extend([room.offset] * (references - 1))
        await self._image.write_zeroes(room.offset, self._cluster)  # also where it reads so: the file must reach there
        return room.offset
