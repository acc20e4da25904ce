"""Copy-on-read (QEMU's bdrv_co_do_copy_on_readv): what comes from below is kept in the top image.

The range is widened to clusters, so that what is written needs no copying around it; the request that does this is
serialising, or a write between reading and storing would be undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector
from blockio.io import data, status, wall, zero
from blockio.io.limits import MAX_BOUNCE
from blockio.io.memory import block_memory
from blockio.types import Capability, RequestFlags

if TYPE_CHECKING:
    from blockio.io.node_io import NodeIO

__all__ = ["hand_down_prefetch", "read_and_keep"]

_UNCHANGED: Final = int(RequestFlags.WRITE_UNCHANGED)
_PREFETCH: Final = int(RequestFlags.PREFETCH)


async def read_and_keep(io: NodeIO, start: int, end: int, offset: int, iov: IoVector, *, prefetch: bool) -> None:
    """Fill *iov* from *offset*, and store what the node itself has not yet of ``start .. end``, its clusters.

    With *prefetch* nothing but the storing happens, and *iov* needs no memory. An error of the storing is an error
    of the read: who asked for a copy must hear that there is none.
    """
    wanted_end = offset + iov.nbytes
    # No transfer limit here: ``data`` cuts. Whole clusters at a time, however large, and at least one.
    step = max(MAX_BOUNCE, io.cluster_size)
    memory: memoryview | None = None
    while start < end:
        allocated, length = await status.is_allocated(io.node, start, end - start)
        if not length:
            break  # past the end of the disk
        if allocated:
            if not prefetch:
                low, high = max(start, offset), min(start + length, wanted_end)
                if low < high:
                    await data.read_blocks(io, low, iov.slice(low - offset, high - low))
            start += length
            continue
        length = min(length, step)
        if memory is None or memory.nbytes < length:
            memory = block_memory(length, io.limits.min_mem_alignment)
        kept = IoVector([memory[:length]], length)
        await data.read_blocks(io, start, kept)
        await _keep(io, start, kept)
        if not prefetch:
            low, high = max(start, offset), min(start + length, wanted_end)
            if low < high:
                iov.slice(low - offset, high - low).copy_from(memory[low - start : high - start])
        start += length
    if start < wanted_end and not prefetch:
        done = max(start, offset)
        iov.slice(done - offset, wanted_end - done).fill_zero()


async def _keep(io: NodeIO, offset: int, kept: IoVector) -> None:
    ok = False
    try:
        if io.debug_event is not None:
            await io.debug_event("cor_write")
        if io.driver().capabilities.write_zeroes is Capability.NATIVE and kept.is_zero():
            await zero.zero_unseen(io, offset, kept.nbytes, _UNCHANGED)
        else:
            await data.write_through(io, offset, kept, _UNCHANGED)
        ok = True
    finally:
        io.written(offset, kept.nbytes, ok=ok, unchanged=True)


async def hand_down_prefetch(io: NodeIO, offset: int, nbytes: int) -> None:
    """A prefetch that this node keeps nothing of is its driver's, where that knows what to do with one."""
    driver = io.driver()
    if not driver.capabilities.read_flags & _PREFETCH:
        return
    align = io.limits.request_alignment
    end = (min(offset + nbytes, driver.length) + align - 1) & -align
    offset &= -align
    if offset < end:
        async with io.request(offset, end):
            driver = io.driver()
            prefetching = driver.co_preadv(offset, IoVector([], end - offset), _PREFETCH)
            await wall.called(driver, "co_preadv", prefetching)
