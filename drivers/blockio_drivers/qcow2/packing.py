"""Room for compressed clusters, byte by byte: several share a host cluster, and one may reach into the next.

As QEMU packs them: a compressed cluster goes right behind the one before while it fits, or reaches into the next host
cluster where that one is free; each host cluster is counted once for every compressed one that touches it, and takes no
more of them than its refcount can count.

Invariant: places are given out only with their refcounts raised in memory; the bytes of two never overlap.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockio.errors import BlockError

if TYPE_CHECKING:
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.tables import Geometry

__all__ = ["Packer"]


class Packer:
    """Gives out places for compressed data; see the module's docstring for what is kept true."""

    def __init__(self, geometry: Geometry, allocator: Allocator) -> None:
        self._bits = geometry.cluster_bits
        self._mask = geometry.cluster_mask
        self._limit = geometry.cluster_offset_mask
        self._allocator = allocator

    async def place(self, sizes: Sequence[int]) -> list[int]:
        """Host offsets for compressed clusters of *sizes* bytes, in their order, each less than a cluster.

        Raises as ``Allocator.allocate``, and EFBIG where a descriptor has no room for the offset; then, and when
        cancelled, nothing was given out.
        """
        places: list[int] = []
        async with self._allocator.exclusive():
            try:
                for size in sizes:
                    places.append(await self._place(size))
            except BaseException:
                self.give_back(places, sizes)
                raise
        return places

    async def _place(self, size: int) -> int:
        allocator = self._allocator
        offset = allocator.packed_end
        room = -offset & self._mask
        shared = bool(offset) and await allocator.share(offset)
        if not shared or room < size:
            try:
                new = (await allocator.allocate_locked(1, "compressed cluster")).offset
            except BaseException:
                if shared:
                    allocator.give_back(offset >> self._bits, 1)
                raise
            if not shared or new != offset + room:
                if shared:
                    allocator.give_back(offset >> self._bits, 1)
                offset = new
        if offset + size > self._limit:
            self.give_back([offset], [size])
            raise BlockError(errno=errno.EFBIG)
        end = offset + size
        allocator.packed_end = end if end & self._mask else 0
        return offset

    def give_back(self, places: Sequence[int], sizes: Sequence[int]) -> None:
        """Places that nothing ever named: one reference less to each host cluster they touch."""
        for offset, size in zip(places, sizes, strict=False):
            first, last = offset >> self._bits, (offset + size - 1) >> self._bits
            self._allocator.give_back(first, last - first + 1)
