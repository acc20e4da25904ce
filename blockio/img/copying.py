"""Moving the content of disks onto another: the work inside ``convert``.

A *scout* walks the sources and says what lies where; a few *workers* take what it found, read it, look for zeroes in
it and write what is left. The scout runs ahead as far as its queue lets it, so that questions to the metadata cost no
time of the copying. Memory is one buffer a worker. Where nothing speaks against it a worker has a whole stretch
*hauled* (see ``blockio.aio.hauling``): the nodes of both sides say where it lies and where it shall go, a thread does
the rest.

In order (the default) means: writes begin in the order of their offsets, so that a target that grows as it is written
is laid out from front to back; they still overlap.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Iterator
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from blockio.aio.hauling import Haul
from blockio.buffers import aligned_buffer, data_runs
from blockio.errors import BlockError
from blockio.graph.holes import Holes
from blockio.img.opening import SECTOR, sectors_up
from blockio.img.results import Side
from blockio.img.turns import Turns
from blockio.io.status import block_status_above
from blockio.types import RequestFlags, StatusFlags

if TYPE_CHECKING:
    from blockio.backend import BlockBackend
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode
    from blockio.img.digesting import OrderedChecksum
    from blockio.img.limiting import RateLimit
    from blockio.img.progress import Meter

__all__ = ["CHUNK", "Copier", "Kind", "Piece", "Source", "Target"]

CHUNK: Final = 2 << 20
"""How much one worker moves at a time, at least a cluster: the kernel takes one large write faster than several small
ones, and each costs a walk down both stacks; larger ones only need more memory."""

HAUL: Final = 32 << 20
"""How much is hauled as one, holes included."""

_HAULS: Final = 3
"""How many are under way at once: the kernel lets one write to a file, others read; a third waits for the disk."""

_MOST_PATIENT: Final = 63
"""How many pieces are moved by hand before another one is tried to be hauled."""

_LONGEST: Final = 1 << 30
_QUEUE: Final = 4096

_DATA: Final = int(StatusFlags.DATA)
_COMPRESSED: Final = int(StatusFlags.COMPRESSED)
_ZERO: Final = int(StatusFlags.ZERO)


class Source:
    """One of the disks that are copied from, or a part of it: *size* bytes from *skip* on, to ``start`` of the target.

    ``origin`` is where the disk's first byte would lie in the target, before its beginning if need be.
    """

    def __init__(self, blk: BlockBackend, start: int, *, skip: int = 0, size: int | None = None) -> None:
        self.blk = blk
        self.start = start
        self.origin = start - skip
        node = blk.bs
        assert node is not None
        self.node = node
        self.exact = node.length
        self.size = sectors_up(self.exact) if size is None else size
        self._told: list[tuple[int, int, int]] = []
        """Start, length and flags of what the node said of the bytes ahead, the next one last."""
        self._holes = Holes()

    async def told(self, offset: int, nbytes: int) -> tuple[int, int]:
        """What the node says of the bytes at *offset*, *nbytes* at most, and for how many that holds.

        For a walk from front to back: what more it said is kept for the next question.
        """
        row = self._told
        while row and row[-1][0] + row[-1][1] <= offset:
            row.pop()
        if not row or row[-1][0] > offset:
            row.clear()
            at = offset
            for flags, lengths, _, _ in await self.node.path.co_block_statuses(offset, nbytes, self._holes):
                row.append((at, sum(lengths), int(flags)))
                at += row[-1][1]
            row.reverse()
        start, length, said = row[-1]
        return said, min(start + length - offset, nbytes)

    @property
    def backing(self) -> BlockNode | None:
        """The node below the image itself, or None."""
        edge = self.node.backing
        return None if edge is None else edge.node


class Target(Protocol):
    """What is written to: a backend, or somebody who takes everything in order."""

    @property
    def root(self) -> Edge | None:
        """Whom the storage may copy to by itself."""

    async def co_pwritev(self, offset: int, iov: memoryview, /) -> None:
        """Write *iov*."""

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags, /) -> None:
        """Make *nbytes* zero."""

    async def co_pwrite_compressed(self, offset: int, iov: memoryview, /) -> None:
        """Write *iov* in less room."""


class Kind(Enum):
    """What is to be done with a part of the target."""

    COPY = "copy"
    UNPACK = "unpack"
    """As COPY, but no file holds the bytes as they are."""
    ZERO = "zero"
    NONE = "none"
    """Nothing: the target is zero there already, and only a checksum has to be told."""


_MOVED: Final = (Kind.COPY, Kind.UNPACK)


class Piece(NamedTuple):
    """What a worker takes on at a time."""

    kind: Kind
    source: Source
    offset: int
    """In the target."""
    nbytes: int
    gaps: int = 0
    """Bytes of it, between data, that are known to be zeroes and were left out."""
    steps: int = 0
    """Multiples of a haul's step, with what is behind each, that hold any of its data; 0: nobody counted."""


class Copier:
    """One run over all sources.

    ``sparse`` is the length of a run of zeroes that is worth leaving out, 0 to write everything; ``zero_init``: the
    target reads as zeroes already; ``backing_length``: the target has a backing file that long (-1: of unknown length),
    so only what the source's top image holds itself is copied, and what it leaves to its own backing file is left out;
    None: it has none. ``compress``: what is written is compressed, in whole clusters of ``cluster_size``.

    ``checksum`` is told of every piece in the order of the disk, whatever order they are written in: a worker keeps its
    buffer until its piece was hashed, while others read and write. What is left out is not known to it.

    ``haul``: data need not go through the two backends. Nothing may hinge on their seeing each request, and the target
    must not have to be told of zeroes.

    ``landed`` is called with the number of each piece that is written, where it ends, and how much data was in it.

    Invariant: workers write disjoint ranges; pieces are numbered in the order of their offsets.
    """

    def __init__(
        self,
        sources: list[Source],
        target: Target,
        meter: Meter,
        *,
        workers: int = 8,
        in_order: bool = True,
        sparse: int = 4096,
        cluster_size: int = 0,
        zero_init: bool = False,
        backing_length: int | None = None,
        copy_offload: bool = False,
        haul: bool = False,
        salvage: bool = False,
        compress: bool = False,
        limit: RateLimit | None = None,
        checksum: OrderedChecksum | None = None,
        landed: Callable[[int, int, int], object] | None = None,
        on_warning: Callable[[str], object] | None = None,
    ) -> None:
        self._sources = sources
        self._target = target
        self._meter = meter
        self._workers = workers
        self._in_order = in_order
        self._sparse = sparse
        self._chunk = max(CHUNK, cluster_size)
        # Below the size of a cluster leaving zeroes out saves nothing, unless one is all that a worker holds.
        self._step = cluster_size if compress else max(sparse, cluster_size if cluster_size <= CHUNK else 0)
        self._cluster = cluster_size if compress else 0
        self._zero_init = zero_init
        self._backing_length = backing_length
        self._offload = copy_offload
        self._hauls: asyncio.Semaphore | None = None
        if haul and not (compress or salvage or copy_offload or limit or checksum) and self._step <= CHUNK:
            self._hauls = asyncio.Semaphore(_HAULS)
        self._spared = self._patience = 0
        self._salvage = salvage
        self._limit = limit
        self._checksum = checksum
        self._landed = landed
        self._on_warning = on_warning
        self._queue: asyncio.Queue[Piece | None] = asyncio.Queue(_QUEUE)
        self._taken = 0
        self._writes = Turns()
        self.copied = 0
        self.zeroed = 0
        self.salvaged = 0

    async def run(self) -> None:
        """Copy everything. The first error ends it: BlockError that says where, or whatever was raised.

        When this returns, raises or is cancelled, no request of it is under way any more.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._scout())
                for _ in range(self._workers):
                    group.create_task(self._work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    # -- what lies where

    async def _scout(self) -> None:
        pieces = self._whole_clusters() if self._cluster else self._pieces()
        async for piece in pieces if self._hauls is None or not self._sparse else _gathered(pieces, self._step):
            await self._queue.put(piece)
        for _ in range(self._workers):
            await self._queue.put(None)

    async def _pieces(self) -> AsyncIterator[Piece]:
        for source in self._sources:
            at, end = source.start, source.start + source.size
            while at < end:
                kind, nbytes = await self._look(source, at, min(_LONGEST, end - at))
                for piece in self._cut(kind, source, at, nbytes):
                    yield piece
                at += nbytes

    async def _whole_clusters(self) -> AsyncIterator[Piece]:
        """As ``_pieces``, cut at clusters of the target; one that is not all of a kind, or of one source, is data."""
        at, total = self._sources[0].start, self._sources[-1].start + self._sources[-1].size
        cluster = self._cluster
        for source in self._sources:
            end = source.start + source.size
            while at < end:
                kind, nbytes = await self._look(source, at, min(_LONGEST, end - at))
                if at + nbytes < total:
                    nbytes -= nbytes % cluster
                if not nbytes:
                    kind, nbytes = Kind.COPY, min(cluster, total - at)
                for piece in self._cut(kind, source, at, nbytes):
                    yield piece
                at += nbytes

    def _cut(self, kind: Kind | None, source: Source, at: int, nbytes: int) -> Iterator[Piece]:
        """The pieces that a stretch of one kind makes; what is left out is accounted for."""
        if kind is None:
            self._meter.forgo(nbytes)
        elif kind is Kind.ZERO and self._sparse:
            self._meter.forgo(nbytes)
            self.zeroed += nbytes
            if not self._zero_init or self._checksum is not None:
                yield Piece(kind, source, at, nbytes)
        else:
            for start, end in pairwise((*_chunks(at, nbytes, self._chunk, self._longest(kind)), at + nbytes)):
                yield Piece(kind, source, start, end - start)

    def _longest(self, kind: Kind | None) -> int:
        """How much of *kind* is one piece at most."""
        return HAUL if kind is Kind.COPY and self._hauls is not None else self._chunk

    async def _look(self, source: Source, at: int, nbytes: int) -> tuple[Kind | None, int]:
        """``_ask``, on until there is a chunk's worth of what must be copied: extents may be as short as a cluster."""
        kind, found = await self._ask(source, at, nbytes)
        while kind in _MOVED and found < min(self._longest(kind), nbytes):
            more, length = await self._ask(source, at + found, nbytes - found)
            if more is not kind:
                if more not in _MOVED or found >= self._chunk:
                    break
                kind = Kind.UNPACK  # short ones of both kinds go together
            found += length
        return kind, found

    async def _ask(self, source: Source, at: int, nbytes: int) -> tuple[Kind | None, int]:
        """What is to be done with the first bytes at *at* (None: nothing), and for how many that holds."""
        past_backing = False
        if self._backing_length is not None and self._backing_length >= 0:
            past_backing = at >= self._backing_length
            if not past_backing:
                nbytes = min(nbytes, self._backing_length - at)
        inside = source.exact - (at - source.origin)
        if inside <= 0:
            return Kind.ZERO, nbytes
        try:
            if source.backing is None and not self._salvage:
                kinds, length = await source.told(at - source.origin, nbytes)
                depth = 1
            else:
                base = None if self._backing_length is None else source.backing
                kinds, length, _, _, depth = await block_status_above(source.node, base, at - source.origin, nbytes)
        except BlockError as error:
            if self._salvage:
                return Kind.COPY, min(nbytes, SECTOR)
            raise _at(error, f"error while reading block status at offset {at - source.origin}") from error
        flags = int(kinds)
        if flags & _COMPRESSED and depth == 1:
            # One cluster; its neighbours, of which there mostly are many, are asked for at once.
            many = await source.node.path.co_block_statuses(at - source.origin, min(nbytes, self._chunk))
            length = sum(many[0].lengths) if many[0].flags & _COMPRESSED else length
        length = nbytes if length >= inside else length
        if flags & _ZERO:
            return (None if past_backing else Kind.ZERO), length
        if flags & _DATA or self._backing_length is None:
            return (Kind.UNPACK if flags & _COMPRESSED else Kind.COPY), length
        return None, length

    # -- the work

    async def _work(self) -> None:
        buffer = aligned_buffer(self._chunk)
        limit, timed = self._limit, self._meter.timed
        take = None if limit is None else timed(Side.LIMIT, limit.take)
        read, write = timed(Side.SOURCE, self._read_all), timed(Side.TARGET, self._write)
        while True:
            piece = await self._queue.get()
            if piece is None:
                return
            number = self._taken
            self._taken += 1
            if take is not None and piece.kind is not Kind.NONE:
                await take(piece.nbytes)
            if piece.kind is Kind.NONE or (piece.kind is Kind.ZERO and self._sparse):
                await self._turn(number)
                self._pass_on(number)
                if not self._zero_init and piece.kind is Kind.ZERO:
                    await self._write_zeroes(piece.offset, piece.nbytes)
                if self._checksum is not None:
                    await self._checksum.zeroes(number, piece.nbytes)
                if self._landed is not None:
                    self._landed(number, piece.offset + piece.nbytes, 0)
                continue
            if not (await self._hauled(number, piece) or await self._copied_inside(number, piece)):
                self.zeroed -= piece.gaps  # those are seen again
                end = piece.offset + piece.nbytes
                for start in range(piece.offset, end, self._chunk):
                    part = piece._replace(offset=start, nbytes=min(self._chunk, end - start))
                    view = buffer[: part.nbytes]
                    if piece.kind is Kind.ZERO:
                        view[:] = bytes(part.nbytes)
                    else:
                        await read(part, view)
                    await self._turn(number)
                    await write(number if start + part.nbytes == end else None, start, view)
                    if self._checksum is not None:
                        await self._checksum.update(number, view)
            data = piece.nbytes - piece.gaps
            self.copied += data
            self._meter.advance(data)
            if self._landed is not None:
                self._landed(number, piece.offset + piece.nbytes, data)

    async def _hauled(self, number: int, piece: Piece) -> bool:
        """Whether *piece* was hauled. Where it cannot be, the next few pieces are not tried, and then twice as many."""
        offset = piece.offset - piece.source.origin
        if self._hauls is None or piece.kind is not Kind.COPY or offset + piece.nbytes > piece.source.exact:
            return False
        if self._spared:
            self._spared -= 1
            return False
        source, target = piece.source.blk.root, self._target.root
        assert source is not None
        assert target is not None
        job = Haul(self._step if self._sparse else 0, piece.steps * self._step)
        await self._turn(number)
        async with self._hauls:
            self._pass_on(number)
            try:
                await source.co_copy_range_to(offset, target, piece.offset, piece.nbytes, job)
            except BlockError:
                # Reading and writing will say what is wrong, if anything is.
                self._spared = self._patience = min(2 * self._patience + 1, _MOST_PATIENT)
                return False
        self._patience = 0
        self.zeroed += job.left_out - piece.gaps
        self._meter.waited(Side.SOURCE, job.reading)
        self._meter.waited(Side.TARGET, job.writing)
        return True

    async def _copied_inside(self, number: int, piece: Piece) -> bool:
        """Whether the storage copied *piece* by itself. Once it cannot, it is not asked again."""
        if not self._offload or piece.kind is Kind.ZERO:
            return False
        source, target = piece.source.blk.root, self._target.root
        assert source is not None
        assert target is not None
        await self._turn(number)
        try:
            await source.co_copy_range_to(piece.offset - piece.source.origin, target, piece.offset, piece.nbytes)
        except BlockError:
            # Reading and writing will say what is wrong, if anything is.
            self._offload = False
            return False
        self._pass_on(number)
        return True

    async def _read_all(self, piece: Piece, view: memoryview) -> None:
        """Read *piece*, which may reach into the sources that follow its own."""
        at, end = piece.offset, piece.offset + piece.nbytes
        for source in self._sources[self._sources.index(piece.source) :]:
            stop = min(end, source.start + source.size)
            part = view[at - piece.offset : stop - piece.offset]
            await self._read(Piece(piece.kind, source, at, stop - at), part)
            at = stop
            if at == end:
                return

    async def _read(self, piece: Piece, view: memoryview) -> None:
        source, offset = piece.source, piece.offset - piece.source.origin
        inside = max(0, min(piece.nbytes, source.exact - offset))
        if inside < piece.nbytes:
            view[inside:] = bytes(piece.nbytes - inside)
        try:
            if inside:
                await source.blk.co_preadv(offset, view[:inside])
        except BlockError as error:
            if not self._salvage:
                raise _at(error, f"error while reading at byte {offset}") from error
            await self._rescue(source, offset, view[:inside])

    async def _rescue(self, source: Source, offset: int, view: memoryview) -> None:
        """Read sector by sector; what cannot be read becomes zeroes."""
        for at in range(0, view.nbytes, SECTOR):
            part = view[at : at + SECTOR]
            try:
                await source.blk.co_preadv(offset + at, part)
            except BlockError as error:
                part[:] = bytes(part.nbytes)
                self.salvaged += part.nbytes
                if self._on_warning is not None:
                    self._on_warning(f"error while reading offset {offset + at}: {_reason(error)}")

    async def _write(self, number: int | None, offset: int, view: memoryview) -> None:
        """Write the data of *view*, and zeroes where the target needs them; with the last the turn of *number* ends."""
        runs = data_runs(view, offset, self._step) if self._sparse else [(0, view.nbytes, True)]
        todo = [run for run in runs if run[2] or not self._zero_init]
        for start, stop, data in runs:
            if not data:
                self.zeroed += stop - start
        if not todo:
            self._pass_on(number)
        for index, (start, stop, data) in enumerate(todo):
            if index == len(todo) - 1:
                self._pass_on(number)
            if data:
                try:
                    if self._cluster:
                        await self._target.co_pwrite_compressed(offset + start, view[start:stop])
                    else:
                        await self._target.co_pwritev(offset + start, view[start:stop])
                except BlockError as error:
                    raise _at(error, f"error while writing at byte {offset + start}") from error
            else:
                await self._write_zeroes(offset + start, stop - start)

    async def _write_zeroes(self, offset: int, nbytes: int) -> None:
        try:
            await self._target.co_pwrite_zeroes(offset, nbytes, RequestFlags.MAY_UNMAP)
        except BlockError as error:
            raise _at(error, f"error while writing at byte {offset}") from error

    # -- taking turns

    async def _turn(self, number: int) -> None:
        """Until the writes of all earlier pieces have begun."""
        if self._in_order:
            await self._writes.wait(number)

    def _pass_on(self, number: int | None) -> None:
        """The last write of *number* is about to begin."""
        if self._in_order and number is not None:
            self._writes.pass_on(number)


async def _gathered(pieces: AsyncIterator[Piece], step: int) -> AsyncIterator[Piece]:
    """Data not far from each other as one piece, with what was left out between it, up to the length of a haul."""
    last: Piece | None = None
    async for single in pieces:
        end = single.offset + single.nbytes
        steps = (end - 1) // step - single.offset // step + 1
        piece = single._replace(steps=steps)
        if last is not None:
            reach = end - last.offset
            if last.kind is piece.kind is Kind.COPY and last.source is piece.source and reach <= HAUL:
                gap = reach - piece.nbytes - last.nbytes
                shared = (last.offset + last.nbytes - 1) // step == piece.offset // step
                last = last._replace(nbytes=reach, gaps=last.gaps + gap, steps=last.steps + steps - shared)
                continue
            yield last
        last = piece
    if last is not None:
        yield last


def _chunks(offset: int, nbytes: int, chunk: int, longest: int) -> list[int]:
    """Where the pieces of a run begin, each up to *longest* bytes, some multiple of *chunk*.

    At its start, then at multiples of *chunk*, so that they share no cluster.
    """
    first = offset // chunk * chunk + longest
    return [offset, *range(first, offset + nbytes, longest)]


def _reason(error: BlockError) -> str:
    import os  # only failures need it

    return os.strerror(error.errno or errno.EIO)


def _at(error: BlockError, where: str) -> BlockError:
    return BlockError(f"{where}: {_reason(error)}", error.errno)
