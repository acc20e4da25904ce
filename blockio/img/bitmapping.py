"""``bitmap``: the dirty bitmaps that an image keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec

from blockio.errors import BlockError, UnsupportedFeature
from blockio.graph.bitmap_commands import (
    block_dirty_bitmap_add,
    block_dirty_bitmap_clear,
    block_dirty_bitmap_disable,
    block_dirty_bitmap_enable,
    block_dirty_bitmap_merge,
    block_dirty_bitmap_remove,
)
from blockio.img.opening import ImageLike, opened
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.bitmaps.dirty import DirtyBitmapInfo
    from blockio.graph.node import BlockNode

__all__ = ["BitmapAction", "BitmapOperation", "bitmap", "copy_bitmaps", "refuse_broken_bitmaps"]


class BitmapOperation(StrEnum):
    """What can be done with a bitmap."""

    ADD = "add"
    REMOVE = "remove"
    CLEAR = "clear"
    ENABLE = "enable"
    DISABLE = "disable"
    MERGE = "merge"


class BitmapAction(msgspec.Struct, frozen=True):
    """One step of ``bitmap``."""

    operation: BitmapOperation
    granularity: int | None = None
    """For ADD: bytes that one bit stands for, a power of two of at least 512. By default a cluster, at most 64 KiB."""
    source: str = ""
    """For MERGE: the bitmap whose dirty bits are added."""


async def bitmap(
    image: ImageLike,
    name: str,
    actions: Iterable[BitmapAction | BitmapOperation],
    *,
    source: ImageLike | None = None,
) -> list[DirtyBitmapInfo]:
    """Do *actions* in turn with the bitmap called *name* in *image*; the answer is what bitmaps there are then.

    MERGE takes its source from *image*, or from the image *source*. Raises BlockError (``Operation add on bitmap x
    failed: …``) for the first that fails; what was done before it stays done, also after a cancellation.
    """
    async with AsyncExitStack() as stack:
        blk = await stack.enter_async_context(opened(image, OpenFlags()))
        node = other = blk.bs
        if source is not None:
            other = (await stack.enter_async_context(opened(source, OpenFlags(read_only=True)))).bs
        assert node is not None
        assert other is not None
        for step in actions:
            action = BitmapAction(step) if isinstance(step, BitmapOperation) else step
            try:
                await _carry_out(action, node, name, other)
            except BlockError as error:
                raise error.prefixed(f"Operation {action.operation} on bitmap {name} failed: ") from error
        return node.query_dirty_bitmaps()


async def _carry_out(action: BitmapAction, node: BlockNode, name: str, other: BlockNode) -> None:
    match action.operation:
        case BitmapOperation.ADD:
            await block_dirty_bitmap_add(node, name, granularity=action.granularity, persistent=True)
        case BitmapOperation.REMOVE:
            await block_dirty_bitmap_remove(node, name)
        case BitmapOperation.CLEAR:
            block_dirty_bitmap_clear(node, name)
        case BitmapOperation.ENABLE:
            block_dirty_bitmap_enable(node, name)
        case BitmapOperation.DISABLE:
            block_dirty_bitmap_disable(node, name)
        case BitmapOperation.MERGE:
            block_dirty_bitmap_merge(node, name, [(other, action.source)])


def refuse_broken_bitmaps(source: BlockNode, *, skip_broken: bool) -> None:
    """Raise BlockError where the bitmaps of *source* cannot all be copied: it has none, or one is inconsistent."""
    if not source.supports_persistent_dirty_bitmap:
        raise UnsupportedFeature("Source lacks bitmap support")
    for found in source.dirty_bitmaps:
        if found.inconsistent and not skip_broken:
            raise BlockError(
                f"Cannot copy inconsistent bitmap '{found.name}'",
                hint="Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
            )


async def copy_bitmaps(
    source: BlockNode, target: BlockNode, *, on_warning: Callable[[str], object] | None = None
) -> None:
    """Copy the persistent bitmaps of *source* to *target*, a disk of the same length; inconsistent ones are left out.

    Raises BlockError for the first that fails; those before it are there.
    """
    for found in source.dirty_bitmaps:
        name = found.name
        if not found.persistent or name is None:
            continue
        if found.inconsistent:
            if on_warning is not None:
                on_warning(f"Skipping inconsistent bitmap '{name}'")
            continue
        try:
            await block_dirty_bitmap_add(
                target, name, granularity=found.granularity, persistent=True, disabled=found.disabled
            )
        except BlockError as error:
            raise error.prefixed(f"Failed to create bitmap {name}: ") from error
        try:
            block_dirty_bitmap_merge(target, name, [(source, name)])
        except BlockError as error:
            await block_dirty_bitmap_remove(target, name)
            raise error.prefixed(f"Failed to populate bitmap {name}: ") from error
