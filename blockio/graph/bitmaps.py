"""The dirty bitmaps of nodes: QEMU's functions on a node. ``bitmap_commands`` has what its monitor does with them.

The node's request path records its writes in them (``NodeIO.written`` and the fast lane); ``blockio.bitmaps`` is the
bookkeeping, a driver that stores bitmaps in its images loads and stores them by itself.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from blockio.errors import BlockError

if TYPE_CHECKING:
    from blockio.bitmaps.dirty import DirtyBitmap, DirtyBitmapInfo
    from blockio.bitmaps.owner import DirtyBitmaps
    from blockio.driver.base import BlockDriver
    from blockio.graph.path import RequestPath

__all__ = ["BitmapOwner"]

_LEAST_DEFAULT: Final = 4096
_MOST_DEFAULT: Final = 65536


class BitmapOwner:
    """The part of a ``BlockNode`` that has dirty bitmaps. Everything in the thread of the node's context."""

    node_name: str
    driver: BlockDriver | None
    path: RequestPath
    dirty_bitmaps: DirtyBitmaps
    """Newest first."""

    async def get_default_bitmap_granularity(self) -> int:
        """The cluster size between 4 and 64 KiB, else 64 KiB."""
        cluster = (await self.path.co_get_info()).cluster_size
        return min(max(cluster, _LEAST_DEFAULT), _MOST_DEFAULT) if cluster else _MOST_DEFAULT

    def create_dirty_bitmap(self, granularity: int, name: str | None = None) -> DirtyBitmap:
        """A new bitmap that the node's writes are recorded in from now on; see ``DirtyBitmaps.create``. NoMedium."""
        return self.dirty_bitmaps.create(self._driver().length, granularity, name)

    def find_dirty_bitmap(self, name: str) -> DirtyBitmap | None:
        """The node's bitmap of that name."""
        return self.dirty_bitmaps.find(name)

    def release_dirty_bitmap(self, bitmap: DirtyBitmap) -> None:
        """Forget *bitmap*; see ``DirtyBitmaps.release``."""
        self.dirty_bitmaps.release(bitmap)

    def query_dirty_bitmaps(self) -> list[DirtyBitmapInfo]:
        """What there is to tell of each (``dirty-bitmaps`` of ``query-named-block-nodes``)."""
        return [bitmap.info() for bitmap in self.dirty_bitmaps]

    @property
    def supports_persistent_dirty_bitmap(self) -> bool:
        """Whether the image can hold bitmaps."""
        return self.driver is not None and self.driver.supports_persistent_dirty_bitmap()

    async def co_can_store_new_dirty_bitmap(self, name: str, granularity: int) -> None:
        """Raise BlockError where the image could not hold a new bitmap of that kind (ENOTSUP, EINVAL, EPERM)."""
        driver = self._driver()
        async with self.path.request(0, 0):
            await driver.co_can_store_new_dirty_bitmap(name, granularity)

    async def co_remove_persistent_dirty_bitmap(self, name: str) -> None:
        """Take the bitmap of that name out of the image; nothing happens where the image has none.

        The one in memory stays: while it is persistent, closing the node stores it again.
        """
        driver = self._driver()
        async with self.path.request(0, 0):
            await driver.co_remove_persistent_dirty_bitmap(name)

    def _driver(self) -> BlockDriver:
        if self.driver is None:
            raise BlockError(errno=errno.ENOMEDIUM)
        return self.driver
