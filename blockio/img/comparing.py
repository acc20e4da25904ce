"""``compare``: does a guest see the same on two disks?"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from blockio.backend import BlockBackend
from blockio.buffers import is_zero
from blockio.errors import BlockError
from blockio.img.opening import SECTOR, ImageLike, image_of, opened, sectors_up
from blockio.img.progress import Meter
from blockio.img.results import Comparison, Difference, Observer, Side
from blockio.io.status import block_status_above
from blockio.types import BlockStatus, OpenFlags, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["CompareFailed", "ReadFailed", "StatusFailed", "compare"]

CHUNK: Final = 2 << 20
"""How much of each disk is in memory at once."""

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

    def __init__(self, blk: BlockBackend, name: str, read: Callable[[int, memoryview], Awaitable[object]]) -> None:
        self._read = read
        self.name = name
        node = blk.bs
        assert node is not None
        self.node = node
        self.exact = node.length
        self.size = sectors_up(self.exact)
        # Comparing memoryviews goes byte by byte; a bytearray's startswith() is memcmp.
        self.memory = bytearray(CHUNK)
        self._view = memoryview(self.memory)

    async def status(self, offset: int) -> BlockStatus:
        nbytes = min(_LONGEST, self.size - offset)
        if offset >= self.exact:
            return BlockStatus(StatusFlags.ZERO | StatusFlags.ALLOCATED, nbytes)
        try:
            status = await block_status_above(self.node, None, offset, nbytes)
        except BlockError as error:
            raise StatusFailed(f"Sector allocation test failed for {self.name}", error.errno) from error
        if offset + status.length == self.exact:
            return status._replace(length=self.size - offset)  # the last sector's padding reads as zeroes
        return status

    async def read(self, offset: int, nbytes: int) -> memoryview:
        """The bytes, at the beginning of ``memory`` too; zeroes past the end."""
        view = self._view[:nbytes]
        inside = max(0, min(nbytes, self.exact - offset))
        if inside < nbytes:
            view[inside:] = bytes(nbytes - inside)
        try:
            if inside:
                await self._read(offset, view[:inside])
        except BlockError as error:
            raise ReadFailed(
                f"Error while reading offset {offset} of {self.name}: {error.message}", error.errno
            ) from error
        return view


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
        one = _Side(here, first.name, meter.timed(Side.SOURCE, here.co_preadv))
        two = _Side(there, second.name, meter.timed(Side.TARGET, there.co_preadv))
        sizes = (one.size, two.size)
        meter.total = max(sizes)
        meter.start()
        if strict and one.size != two.size:
            return Comparison(Difference("size"), sizes)
        difference = await _compare_both(one, two, strict, meter)
        if difference is None and one.size != two.size:
            if on_size_mismatch is not None:
                on_size_mismatch()
            difference = await _compare_rest(one if one.size > two.size else two, min(sizes), meter)
        return Comparison(difference, sizes)


async def _compare_both(one: _Side, two: _Side, strict: bool, meter: Meter) -> Difference | None:
    offset, end = 0, min(one.size, two.size)
    while offset < end:
        here = await one.status(offset)
        there = await two.status(offset)
        chunk = min(here.length, there.length, end - offset)
        mine, yours = int(here.flags), int(there.flags)
        if strict and mine != yours:
            return Difference("status", offset)
        if not (mine & _ZERO and yours & _ZERO):
            if mine & _ALLOCATED or yours & _ALLOCATED:
                chunk = min(chunk, CHUNK)
            found = await _compare_chunk(one, two, offset, chunk, bool(mine & _ALLOCATED), bool(yours & _ALLOCATED))
            if found is not None:
                return found
        offset += chunk
        meter.advance(chunk)
    return None


async def _compare_chunk(
    one: _Side, two: _Side, offset: int, nbytes: int, mine: bool, yours: bool
) -> Difference | None:
    if mine and yours:
        await one.read(offset, nbytes)
        right = await two.read(offset, nbytes)
        if one.memory.startswith(right):
            return None
        return Difference("content", offset + _first_difference(one.memory, right))
    if mine or yours:
        return await _must_be_zero(one if mine else two, offset, nbytes)
    return None


async def _must_be_zero(side: _Side, offset: int, nbytes: int) -> Difference | None:
    view = await side.read(offset, nbytes)
    if is_zero(view):
        return None
    at = next(at for at in range(0, nbytes, SECTOR) if not is_zero(view[at : at + SECTOR]))
    return Difference("content", offset + at)


def _first_difference(left: bytearray, right: memoryview) -> int:
    """The first sector of *right* that differs from *left*, found by halving."""
    low, high = 0, (right.nbytes + SECTOR - 1) // SECTOR
    while high - low > 1:
        middle = (low + high) // 2
        if left.startswith(right[low * SECTOR : middle * SECTOR], low * SECTOR):
            low = middle
        else:
            high = middle
    return low * SECTOR


async def _compare_rest(longer: _Side, offset: int, meter: Meter) -> Difference | None:
    while offset < longer.size:
        status = await longer.status(offset)
        chunk = status.length
        flags = int(status.flags)
        if flags & _ALLOCATED and not flags & _ZERO:
            chunk = min(chunk, CHUNK)
            found = await _must_be_zero(longer, offset, chunk)
            if found is not None:
                return found
        offset += chunk
        meter.advance(chunk)
    return None
