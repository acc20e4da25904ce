"""What a range holds (QEMU's bdrv_co_block_status), and the walk down a backing chain.

One node's answer comes from its mapping where it is a format, from its driver where it is not. It speaks of that
layer only; ``block_status_above`` asks the layers below until one of them has the bytes.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

from blockio.driver.base import DriverKind, FilterDriver, FormatDriver
from blockio.graph.edge import Edge
from blockio.graph.holes import Holes, look_below
from blockio.io import mapped
from blockio.types import BlockStatus, BlockStatuses, ExtentKind, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blockio.driver.base import BlockDriver
    from blockio.driver.child import Child
    from blockio.graph.holes import Stretches
    from blockio.graph.node import BlockNode
    from blockio.io.node_io import NodeIO
    from blockio.types import Extents

__all__ = ["block_status", "block_status_above", "block_statuses", "is_allocated", "is_allocated_above"]

_DATA: Final = int(StatusFlags.DATA)
_ZERO: Final = int(StatusFlags.ZERO)
_OFFSET_VALID: Final = int(StatusFlags.OFFSET_VALID)
_RAW: Final = int(StatusFlags.RAW)
_ALLOCATED: Final = int(StatusFlags.ALLOCATED)
_EOF: Final = int(StatusFlags.EOF)
_RECURSE: Final = int(StatusFlags.RECURSE)
_COMPRESSED: Final = int(StatusFlags.COMPRESSED)

_FLAGS_OF: Final = {
    ExtentKind.DATA: _DATA | _OFFSET_VALID,
    ExtentKind.ZERO: _ZERO,
    ExtentKind.UNALLOCATED: 0,
    ExtentKind.COMPRESSED: _DATA | _COMPRESSED,
    ExtentKind.ENCRYPTED: _DATA,
}
_SECTOR: Final = 512
_STORED: Final = _DATA | _ALLOCATED | _OFFSET_VALID
_RESERVED: Final = (ExtentKind.ZERO, ExtentKind.UNALLOCATED)
_HIDDEN: Final = (ExtentKind.COMPRESSED, ExtentKind.ENCRYPTED)
"""Where it lies is of no use to anybody but the driver."""


async def block_status(io: NodeIO, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
    """One answer for the first bytes from *offset*. At or past the end: EOF and length 0."""
    driver = io.driver()
    end = driver.length
    if offset >= end:
        return BlockStatus(StatusFlags.EOF, 0)
    nbytes = min(nbytes, end - offset)
    if not nbytes:
        return BlockStatus(StatusFlags.NONE, 0)
    # The driver is asked about whole blocks; what it says is cut back to what was asked.
    align = io.limits.request_alignment
    start = offset & -align
    flags, length, host_offset, owner, child = await _ask(
        io, driver, start, ((offset + nbytes + align - 1) & -align) - start, want_zero
    )
    length = min(length - (offset - start), nbytes)
    if length <= 0:
        raise RuntimeError(f"driver '{driver.name}' told nothing of the bytes at {offset}")
    if flags & _OFFSET_VALID:
        host_offset += offset - start
    if flags & _RAW and child is not None:
        below = await child.co_block_status(host_offset, length, want_zero=want_zero)
        if not below.length:
            # The node is longer than its file (a last sector that is not full, or the file shrank): zeroes, in place.
            below = BlockStatus(StatusFlags(_ZERO | _ALLOCATED | _OFFSET_VALID), length, host_offset, child.node_name)
        return _below_raw(below, length, last=offset + length == end)
    if flags & (_DATA | _ZERO):
        flags |= _ALLOCATED
    elif driver.capabilities.backing:
        flags |= _zero_without_backing(io, offset, want_zero)
    if want_zero and flags & _RECURSE and flags & _DATA and flags & _OFFSET_VALID and child is not None:
        flags, length = await look_below(child, host_offset, flags, length)
    flags &= ~_RECURSE
    if offset + length == end:
        flags |= _EOF
    return BlockStatus(StatusFlags(flags), length, host_offset, owner)


async def block_statuses(io: NodeIO, offset: int, nbytes: int, holes: Holes | None = None) -> list[BlockStatuses]:
    """Answers in a row from *offset* on, *nbytes* at most: as many as the driver has in memory, else one.

    For whoever looks at a whole disk. What the file says of holes is asked once for all of them, or for all steps of a
    look that keep it in *holes*.
    """
    driver = io.maps_status
    align = io.limits.request_alignment
    if driver is not None and 0 <= offset < driver.length and align <= _SECTOR and not offset & (align - 1):
        extents = driver.try_map_many(offset, min(nbytes, driver.length - offset))
        if extents:
            return await _told(io, driver, offset, extents, Holes() if holes is None else holes)
    elif io.maps_status is None and 0 <= offset < io.driver().length and align <= _SECTOR and not offset & (align - 1):
        row = await _row(io, offset, min(nbytes, io.driver().length - offset))
        if row:
            return row
    flags, length, host, name, _ = await block_status(io, offset, nbytes, want_zero=True)
    return [BlockStatuses(flags, [length], [host], name)]


async def _row(io: NodeIO, offset: int, nbytes: int) -> list[BlockStatuses]:
    """The answers of a driver without a mapping, or of the file of one that is no more than a window on it.

    Empty where there is something to ``block_status`` that this knows nothing of.
    """
    driver = io.driver()
    if driver.kind is DriverKind.PROTOCOL:
        found: list[BlockStatuses] = []
        at, end = offset, offset + nbytes
        for flags, length, host, name, _ in await driver.co_block_statuses(offset, nbytes):
            if length <= 0:
                raise RuntimeError(f"driver '{driver.name}' told nothing of the bytes at {at}")
            found.append(BlockStatuses(flags | StatusFlags.ALLOCATED, [min(length, end - at)], [host], name))
            at += length
            if at >= end:
                break
        return found
    kinds, length, host, _, child = await _ask(io, driver, offset, nbytes, True)
    if kinds & _RAW and isinstance(child, Edge):
        row = await child.node.path.co_block_statuses(host, length)
        return row if row[0].lengths[0] else []
    return []


async def _told(
    io: NodeIO, driver: FormatDriver, offset: int, extents: Sequence[Extents], holes: Holes
) -> list[BlockStatuses]:
    stored = any(group.kind is ExtentKind.DATA for group in extents)
    if not stored or not await driver.co_data_may_be_hole():
        return _Row(io, driver, offset).told(extents, None)
    holes.begin(io.write_gen)
    row = _Row(io, driver, offset)
    found = row.told(extents, holes)
    if row.unknown:
        for child, places in row.unknown.items():
            await holes.of(child).learn(places)
        found = _Row(io, driver, offset).told(extents, holes)
    return found


class _Row:
    """Many answers in a row, being put together; neighbours that differ in length and place only are together."""

    def __init__(self, io: NodeIO, driver: FormatDriver, offset: int) -> None:
        self._io = io
        self._driver = driver
        self._offset = offset
        self._found: list[BlockStatuses] = []
        self.unknown: dict[Child, list[tuple[int, int]]] = {}
        """Places that the files were not asked about yet; without them the row is not whole."""

    def told(self, extents: Sequence[Extents], holes: Holes | None) -> list[BlockStatuses]:
        """What *extents* come to, and *holes* below them if there may be any."""
        for kind, lengths, hosts, child in extents:
            if kind is not ExtentKind.DATA or child is None:
                self._other(kind, lengths, hosts, child)
            elif holes is None:
                self._found.append(BlockStatuses(_as_flags(_STORED), lengths[:], hosts[:], child.node_name))
            else:
                self._look(holes.of(child), lengths, hosts, child)
            self._offset += sum(lengths)
        if self._offset == self._driver.length and not self.unknown:
            last = self._found[-1]
            self._add(int(last.flags) | _EOF, [last.lengths.pop()], [last.host_offsets.pop()], last.node_name)
            if not last.lengths:
                self._found.remove(last)
        return self._found

    def _other(self, kind: ExtentKind, lengths: list[int], hosts: list[int], child: Child | None) -> None:
        flags, name = _FLAGS_OF[kind] & ~_OFFSET_VALID, ""
        if child is None or kind in _HIDDEN:
            hosts = [0] * len(lengths)
        else:
            flags, name = flags | _OFFSET_VALID, child.node_name  # zeroes or nothing, with a place of their own
        if flags & (_DATA | _ZERO):
            self._found.append(BlockStatuses(_as_flags(flags | _ALLOCATED), lengths[:], hosts[:], name))
            return
        offset = self._offset
        for length, host in zip(lengths, hosts, strict=True):
            below = _zero_without_backing(self._io, offset, True) if self._driver.capabilities.backing else 0
            self._add(flags | below, [length], [host], name)
            offset += length

    def _look(self, known: Stretches, lengths: list[int], hosts: list[int], child: Child) -> None:
        """At data that may be a hole."""
        name = child.node_name
        at = 0
        for zero, same in groupby(known.flags(hosts, lengths)):
            after = at + len(list(same))
            if zero is not None:
                self._add(_STORED | zero, lengths[at:after], hosts[at:after], name)
                at = after
                continue
            for length, host in zip(lengths[at:after], hosts[at:after], strict=True):
                parts = known.parts(host, length)
                for start, part, its in parts:
                    self._add(_STORED | its, [part], [start], name)
                if not parts:
                    self.unknown.setdefault(child, []).append((host, length))
            at = after

    def _add(self, flags: int, lengths: list[int], hosts: list[int], name: str) -> None:
        last = self._found[-1] if self._found else None
        if last is not None and last.flags == flags and last.node_name == name:
            last.lengths.extend(lengths)
            last.host_offsets.extend(hosts)
        else:
            self._found.append(BlockStatuses(_as_flags(flags), lengths, hosts, name))


_FLAGS: Final[dict[int, StatusFlags]] = {}


def _as_flags(flags: int) -> StatusFlags:
    """One object for each value, because making one costs more than all the rest of an answer."""
    known = _FLAGS.get(flags)
    return known if known is not None else _FLAGS.setdefault(flags, StatusFlags(flags))


async def _ask(
    io: NodeIO, driver: BlockDriver, offset: int, nbytes: int, want_zero: bool
) -> tuple[int, int, int, str, Child | None]:
    """The driver's own answer: flags, length, host offset, owner's name, and the child that owns it if any."""
    if io.maps_status is None:
        status = await driver.co_block_status(offset, nbytes, want_zero=want_zero)
        file = driver.file if isinstance(driver, (FormatDriver, FilterDriver)) else None
        owner = file if file is not None and file.node_name == status.node_name else None
        return int(status.flags), status.length, status.host_offset, status.node_name, owner
    return await _ask_mapping(io.maps_status, offset, nbytes)


async def _ask_mapping(driver: FormatDriver, offset: int, nbytes: int) -> tuple[int, int, int, str, Child | None]:
    token = driver.map_begin()
    try:
        kind, length, host_offset, child = await mapped.locate(driver, offset, min(nbytes, driver.length - offset))
    finally:
        driver.map_end(token)
    flags = _FLAGS_OF[kind]
    if kind in _RESERVED and child is not None and host_offset >= 0:
        flags |= _OFFSET_VALID  # zeroes or nothing, with a place of their own
    if not flags & _OFFSET_VALID or child is None:
        return flags, length, 0, "", None
    if kind is ExtentKind.DATA and await driver.co_data_may_be_hole():
        flags |= _RECURSE
    return flags, length, host_offset, child.node_name, child


def _below_raw(below: BlockStatus, length: int, *, last: bool) -> BlockStatus:
    """RAW: the child's answer is the node's own, except where the node ends."""
    flags = int(below.flags) & ~_EOF
    if last and below.length == length:
        flags |= _EOF
    return below._replace(flags=StatusFlags(flags))


def _zero_without_backing(io: NodeIO, offset: int, want_zero: bool) -> int:
    """ZERO where nothing below an unallocated range can show."""
    backing = io.node.backing
    if backing is None or (want_zero and offset >= backing.length):
        return _ZERO
    return 0


async def block_status_above(
    node: BlockNode, base: BlockNode | None, offset: int, nbytes: int, *, want_zero: bool = True
) -> BlockStatus:
    """What *node* and the layers below it down to, but not including, *base* hold (all of them where it is None).

    ``depth`` counts the layers that were asked; the last is the one that has the bytes, if any has. Where a layer
    ends early, what the layers above leave to it reads as zeroes and counts as allocated there.
    """
    if node is base:
        return BlockStatus(StatusFlags.NONE, nbytes)
    status = await node.path.co_block_status(offset, nbytes, want_zero=want_zero)
    depth = 1
    if not status.length or status.flags & _ALLOCATED:
        return status._replace(depth=depth)
    nbytes = status.length
    top_end = offset + nbytes if status.flags & _EOF else -1
    edge = node.layer_below
    while edge is not None and edge.node is not base:
        below = edge.node
        status = await below.path.co_block_status(offset, nbytes, want_zero=want_zero)
        depth += 1
        if not status.length:
            status = BlockStatus(StatusFlags.ZERO | StatusFlags.ALLOCATED, nbytes, 0, below.name)
            break
        nbytes = status.length
        if status.flags & _ALLOCATED:
            break
        edge = below.layer_below
    # EOF of a lower layer says nothing about the top one, which may be longer.
    flags = int(status.flags) & ~_EOF
    if offset + status.length == top_end:
        flags |= _EOF
    return status._replace(flags=StatusFlags(flags), depth=depth)


async def is_allocated(node: BlockNode, offset: int, nbytes: int) -> tuple[bool, int]:
    """Whether *node* itself has the first bytes from *offset*, and for how many bytes that is so.

    At or past the end: not, for 0 bytes.
    """
    status = await node.path.co_block_status(offset, nbytes, want_zero=False)
    return bool(status.flags & _ALLOCATED), status.length


async def is_allocated_above(node: BlockNode, base: BlockNode | None, offset: int, nbytes: int) -> tuple[int, int]:
    """The depth (1 for *node*) of the layer above *base* that has the first bytes, 0 for none; and how many bytes."""
    status = await block_status_above(node, base, offset, nbytes, want_zero=False)
    return (status.depth if status.flags & _ALLOCATED else 0), status.length
