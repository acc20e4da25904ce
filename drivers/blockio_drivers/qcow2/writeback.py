"""The one way from metadata in memory to metadata on disk: in phases that no crash can turn into corruption.

1. data (already written by whoever linked it) and raised refcounts; 2. L2 tables; 3. the L1 table;
4. lowered refcounts, and what a data file need not keep any more is discarded.
Between two phases lies a barrier, wherever the later depends on the earlier.

Invariants:

* What phases 2 to 4 write is taken as it was at one moment, *before* phase 1 begins: a change made meanwhile relies on
  refcounts that phase 1 may have missed, and waits for the next round.
* A cluster's last reference is given back only in phase 4 of a round that began after the reference was dropped
  and after every reader that may know of it had left.
* Whatever could not be written is dirty again when a round fails or is cancelled. Rounds never overlap.
* With lazy refcounts phase 1 and 4 are skipped, because the dirty bit, which is stable before phase 2, makes the next
  opener rebuild all refcounts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from blockio_drivers.qcow2.image import Freed, in_place_order

if TYPE_CHECKING:
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping, PendingWrite

__all__ = ["WriteBack"]

_PRESSURE: Final = 1024
_PRESSURE_BYTES: Final = 64 << 20
"""How many freed clusters, or bytes in them, may wait for a write-back before an allocation asks for one."""


class WriteBack:
    """Writes back one image's metadata; see the module's docstring for what is kept true."""

    mapping: Mapping

    def __init__(self, image: Image, allocator: Allocator) -> None:
        self._image = image
        self._allocator = allocator
        self._lock = asyncio.Lock()
        self._dropped: deque[Freed] = deque()
        self._pressure = min(_PRESSURE, _PRESSURE_BYTES >> image.geometry.cluster_bits)

    def change_loop(self) -> None:
        """A lock stays with the loop that first waited for it: new ones for a new loop. Nobody holds one now."""
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Write back everything that is dirty now. Raises the first failure; what was not written stays dirty.

        What is written is on stable storage only after a flush of the file, as with any write.
        """
        if self._image.dead:
            return
        async with self._lock:
            await self._round()

    def exclusive(self) -> asyncio.Lock:
        """Held, no round runs: for whoever moves a whole table. Do not call ``run`` inside."""
        return self._lock

    async def relieve(self) -> None:
        """Make room when much that was freed cannot be reused yet. A failure is left to whoever flushes."""
        if self._image.retired_clusters > self._pressure:
            with suppress(OSError):
                await self.run()

    async def _round(self) -> None:
        image, mapping = self._image, self.mapping
        await image.make_sure()
        self._dropped.extend(image.retired.reclaim())
        drops, self._dropped = in_place_order(self._dropped), deque()
        sectors, l1_writes = mapping.take_l1()
        slices = mapping.cache.take_dirty()
        if image.data_file is not None:
            image.data_file.begin()
        done = 0
        l1_done = False
        try:
            # Nothing is awaited until all is encoded: this is the moment that the invariant speaks of.
            l2_writes = [mapping.encode(found, pages) for found, pages in slices]
            for offset, payload in l1_writes:
                image.guard.check(offset, len(payload), "active L1 table")
            dependent = bool(slices or l1_writes)
            await self._raise_refcounts(dependent=dependent)
            if dependent:
                await image.barrier()
            for writes in l2_writes:
                await image.event("l2_update")
                await self._write(writes)
                done += 1
            if l1_writes:
                await image.barrier()
                await image.event("l1_update")
                await self._write(l1_writes)
            l1_done = True
            if drops:
                await self._lower_refcounts(drops)
            if image.data_file is not None and image.data_file.leaving:
                await image.barrier()
                await image.data_file.discard()
        finally:
            for position, (found, pages) in enumerate(slices):
                mapping.cache.written(found, pages, succeeded=position < done)
            if not l1_done:
                mapping.put_back_l1(sectors)
            drops.extend(self._dropped)
            self._dropped = drops

    async def _write(self, writes: list[PendingWrite]) -> None:
        for offset, payload in writes:
            await self._image.write(offset, payload)

    async def _raise_refcounts(self, *, dependent: bool) -> None:
        if self._image.lazy:
            if dependent:
                await self._image.mark_dirty()
            return
        await self._allocator.settle()
        await self._allocator.write()

    async def _lower_refcounts(self, drops: deque[Freed]) -> None:
        image, allocator = self._image, self._allocator
        await image.barrier()
        total = sum(item.clusters for item in drops)
        try:
            await self._discard(drops)
            await allocator.lower(drops)
        finally:
            image.retired_clusters -= total - sum(item.clusters for item in drops)
        if not image.lazy:
            await allocator.write_blocks()

    async def _discard(self, drops: deque[Freed]) -> None:
        """Pass discards down, for clusters whose last reference goes now and that nobody can have again yet."""
        bits = self._image.geometry.cluster_bits
        for first, clusters, discard in drops:
            if not discard:
                continue
            start = first
            for cluster in range(first, first + clusters + 1):
                if cluster < first + clusters and await self._allocator.refcount(cluster << bits) == 1:
                    self._allocator.stop_packing(cluster)
                    continue
                if start < cluster:
                    # A hint: the file may not know discards, and what it frees is its own affair.
                    with suppress(OSError):
                        await self._image.file.co_pdiscard(start << bits, (cluster - start) << bits)
                start = cluster + 1

    async def settle_all(self) -> None:
        """With no request under way: write back and give back everything, with true refcounts on disk."""
        await self.run()
        if self._image.dead:
            return
        async with self._lock:
            await self._allocator.settle()
            await self._allocator.write()
