"""What QEMU's monitor commands ``block-dirty-bitmap-…`` do with the bitmaps of nodes."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockio.bitmaps.dirty import BitmapUse, DirtyBitmap
from blockio.errors import OptionError

if TYPE_CHECKING:
    from blockio.bitmaps.bits import SparseBits
    from blockio.graph.node import BlockNode

__all__ = [
    "block_dirty_bitmap_add",
    "block_dirty_bitmap_clear",
    "block_dirty_bitmap_disable",
    "block_dirty_bitmap_enable",
    "block_dirty_bitmap_lookup",
    "block_dirty_bitmap_merge",
    "block_dirty_bitmap_remove",
]


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
