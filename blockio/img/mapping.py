"""``map``: where the bytes of a disk are."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from blockio.driver.base import DriverKind
from blockio.graph.node import find_node
from blockio.img.opening import ImageLike, opened, sectors_up
from blockio.img.results import MapEntry
from blockio.types import OpenFlags, Role, StatusFlags

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode

__all__ = ["map_batches", "map_image", "map_node", "node_batches"]

_MOST: Final = 1 << 30
"""The longest run asked for at once; answers are joined again."""


async def map_image(image: ImageLike, *, start: int = 0, length: int | None = None) -> AsyncGenerator[MapEntry, None]:
    """The runs of *image* from *start* on, *length* bytes or all: in order, without gaps, neighbours differ.

    A range at or past the end gives one empty entry. Raises BlockError; close the iterator (``aclosing``) where you
    leave it early, the image is open that long.
    """
    async with aclosing(map_batches(image, start=start, length=length)) as batches:
        async for batch in batches:
            for entry in batch:
                yield entry


async def map_batches(
    image: ImageLike, *, start: int = 0, length: int | None = None
) -> AsyncGenerator[list[MapEntry], None]:
    """As ``map_image``, several at a time: for disks of a million runs."""
    async with opened(image, OpenFlags(read_only=True)) as blk:
        node = blk.bs
        assert node is not None
        async with aclosing(node_batches(node, start, length)) as batches:
            async for batch in batches:
                yield batch


async def map_node(node: BlockNode, start: int = 0, length: int | None = None) -> AsyncGenerator[MapEntry, None]:
    """As ``map_image``, of an open node."""
    async with aclosing(node_batches(node, start, length)) as batches:
        async for batch in batches:
            for entry in batch:
                yield entry


async def node_batches(node: BlockNode, start: int, length: int | None) -> AsyncGenerator[list[MapEntry], None]:
    """As ``map_batches``, of an open node."""
    end = sectors_up(node.length)
    if length is not None:
        end = min(end, start + length)
    current = MapEntry(start, 0, 0, False, False, False)
    at = start
    while at < end:
        done = []
        for entry in await _entries(node, at, min(_MOST, end - at)):
            at += entry.length
            if _continues(current, entry):
                current = msgspec.structs.replace(current, length=current.length + entry.length)
                continue
            if current.length:
                done.append(current)
            current = entry
        yield done
    yield [current]


async def _entries(node: BlockNode, offset: int, nbytes: int) -> list[MapEntry]:
    """The runs from *offset* on, as many as its layer tells of at once."""
    top = _without_filters(node)
    entries: list[MapEntry] = []
    flags = name = None
    traits = _traits(0)
    filename = None
    for status in await top.path.co_block_statuses(offset, nbytes):
        if status.flags is not flags:  # most are like the one before
            flags, traits = status.flags, _traits(int(status.flags))
        if not status.length or not (traits.told or top.backing is None):
            below = await _entry(node, offset, min(status.length or nbytes, nbytes))
            return [*entries, below]
        if status.node_name != name:
            name = status.node_name
            owner = find_node(name) if name else None
            filename = owner.filename if owner is not None else None
        host = status.host_offset if traits.placed else None
        entries.append(
            MapEntry(
                offset,
                status.length,
                0,
                traits.present,
                traits.zero,
                traits.data,
                traits.compressed,
                host,
                filename if traits.placed else None,
            )
        )
        offset += status.length
    return entries


class _Traits(NamedTuple):
    """The flags of a status, one by one."""

    told: bool
    """The layer itself has the answer."""
    present: bool
    zero: bool
    data: bool
    compressed: bool
    placed: bool


def _traits(flags: int) -> _Traits:
    told = bool(flags & (StatusFlags.DATA | StatusFlags.ZERO))
    return _Traits(
        told,
        bool(flags & StatusFlags.ALLOCATED) and told,
        bool(flags & StatusFlags.ZERO),
        bool(flags & StatusFlags.DATA),
        bool(flags & StatusFlags.COMPRESSED),
        bool(flags & StatusFlags.OFFSET_VALID) and told,
    )


async def _entry(node: BlockNode, offset: int, nbytes: int) -> MapEntry:
    """The run at *offset*, from the first layer that has something to say about it."""
    depth = 0
    here: BlockNode | None = _without_filters(node)
    rest = node.length - offset
    while True:
        assert here is not None
        status = await here.path.co_block_status(offset, nbytes)
        flags = status.flags
        length = min(status.length, nbytes)
        if not length:
            # Past the end of this layer: the padding of the last sector, or a backing file shorter than its overlay.
            return MapEntry(
                offset, nbytes if rest <= 0 or depth else min(nbytes, rest), depth, bool(depth), True, False
            )
        nbytes = length
        if flags & (StatusFlags.DATA | StatusFlags.ZERO):
            break
        below = here.backing
        if below is None:
            flags = StatusFlags.NONE
            break
        here = _without_filters(below.node)
        depth += 1
    has_offset = bool(flags & StatusFlags.OFFSET_VALID)
    owner = find_node(status.node_name) if has_offset and status.node_name else None
    return MapEntry(
        offset,
        nbytes,
        depth,
        bool(flags & StatusFlags.ALLOCATED),
        bool(flags & StatusFlags.ZERO),
        bool(flags & StatusFlags.DATA),
        bool(flags & StatusFlags.COMPRESSED),
        status.host_offset if has_offset else None,
        owner.filename if owner is not None else None,
    )


def _without_filters(node: BlockNode) -> BlockNode:
    while node.driver_class.kind is DriverKind.FILTER:
        edge = next((edge for edge in node.children.values() if edge.role & Role.FILTERED), None)
        if edge is None:
            break
        node = edge.node
    return node


def _continues(current: MapEntry, entry: MapEntry) -> bool:
    if (current.depth, current.present, current.zero, current.data, current.compressed, current.filename) != (
        entry.depth,
        entry.present,
        entry.zero,
        entry.data,
        entry.compressed,
        entry.filename,
    ):
        return False
    if current.offset is None or entry.offset is None:
        return current.offset is entry.offset
    return current.offset + current.length == entry.offset
