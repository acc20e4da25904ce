"""Zero writes and discards: both change L2 entries and move no data.

Both work slice by slice: whatever must be awaited (room that is not linked yet, a slice, an L2 table) is awaited
first, and looked at again; then all entries of the slice are changed without an await.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.errors import UnsupportedFeature
from blockio.types import RequestFlags, StatusFlags
from blockio_drivers.qcow2.entries import InvalidEntry, Loss
from blockio_drivers.qcow2.tables import L1_OFFSET_MASK

if TYPE_CHECKING:
    from array import array

    from blockio_drivers.qcow2.allocation import Writer
    from blockio_drivers.qcow2.cache import Slice
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping
    from blockio_drivers.qcow2.writeback import WriteBack

__all__ = ["Discarder"]


class Discarder:
    """Makes ranges read as zeroes, or lets go of them.

    *pass_discard*: freed clusters are discarded in the file; None: where the node is opened so, now or by a reopen.
    """

    def __init__(
        self, image: Image, mapping: Mapping, writer: Writer, write_back: WriteBack, *, pass_discard: bool | None
    ) -> None:
        self._image = image
        self._mapping = mapping
        self._writer = writer
        self._write_back = write_back
        self.pass_discard = pass_discard
        self._version = image.geometry.version
        self._cluster_mask = image.geometry.cluster_mask
        self._mask = image.geometry.subcluster_mask

    async def zero(self, offset: int, nbytes: int, *, unmap: bool) -> None:
        """Make the range read as zeroes without writing any.

        *unmap* gives clusters back; otherwise they are kept as allocated zero clusters. A range that does not fill
        its subclusters is widened where the rest reads as zeroes already. UnsupportedFeature where the format cannot
        say it (version 2 with a backing file, a part of a compressed cluster) or a subcluster holds other data: the
        framework writes zeroes then.
        """
        if self._version < 3 and self._image.backing is not None:
            raise UnsupportedFeature
        start, end = offset & ~self._mask, offset + nbytes
        stop = (end + self._mask) & ~self._mask
        if start != offset and not await self._reads_zero(start, offset - start):
            raise UnsupportedFeature
        if stop != end and end < self._image.length and not await self._reads_zero(end, stop - end):
            raise UnsupportedFeature
        if self._version < 3:
            await self._each(start, stop, Loss.DISCARD, skip_missing=True)
        else:
            await self._each(start, stop, Loss.ZERO if unmap else Loss.RESERVE, skip_missing=False)

    async def discard(self, offset: int, nbytes: int) -> None:
        """Let go of the range, which then reads as zeroes (version 3) or as nothing (version 2 without backing).

        UnsupportedFeature where the range does not fill its subclusters, covers a part of a compressed cluster, or
        where old data of the backing file would show (version 2).
        """
        end = offset + nbytes
        if self._version < 3 and self._image.backing is not None:
            raise UnsupportedFeature
        if offset & self._mask or (end & self._mask and end != self._image.length):
            raise UnsupportedFeature
        stop = (end + self._mask) & ~self._mask
        await self._each(offset, stop, Loss.DISCARD, skip_missing=self._image.backing is None)

    async def crop(self, offset: int, end: int) -> None:
        """Let go of cluster-aligned *offset* to *end* for good: the disk ends before it. Nothing may read it now."""
        await self._each(offset, end, Loss.CROP, skip_missing=True)

    async def _reads_zero(self, offset: int, nbytes: int) -> bool:
        """Whether what a zero write would widen over reads as zeroes already."""
        nbytes = min(nbytes, self._image.length - offset)
        while nbytes > 0:
            extent = await self._mapping.map(offset, nbytes)
            kind = extent.kind.value
            if kind == "unallocated" and self._image.backing is not None:
                inside = min(extent.length, self._image.backing.length - offset)
                if inside > 0:
                    status = await self._image.backing.co_block_status(offset, inside)
                    if not status.flags & StatusFlags.ZERO:
                        return False
                    extent = extent._replace(length=status.length if status.length < inside else extent.length)
            elif kind not in {"zero", "unallocated"}:
                return False
            offset += extent.length
            nbytes -= extent.length
        return True

    async def _each(self, offset: int, end: int, how: Loss, *, skip_missing: bool) -> None:
        mapping = self._mapping
        waited = False
        while offset < end:
            key = offset >> mapping.slice_shift
            stop = min(end, (key + 1) << mapping.slice_shift)
            if skip_missing and not self._has_table(offset):
                reach = 1 << self._image.geometry.l1_shift
                offset = min(end, (offset & -reach) + reach)
                continue
            found = mapping.writable(key)
            if found is None:
                await mapping.make_writable(key)
                continue
            first = offset & ~self._cluster_mask
            last = (stop + self._cluster_mask) & ~self._cluster_mask
            if await self._writer.wait_for(first, last - first, again=waited):
                waited = True
                continue
            waited = False
            # Without an await since we looked:
            if self._image.raw:
                await self._zero_first(found, offset, stop, how)
            else:
                self._lose(found, offset, stop, how)
            offset = stop
            await self._write_back.relieve()  # a large disk has more clusters than should wait to be free

    async def _zero_first(self, found: Slice[array[int]], offset: int, end: int, how: Loss) -> None:
        """``_lose``, behind zeroes in the raw data file, and with nobody writing there meanwhile."""
        first = offset & ~self._cluster_mask
        hold = self._writer.locks.hold(first, ((end + self._cluster_mask) & ~self._cluster_mask) - first)
        found.pins += 1
        try:
            flags = RequestFlags.NONE if how is Loss.RESERVE else RequestFlags.MAY_UNMAP
            if offset < self._image.length:
                await self._image.data.co_pwrite_zeroes(offset, min(end, self._image.length) - offset, flags)
            self._lose(found, offset, end, how)
        finally:
            self._image.unstable = True
            found.pins -= 1
            hold.release()

    def _has_table(self, offset: int) -> bool:
        index = offset >> self._image.geometry.l1_shift
        return index < len(self._image.l1) and bool(self._image.l1[index] & L1_OFFSET_MASK)

    def _lose(self, found: Slice[array[int]], offset: int, end: int, how: Loss) -> None:
        mapping = self._mapping
        at, stop = mapping.span(offset, end - offset)
        data_file = self._image.data_file
        before = mapping.entries.places(found.table, at, stop) if data_file is not None else []
        try:
            freed = mapping.entries.lose(found.table, at, stop, how, below=self._image.backing is not None)
        except InvalidEntry as error:
            raise mapping.corruption(error, offset, at) from None
        if freed is not None:
            mapping.mark(found, at, stop)
            asked = self._image.host.flags.unmap if self.pass_discard is None else self.pass_discard
            self._writer.let_go(freed, discard=asked)
            if data_file is not None and asked and not self._image.raw:
                bits = self._image.geometry.subcluster_bits
                for place in set(before).difference(mapping.entries.places(found.table, at, stop)):
                    data_file.drop((offset + ((place - at) << bits)) >> self._image.geometry.cluster_bits)
