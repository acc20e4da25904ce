"""The dirty bitmaps of nodes: QEMU's functions on a node, and what its monitor commands do.

The node's request path records its writes in them (``NodeIO.written`` and the fast lane); ``blockio.bitmaps`` is the
bookkeeping, a driver that stores bitmaps in its images loads and stores them by itself.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from blockio.bitmaps import BitmapUse, DirtyBitmap, DirtyBitmapInfo, DirtyBitmaps
from blockio.errors import BlockError, OptionError

if TYPE_CHECKING:
    from blockio.bitmaps.bits import SparseBits
    from blockio.driver.base import BlockDriver
    from blockio.graph.node import BlockNode
    from blockio.graph.path import RequestPath

__all__ = [
    "BitmapOwner",
    "block_dirty_bitmap_add",
    "block_dirty_bitmap_clear",
    "block_dirty_bitmap_disable",
    "block_dirty_bitmap_enable",
    "block_dirty_bitmap_lookup",
    "block_dirty_bitmap_merge",
    "block_dirty_bitmap_remove",
]

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


def block_dirty_bitmap_lookup(node: BlockNode, name: str) -> DirtyBitmap:
    """*node*'s bitmap of that name. OptionError (ENOENT)."""
    bitmap = node.find_dirty_bitmap(name)
    if bitmap is None:
        raise OptionError(f"Dirty bitmap '{name}' not found", errno.ENOENT)
    return bitmap


async def block_dirty_bitmap_add(
    node: BlockNode, name: str, *, granularity: int | None = None, persistent: bool = False, disabled: bool = False
) -> DirtyBitmap:
    """A new bitmap by *name* (``block-dirty-bitmap-add``), *persistent*: the image shall hold it.

    Raises OptionError for an empty name or a granularity that is no power of two of at least 512, and as
    ``create_dirty_bitmap`` and ``co_can_store_new_dirty_bitmap``. Cancelled, there is none.
    """
    if not name:
        raise OptionError("Bitmap name cannot be empty")
    if granularity is None:
        granularity = await node.get_default_bitmap_granularity()
    elif granularity < 512 or granularity & (granularity - 1):
        raise OptionError("Granularity must be power of 2 and at least 512")
    if persistent and node.find_dirty_bitmap(name) is None:
        await node.co_can_store_new_dirty_bitmap(name, granularity)
    bitmap = node.create_dirty_bitmap(granularity, name)
    bitmap.disabled = disabled
    bitmap.persistent = persistent
    return bitmap


async def block_dirty_bitmap_remove(node: BlockNode, name: str) -> None:
    """Forget the bitmap, in the image too (``block-dirty-bitmap-remove``). An inconsistent one may be removed.

    Where that fails or is cancelled it stays.
    """
    bitmap = block_dirty_bitmap_lookup(node, name)
    bitmap.check(BitmapUse.BUSY | BitmapUse.READONLY)
    if bitmap.persistent:
        # Nobody may begin to use it, and the image not be closed with it, while it is on its way out.
        bitmap.busy, bitmap.persistent = True, False
        try:
            await node.co_remove_persistent_dirty_bitmap(name)
        except BaseException:
            bitmap.persistent = True
            raise
        finally:
            bitmap.busy = False
    node.release_dirty_bitmap(bitmap)


def block_dirty_bitmap_clear(node: BlockNode, name: str) -> SparseBits:
    """Nothing is dirty any more (``block-dirty-bitmap-clear``); the answer is for ``DirtyBitmap.restore``."""
    return block_dirty_bitmap_lookup(node, name).clear()


def block_dirty_bitmap_enable(node: BlockNode, name: str) -> None:
    """Record writes (``block-dirty-bitmap-enable``)."""
    bitmap = block_dirty_bitmap_lookup(node, name)
    bitmap.check(BitmapUse.ALLOW_RO)
    bitmap.enable()


def block_dirty_bitmap_disable(node: BlockNode, name: str) -> None:
    """Record no writes (``block-dirty-bitmap-disable``)."""
    bitmap = block_dirty_bitmap_lookup(node, name)
    bitmap.check(BitmapUse.ALLOW_RO)
    bitmap.disable()


def block_dirty_bitmap_merge(node: BlockNode, target: str, sources: Iterable[tuple[BlockNode, str]]) -> SparseBits:
    """Add what is dirty in each of *sources* to *target* (``block-dirty-bitmap-merge``): all of them, or nothing.

    The answer is for ``DirtyBitmap.restore``. Raises as ``DirtyBitmap.merge``.
    """
    into = block_dirty_bitmap_lookup(node, target)
    collected = DirtyBitmap(into.size, into.granularity)
    for owner, name in sources:
        collected.merge(block_dirty_bitmap_lookup(owner, name))
    return into.merge(collected)
