"""``map``: where the bytes of a disk are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import accumulate, pairwise, repeat
from operator import add, eq
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.driver.base import DriverKind
from blockio.graph.holes import Holes
from blockio.graph.node import find_node
from blockio.img.opening import ImageLike, opened, sectors_up
from blockio.img.results import MapEntry
from blockio.types import OpenFlags, Role, StatusFlags

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode

__all__ = ["MapRuns", "map_batches", "map_image", "map_node", "node_batches"]

_MOST: Final = 1 << 30
"""The longest run asked for at once; answers are joined again."""


async def map_image(image: ImageLike, *, start: int = 0, length: int | None = None) -> AsyncGenerator[MapEntry, None]:
    """The runs of *image* from *start* on, *length* bytes or all: in order, without gaps, neighbours differ.

    A range at or past the end gives one empty entry. Raises BlockError; close the iterator (``aclosing``) where you
    leave it early, the image is open that long.
    """
    async with aclosing(map_batches(image, start=start, length=length)) as batches:
        async for batch in batches:
            for runs in batch:
                for entry in runs.entries():
                    yield entry


class MapRuns(NamedTuple):
    """Runs in a row, from guest offset ``start`` on, that differ in length and place only: columns of ``MapEntry``."""

    start: int
    lengths: list[int]
    offsets: list[int] | None
    """Where each is in ``filename``; None where they have no place."""
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool
    filename: str | None

    def entries(self) -> Iterator[MapEntry]:
        """One by one."""
        starts = accumulate(self.lengths, initial=self.start)
        offsets = repeat(None) if self.offsets is None else self.offsets
        traits = map(repeat, (self.depth, self.present, self.zero, self.data, self.compressed))
        return map(MapEntry, starts, self.lengths, *traits, offsets, repeat(self.filename))


async def map_batches(
    image: ImageLike, *, start: int = 0, length: int | None = None, compression: bool = True
) -> AsyncGenerator[list[MapRuns], None]:
    """As ``map_image``, several at a time: for disks of a million runs. Without *compression* nothing is said of it."""
    async with opened(image, OpenFlags(read_only=True)) as blk:
        node = blk.bs
        assert node is not None
        async with aclosing(node_batches(node, start, length, compression=compression)) as batches:
            async for batch in batches:
                yield batch


async def map_node(node: BlockNode, start: int = 0, length: int | None = None) -> AsyncGenerator[MapEntry, None]:
    """As ``map_image``, of an open node."""
    async with aclosing(node_batches(node, start, length)) as batches:
        async for batch in batches:
            for runs in batch:
                for entry in runs.entries():
                    yield entry


async def node_batches(
    node: BlockNode, start: int, length: int | None, *, compression: bool = True
) -> AsyncGenerator[list[MapRuns], None]:
    """As ``map_batches``, of an open node."""
    end = sectors_up(node.length)
    if length is not None:
        end = min(end, start + length)
    last: MapRuns | None = None
    at = start
    holes = Holes()
    while at < end:
        done = []
        for runs in await _runs(node, at, min(_MOST, end - at), holes):
            at += sum(runs.lengths)
            told = runs if compression else runs._replace(compressed=False)
            whole, last = _joined(last, told)
            done += whole
        if done:
            yield done
    yield [last if last is not None else MapRuns(start, [0], None, 0, False, False, False, False, None)]


def _joined(last: MapRuns | None, runs: MapRuns) -> tuple[list[MapRuns], MapRuns]:
    """What is whole when *runs* come behind *last*, and the one run at the end, which may go on."""
    whole = []
    if last is not None:
        if last[3:] == runs[3:] and (last.offsets is None) == (runs.offsets is None):
            offsets = None if last.offsets is None or runs.offsets is None else last.offsets + runs.offsets
            runs = runs._replace(start=last.start, lengths=last.lengths + runs.lengths, offsets=offsets)
        else:
            whole.append(last)
    start, lengths, offsets = runs[:3]
    if offsets is None:
        return whole, runs._replace(lengths=[sum(lengths)])
    ends = list(map(add, offsets, lengths))
    if any(map(eq, ends, offsets[1:])):
        first = [0, *(at for at in range(1, len(offsets)) if ends[at - 1] != offsets[at])]
        lengths = [sum(lengths[at:after]) for at, after in pairwise((*first, len(offsets)))]
        offsets = [offsets[at] for at in first]
    if len(lengths) > 1:
        whole.append(runs._replace(lengths=lengths[:-1], offsets=offsets[:-1]))
        start += sum(lengths[:-1])
    return whole, runs._replace(start=start, lengths=lengths[-1:], offsets=offsets[-1:])


async def _runs(node: BlockNode, offset: int, nbytes: int, holes: Holes) -> list[MapRuns]:
    """The runs from *offset* on, as many as its layer tells of at once."""
    top = _without_filters(node)
    found: list[MapRuns] = []
    for flags, lengths, hosts, name in await top.path.co_block_statuses(offset, nbytes, holes):
        told = bool(flags & (StatusFlags.DATA | StatusFlags.ZERO))
        if not lengths[0] or not (told or top.backing is None):
            found.append(await _run(node, offset, min(lengths[0] or nbytes, nbytes)))
            break
        found.append(_as_runs(flags if told else StatusFlags.NONE, offset, lengths, hosts, name, 0))
        offset += sum(lengths)
    return found


async def _run(node: BlockNode, offset: int, nbytes: int) -> MapRuns:
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
            length = nbytes if rest <= 0 or depth else min(nbytes, rest)
            return MapRuns(offset, [length], None, depth, bool(depth), True, False, False, None)
        nbytes = length
        if flags & (StatusFlags.DATA | StatusFlags.ZERO):
            break
        below = here.backing
        if below is None:
            flags = StatusFlags.NONE
            break
        here = _without_filters(below.node)
        depth += 1
    return _as_runs(flags, offset, [nbytes], [status.host_offset], status.node_name, depth)


def _as_runs(flags: StatusFlags, offset: int, lengths: list[int], hosts: list[int], name: str, depth: int) -> MapRuns:
    placed = bool(flags & StatusFlags.OFFSET_VALID)
    owner = find_node(name) if placed and name else None
    return MapRuns(
        offset,
        lengths,
        hosts if placed else None,
        depth,
        bool(flags & StatusFlags.ALLOCATED),
        bool(flags & StatusFlags.ZERO),
        bool(flags & StatusFlags.DATA),
        bool(flags & StatusFlags.COMPRESSED),
        owner.filename if owner is not None else None,
    )


def _without_filters(node: BlockNode) -> BlockNode:
    while node.driver_class.kind is DriverKind.FILTER:
        edge = next((edge for edge in node.children.values() if edge.role & Role.FILTERED), None)
        if edge is None:
            break
        node = edge.node
    return node
