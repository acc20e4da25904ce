"""Compressed writes: clusters are compressed in worker threads, several at once, and stored in the order they came.

Invariants:

* A compressed cluster takes the place of nothing but unallocated and plain zero clusters, as in QEMU (EIO), and is
  never written again: a later write gets other room. What does not get smaller is written as any other cluster.
* From before its place is given out until it is linked (or given back) a cluster is held in the writer's ``locks``
  and its L2 slice is pinned, so that linking changes memory only and cannot fail.
* Places are given out in the order in which requests came, so that what is written in order lies in order. This is for
  the layout alone: who was cancelled lets the next one pass.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector
from blockio.errors import BlockError, UnsupportedFeature
from blockio.types import HostOffset
from blockio_drivers.qcow2.compress import compress_clusters, prepare
from blockio_drivers.qcow2.image import finish
from blockio_drivers.qcow2.packing import Packer
from blockio_drivers.qcow2.tables import COMPRESSED, L2_OFFSET_MASK

if TYPE_CHECKING:
    from array import array

    from blockio_drivers.qcow2.allocation import Writer
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.cache import Slice
    from blockio_drivers.qcow2.compressed import CompressedReader
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping
    from blockio_drivers.qcow2.writeback import WriteBack

__all__ = ["CompressedWriter"]

_PIECE: Final = 2 << 20
"""How much crosses to a worker thread as one job: handing over is cheap beside compressing so much."""
_AT_ONCE: Final = 4
"""How many pieces of one request are under way."""


class _Turn:
    """The place of one piece in the order; ``pass_on`` lets the next one store."""

    def __init__(self, previous: asyncio.Future[None] | None) -> None:
        self._previous = previous
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def come(self) -> None:
        previous = self._previous
        if previous is not None and not previous.done():
            await asyncio.shield(previous)
        self._previous = None

    def pass_on(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class CompressedWriter:
    """``co_pwritev_compressed`` of one image; see the module's docstring for what is kept true."""

    def __init__(
        self,
        image: Image,
        mapping: Mapping,
        allocator: Allocator,
        writer: Writer,
        write_back: WriteBack,
        reader: CompressedReader,
        *,
        level: int,
    ) -> None:
        self._image = image
        self._mapping = mapping
        self._packer = Packer(image.geometry, allocator)
        self._writer = writer
        self._write_back = write_back
        self._reader = reader
        self.level = level
        self._bits = image.geometry.cluster_bits
        self._cluster = image.geometry.cluster_size
        self._mask = image.geometry.cluster_mask
        self._words = mapping.entries.words
        self._last: asyncio.Future[None] | None = None

    def change_loop(self) -> None:
        """Nobody is in the order now; the next one begins it in its own loop."""
        self._last = None

    async def write(self, offset: int, iov: IoVector) -> None:
        """Compress and store *iov*: whole clusters, or up to the disk's end. Empty: the stream ends.

        UnsupportedFeature with a data file or encryption, BlockError EINVAL for anything else, EIO where a cluster is
        allocated already (those before it may be written).
        Failing or cancelled, each cluster is what it was or what it shall be, and *iov* is not read any more.
        """
        if self._image.data_file is not None:
            raise UnsupportedFeature
        if self._image.encryption is not None:
            raise UnsupportedFeature("Compressed clusters would not be encrypted")
        nbytes = iov.nbytes
        if not nbytes:
            await self._end()
            return
        if offset & self._mask or (nbytes & self._mask and offset + nbytes != self._image.length):
            raise BlockError(errno=errno.EINVAL)
        step = max(_PIECE, self._cluster)
        if nbytes <= step:
            await self._piece(offset, iov)
            return
        under_way: deque[asyncio.Task[None]] = deque()
        try:
            for at in range(0, nbytes, step):
                if len(under_way) == _AT_ONCE:
                    await under_way[0]
                    under_way.popleft()
                part = iov.slice(at, min(step, nbytes - at))
                under_way.append(asyncio.ensure_future(self._piece(offset + at, part)))
            while under_way:
                await under_way[0]
                under_way.popleft()
        finally:
            if under_way:
                for task in under_way:
                    task.cancel()
                await finish(_all(under_way))

    async def _end(self) -> None:
        """The file ends with a whole sector, as QEMU leaves it: what reads without our care reads whole sectors."""
        file = self._image.file
        length = await file.co_getlength()
        if length & 511:
            await file.co_truncate((length + 511) & ~511, exact=False)

    async def _piece(self, offset: int, iov: IoVector) -> None:
        turn = _Turn(self._last)
        self._last = turn.over
        try:
            packed = await self._compress(iov)
            await turn.come()
            await self._store(offset, iov, packed, turn)
        finally:
            turn.pass_on()

    async def _compress(self, iov: IoVector) -> list[bytes | None]:
        """All clusters of *iov*, in a worker thread, which reads the caller's memory: seen to its end in any case."""
        size = self._cluster
        clusters = []
        for at in range(0, iov.nbytes, size):
            part = iov.slice(at, min(size, iov.nbytes - at))
            clusters.append(part.views[0] if len(part.views) == 1 else part.tobytes())
        kind = self._image.header.compression_type
        prepare(kind)
        packed: list[bytes | None] = []

        async def work() -> None:
            loop = asyncio.get_running_loop()
            packed.extend(await loop.run_in_executor(None, compress_clusters, kind, clusters, size, self.level))

        await finish(work())
        return packed

    async def _store(self, offset: int, iov: IoVector, packed: list[bytes | None], turn: _Turn) -> None:
        """Store the clusters of one piece, run by run of those that did and did not get smaller."""
        at = 0
        for smaller, run in groupby(packed, lambda data: data is not None):
            count = len(list(run))
            start, stop = at << self._bits, min((at + count) << self._bits, iov.nbytes)
            last = turn if stop == iov.nbytes else None
            if smaller:
                await self._store_packed(offset + start, [data for data in packed[at : at + count] if data], last)
            else:
                await self._store_plain(offset + start, iov.slice(start, stop - start), last)
            at += count

    async def _store_plain(self, offset: int, iov: IoVector, turn: _Turn | None) -> None:
        """Whole clusters, or the disk's last ones, as they are: there is nothing old around them to be kept."""
        at = 0
        while at < iov.nbytes:
            room = await self._writer.allocate(offset + at, iov.nbytes - at)
            if turn is not None and at + room.length == iov.nbytes:
                turn.pass_on()
            data = iov.slice(at, room.length)
            try:
                if room.cow_tail:
                    data = data.concat(IoVector.of(bytes(room.cow_tail)))
                await room.child.co_pwritev(room.host_offset, data)
            except BaseException:
                await room.abandon()
                raise
            await room.link()
            self._image.unstable = True
            at += room.length

    async def _store_packed(self, offset: int, packed: Sequence[bytes], turn: _Turn | None) -> None:
        """Compressed clusters, as many at a time as one L2 slice speaks of."""
        mapping = self._mapping
        while packed:
            if self._image.retired_clusters:
                await self._write_back.relieve()
            per_slice = 1 << (mapping.slice_shift - self._bits)
            first = (offset >> self._bits) & (per_slice - 1)
            now = packed[: per_slice - first]
            packed = packed[len(now) :]
            found = await self._room_for(offset, len(now))
            await self._fill(found, first, offset, now, None if packed else turn)
            offset += len(now) << self._bits

    async def _room_for(self, offset: int, count: int) -> Slice[array[int]]:
        """The slice of *count* guest clusters, in which nobody else is busy with them."""
        mapping = self._mapping
        key = offset >> mapping.slice_shift
        waited = False
        while True:
            found = mapping.writable(key)
            if found is None:
                await mapping.make_writable(key)
            elif not await self._writer.wait_for(offset, count << self._bits, again=waited):
                return found
            else:
                waited = True

    async def _fill(
        self, found: Slice[array[int]], first: int, offset: int, packed: Sequence[bytes], turn: _Turn | None
    ) -> None:
        words = self._words
        entries = found.table[first * words : (first + len(packed)) * words : words]
        if any(entry & (COMPRESSED | L2_OFFSET_MASK) for entry in entries):
            raise BlockError(errno=errno.EIO)
        sizes = [len(data) for data in packed]
        places: list[int] = []
        hold = self._writer.locks.hold(offset, len(packed) << self._bits)
        found.pins += 1
        try:
            await self._image.event("cluster_alloc_bytes")
            places = await self._packer.place(sizes)
            await self._image.event("l2_update_compressed")
            if turn is not None:
                turn.pass_on()
            await self._image.event("write_compressed")
            await self._write(places, packed)
        except BaseException:
            self._packer.give_back(places, sizes)
            raise
        else:
            self._link(found, first, places, sizes)
        finally:
            found.pins -= 1
            hold.release()

    async def _write(self, places: Sequence[int], packed: Sequence[bytes]) -> None:
        """What lies side by side goes as one request."""
        image = self._image
        start = 0
        while start < len(places):
            stop, end = start, places[start]
            while stop < len(places) and places[stop] == end:
                end += len(packed[stop])
                stop += 1
            image.guard.check(places[start], end - places[start])
            try:
                await image.file.co_pwritev(places[start], IoVector.of(list(packed[start:stop])))
            finally:
                image.unstable = True
            start = stop

    def _link(self, found: Slice[array[int]], first: int, places: Sequence[int], sizes: Sequence[int]) -> None:
        geometry, words = self._image.geometry, self._words
        for at, (place, size) in enumerate(zip(places, sizes, strict=True), first):
            entry = geometry.compressed_entry(HostOffset(place), size)
            self._reader.cache.forget(entry & ~COMPRESSED)
            found.table[at * words] = entry
            if words > 1:
                found.table[at * words + 1] = 0  # a compressed cluster has no bitmap
        self._mapping.cache.mark(found, first * words * 8, (first + len(places)) * words * 8)
        self._image.unstable = True


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
