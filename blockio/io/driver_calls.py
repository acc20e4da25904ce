"""What a node's driver can do beside moving the disk's bytes, and which node is asked.

ioctls, the machine's state, probes of a real device, emptying a layer. Each is counted as in flight in the nodes it
passes, so that a drain waits for it. A driver that leaves a call alone (its method is ``BlockDriver``'s own) passes it
down as QEMU does for that call, or it is UnsupportedFeature (ENOTSUP).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from blockio.driver.base import BlockDriver, DriverKind
from blockio.errors import BlockError, NoMedium, ReadOnly, UnsupportedFeature
from blockio.io.node_io import NodeIO
from blockio.types import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from blockio.buffers import IoVector
    from blockio.graph.node import BlockNode
    from blockio.types import BlockSizes, Geometry

__all__ = [
    "amend",
    "change_backing_file",
    "ioctl",
    "load_vmstate",
    "make_empty",
    "probe_blocksizes",
    "probe_geometry",
    "save_vmstate",
]


def _parts(node: BlockNode) -> tuple[NodeIO, BlockDriver]:
    path = node.path
    if not isinstance(path, NodeIO):
        raise UnsupportedFeature  # somebody else's request path cannot count these
    if node.driver is None:
        raise NoMedium
    return path, node.driver


def _window(node: BlockNode) -> BlockNode | None:
    """What a raw node without an offset of its own, which is but a window, shows; None for others."""
    edge = node.primary
    return edge.node if edge is not None and edge.role & Role.FILTERED else None


async def ioctl(node: BlockNode, request: int, buf: Buffer | int) -> int:
    """The device's own *request* (``bdrv_co_ioctl``). A window passes it down; a filter does not, for what a command

    writes would go past it unseen.
    """
    io, driver = _parts(node)
    async with io.request(0, 0):
        if type(driver).co_ioctl is BlockDriver.co_ioctl and driver.kind is DriverKind.FORMAT:
            below = _window(node)
            if below is not None:
                return await ioctl(below, request, buf)
        return await driver.co_ioctl(request, buf)


async def save_vmstate(node: BlockNode, iov: IoVector, pos: int) -> None:
    """Keep *iov* at *pos* of the first area for it down the primary children (``bdrv_co_writev_vmstate``)."""
    io, driver = _parts(node)
    async with io.request(0, 0):
        below = node.primary
        try:
            if type(driver).co_save_vmstate is BlockDriver.co_save_vmstate and below is not None:
                await save_vmstate(below.node, iov, pos)
            else:
                await driver.co_save_vmstate(iov, pos)
        finally:
            io.written(0, 0, ok=False)  # the next flush has something to do


async def load_vmstate(node: BlockNode, iov: IoVector, pos: int) -> None:
    """Fill *iov* from where ``save_vmstate`` keeps it."""
    io, driver = _parts(node)
    async with io.request(0, 0):
        below = node.primary
        if type(driver).co_load_vmstate is BlockDriver.co_load_vmstate and below is not None:
            await load_vmstate(below.node, iov, pos)
        else:
            await driver.co_load_vmstate(iov, pos)


async def probe_blocksizes(node: BlockNode) -> BlockSizes:
    """The block sizes of the device below (``bdrv_probe_blocksizes``); filters and windows pass the question down."""
    io, driver = _parts(node)
    async with io.request(0, 0):
        below = _window(node)
        if type(driver).co_probe_blocksizes is BlockDriver.co_probe_blocksizes and below is not None:
            return await probe_blocksizes(below)
        return await driver.co_probe_blocksizes()


async def probe_geometry(node: BlockNode) -> Geometry:
    """The geometry of the device below, as ``probe_blocksizes``."""
    io, driver = _parts(node)
    async with io.request(0, 0):
        below = _window(node)
        if type(driver).co_probe_geometry is BlockDriver.co_probe_geometry and below is not None:
            return await probe_geometry(below)
        return await driver.co_probe_geometry()


async def make_empty(node: BlockNode) -> None:
    """Let go of everything that *node*'s own layer holds (``bdrv_make_empty``). *node* is drained."""
    io, driver = _parts(node)
    async with io.request(0, driver.length, serialising=True):
        await driver.co_make_empty()
        io.written(0, 0, ok=False)


async def amend(
    node: BlockNode, options: Any, *, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> None:
    """Make *node*'s image what *options*, an instance of its driver's ``AmendOptions``, say. *node* is drained."""
    io, driver = _parts(node)
    if driver.AmendOptions is None:
        raise UnsupportedFeature(f"Format driver '{driver.name}' does not support option amendment")
    if node.read_only:
        raise ReadOnly("Image is read-only", errno.EACCES)

    async def resize(length: int) -> None:
        await node.path.co_truncate(length, exact=True)

    try:
        async with io.request(0, 0):
            await driver.co_amend(options, force=force, resize=resize, progress=progress)
    finally:
        io.written(0, 0, ok=False)
        node.limits_changed()
        node.path.refresh_lanes()


async def change_backing_file(node: BlockNode, name: str | None, format: str | None) -> None:
    """Let *node*'s image name *name* as its backing file (``bdrv_change_backing_file``). *node* is drained.

    The graph stays as it is: ``set_backing`` changes that. BlockError EINVAL for a name without a format.
    """
    io, driver = _parts(node)
    if name and not format:
        raise BlockError(errno=errno.EINVAL)
    async with io.request(0, driver.length, serialising=True):
        await driver.co_change_backing_file(name, format)
        io.written(0, 0, ok=False)
