"""Reading compressed clusters: fetched, decompressed and kept for a while, because readers come in small steps.

Invariant: what is kept is at most ``_KEPT`` bytes, or two clusters, and is never out of date: whoever gives a
descriptor out anew forgets here what it stood for before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from blockio.errors import LimitExceeded
from blockio_drivers.qcow2.cache import MetadataCache
from blockio_drivers.qcow2.compress import decompress_cluster

if TYPE_CHECKING:
    from blockio.buffers import IoVector
    from blockio_drivers.qcow2.image import Image

__all__ = ["CompressedReader"]

_KEPT: Final = 4 << 20
_INLINE: Final = 64 << 10
"""A cluster up to this size is decompressed in place: that takes less time than handing it to a thread and back."""


class CompressedReader:
    """Guest bytes out of compressed clusters. Concurrent readers of one cluster share the work."""

    def __init__(self, image: Image) -> None:
        self._image = image
        size = image.geometry.cluster_size
        self.cache: MetadataCache[bytes] = MetadataCache(size, _KEPT // size, self._load, self._nothing)
        self._busy = 0

    async def read(self, offset: int, iov: IoVector, descriptor: int) -> None:
        """Fill *iov* with the guest bytes at *offset*, all within the cluster that *descriptor* says.

        CorruptImage where the data cannot be decompressed.
        """
        found = await self.cache.get(descriptor)
        inside = offset & self._image.geometry.cluster_mask
        iov.copy_from(memoryview(found.table)[inside : inside + iov.nbytes])

    async def _load(self, descriptor: int) -> bytes:
        image = self._image
        size = image.geometry.cluster_size
        if size > image.host.trust.max_decompressed_cluster:
            raise LimitExceeded(f"Compressed cluster of {size} bytes is too large")
        where = image.geometry.compressed(descriptor)
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
