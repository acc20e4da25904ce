"""Internal snapshots of a node: which node's driver is asked, with nothing else under way (QEMU's bdrv_snapshot_*).

A driver that leaves these alone (its method is ``BlockDriver``'s own) has its only child with data asked, as a filter's
or a window's; a node whose data are in several places has no snapshots. Loading is never passed down.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from blockio.driver.base import BlockDriver
from blockio.errors import BlockError, NoMedium, ReadOnly, UnsupportedFeature
from blockio.graph.drain import drained
from blockio.io.node_io import NodeIO
from blockio.types import Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blockio.driver.snapshots import SnapshotInfo
    from blockio.graph.node import BlockNode

__all__ = [
    "snapshot_create",
    "snapshot_delete",
    "snapshot_goto",
    "snapshot_list",
    "snapshot_load",
    "snapshot_rename",
]

_STORES = Role.DATA | Role.METADATA | Role.FILTERED


def _driver(node: BlockNode) -> BlockDriver:
    if node.driver is None:
        raise NoMedium
    return node.driver


def _asked(node: BlockNode, method: str) -> BlockNode:
    """The node whose driver has *method*: *node*, or the only one below it that stores its data."""
    while getattr(type(_driver(node)), method) is getattr(BlockDriver, method):
        stores = [edge for edge in node.children.values() if edge.role & _STORES]
        if len(stores) != 1 or not stores[0].role & Role.PRIMARY:
            raise UnsupportedFeature
        node = stores[0].node
    return node


async def _alone(node: BlockNode, work: Callable[[BlockDriver], Awaitable[None]], *, rewrites: bool = False) -> None:
    """Do *work* with *node*'s driver while no request is under way there, and tell of what it changed.

    *rewrites*: the disk reads differently afterwards.
    """
    if node.read_only:
        raise ReadOnly
    path = node.path
    if not isinstance(path, NodeIO):
        raise UnsupportedFeature  # somebody else's request path cannot count these
    async with drained(node):
        driver = _driver(node)
        length = driver.length
        async with path.request(0, length, serialising=True):
            try:
                await work(driver)
            finally:
                if driver.length != length:
                    node.length_changed()
                # The next flush has something to do; where all may be another, the dirty bitmaps hear of it.
                path.written(0, driver.length if rewrites else 0, ok=False)


async def snapshot_list(node: BlockNode) -> tuple[SnapshotInfo, ...]:
    """The snapshots in *node*'s image (``bdrv_snapshot_list``). UnsupportedFeature where there can be none."""
    return await _driver(_asked(node, "co_snapshot_list")).co_snapshot_list()


async def snapshot_create(node: BlockNode, snapshot: SnapshotInfo) -> SnapshotInfo:
    """Keep *node*'s disk as it is now (``bdrv_snapshot_create``); the answer has the id that the image chose.

    ReadOnly, NoMedium, UnsupportedFeature, and what the driver raises; then, and when cancelled, there is no snapshot
    or a whole one.
    """
    node = _asked(node, "co_snapshot_create")
    made = snapshot

    async def create(driver: BlockDriver) -> None:
        nonlocal made
        made = await driver.co_snapshot_create(snapshot)

    await _alone(node, create)
    return made


async def snapshot_goto(node: BlockNode, name: str) -> None:
    """Make the disk what the snapshot with that id, or else of that name, kept (``bdrv_snapshot_goto``).

    BlockError EBUSY for a node with dirty bitmaps: they would have to follow.
    """
    if node.driver is not None and node.dirty_bitmaps:
        raise BlockError("Device has active dirty bitmaps", errno.EBUSY)
    try:
        below = _asked(node, "co_snapshot_goto")
    except UnsupportedFeature:
        raise UnsupportedFeature("Block driver does not support snapshots") from None
    try:
        await _alone(below, lambda driver: driver.co_snapshot_goto(name), rewrites=True)
    except (ReadOnly, NoMedium):
        raise
    except BlockError as error:
        raise error.prefixed("Failed to load snapshot: ") from error


async def snapshot_delete(node: BlockNode, id: str | None, name: str | None) -> None:
    """Let go of a snapshot (``bdrv_snapshot_delete``)."""
    await _alone(_asked(node, "co_snapshot_delete"), lambda driver: driver.co_snapshot_delete(id, name))


async def snapshot_rename(node: BlockNode, id: str | None, name: str | None, new_name: str) -> None:
    """Give a snapshot another name, which QEMU cannot."""
    await _alone(_asked(node, "co_snapshot_rename"), lambda driver: driver.co_snapshot_rename(id, name, new_name))


async def snapshot_load(node: BlockNode, id: str | None, name: str | None) -> None:
    """Let *node*, which is read-only, show what a snapshot kept (``bdrv_snapshot_load_tmp``)."""
    async with drained(node):
        await _driver(node).co_snapshot_load(id, name)
