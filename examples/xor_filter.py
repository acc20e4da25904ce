"""A custom filter: everything below it is stored scrambled.

A filter forwards what it does not override. This one changes the bytes on their way, in both directions, in the slow
lane only: it says so by declining in the fast one. (A toy: it hides nothing from anybody.)

    python examples/xor_filter.py
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

import blockio
from blockio.buffers import IoVector
from blockio.driver.base import ChildOpener, FilterDriver
from blockio.driver.registry import register
from blockio.types import BlockStatus, Capability, RequestFlags, StatusFlags

if TYPE_CHECKING:
    from typing_extensions import Buffer


class XorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``key``: a number from 1 to 255."""

    key: int


class XorFilter(FilterDriver):
    """``{"driver": "xor", "key": 42, "file": {...}}``"""

    name = "xor"
    Options = XorOptions

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Zeroes below are not zeroes here: zero writes are emulated, discards stop, and growing cannot add zeroes."""
        await super().open(options, opener)
        self.table = bytes(byte ^ options.key for byte in range(256))
        self.capabilities = replace(
            self.capabilities,
            write_zeroes=Capability.EMULATED,
            discard=Capability.NONE,
            resize=Capability.NONE,
            zero_flags=RequestFlags.NONE,
        )

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        """Read, then unscramble in the caller's memory."""
        await self.file.co_preadv(offset, iov, flags)
        for view in iov.views:
            view[:] = view.tobytes().translate(self.table)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        """Write a scrambled copy: the caller's memory stays as it is."""
        await self.file.co_pwritev(offset, IoVector.of(iov.tobytes().translate(self.table)), flags)

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """All is data: what the layer below knows to be zeroes is not zeroes here."""
        flags = StatusFlags.DATA | StatusFlags.ALLOCATED
        return BlockStatus(flags, nbytes)

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Not without a copy: the slow lane."""
        return False

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """As for reads."""
        return False


async def main(path: str) -> None:
    """Write through the filter and read it back."""
    options = {"driver": "xor", "key": 42, "file": {"driver": "file", "filename": path}}
    async with blockio.open(options=options) as disk:
        await disk.co_pwritev(0, b"in the clear")
        memory = bytearray(12)
        await disk.co_preadv(0, memory)
        print("above:", bytes(memory))


if __name__ == "__main__":
    register(XorFilter)
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(1 << 20)
        asyncio.run(main(file.name))
        print("below:", file.read(12))
