"""Reading compressed clusters: fetched, decompressed and kept for a while, because readers come in small steps.

Invariant: what is kept is at most ``_KEPT`` bytes, or two clusters, and is never out of date: whoever gives a
descriptor out anew forgets here what it stood for before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.buffers import IoVector, aligned_buffer
from blockio.errors import LimitExceeded
from blockio.types import HostOffset
from blockio_drivers.qcow2.cache import MetadataCache
from blockio_drivers.qcow2.compress import decompress_cluster, decompress_clusters, prepare
from blockio_drivers.qcow2.image import finish

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from blockio_drivers.qcow2.header import CompressionType
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.tables import CompressedCluster

__all__ = ["CompressedReader"]

_KEPT: Final = 4 << 20
_SPARE: Final = (2 << 20) + (128 << 10)
"""What clusters that are read together take before they are decompressed, their last sectors, and gaps between them."""
_NEAR: Final = 16 << 10
"""A gap up to this size is read along: that takes less time than one more transfer."""
_INLINE: Final = 64 << 10
"""A cluster up to this size is decompressed in place: that takes less time than handing it to a thread and back."""


class _Stretch(NamedTuple):
    """A part of the file, and the places in it: from where on, how many bytes, and the place's number."""

    start: int
    nbytes: int
    places: list[tuple[int, int, int]]


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

    async def read_rows(self, rows: Sequence[tuple[int, IoVector, list[int], list[int]]]) -> None:
        """``read`` rows of descriptors: (offset, memory, how much of each one's cluster, descriptors).

        Whole clusters are not kept; their reader has them. Cancelled, the memory is the caller's again when the thread
        that fills it has ended.
        """
        size, kept = self._image.geometry.cluster_size, self.cache.slices
        memories: list[IoVector | memoryview] = []
        descriptors: list[int] = []
        for offset, iov, lengths, row in rows:
            whole = iov.views[0] if len(iov.views) == 1 else None
            at = 0
            for length, descriptor in zip(lengths, row, strict=True):
                if length != size or descriptor in kept:
                    await self.read(offset + at, iov.slice(at, length), descriptor)
                else:
                    memories.append(iov.slice(at, size) if whole is None else whole[at : at + size])
                    descriptors.append(descriptor)
                at += length
        if memories:
            self._must_be_small()
            await self._read_whole(memories, descriptors)

    async def _read_whole(self, memories: list[IoVector | memoryview], descriptors: list[int]) -> None:
        stretches = _stretches(map(self._image.geometry.compressed, descriptors))
        needed = sum(stretch.nbytes for stretch in stretches)
        if needed > _SPARE:
            memory = aligned_buffer(needed)
        else:
            memory = self._spare.pop() if self._spare else aligned_buffer(_SPARE)
        try:
            at = 0
            jobs: list[tuple[memoryview, IoVector | memoryview]] = []
            for start, nbytes, places in stretches:
                room = memory[at : at + nbytes]
                await self._image.file.co_preadv(HostOffset(start), IoVector([room], nbytes))
                jobs += [(room[inside : inside + length], memories[index]) for inside, length, index in places]
                at += nbytes
            kind = self._image.header.compression_type
            prepare(kind)
            await finish(asyncio.get_running_loop().run_in_executor(None, _decompress_all, kind, jobs))
        finally:
            if len(memory) == _SPARE:
                self._spare.append(memory)

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
        prepare(kind)
        self._busy += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, decompress_cluster, kind, data, size)
        finally:
            self._busy -= 1

    async def _nothing(self) -> None:
        """What is kept here is never dirty."""


def _stretches(places: Iterable[CompressedCluster]) -> list[_Stretch]:
    """What must be read of the file for *places*: those written together lie side by side, and share sectors."""
    stretches: list[_Stretch] = []
    start, end = 0, -_NEAR
    inside: list[tuple[int, int, int]] = []
    for offset, nbytes, index in sorted((at.offset, at.nbytes, index) for index, at in enumerate(places)):
        if offset >= end + _NEAR:
            if inside:
                stretches.append(_Stretch(start, end - start, inside))
            start, end, inside = offset, offset, []
        inside.append((offset - start, nbytes, index))
        end = max(end, offset + nbytes)
    stretches.append(_Stretch(start, end - start, inside))
    return stretches


def _decompress_all(kind: CompressionType, jobs: list[tuple[memoryview, IoVector | memoryview]]) -> None:
    decompress_clusters(kind, [(data, out) for data, out in jobs if isinstance(out, memoryview)])
    for data, out in jobs:
        if isinstance(out, IoVector):
            out.copy_from(decompress_cluster(kind, data, out.nbytes))
