"""Reading compressed clusters: fetched, decompressed and kept for a while, because readers come in small steps.

Invariant: what is kept is at most ``_KEPT`` bytes, or two clusters, and is never out of date: whoever gives a
descriptor out anew forgets here what it stood for before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector, aligned_buffer
from blockio.errors import LimitExceeded
from blockio.types import HostOffset
from blockio_drivers.qcow2.cache import MetadataCache
from blockio_drivers.qcow2.compress import decompress_cluster, decompress_clusters
from blockio_drivers.qcow2.image import finish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blockio_drivers.qcow2.header import CompressionType
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.tables import CompressedCluster

__all__ = ["CompressedReader"]

_KEPT: Final = 4 << 20
_SPARE: Final = 640 << 10
"""What eight to sixteen clusters take before they are decompressed, and their last sectors."""
_INLINE: Final = 64 << 10
"""A cluster up to this size is decompressed in place: that takes less time than handing it to a thread and back."""


class CompressedReader:
    """Guest bytes out of compressed clusters. Concurrent readers of one cluster share the work."""

    def __init__(self, image: Image) -> None:
        self._image = image
        size = image.geometry.cluster_size
        self.cache: MetadataCache[bytes] = MetadataCache(size, _KEPT // size, self._load, self._nothing)
        self._busy = 0
        self._spare: list[memoryview] = []
        """For stored bytes, as much as was ever in use at once: new memory costs the kernel as much as reading."""

    async def read(self, offset: int, iov: IoVector, descriptor: int) -> None:
        """Fill *iov* with the guest bytes at *offset*, all within the cluster that *descriptor* says.

        CorruptImage where the data cannot be decompressed.
        """
        found = await self.cache.get(descriptor)
        inside = offset & self._image.geometry.cluster_mask
        iov.copy_from(memoryview(found.table)[inside : inside + iov.nbytes])

    async def read_several(self, pieces: Sequence[tuple[int, IoVector, int]]) -> None:
        """``read`` each (offset, memory, descriptor) of *pieces*. Whole clusters are not kept; their reader has them.

        Cancelled, the memory is the caller's again when the thread that fills it has ended.
        """
        size = self._image.geometry.cluster_size
        whole: list[tuple[IoVector, int]] = []
        for offset, iov, descriptor in pieces:
            if iov.nbytes == size and descriptor not in self.cache.slices:
                whole.append((iov, descriptor))
            else:
                await self.read(offset, iov, descriptor)
        if whole:
            self._must_be_small()
            await finish(self._read_whole(whole))

    async def _read_whole(self, whole: list[tuple[IoVector, int]]) -> None:
        places = [self._image.geometry.compressed(descriptor) for _, descriptor in whole]
        needed = sum(place.nbytes for place in places)
        if needed > _SPARE:
            memory = aligned_buffer(needed)
        else:
            memory = self._spare.pop() if self._spare else aligned_buffer(_SPARE)
        try:
            packed = await self._fetch(places, memory)
            kind = self._image.header.compression_type
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, _decompress_all, kind, packed, [iov for iov, _ in whole])
        finally:
            if len(memory) == _SPARE:
                self._spare.append(memory)

    async def _fetch(self, places: list[CompressedCluster], memory: memoryview) -> list[memoryview]:
        """The stored bytes of each; what lies side by side, as it does when it was written together, is one read."""
        file = self._image.file
        start = min(place.offset for place in places)
        end = max(place.offset + place.nbytes for place in places)
        # Compressed clusters share sectors, so that the sum is a little more than the span of neighbours.
        if end - start <= sum(place.nbytes for place in places):
            await file.co_preadv(HostOffset(start), IoVector([memory[: end - start]], end - start))
            return [memory[place.offset - start :][: place.nbytes] for place in places]
        found, at = [], 0
        for place in places:
            found.append(memory[at : at + place.nbytes])
            await file.co_preadv(place.offset, IoVector([found[-1]], place.nbytes))
            at += place.nbytes
        return found

    def _must_be_small(self) -> None:
        size = self._image.geometry.cluster_size
        if size > self._image.host.trust.max_decompressed_cluster:
            raise LimitExceeded(f"Compressed cluster of {size} bytes is too large")

    async def _load(self, descriptor: int) -> bytes:
        image = self._image
        size = image.geometry.cluster_size
        self._must_be_small()
        where = image.geometry.compressed(descriptor)
        await image.event("read_compressed")
        data = await image.read(where.offset, where.nbytes)
        kind = image.header.compression_type
        if size <= _INLINE and not self._busy:
            return decompress_cluster(kind, data, size)
        self._busy += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, decompress_cluster, kind, data, size)
        finally:
            self._busy -= 1

    async def _nothing(self) -> None:
        """What is kept here is never dirty."""


def _decompress_all(kind: CompressionType, packed: list[memoryview], iovs: list[IoVector]) -> None:
    straight = [(data, iov.views[0]) for data, iov in zip(packed, iovs, strict=True) if len(iov.views) == 1]
    decompress_clusters(kind, straight)
    for data, iov in zip(packed, iovs, strict=True):
        if len(iov.views) > 1:
            iov.copy_from(decompress_cluster(kind, data, iov.nbytes))
