"""What a range holds (QEMU's bdrv_co_block_status), and the walk down a backing chain.

One node's answer comes from its mapping where it is a format, from its driver where it is not. It speaks of that
layer only; ``block_status_above`` asks the layers below until one of them has the bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from blockio.driver.base import FilterDriver, FormatDriver
from blockio.io import mapped
from blockio.types import INT_MAX, BlockStatus, ExtentKind, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from blockio.driver.base import BlockDriver
    from blockio.driver.child import Child
    from blockio.graph.node import BlockNode
    from blockio.io.node_io import NodeIO
    from blockio.types import Extent

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
        flags, length = await _holes_below(child, host_offset, flags, length)
    flags &= ~_RECURSE
    if offset + length == end:
        flags |= _EOF
    return BlockStatus(StatusFlags(flags), length, host_offset, owner)


async def block_statuses(io: NodeIO, offset: int, nbytes: int) -> list[BlockStatus]:
    """Answers in a row from *offset* on, *nbytes* at most: as many as the driver has in memory, else one.

    For whoever looks at a whole disk. What the file says of holes is asked once for all of them.
    """
    driver = io.maps_status
    align = io.limits.request_alignment
    if driver is not None and 0 <= offset < driver.length and align <= _SECTOR and not offset & (align - 1):
        extents = driver.try_map_many(offset, min(nbytes, driver.length - offset))
        if extents:
            return await _told(io, driver, offset, extents)
    return [await block_status(io, offset, nbytes, want_zero=True)]


async def _told(io: NodeIO, driver: FormatDriver, offset: int, extents: Sequence[Extent]) -> list[BlockStatus]:
    found: list[BlockStatus] = []
    stored = [extent for extent in extents if extent.kind is ExtentKind.DATA and extent.child is not None]
    regions = await _regions(stored) if stored and await driver.co_data_may_be_hole() else None
    for kind, length, host, child in extents:
        if child is None or host < 0 or kind in _HIDDEN:
            flags = _FLAGS_OF[kind] & ~_OFFSET_VALID
            place, owner = 0, ""
        else:
            flags = _FLAGS_OF[kind] | _OFFSET_VALID
            place, owner = host, child.node_name
        if flags & (_DATA | _ZERO):
            flags |= _ALLOCATED
        elif driver.capabilities.backing:
            flags |= _zero_without_backing(io, offset, True)
        offset += length
        if regions is not None and kind is ExtentKind.DATA and child is not None:
            parts = regions[child].parts(host, length)
            found += [BlockStatus(_as_flags(flags | more), part, at, owner) for at, part, more in parts]
        else:
            found.append(BlockStatus(_as_flags(flags), length, place, owner))
    if offset == driver.length:
        last = found[-1]
        found[-1] = last._replace(flags=last.flags | StatusFlags.EOF)
    return found


async def _regions(stored: list[Extent]) -> dict[Child, _Regions]:
    """What the files that hold the *stored* extents say of them."""
    places: dict[Child, list[tuple[int, int]]] = {}
    for _, length, host, child in stored:
        if child is not None:
            places.setdefault(child, []).append((host, length))
    found = {}
    for child, where in places.items():
        found[child] = _Regions()
        await found[child].learn(child, sorted(where))
    return found


class _Regions:
    """What a file said of its data and holes, for as long as one look at many of its places takes."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._flags: list[int] = []

    async def learn(self, child: Child, places: Iterable[tuple[int, int]]) -> None:
        """Ask about all *places*, (offset, length) in ascending order: what one answer covers is not asked again."""
        known = 0
        for start, length in places:
            at, end = max(start, known), start + length
            while at < end:
                ahead = min(max(end, child.length) - at, INT_MAX & -_SECTOR)
                more, reach = await _holes_below(child, at, 0, ahead)
                self._starts.append(at)
                known = at = at + max(reach, _SECTOR)
                self._ends.append(known)
                self._flags.append(more)

    def parts(self, host_offset: int, length: int) -> list[tuple[int, int, int]]:
        """A place that was learnt of, in pieces of one kind: offset, length and the flags that it adds."""
        at = bisect_right(self._starts, host_offset) - 1
        end = self._ends[at]
        if end - host_offset >= length:
            return [(host_offset, length, self._flags[at])]
        here = end - host_offset
        return [(host_offset, here, self._flags[at]), *self.parts(end, length - here)]


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


async def _holes_below(child: Child, host_offset: int, flags: int, length: int) -> tuple[int, int]:
    """Metadata may say DATA where the file has a hole (preallocation): look. Failing to look changes nothing."""
    try:
        below = await child.co_block_status(host_offset, length, want_zero=True)
    except OSError:
        return flags, length
    if below.flags & _EOF and (not below.length or below.flags & _ZERO):
        return flags | _ZERO, length  # a format may reach past the end of its file, and reads zeroes there
    return flags | (int(below.flags) & _ZERO), below.length


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
