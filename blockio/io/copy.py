"""Copying inside the storage (QEMU's bdrv_co_copy_range).

The request goes down the source's mappings to the protocol node that holds the bytes, then down the target's to
the one that shall hold them; there the two drivers copy: inside the file system (``copy_file_range``), or, with a
``Haul``, through the memory of a worker that leaves zeroes out. Wherever that cannot be, UnsupportedFeature says: read
and write instead. Parts that were copied before stay copied, which does no harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.aio.context import on_new_stack
from blockio.aio.hauling import Part
from blockio.driver.base import DriverKind, FilterDriver, FormatDriver
from blockio.errors import ReadOnly, UnsupportedFeature
from blockio.graph.edge import Edge
from blockio.graph.path import Cargo
from blockio.io import mapped, wall
from blockio.io.shield import shielded
from blockio.types import Capability, ExtentKind

if TYPE_CHECKING:
    from blockio.aio.hauling import Haul, Put
    from blockio.driver.base import Allocation, BlockDriver
    from blockio.driver.child import Child
    from blockio.graph.node import BlockNode
    from blockio.graph.path import RequestPath
    from blockio.io.node_io import NodeIO

__all__ = ["can_haul", "copy_from", "copy_to"]

_UNREADABLE: Final = (ExtentKind.COMPRESSED, ExtentKind.ENCRYPTED)
"""What nobody but its driver can read."""


_WORTH_HAULING: Final = 512 << 10
"""Bytes in a row, on average, below which reading and writing them with others is cheaper than a worker's time."""


def _able(driver: BlockDriver) -> None:
    if driver.capabilities.copy_range is Capability.NONE:
        raise UnsupportedFeature


def can_haul(node: BlockNode) -> bool:
    """Whether hauling is worth a try from or to *node*: nothing but mappings stand between it and its files."""
    driver = node.driver
    if driver is None or driver.capabilities.copy_range is Capability.NONE:
        return False
    if driver.kind is DriverKind.PROTOCOL:
        return driver.hauls
    if isinstance(driver, FormatDriver) and driver.encrypted:
        return False
    return all(can_haul(edge.node) for edge in node.children.values())


def _path(child: Child | None) -> RequestPath:
    if not isinstance(child, Edge):
        raise UnsupportedFeature
    return child.node.path


async def copy_to(io: NodeIO, offset: int, target: Edge, target_offset: int, nbytes: int, haul: Haul | None) -> None:
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
                copying = _copy_mapped(driver, offset, target, target_offset, nbytes, haul)
                await (on_new_stack(copying) if io.starts_stack else copying)
            finally:
                driver.map_end(token)
        elif isinstance(driver, FilterDriver):
            await driver.file.co_copy_range_to(offset, target, target_offset, nbytes, haul)
        else:
            cargo = Cargo(driver, (Part(0, nbytes, offset),), haul, -target_offset)
            await target.node.path.co_copy_range_from(cargo, target_offset, nbytes)


def _in_many_places(driver: FormatDriver, offset: int, nbytes: int) -> bool:
    groups = driver.try_map_many(offset, nbytes)
    places = sum(len(group.lengths) for group in groups if group.kind is ExtentKind.DATA)
    return places > 1 + nbytes // _WORTH_HAULING


async def _haul_from_file(
    driver: FormatDriver, offset: int, target: Edge, target_offset: int, nbytes: int, haul: Haul
) -> bool:
    """All of it at once, where one file has whatever is not zero; else False, and nothing has happened."""
    parts: list[Part] = []
    file = driver.file
    at = 0
    while at < nbytes:
        kind, length, host_offset, child = await mapped.locate(driver, offset + at, nbytes - at)
        if kind is ExtentKind.DATA and child is file:
            parts.append(Part(at, at + length, host_offset))
        elif kind is not ExtentKind.ZERO and (kind is not ExtentKind.UNALLOCATED or driver.backing is not None):
            return False
        at += length
    if not parts:
        haul.left_out += nbytes
        return True
    path, source = _path(file), file.node.driver if isinstance(file, Edge) else None
    start, end = min(part.offset for part in parts), max(part.offset + part.stop - part.start for part in parts)
    if source is None or source.kind is not DriverKind.PROTOCOL or end > source.length:
        return False
    _able(source)
    async with path.request(start, end):
        cargo = Cargo(source, tuple(parts), haul, -target_offset)
        await target.node.path.co_copy_range_from(cargo, target_offset, nbytes)
    return True


async def _copy_mapped(
    driver: FormatDriver, offset: int, target: Edge, target_offset: int, nbytes: int, haul: Haul | None
) -> None:
    end = offset + nbytes
    if haul is not None:
        if _in_many_places(driver, offset, nbytes):
            raise UnsupportedFeature
        if haul.step and await _haul_from_file(driver, offset, target, target_offset, nbytes, haul):
            return
    while offset < end:
        kind, length, host_offset, child = await mapped.locate(driver, offset, end - offset)
        backing = driver.backing
        if kind in _UNREADABLE:
            raise UnsupportedFeature
        if kind is ExtentKind.DATA and child is not None:
            await child.co_copy_range_to(host_offset, target, target_offset, length, haul)
        elif kind is ExtentKind.UNALLOCATED and backing is not None and offset < backing.length:
            length = min(length, backing.length - offset)
            await backing.co_copy_range_to(offset, target, target_offset, length, haul)
        elif haul is not None and haul.step:
            haul.left_out += length
        else:
            await target.co_pwrite_zeroes(target_offset, length)
        offset += length
        target_offset += length


async def copy_from(io: NodeIO, cargo: Cargo, offset: int, nbytes: int, *, packed: int) -> list[Put]:
    """The target's side: find where *cargo* shall go. With a haul: what was put where behind *offset*.

    *packed*: what follows zeroes that are left out may move up, and must stay within so many bytes; only the format
    above a protocol node can want that.
    """
    driver = io.driver()
    _able(driver)
    if io.node.read_only:
        raise ReadOnly
    if driver.kind is DriverKind.FORMAT and (offset + nbytes > driver.length or io.node.probed):
        # Its own write says what becomes of these: a window ends there, a guessed format watches its first sector.
        raise UnsupportedFeature
    async with io.request(offset, offset + nbytes):
        ok = False
        reach = nbytes
        puts: list[Put] = []
        try:
            puts = await _store(io, cargo, offset, nbytes, packed)
            ok = True
            if cargo.haul is not None and driver.kind is DriverKind.PROTOCOL:
                reach = max((put.at + put.stop - put.start for put in puts), default=0)
        finally:
            io.written(offset, reach, ok=ok)
            if not ok:
                await io.measured_again(offset + nbytes)
    return puts


async def _store(io: NodeIO, cargo: Cargo, offset: int, nbytes: int, packed: int) -> list[Put]:
    driver = io.driver()
    if driver.kind is DriverKind.PROTOCOL:
        source, haul = cargo.source, cargo.haul
        if haul is None:
            copied = source.co_copy_range_to(cargo.parts[0].offset, driver, offset, nbytes)
            await wall.called(source, "co_copy_range_to", copied)
            return []
        hauled = source.co_haul_to(cargo.parts, driver, offset, nbytes, haul, cargo.phase, packed=packed)
        return await wall.hauled(source, nbytes, hauled)
    if isinstance(driver, FilterDriver):
        return await _path(driver.file).co_copy_range_from(cargo, offset, nbytes, packed=packed)
    assert isinstance(driver, FormatDriver)
    if driver.encrypted:
        raise UnsupportedFeature
    end = offset + nbytes
    while offset < end:
        if io.maps_writes is None:
            _, length, host_offset, child = await mapped.locate(driver, offset, end - offset)
            await _path(child).co_copy_range_from(cargo, host_offset, length)
        else:
            allocation = await mapped.allocate(driver, offset, end - offset)
            length = allocation.length
            await _load(driver, allocation, cargo)
        offset += length
        cargo = cargo.behind(length)
    return []


async def _load(driver: FormatDriver, allocation: Allocation, cargo: Cargo) -> None:
    """Copy into *allocation*, with what belongs around it, and link what holds anything then."""
    child = allocation.child
    at, length = allocation.host_offset, allocation.length
    try:
        if cargo.haul is not None and cargo.haul.step and not allocation.divisible:
            raise UnsupportedFeature  # what is left out would be the guest's, whatever lies there
        if cargo.haul is not None and cargo.haul.room:
            allocation.keep(cargo.haul.room)
        head, tail = await mapped.old_content(driver, allocation)
        if cargo.haul is not None and head.nbytes + tail.nbytes:
            raise UnsupportedFeature  # it could be next to zeroes that are left out
        if head.nbytes:
            await child.co_pwritev(at - head.nbytes, head)
        puts = await _path(child).co_copy_range_from(
            cargo, at, length, packed=allocation.room_end if allocation.divisible else 0
        )
        if tail.nbytes:
            await child.co_pwritev(at + length, tail)
    except BaseException as error:
        await mapped.abandon(allocation, error)
        raise
    if cargo.haul is None or puts == [(0, length, 0)]:
        await shielded(allocation.link())
    else:
        await shielded(allocation.link_parts(puts))
