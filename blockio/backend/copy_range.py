"""Copying from one backend to another without the bytes passing through us.

Stands on the system *copy-range* of the reference document: both ends are checked, the first error is raised, nothing
is throttled. Unlike there the request counts as in flight on both backends and parks where one is drained: a drained
section would otherwise not hold it.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Final

from blockio.backend.requests import Requests
from blockio.errors import UnsupportedFeature
from blockio.types import RequestFlags

if TYPE_CHECKING:
    from blockio.graph.edge import Edge

__all__ = ["CopyRange"]

_ZERO_WRITE: Final = int(RequestFlags.ZERO_WRITE)
_NO_FALLBACK: Final = int(RequestFlags.NO_FALLBACK)
_FUA: Final = int(RequestFlags.FUA)


class CopyRange(Requests):
    """``co_copy_range``."""

    async def co_copy_range(
        self,
        offset: int,
        target: CopyRange,
        target_offset: int,
        nbytes: int,
        read_flags: RequestFlags | int = 0,
        write_flags: RequestFlags | int = 0,
    ) -> None:
        """Copy *nbytes* from *offset* to *target_offset* of the backend *target*, inside the storage.

        UnsupportedFeature (ENOTSUP) where that cannot be, two backends of different contexts included: read and write
        then; parts may have been copied, which does no harm. ZERO_WRITE in *write_flags* makes the target's range read
        as zeroes instead; FUA makes it durable. OutOfRange, NoMedium, ReadOnly: the source is checked first.
        """
        offset, target_offset, nbytes = index(offset), index(target_offset), index(nbytes)
        if nbytes < 0:
            raise ValueError(f"a request of {nbytes} bytes")
        if read_flags & _NO_FALLBACK or write_flags & _NO_FALLBACK:
            raise ValueError("copying inside the storage never falls back; NO_FALLBACK means nothing here")

        async def copy() -> None:
            source = self._check_byte_request(offset, nbytes)
            sink = target._check_write(target_offset, nbytes, 0)
            if target.context is not self._context:
                raise UnsupportedFeature
            await _copy(source, offset, sink, target_offset, nbytes, int(write_flags))

        async def both() -> None:
            self._check_byte_request(offset, nbytes)
            if target.context is not self._context:
                raise UnsupportedFeature
            await target._enter(copy)

        await self._enter(copy if target is self else both)


async def _copy(source: Edge, offset: int, sink: Edge, target_offset: int, nbytes: int, flags: int) -> None:
    if flags & _ZERO_WRITE:
        await sink.co_pwrite_zeroes(target_offset, nbytes, flags & ~_ZERO_WRITE)
        return
    await source.co_copy_range_to(offset, sink, target_offset, nbytes)
    if flags & _FUA:
        await sink.co_flush()
