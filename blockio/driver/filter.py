"""Drivers that forward to one child and change what passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blockio.driver.block import BlockDriver, Capabilities, DriverKind
from blockio.types import BlockInfo, BlockStatus, Capability, PreallocMode, RequestFlags, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.buffers import IoVector
    from blockio.driver.child import Child
    from blockio.driver.host import ChildOpener

__all__ = ["FilterDriver"]


class FilterDriver(BlockDriver):
    """A driver that forwards to its child (``file``, unless it overrides ``open``); override what the filter is for."""

    kind = DriverKind.FILTER
    file: Child

    async def open(self, options: Any, opener: ChildOpener) -> None:
        self.filters(await opener.required("file", Role.FILTERED | Role.PRIMARY))

    def filters(self, child: Child) -> None:
        """*child* is what passes here: for ``open`` of a filter that calls its child otherwise."""
        self.file = child
        self.length = self.file.length
        own = self.capabilities
        self.capabilities = Capabilities(
            write_zeroes=Capability.NATIVE,
            discard=Capability.NATIVE,
            fua=Capability.NATIVE,
            resize=Capability.NATIVE,
            write_compressed=own.write_compressed,
            copy_range=Capability.NONE,
            read_flags=own.read_flags,
            zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK | RequestFlags.FUA,
        )

    def follow_length(self) -> bool:
        """The child has another length: take it over. Whether the filter's own length changed with it."""
        changed = self.length != self.file.length
        self.length = self.file.length
        return changed

    def has_zero_init(self) -> bool:
        return self.file.has_zero_init()

    async def co_getlength(self) -> int:
        self.length = await self.file.co_getlength()
        return self.length

    async def co_get_info(self) -> BlockInfo:
        return await self.file.co_get_info()

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        return await self.file.co_block_status(offset, nbytes, want_zero=want_zero)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        await self.file.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        await self.file.co_pdiscard(offset, nbytes)

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        await self.file.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)
        self.length = self.file.length

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return self.file.try_preadv(offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return self.file.try_pwritev(offset, bufs, nbytes)
