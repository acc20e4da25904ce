"""Copying inside the storage (QEMU's bdrv_co_copy_range).

The request goes down the source's mappings to the protocol node that holds the bytes, then down the target's to
the one that shall hold them; there the two drivers copy (``copy_file_range``). Wherever that cannot be,
UnsupportedFeature says: read and write instead. Parts that were copied before stay copied, which does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.aio.context import on_new_stack
from blockio.driver.base import DriverKind, FilterDriver, FormatDriver
from blockio.errors import ReadOnly, UnsupportedFeature
from blockio.graph.edge import Edge
from blockio.io import mapped, wall
from blockio.io.shield import shielded
from blockio.types import Capability, ExtentKind

if TYPE_CHECKING:
    from blockio.driver.base import Allocation, BlockDriver
    from blockio.driver.child import Child
    from blockio.graph.path import RequestPath
    from blockio.io.node_io import NodeIO

__all__ = ["copy_from", "copy_to"]

_UNREADABLE: Final = (ExtentKind.COMPRESSED, ExtentKind.ENCRYPTED)
"""What nobody but its driver can read."""


def _able(driver: BlockDriver) -> None:
    if driver.capabilities.copy_range is Capability.NONE:
        raise UnsupportedFeature


def _path(child: Child | None) -> RequestPath:
    if not isinstance(child, Edge):
        raise UnsupportedFeature
    return child.node.path


async def copy_to(io: NodeIO, offset: int, target: Edge, target_offset: int, nbytes: int) -> None:
    """The source's side: find the bytes below *io* and send each run of them on its way into *target*."""
    driver = io.driver()
    _able(driver)
    if offset + nbytes > driver.length:
        raise UnsupportedFeature  # what reads as zeroes past the end is nobody's to copy
    async with io.request(offset, offset + nbytes):
        driver = io.driver()
        if isinstance(driver, FormatDriver):
            token = driver.map_begin()
            try:
                copying = _copy_mapped(driver, offset, target, target_offset, nbytes)
                await (on_new_stack(copying) if io.starts_stack else copying)
            finally:
                driver.map_end(token)
        elif isinstance(driver, FilterDriver):
            await driver.file.co_copy_range_to(offset, target, target_offset, nbytes)
        else:
            await target.node.path.co_copy_range_from(driver, offset, target_offset, nbytes)


async def _copy_mapped(driver: FormatDriver, offset: int, target: Edge, target_offset: int, nbytes: int) -> None:
    end = offset + nbytes
    while offset < end:
        kind, length, host_offset, child = await mapped.locate(driver, offset, end - offset)
        backing = driver.backing
        if kind in _UNREADABLE:
            raise UnsupportedFeature
        if kind is ExtentKind.DATA and child is not None:
            await child.co_copy_range_to(host_offset, target, target_offset, length)
        elif kind is ExtentKind.UNALLOCATED and backing is not None and offset < backing.length:
            length = min(length, backing.length - offset)
            await backing.co_copy_range_to(offset, target, target_offset, length)
        else:
            await target.co_pwrite_zeroes(target_offset, length)
        offset += length
        target_offset += length


async def copy_from(io: NodeIO, source: BlockDriver, source_offset: int, offset: int, nbytes: int) -> None:
    """The target's side: *source* is the protocol driver that holds the bytes; find where they shall go."""
    driver = io.driver()
    _able(driver)
    if io.node.read_only:
        raise ReadOnly
    if driver.kind is DriverKind.FORMAT and (offset + nbytes > driver.length or io.node.probed):
        # Its own write says what becomes of these: a window ends there, a guessed format watches its first sector.
        raise UnsupportedFeature
    async with io.request(offset, offset + nbytes):
        ok = False
        try:
            await _store(io, source, source_offset, offset, nbytes)
            ok = True
        finally:
            io.written(offset, nbytes, ok=ok)
            if not ok:
                await io.measured_again(offset + nbytes)


async def _store(io: NodeIO, source: BlockDriver, source_offset: int, offset: int, nbytes: int) -> None:
    driver = io.driver()
    if driver.kind is DriverKind.PROTOCOL:
        copied = source.co_copy_range_to(source_offset, driver, offset, nbytes)
        await wall.called(source, "co_copy_range_to", copied)
        return
    if isinstance(driver, FilterDriver):
        await _path(driver.file).co_copy_range_from(source, source_offset, offset, nbytes)
        return
    assert isinstance(driver, FormatDriver)
    if driver.encrypted:
        raise UnsupportedFeature
    end = offset + nbytes
    while offset < end:
        if io.maps_writes is None:
            _, length, host_offset, child = await mapped.locate(driver, offset, end - offset)
            await _path(child).co_copy_range_from(source, source_offset, host_offset, length)
        else:
            allocation = await mapped.allocate(driver, offset, end - offset)
            length = allocation.length
            await _fill(driver, allocation, source, source_offset)
        offset += length
        source_offset += length


async def _fill(driver: FormatDriver, allocation: Allocation, source: BlockDriver, source_offset: int) -> None:
    """Copy into *allocation*, with what belongs around it, and link it."""
    child = allocation.child
    at, length = allocation.host_offset, allocation.length
    try:
        head, tail = await mapped.old_content(driver, allocation)
        if head.nbytes:
            await child.co_pwritev(at - head.nbytes, head)
        await _path(child).co_copy_range_from(source, source_offset, at, length)
        if tail.nbytes:
            await child.co_pwritev(at + length, tail)
    except BaseException as error:
        await mapped.abandon(allocation, error)
        raise
    await shielded(allocation.link())
