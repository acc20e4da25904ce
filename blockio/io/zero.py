"""Zero writes (QEMU's bdrv_co_do_pwrite_zeroes).

The driver zeroes what it can by itself, in fragments that fit its units::

    units    |       |       |       |
    request      xxxxxxxxxxxxxxxxx
    sent         hhhh|bbbbbbb|bbttt          head, body, tail; body at most max_pwrite_zeroes

What it cannot is written from a shared buffer of zeroes, unless NO_FALLBACK says that this would be worse than
nothing.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector
from blockio.errors import OutOfRange, UnsupportedFeature
from blockio.io import data, wall
from blockio.io.limits import MAX_BOUNCE
from blockio.io.memory import zero_vector
from blockio.types import Capability, RequestFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockio.driver.base import BlockDriver
    from blockio.io.align import Padding
    from blockio.io.node_io import NodeIO
    from blockio.types import BlockLimits

__all__ = ["check_end", "touched", "zero_blocks", "zero_padded", "zero_unseen"]

_FUA: Final = int(RequestFlags.FUA)
_NO_FALLBACK: Final = int(RequestFlags.NO_FALLBACK)


def check_end(io: NodeIO, driver: BlockDriver, end: int) -> None:
    """OutOfRange where a format would have to grow: its size is in its metadata, and writing cannot move it."""
    if io.maps_writes is not None and end > driver.length:
        raise OutOfRange


def touched(io: NodeIO, driver: BlockDriver, start: int, end: int) -> tuple[int, int]:
    """The range that zeroing ``start .. end`` excludes other requests from, where that is wider than itself.

    A format may zero a whole unit of which only a part is asked for, if the rest reads as zeroes (qcow2 does). Between
    that look and the change nobody may write to the rest.
    """
    unit = io.limits.pwrite_zeroes_alignment
    if io.maps_writes is None or not unit:
        return start, end
    high = end if end == driver.length else -(-end // unit) * unit
    return start // unit * unit, high


async def zero_blocks(io: NodeIO, offset: int, nbytes: int, flags: int) -> bool:
    """Make whole blocks read as zeroes. UnsupportedFeature under NO_FALLBACK.

    FUA costs one flush behind the last fragment: True asks the caller for it. Only where the driver has an FUA of its
    own each fragment carries it, because then nothing else would make the earlier ones durable.
    """
    if io.debug_event is not None:
        await io.debug_event("pwritev_zero")
        try:
            needs_flush = await zero_unseen(io, offset, nbytes, flags)
        except OSError:
            await io.debug_event("pwritev_done")
            raise
        await io.debug_event("pwritev_done")
        return needs_flush
    return await zero_unseen(io, offset, nbytes, flags)


async def zero_unseen(io: NodeIO, offset: int, nbytes: int, flags: int) -> bool:
    """As ``zero_blocks``, for what is no debug event: a part of a larger operation."""
    driver = io.driver()
    own = int(driver.capabilities.zero_flags)
    level = driver.capabilities.write_zeroes
    if level is Capability.NONE or flags & ~own & _NO_FALLBACK:
        raise UnsupportedFeature
    needs_flush = False
    for start, length in _fragments(io.limits, offset, nbytes):
        if level is Capability.NATIVE:
            try:
                await wall.pwrite_zeroes(io.driver(), io.limits, start, length, flags & own)
            except OSError as error:
                if error.errno != errno.ENOTSUP or flags & _NO_FALLBACK:
                    raise
            else:
                needs_flush = needs_flush or bool(flags & _FUA & ~own)
                continue
        await _write_zeroes(io, start, length, flags)
        needs_flush = needs_flush or bool(flags & _FUA and not io.native_fua)
    return needs_flush


async def zero_padded(io: NodeIO, padding: Padding, flags: int) -> bool:
    """Zero what lies between the edges of *padding*, whose memory holds the edge blocks as they were."""
    memory, align = padding.memory, io.limits.request_alignment
    if padding.merged:
        inner = memory[padding.head : memory.nbytes - padding.tail]
        inner[:] = bytes(inner.nbytes)
        return await data.write_blocks(io, padding.start, IoVector.of(memory), flags)
    needs_flush = False
    start, end = padding.start, padding.end
    if padding.head:
        memory[padding.head : align] = bytes(align - padding.head)
        needs_flush |= await data.write_blocks(io, start, IoVector.of(memory[:align]), flags)
        start += align
    if padding.tail:
        end -= align
    if start < end:
        needs_flush |= await zero_blocks(io, start, end - start, flags)
    if padding.tail:
        last = memory[memory.nbytes - align :]
        last[: align - padding.tail] = bytes(align - padding.tail)
        needs_flush |= await data.write_blocks(io, end, IoVector.of(last), flags)
    return needs_flush


async def _write_zeroes(io: NodeIO, offset: int, nbytes: int, flags: int) -> None:
    step = max(MAX_BOUNCE, io.limits.request_alignment)
    for start in range(offset, offset + nbytes, step):
        await data.write_through(io, start, zero_vector(min(step, offset + nbytes - start)), flags)


def _fragments(limits: BlockLimits, offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """The head up to the first unit, whole units, and the tail; none crosses a unit unaligned."""
    unit = max(limits.pwrite_zeroes_alignment, limits.request_alignment)
    longest = (limits.max_pwrite_zeroes // unit * unit or unit) if limits.max_pwrite_zeroes else nbytes
    end = offset + nbytes
    while offset < end:
        left = end - offset
        head = offset % unit
        length = min(left, unit - head) if head or left < unit else min(left - left % unit, longest)
        yield offset, length
        offset += length
