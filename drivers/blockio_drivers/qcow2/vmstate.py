"""The machine's state, kept in the image past the end of the disk.

It is mapped by the same L1 table, from the first L1 entry on that the disk does not need. A snapshot that is taken with
a state takes it along (see ``snapshots``).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector
from blockio.errors import LimitExceeded, UnsupportedFeature
from blockio.types import ExtentKind

if TYPE_CHECKING:
    from blockio_drivers.qcow2.allocation import Writer
    from blockio_drivers.qcow2.compressed import CompressedReader
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping
    from blockio_drivers.qcow2.resize import Resizer

__all__ = ["MachineState"]

_INT64_MAX: Final = (1 << 63) - 1
_SECTOR: Final = 512


class MachineState:
    """Saves and loads; *compressed* and *resizer* are those of the image."""

    def __init__(
        self, image: Image, mapping: Mapping, writer: Writer, resizer: Resizer, compressed: CompressedReader
    ) -> None:
        self._image = image
        self._mapping = mapping
        self._writer = writer
        self._resizer = resizer
        self._compressed = compressed

    def _at(self, pos: int, nbytes: int) -> int:
        geometry = self._image.geometry
        start = geometry.l1_entries_for(self._image.length) << geometry.l1_shift
        if start + pos + nbytes > _INT64_MAX:
            raise LimitExceeded("The machine's state is too far from the disk", errno.EFBIG)
        return start + pos

    async def save(self, iov: IoVector, pos: int) -> None:
        """Keep *iov* at *pos*.

        UnsupportedFeature with a data file, LimitExceeded (EFBIG) where the L1 table would get too large; I/O errors.
        """
        if self._image.data_file is not None:
            raise UnsupportedFeature  # no snapshot could take it along, and the file is the disk's alone
        start = self._at(pos, iov.nbytes)
        await self._image.event("vmstate_save")
        await self._resizer.reach(start + iov.nbytes)
        if self._image.encryption is not None:
            start, iov = await self._whole_sectors(start, iov)
        done = 0
        while done < iov.nbytes:
            offset = start + done
            room = await self._writer.allocate(offset, iov.nbytes - done)
            try:
                head = await self._read(offset - room.cow_head, room.cow_head)
                tail = await self._read(offset + room.length, room.cow_tail)
                data = IoVector.of(head).concat(iov.slice(done, room.length), IoVector.of(tail))
                await self._image.write_data(room.child, offset - room.cow_head, room.host_offset - room.cow_head, data)
            except BaseException:
                await room.abandon()
                raise
            await room.link()
            done += room.length

    async def _whole_sectors(self, start: int, iov: IoVector) -> tuple[int, IoVector]:
        """*iov* with what is kept around it in its first and last sector."""
        head, end = start % _SECTOR, start + iov.nbytes
        before = await self._read(start - head, head and _SECTOR)
        after = await self._read(end - end % _SECTOR, _SECTOR) if end % _SECTOR else b""
        iov = IoVector.of(before[:head]).concat(iov, IoVector.of(after[end % _SECTOR :]))
        return start - head, iov

    async def load(self, iov: IoVector, pos: int) -> None:
        """Fill *iov* from *pos*; what was never saved reads as zeroes."""
        await self._image.event("vmstate_load")
        start = self._at(pos, iov.nbytes)
        head = start % _SECTOR
        token = self._image.retired.enter()
        try:
            data = await self._read(start - head, -(-(head + iov.nbytes) // _SECTOR) * _SECTOR)
            iov.copy_from(memoryview(data)[head : head + iov.nbytes])
        finally:
            self._image.retired.exit(token)

    async def _read(self, offset: int, nbytes: int) -> bytearray:
        data = bytearray(nbytes)
        at = 0
        while at < nbytes:
            extent = await self._mapping.map(offset + at, nbytes - at)
            part = IoVector.of(memoryview(data)[at : at + extent.length])
            if extent.kind is ExtentKind.DATA and extent.child is not None:
                await self._image.read_data(extent.child, offset + at, extent.host_offset, part)
            elif extent.kind is ExtentKind.COMPRESSED:
                await self._compressed.read(offset + at, part, extent.host_offset)
            at += extent.length
        return data
