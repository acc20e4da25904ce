"""What one request may be, and what a real device says of itself.

Stands on the system *probes-limits* of the reference document. The limits are advice for callers: ``blockio.io`` splits
and pads what breaks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.backend.requests import Requests
from blockio.types import INT_MAX

if TYPE_CHECKING:
    from blockio.types import BlockSizes, Geometry

__all__ = ["LimitsAndProbes"]

_SECTOR: Final = 512


class LimitsAndProbes(Requests):
    """The figures. In the backend's own loop, but for the coroutines."""

    def get_request_alignment(self) -> int:
        """What offsets and lengths had better be multiples of, in bytes; 512 while empty, never 0."""
        return _SECTOR if self._root is None else self._root.limits.request_alignment

    def get_max_transfer(self) -> int:
        """The most bytes one request moves before it is split; 2^31-1 where nothing limits it, never 0."""
        most = 0 if self._root is None else self._root.limits.max_transfer
        return min(most, INT_MAX) if most else INT_MAX

    def get_max_iov(self) -> int:
        """The most buffers one request may consist of before it is split. NoMedium while empty."""
        return self._edge().limits.max_iov

    async def co_probe_blocksizes(self) -> BlockSizes:
        """The physical and logical block size of the device at the bottom, in bytes.

        NoMedium; UnsupportedFeature (ENOTSUP) where there is no device, or a format lies between.
        """
        if self._elsewhere():
            return await self._context.run(self.co_probe_blocksizes())
        from blockio.io.driver_calls import probe_blocksizes  # few have a device

        return await probe_blocksizes(self._edge().node)

    async def co_probe_geometry(self) -> Geometry:
        """Heads, sectors and cylinders of the device at the bottom; errors as ``co_probe_blocksizes``."""
        if self._elsewhere():
            return await self._context.run(self.co_probe_geometry())
        from blockio.io.driver_calls import probe_geometry  # as above

        return await probe_geometry(self._edge().node)
