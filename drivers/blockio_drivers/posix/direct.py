"""O_DIRECT for callers whose memory is not aligned: bounce buffers.

The framework sees to it that offsets and lengths are whole blocks; addresses, and the cuts between a vector's
buffers, are the caller's. Where they do not fit, the bytes go through aligned memory, ``CHUNK`` bytes at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.aio.syscalls import DioAlignment, address_of
from blockio.buffers import aligned_buffer

if TYPE_CHECKING:
    from blockio.aio.engine import FileEngine
    from blockio.buffers import IoVector

__all__ = ["CHUNK", "fits", "preadv", "pwritev"]

CHUNK: Final = 1 << 20
"""The most memory one bounced request takes, in bytes."""


def fits(views: list[memoryview], align: DioAlignment) -> bool:
    """Whether the kernel can transfer to and from *views* as they are."""
    memory, block = align.memory - 1, align.offset - 1
    return all(not (view.nbytes & block or address_of(view) & memory) for view in views)


async def preadv(engine: FileEngine, align: DioAlignment, offset: int, iov: IoVector) -> int:
    """As ``FileEngine.preadv``, for memory of any alignment."""
    if fits(iov.views, align):
        return await engine.preadv(offset, iov.views)
    bounce = aligned_buffer(min(iov.nbytes, CHUNK))
    done = 0
    while done < iov.nbytes:
        part = bounce[: min(CHUNK, iov.nbytes - done)]
        got = await engine.preadv(offset + done, [part])
        iov.slice(done, got).copy_from(part[:got])
        done += got
        if got < part.nbytes:
            break
    return done


async def pwritev(engine: FileEngine, align: DioAlignment, offset: int, iov: IoVector, *, dsync: bool) -> None:
    """As ``FileEngine.pwritev``, for memory of any alignment."""
    if fits(iov.views, align):
        await engine.pwritev(offset, iov.views, dsync=dsync)
        return
    bounce = aligned_buffer(min(iov.nbytes, CHUNK))
    for done in range(0, iov.nbytes, CHUNK):
        part = bounce[: min(CHUNK, iov.nbytes - done)]
        at = 0
        for view in iov.slice(done, part.nbytes).views:
            part[at : at + view.nbytes] = view
            at += view.nbytes
        await engine.pwritev(offset + done, [part], dsync=dsync)
