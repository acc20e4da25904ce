"""null-co and null-aio: disks of any size that keep nothing.

For measuring what is above a disk. A write goes nowhere and a read leaves the memory as it was, or zeroes it with
``read-zeroes``. ``null-co`` answers in place; ``null-aio`` answers in a later turn of the loop, as a real disk does.
``latency-ns`` makes each request take so long.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.aio.clock import Clock, LoopClock
from blockio.buffers import IoVector
from blockio.driver.base import ChildOpener, DriverHost, ProtocolDriver
from blockio.driver.options import Size
from blockio.errors import OptionError
from blockio.types import BlockStatus, RequestFlags, StatusFlags

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["NullAioDriver", "NullCoDriver", "NullOptions"]

_SECTOR: Final = 512
_NANOSECOND: Final = 1e-9


class NullOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """``size`` in bytes; ``latency-ns`` per request; ``read-zeroes``: reads give zeroes, not whatever was there."""

    filename: str | None = None
    size: Size = 1 << 30
    latency_ns: int = 0
    read_zeroes: bool = False


class NullCoDriver(ProtocolDriver):
    """A disk that keeps nothing and answers in place."""

    name = "null-co"
    protocols = ("null-co",)
    Options = NullOptions
    strong_options = frozenset(("size", "read-zeroes"))

    always_later = False
    """Whether even a request without latency waits for the loop's next turn."""

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self.clock: Clock = LoopClock()
        self._latency = 0.0
        self._waits = self.always_later
        self._read_zeroes = False

    async def co_get_allocated_file_size(self) -> int:
        return 0

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """Only ``null-co://`` (or ``null-aio://``) is a name; it says nothing. OptionError for any other."""
        if filename != f"{cls.name}://":
            raise OptionError(f"The only allowed filename for this driver is '{cls.name}://'")
        return {}

    async def open(self, options: NullOptions, opener: ChildOpener) -> None:
        if options.latency_ns < 0:
            raise OptionError("latency-ns is invalid", errno.EINVAL)
        self._latency = options.latency_ns * _NANOSECOND
        self._waits = self.always_later or options.latency_ns > 0
        self._read_zeroes = options.read_zeroes
        self.length = -(-options.size // _SECTOR) * _SECTOR

    async def _wait(self) -> None:
        if self._waits:
            await self.clock.sleep(self._latency)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._wait()
        if self._read_zeroes:
            iov.fill_zero()

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._wait()

    async def co_flush_to_disk(self) -> None:
        await self._wait()

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """A place, and zeroes where reads give them; data there never is."""
        flags = StatusFlags.OFFSET_VALID
        if self._read_zeroes:
            flags |= StatusFlags.ZERO
        return BlockStatus(flags, nbytes, offset, self.host.node_name)

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        if self._waits:
            return False
        if self._read_zeroes:
            IoVector.of(list(bufs)).fill_zero()
        return True

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return not self._waits


class NullAioDriver(NullCoDriver):
    """The same, answering in a later turn of the loop."""

    name = "null-aio"
    protocols = ("null-aio",)
    always_later = True
