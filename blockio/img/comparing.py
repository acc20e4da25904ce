"""``compare``: does a guest see the same on two disks?"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from contextlib import AsyncExitStack, aclosing
from itertools import pairwise
from mmap import PAGESIZE
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.backend import BlockBackend
from blockio.buffers import is_zero
from blockio.errors import BlockError
from blockio.graph.holes import Holes
from blockio.img.ahead import done_ahead
from blockio.img.opening import SECTOR, ImageLike, image_of, opened, sectors_up
from blockio.img.progress import Meter
from blockio.img.results import Comparison, Difference, Observer, Side
from blockio.io.status import block_status_above
from blockio.types import BlockStatus, OpenFlags, StatusFlags

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

__all__ = ["CompareFailed", "ReadFailed", "StatusFailed", "compare"]

CHUNK: Final = 2 << 20
"""How much of the disks is one step; errors are told by where theirs begins."""

_AT_ONCE: Final = 512 << 10
"""How much of a disk is read at once: both disks' bytes are still in the processor's cache when they are compared."""

_WORKERS: Final = 8
"""Steps under way at once, for disks that are not in memory."""

_LONGEST: Final = 1 << 30

_ALLOCATED: Final = int(StatusFlags.ALLOCATED)
_ZERO: Final = int(StatusFlags.ZERO)


class CompareFailed(BlockError):
    """The comparison could not be carried through."""


class StatusFailed(CompareFailed):
    """A disk could not say what it holds."""


class ReadFailed(CompareFailed):
    """A disk could not be read."""


class _Side:
    """One of the two disks."""

    def __init__(self, blk: BlockBackend, name: str, side: Side, meter: Meter, *, strict: bool) -> None:
        self.name = name
        node = blk.bs
        assert node is not None
        self.node = node
        self.exact = node.length
        self.size = sectors_up(self.exact)
        self._read = meter.timed(side, blk.co_preadv)
        self._above = strict or node.backing is not None
        """What is told of a stretch is asked of it alone: others tell too, or everything that is told counts."""
        self._ahead: list[tuple[int, BlockStatus]] = []
        """Where what was told ahead begins, and what it is; the next one last."""
        self._holes = Holes()

    async def status(self, offset: int) -> BlockStatus:
        nbytes = min(_LONGEST, self.size - offset)
        if offset >= self.exact:
            return BlockStatus(StatusFlags.ZERO | StatusFlags.ALLOCATED, nbytes)
        try:
            if self._above:
                status = await block_status_above(self.node, None, offset, nbytes)
            else:
                status = await self._told(offset, nbytes)
        except BlockError as error:
            raise StatusFailed(f"Sector allocation test failed for {self.name}", error.errno) from error
        if offset + status.length == self.exact:
            return status._replace(length=self.size - offset)  # the last sector's padding reads as zeroes
        return status

    async def _told(self, offset: int, nbytes: int) -> BlockStatus:
        """What the disk says of the bytes at *offset*, from front to back; the rest of an answer is kept."""
        ahead = self._ahead
        while ahead and ahead[-1][0] + ahead[-1][1].length <= offset:
            ahead.pop()
        if not ahead or ahead[-1][0] > offset:
            ahead.clear()
            at = offset
            for flags, lengths, _, _ in await self.node.path.co_block_statuses(offset, nbytes, self._holes):
                for length in lengths:
                    ahead.append((at, BlockStatus(flags, length)))
                    at += length
            ahead.reverse()
        start, status = ahead[-1]
        return status if start == offset else status._replace(length=start + status.length - offset)

    async def read(self, offset: int, view: memoryview, step: _Step) -> None:
        """Fill *view*, which is a part of *step*, from *offset* on; with zeroes past the end."""
        inside = max(0, min(view.nbytes, self.exact - offset))
        if inside < view.nbytes:
            view[inside:] = bytes(view.nbytes - inside)
        try:
            if inside:
                await self._read(offset, view[:inside])
        except BlockError as error:
            begin = await self._failing(offset, view[:inside], step)
            message = f"Error while reading offset {begin} of {self.name}: {error.message}"
            raise ReadFailed(message, error.errno) from error

    async def _failing(self, offset: int, view: memoryview, step: _Step) -> int:
        """Where the extent begins for which reading *view* failed: it may be of several, which are tried once more."""
        first = bisect_right(step.extents, offset) - 1
        starts = step.extents[first : bisect_left(step.extents, offset + view.nbytes)]
        for start, end in pairwise((offset, *starts[1:], offset + view.nbytes)):
            try:
                await self._read(start, view[start - offset : end - offset])
            except BlockError:
                return start if start in starts else starts[0]
        return starts[0]


class _Step(NamedTuple):
    """What is compared at a time: *nbytes* from ``offset`` on; none where the shorter disk ends."""

    offset: int
    nbytes: int
    mine: bool = False
    """The first disk must be read; where the other one need not be, it reads as zeroes."""
    yours: bool = False
    differs: bool = False
    """What the disks say of themselves is not the same, which is a difference if one is strict."""
    extents: tuple[int, ...] = ()
    """Where each of the extents begins that it is made of."""


class _Memory:
    """Memory that starts at a page, where the kernel fills it several times as fast as some bytes behind that.

    Comparing memoryviews goes byte by byte, only a bytearray's ``startswith`` is memcmp; and its memory lies anywhere.
    """

    def __init__(self, nbytes: int) -> None:
        import ctypes  # whoever compares nothing need not spend the time

        self._bytes = bytearray(nbytes + PAGESIZE)
        self._start = -ctypes.addressof(ctypes.c_char.from_buffer(self._bytes)) % PAGESIZE
        self.view = memoryview(self._bytes)[self._start : self._start + nbytes]

    def differs(self, other: _Memory, nbytes: int) -> int | None:
        """Where the first sector is that is not the same in the first *nbytes* of both; None: there is none."""
        if self._same(other, 0, nbytes):
            return None
        low, high = 0, (nbytes + SECTOR - 1) // SECTOR
        while high - low > 1:
            middle = (low + high) // 2
            if self._same(other, low * SECTOR, middle * SECTOR):
                low = middle
            else:
                high = middle
        return low * SECTOR

    def _same(self, other: _Memory, at: int, end: int) -> bool:
        return self._bytes.startswith(other.view[at:end], self._start + at)


async def compare(
    first: ImageLike,
    second: ImageLike,
    *,
    strict: bool = False,
    observer: Observer | None = None,
    on_size_mismatch: Callable[[], object] | None = None,
) -> Comparison:
    """Compare two disks, as far as the longer one reaches; the shorter one is taken to go on with zeroes.

    *strict*: different lengths, or a range that only one of them has allocated, are differences too. The offset of a
    difference in content is that of its sector of 512 bytes. *on_size_mismatch* is told when the ends differ, before
    what is past the shorter one's is looked at. StatusFailed, ReadFailed, or what opening raises.
    """
    first, second = image_of(first), image_of(second)
    flags = OpenFlags(read_only=True)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(opened(first, flags))
        there = await stack.enter_async_context(opened(second, flags))
        meter = Meter(observer, 0)
        one = _Side(here, first.name, Side.SOURCE, meter, strict=strict)
        two = _Side(there, second.name, Side.TARGET, meter, strict=strict)
        sizes = (one.size, two.size)
        meter.total = max(sizes)
        meter.start()
        if strict and one.size != two.size:
            return Comparison(Difference("size"), sizes)
        difference = await _compare_all(one, two, strict, meter, on_size_mismatch)
        return Comparison(difference, sizes)


async def _compare_all(
    one: _Side, two: _Side, strict: bool, meter: Meter, on_size_mismatch: Callable[[], object] | None
) -> Difference | None:
    memories = [(_Memory(_AT_ONCE), _Memory(_AT_ONCE)) for _ in range(_WORKERS)]

    async def judge(step: _Step) -> tuple[_Step, Difference | None]:
        if step.differs:
            return step, Difference("status", step.offset)
        if not (step.mine or step.yours):
            return step, None
        left, right = memories.pop()
        try:
            end = step.offset + step.nbytes
            for offset in range(step.offset, end, _AT_ONCE):
                nbytes = min(_AT_ONCE, end - offset)
                if step.mine:
                    await one.read(offset, left.view[:nbytes], step)
                if step.yours:
                    await two.read(offset, right.view[:nbytes], step)
                if step.mine and step.yours:
                    found = left.differs(right, nbytes)
                else:
                    found = _not_zero((left if step.mine else right).view[:nbytes])
                if found is not None:
                    return step, Difference("content", offset + found)
        finally:
            memories.append((left, right))
        return step, None

    async with (
        aclosing(_looks(one, two, strict)) as looks,
        aclosing(_steps(looks)) as steps,
        aclosing(done_ahead(steps, judge, _WORKERS)) as judged,
    ):
        async for step, difference in judged:
            if difference is not None:
                return difference
            if not step.nbytes and on_size_mismatch is not None:
                on_size_mismatch()
            for begin, end in pairwise((*step.extents, step.offset + step.nbytes)):
                meter.advance(end - begin)
    return None


def _not_zero(view: memoryview) -> int | None:
    """Where the first sector of *view* is that is not all zeroes; None: there is none."""
    if is_zero(view):
        return None
    return next(at for at in range(0, view.nbytes, SECTOR) if not is_zero(view[at : at + SECTOR]))


# -- what is where


async def _looks(one: _Side, two: _Side, strict: bool) -> AsyncGenerator[_Step, None]:
    """What the two say of themselves, extent by extent: as far as both reach, then as far as one does."""
    offset, end = 0, min(one.size, two.size)
    while offset < end:
        here = await one.status(offset)
        there = await two.status(offset)
        nbytes = min(here.length, there.length, end - offset)
        differs = strict and here.flags != there.flags
        yield _Step(offset, nbytes, _must_be_read(here), _must_be_read(there), differs, (offset,))
        offset += nbytes
    if one.size != two.size:
        yield _Step(offset, 0)
    longer = one if one.size > two.size else two
    while offset < longer.size:
        status = await longer.status(offset)
        needed = _must_be_read(status)
        yield _Step(offset, status.length, needed and longer is one, needed and longer is two, extents=(offset,))
        offset += status.length


def _must_be_read(status: BlockStatus) -> bool:
    flags = int(status.flags)
    return bool(flags & _ALLOCATED) and not flags & _ZERO


async def _steps(looks: AsyncGenerator[_Step, None]) -> AsyncGenerator[_Step, None]:
    """*looks* as what is read at once: short ones that need the same are joined, long ones are cut."""
    waiting: _Step | None = None
    failure: Exception | None = None
    while failure is None:
        look: _Step | None = None
        try:
            look = await anext(looks)
        except (StatusFailed, StopAsyncIteration) as error:
            failure = error  # what is before it comes first
        if waiting is not None:
            if look is not None and _go_together(waiting, look):
                extents = (*waiting.extents, look.offset)
                waiting = waiting._replace(nbytes=waiting.nbytes + look.nbytes, extents=extents)
                continue
            for piece in _cut(waiting):
                yield piece
        waiting = look
    if isinstance(failure, StatusFailed):
        raise failure


def _go_together(one: _Step, other: _Step) -> bool:
    return 0 < one.nbytes < one.nbytes + other.nbytes <= CHUNK and (one.mine, one.yours, one.differs) == (
        other.mine,
        other.yours,
        other.differs,
    )


def _cut(step: _Step) -> Iterator[_Step]:
    if not (step.mine or step.yours) or len(step.extents) > 1:
        return iter((step,))
    starts = range(step.offset, step.offset + step.nbytes, CHUNK)
    return (step._replace(offset=at, nbytes=min(CHUNK, step.offset + step.nbytes - at), extents=(at,)) for at in starts)
