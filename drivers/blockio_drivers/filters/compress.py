"""compress: a filter that turns every write into a compressed write of the format below it.

Requests are whole clusters of that format; smaller writes are read, changed and written back. A cluster that is
stored plainly already cannot be compressed in place: the format refuses that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blockio.driver.base import Capabilities, ChildOpener, DriverHost, FilterDriver
from blockio.errors import UnsupportedFeature
from blockio.types import BlockLimits, Capability, RequestFlags

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.buffers import IoVector

__all__ = ["CompressDriver"]


class CompressDriver(FilterDriver):
    """Compresses what is written. The fast lane is closed for writes: compressing takes time."""

    name = "compress"
    capabilities = Capabilities(write_compressed=Capability.NATIVE)

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._cluster_size = 0

    async def open(self, options: Any, opener: ChildOpener) -> None:
        await super().open(options, opener)
        if not self.file.can_compress:
            raise UnsupportedFeature(f"Compression is not supported for underlying format: {self.file.driver_name}")
        self._cluster_size = (await self.file.co_get_info()).cluster_size

    def limits(self) -> BlockLimits:
        return BlockLimits(request_alignment=max(self._cluster_size, 1))

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_pwritev(offset, iov, int(flags) | RequestFlags.WRITE_COMPRESSED)

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        await self.file.co_pwritev(offset, iov, RequestFlags.WRITE_COMPRESSED)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return False
