"""Changing the length of the disk.

Growing makes room in the L1 table first (a new one is complete and stable before the header's one sector switches to
it) and changes the header's size last. Shrinking lets go of what lies behind the new end, makes that stable, and only
then gives up tables and file space. A crash leaves the old disk or the new one.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector
from blockio.errors import BlockError, LimitExceeded, UnsupportedFeature
from blockio.types import ExtentKind, PreallocMode, RequestFlags
from blockio_drivers.qcow2.allocation import NewRoom
from blockio_drivers.qcow2.image import finish
from blockio_drivers.qcow2.tables import table_to_bytes

if TYPE_CHECKING:
    from blockio_drivers.qcow2.allocation import Writer
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.compressed import CompressedReader
    from blockio_drivers.qcow2.discard import Discarder
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping
    from blockio_drivers.qcow2.writeback import WriteBack

__all__ = ["Resizer"]

_SECTOR: Final = 512
_MAX_L1_BYTES: Final = 32 << 20
_STEP: Final = 1 << 30
"""How much is preallocated at once: a failure or a cancellation in the middle leaves the rest for another try."""


class Resizer:
    """``co_truncate`` of one image. The framework has made sure that no request is under way behind the shorter end."""

    def __init__(
        self,
        image: Image,
        mapping: Mapping,
        allocator: Allocator,
        writer: Writer,
        discarder: Discarder,
        write_back: WriteBack,
        compressed: CompressedReader,
    ) -> None:
        self._image = image
        self._mapping = mapping
        self._allocator = allocator
        self._writer = writer
        self._discarder = discarder
        self._write_back = write_back
        self._compressed = compressed

    async def truncate(self, length: int, prealloc: PreallocMode, *, exact: bool, zero: bool) -> None:
        """Make the disk *length* bytes long; *zero*: the new part must read as zeroes whatever lies below.

        A data file follows; *exact*: it may be no longer than the disk.
        Raises BlockError EINVAL for a length that is not whole sectors or a preallocation while shrinking,
        UnsupportedFeature for a version 2 image with snapshots, or if encrypted with a preallocation, LimitExceeded
        where the L1 table gets too large.
        """
        if length % _SECTOR:
            raise BlockError(f"The new size must be a multiple of {_SECTOR}", errno.EINVAL)
        header = self._image.header
        if header.nb_snapshots and header.version < 3:
            raise UnsupportedFeature("Can't resize a v2 image which has snapshots")
        old = self._image.length
        if length < old:
            if prealloc is not PreallocMode.OFF:
                raise BlockError("Preallocation can't be used for shrinking an image", errno.EINVAL)
            await self._shrink(length)
        elif length > old:
            mapped = self._image.raw and prealloc is PreallocMode.OFF
            await self._grow(old, length, PreallocMode.METADATA if mapped else prealloc, zero=zero)
        if self._image.data_file is not None:
            data = self._image.data
            if prealloc is PreallocMode.OFF or data.length > length:  # the last cluster may reach past the disk's end
                await data.co_truncate(length, exact=exact)

    # -- growing

    async def _grow(self, old: int, length: int, prealloc: PreallocMode, *, zero: bool) -> None:
        entries = self._image.geometry.l1_entries_for(length)
        limit = min(_MAX_L1_BYTES, self._image.host.trust.max_l1_bytes)
        if entries * 8 > limit:
            raise LimitExceeded("Failed to grow the L1 table: File too large")
        noise = prealloc is not PreallocMode.OFF and self._image.encryption is not None
        if noise and self._image.header.version < 3:
            raise UnsupportedFeature("Preallocated clusters of an encrypted version 2 image would read as noise")
        behind = self._image.geometry.l1_entries_for(old)
        if any(self._image.l1[behind:]):
            await self._drop_from(behind << self._image.geometry.l1_shift)  # a machine's state: not the guest's to see
        if entries > len(self._image.l1):
            await self._grow_l1(entries)
        await self._zero_tail(old, zero=zero, allocate=prealloc is not PreallocMode.OFF)
        start = self._image.geometry.clusters(old) << self._image.geometry.cluster_bits
        allocate = prealloc is not PreallocMode.OFF
        if allocate:
            await self._preallocate(start, length, prealloc)
        # With subclusters what is preallocated holds no data yet, and would not hide what lies below.
        hidden = allocate and not self._image.geometry.extended_l2
        below = zero and not hidden and self._image.backing is not None
        if (below or noise) and start < length:
            try:
                await self._discarder.zero(start, length - start, unmap=False)
            except UnsupportedFeature as error:  # version 2 has no way to hide what lies below
                raise UnsupportedFeature(f"Failed to zero out new clusters: {error}") from error
        await self._write_back.run()
        await self._image.barrier()
        await self._image.set_size(length)

    async def reach(self, end: int) -> None:
        """The L1 table shall have entries up to guest offset *end*, past the disk's; LimitExceeded where it cannot."""
        entries = self._image.geometry.l1_entries_for(end)
        limit = min(_MAX_L1_BYTES, self._image.host.trust.max_l1_bytes) // 8
        if entries > limit:
            raise LimitExceeded("Failed to grow the L1 table: File too large")
        here = len(self._image.l1)
        if entries > here:
            await self._grow_l1(min(limit, max(entries, here + here // 2)))

    async def _grow_l1(self, entries: int) -> None:
        """An L1 table of *entries*: written whole in a new place, stable, then named by the header.

        No write-back may run meanwhile: it would write to the old place what the new one has not.
        """
        image, allocator = self._image, self._allocator
        bits = image.geometry.cluster_bits
        nbytes = entries * 8
        count = image.geometry.clusters(nbytes)
        async with self._write_back.exclusive():
            await image.event("l1_grow_alloc_table")
            room = await allocator.allocate(count, "L1 table")
            try:
                table = image.l1[:]
                table.extend(0 for _ in range(entries - len(table)))
                if image.lazy:
                    await image.mark_dirty()
                await image.event("l1_grow_write_table")
                await image.write(room.offset, table_to_bytes(table).ljust(count << bits, b"\0"))
                # The table may name L2 tables that only memory knew; their refcounts must be stable too.
                await allocator.write()
                await image.barrier()
                await image.event("l1_grow_activate_table")
            except BaseException:
                allocator.give_back(room.offset >> bits, count)
                raise
            # Cancelled in between, the header would name a table that memory does not have.
            await finish(self._switch_l1(room.offset, entries))

    async def _switch_l1(self, offset: int, entries: int) -> None:
        """Turn the header to the L1 table at *offset*, which is complete and stable, and let go of the old one."""
        image = self._image
        old = image.header
        try:
            # Should this fail, the new table may be the image's all the same: neither is given back.
            await image.set_l1_table(offset, entries)
        finally:
            if image.header.l1_table_offset == offset:
                image.l1.extend(0 for _ in range(entries - len(image.l1)))
        self._allocator.replaced(old.l1_table_offset >> old.cluster_bits, image.geometry.clusters(old.l1_size * 8))

    async def _zero_tail(self, old: int, *, zero: bool, allocate: bool) -> None:
        """What the last cluster holds behind the old end was never the guest's; it becomes so now, as zeroes.

        *allocate*: it shall have room of its own in any case.
        """
        image = self._image
        mask = image.geometry.cluster_mask
        end = (old + mask) & ~mask
        if end == old:
            return
        while old < end:  # with subclusters it may be of several kinds
            kind, length, _, _ = await self._mapping.map(old, end - old)
            below = kind is ExtentKind.UNALLOCATED and zero and self._image.backing is not None
            if not allocate and (kind is ExtentKind.ZERO or (kind is ExtentKind.UNALLOCATED and not below)):
                old += length
                continue
            room = await self._writer.allocate(old, length)
            try:
                head = await self._guest_bytes(old - room.cow_head, room.cow_head)
                data = IoVector.of(head + bytes(room.length + room.cow_tail))
                await image.write_data(room.child, old - room.cow_head, room.host_offset - room.cow_head, data)
            except BaseException:
                await room.abandon()
                raise
            await room.link()
            old += room.length

    async def _guest_bytes(self, offset: int, nbytes: int) -> bytearray:
        """*nbytes* of one guest cluster, for copying them into a new one."""
        data = bytearray(nbytes)
        backing = self._image.backing
        at = 0
        while at < nbytes:
            kind, length, host, child = await self._mapping.map(offset + at, nbytes - at)
            iov = IoVector.of(memoryview(data)[at : at + length])
            if kind is ExtentKind.DATA and child is not None:
                await self._image.read_data(child, offset + at, host, iov)
            elif kind is ExtentKind.COMPRESSED:
                await self._compressed.read(offset + at, iov, host)
            elif kind is ExtentKind.UNALLOCATED and backing is not None:
                await backing.co_preadv(offset + at, iov)
            at += length
        return data

    async def _preallocate(self, start: int, end: int, prealloc: PreallocMode) -> None:
        """Give every guest cluster of start..end a host cluster that reads as zeroes."""
        while start < end:
            room = await self._writer.allocate(start, min(end - start, _STEP))
            try:
                if not (self._image.raw and prealloc is PreallocMode.METADATA):  # what is mapped of it reads as zeroes
                    await self._provide(room.host_offset, room.length, prealloc, fresh=room.fresh)
            except BaseException:
                await room.abandon()
                raise
            if isinstance(room, NewRoom):
                await room.reserve()
            else:
                await room.link()
            start += room.length

    async def _provide(self, offset: int, nbytes: int, prealloc: PreallocMode, *, fresh: bool) -> None:
        """Make the host bytes read as zeroes, with room behind them as *prealloc* says."""
        mask = self._image.geometry.cluster_mask
        nbytes = (nbytes + mask) & ~mask
        data = self._image.data
        if fresh and offset + nbytes > data.length:
            mode = PreallocMode.OFF if prealloc is PreallocMode.METADATA else prealloc
            await data.co_truncate(offset + nbytes, prealloc=mode)
        elif not fresh or prealloc is not PreallocMode.METADATA:
            # Used before, or jumped over by a refcount block behind it: a hole, which has no room.
            unmap = RequestFlags.MAY_UNMAP if prealloc is PreallocMode.METADATA else RequestFlags.NONE
            await data.co_pwrite_zeroes(offset, nbytes, unmap)
        self._image.unstable = True

    # -- shrinking

    async def _drop_from(self, offset: int) -> None:
        """Let go of all that the L1 table has from cluster-aligned *offset* on, a machine's state included."""
        image, shift = self._image, self._image.geometry.l1_shift
        await self._discarder.crop(offset, len(image.l1) << shift)
        for index in range(-(-offset >> shift), len(image.l1)):
            self._mapping.drop_table(index)

    async def _shrink(self, length: int) -> None:
        image, geometry = self._image, self._image.geometry
        await self._drop_from(geometry.clusters(length) << geometry.cluster_bits)
        await image.event("l1_shrink_write_table")
        await self._write_back.run()
        await image.barrier()
        await image.event("l1_shrink_free_l2_clusters")
        await image.set_size(length)
        await self.cut_file()

    async def cut_file(self) -> None:
        """Give the file's unused end back. A file that keeps its length is no failure."""
        with suppress(OSError):
            async with self._write_back.exclusive():
                await self._allocator.cut()
