"""Reads and writes of whole blocks, between the padding and the driver (QEMU's bdrv_aligned_preadv, -_pwritev).

Cutting to what the driver takes, zeroes past the end of the disk, FUA. Formats are handed to
``mapped``, which needs no cutting here: the children it reads and writes cut for themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector
from blockio.errors import OutOfRange, UnsupportedFeature
from blockio.io import mapped, wall
from blockio.io.limits import MAX_BOUNCE
from blockio.io.memory import block_memory
from blockio.types import Capability, RequestFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockio.driver.base import BlockDriver
    from blockio.driver.debug import DebugListener
    from blockio.io.node_io import NodeIO
    from blockio.types import BlockLimits

__all__ = ["read_blocks", "write_blocks", "write_through"]

_FUA: Final = int(RequestFlags.FUA)
_COMPRESSED: Final = int(RequestFlags.WRITE_COMPRESSED)
_UNCHANGED: Final = int(RequestFlags.WRITE_UNCHANGED)


async def read_blocks(io: NodeIO, offset: int, iov: IoVector) -> None:
    """Fill *iov* from *offset*, both whole blocks. What lies past the end of the disk reads as zeroes."""
    driver = io.driver()
    limits = io.limits
    nbytes = iov.nbytes
    if offset + nbytes > driver.length:
        align = limits.request_alignment
        inside = max(0, min(nbytes, (driver.length - offset + align - 1) & -align))
        iov.slice(inside, nbytes - inside).fill_zero()
        if not inside:
            return
        iov = iov.slice(0, inside)
    if io.maps_reads is not None:
        await mapped.read(io.maps_reads, offset, iov)
        return
    if _fits(limits, iov):
        await wall.preadv(driver, limits, offset, iov)
        return
    for part in _transfers(limits, iov):
        if len(part.views) > limits.max_iov > 0:
            memory = block_memory(part.nbytes, limits.min_mem_alignment)
            await wall.preadv(io.driver(), limits, offset, IoVector([memory], part.nbytes))
            part.copy_from(memory)
        else:
            await wall.preadv(io.driver(), limits, offset, part)
        offset += part.nbytes


async def write_blocks(io: NodeIO, offset: int, iov: IoVector, flags: int) -> bool:
    """Write *iov* at *offset*, both whole blocks, with what *flags* asks for (FUA, WRITE_COMPRESSED …).

    True: FUA is wanted and the driver has none of its own, so a flush must follow once the write is counted.
    """
    if io.debug_event is not None:
        return await _write_observed(io, io.debug_event, offset, iov, flags)
    if not flags and io.maps_writes is None and _fits(io.limits, iov):
        await wall.pwritev(io.driver(), io.limits, offset, iov, 0)  # what most writes are, without further ado
        return False
    if flags & _COMPRESSED:
        await _write_compressed(io.driver(), offset, iov)
    else:
        await write_through(io, offset, iov, flags)
    return bool(flags & _FUA) and not io.native_fua


async def _write_observed(io: NodeIO, debug_event: DebugListener, offset: int, iov: IoVector, flags: int) -> bool:
    """``write_blocks`` of a node whose driver listens: told before the write, and after it whatever became of it."""
    try:
        if flags & _COMPRESSED:
            await _write_compressed(io.driver(), offset, iov)
        else:
            await debug_event("pwritev")
            await write_through(io, offset, iov, flags)
    except OSError:
        await debug_event("pwritev_done")
        raise
    await debug_event("pwritev_done")
    return bool(flags & _FUA) and not io.native_fua


async def write_through(io: NodeIO, offset: int, iov: IoVector, flags: int) -> None:
    """Hand *iov* to the driver in transfers that it takes. FUA goes along only where the driver has its own."""
    driver = io.driver()
    if io.maps_writes is not None:
        if offset + iov.nbytes > driver.length:
            raise OutOfRange  # a format's size is in its metadata: writing cannot move it
        await mapped.write(io.maps_writes, offset, iov)
        return
    limits = io.limits
    driver_flags = flags & (_UNCHANGED | _FUA) if io.native_fua else flags & _UNCHANGED
    if _fits(limits, iov):
        await wall.pwritev(driver, limits, offset, iov, driver_flags)
        return
    for part in _transfers(limits, iov):
        piece = part
        if len(part.views) > limits.max_iov > 0:
            memory = block_memory(part.nbytes, limits.min_mem_alignment)
            memory[:] = part.tobytes()
            piece = IoVector([memory], part.nbytes)
        await wall.pwritev(io.driver(), limits, offset, piece, driver_flags)
        offset += part.nbytes


async def _write_compressed(driver: BlockDriver, offset: int, iov: IoVector) -> None:
    if driver.capabilities.write_compressed is Capability.NONE:
        raise UnsupportedFeature
    await wall.called(driver, "co_pwritev_compressed", driver.co_pwritev_compressed(offset, iov))


def _fits(limits: BlockLimits, iov: IoVector) -> bool:
    """Whether *iov* is one transfer."""
    return (not limits.max_transfer or iov.nbytes <= limits.max_transfer) and (
        not limits.max_iov or len(iov.views) <= limits.max_iov
    )


def _transfers(limits: BlockLimits, iov: IoVector) -> Iterator[IoVector]:
    """Cut *iov* into whole blocks of at most ``max_transfer`` bytes and ``max_iov`` views.

    Where ``max_iov`` views do not even make one block, a part with more views is given out, at most ``MAX_BOUNCE``
    long: it must go through a bounce buffer.
    """
    longest = limits.max_transfer or iov.nbytes
    most = limits.max_iov or len(iov.views)
    align = limits.request_alignment
    at = 0
    while at < iov.nbytes:
        part = iov.slice(at, min(longest, iov.nbytes - at))
        if len(part.views) > most:
            fitting = sum(view.nbytes for view in part.views[:most]) & -align
            part = part.slice(0, fitting or min(part.nbytes, max(MAX_BOUNCE, align)))
        yield part
        at += part.nbytes
