"""A small driver to find faults in: one sector of disk, kept in two places in turn.

Sector 0 of its file says which of the two sectors behind it counts. ``mistakes`` make it a driver that somebody
got wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from blockio.buffers import IoVector
from blockio.driver.base import CheckResult
from blockio.driver.child import Child
from blockio.testing.memory import MemoryChild
from blockio.testing.rig import Disks
from blockio.testing.wrapping import Wrap
from blockio.types import PreallocMode

__all__ = ["FRESH", "ShadowDisk", "ShadowRig"]

SECTOR: Final = 512
FRESH: Final = bytes(3 * SECTOR)


class ShadowDisk:
    """A ``GuestDisk``."""

    def __init__(self, file: Child, mistakes: tuple[str, ...]) -> None:
        self.file = file
        self.mistakes = mistakes
        self.current = 0
        self.busy = 0

    async def open(self) -> None:
        self.current = (await self._read(0))[0]

    @property
    def length(self) -> int:
        return SECTOR

    async def _read(self, sector: int) -> bytearray:
        data = bytearray(SECTOR)
        await self.file.co_preadv(sector * SECTOR, IoVector.of(data))
        return data

    async def _write(self, sector: int, data: bytes) -> None:
        await self.file.co_pwritev(sector * SECTOR, IoVector.of(data))

    async def read(self, offset: int, nbytes: int) -> bytes:
        return bytes((await self._read(1 + self.current))[offset : offset + nbytes])

    async def write(self, offset: int, data: bytes) -> None:
        self.busy += 1
        try:
            await self._replace(offset, data)
        except OSError:
            self.busy -= "forgets its count" not in self.mistakes
            raise
        except BaseException:
            self.busy -= "forgets cancellations" not in self.mistakes
            raise
        self.busy -= 1

    async def _replace(self, offset: int, data: bytes) -> None:
        old = await self._read(1 + self.current)
        old[offset : offset + len(data)] = data
        other = 1 - self.current
        if "switches too early" in self.mistakes:
            self.current = other
        await self._write(1 + other, bytes(old))
        if "no barrier" not in self.mistakes:
            await self.file.co_flush()
        await self._write(0, bytes((other,)).ljust(SECTOR, b"\0"))
        self.current = other
        if "no barrier after" not in self.mistakes:
            await self.file.co_flush()

    async def zero(self, offset: int, nbytes: int, flags: int = 0) -> None:
        await self.write(offset, bytes(nbytes))

    async def discard(self, offset: int, nbytes: int) -> None:
        pass

    async def flush(self) -> None:
        if "no flush" not in self.mistakes:
            await self.file.co_flush()

    async def truncate(self, length: int, prealloc: PreallocMode = PreallocMode.OFF) -> None:
        raise OSError(95, "has the length it has")

    async def check(self) -> CheckResult:
        return CheckResult(corruptions=int(self.current > 1))

    def at_rest(self) -> None:
        assert not self.busy, "still busy"


class ShadowRig:
    """A ``Rig``."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = mistakes

    @asynccontextmanager
    async def open(
        self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False
    ) -> AsyncIterator[ShadowDisk]:
        memory = MemoryChild()
        memory.data = disks["file"]
        disk = ShadowDisk(memory if wrap is None else wrap("file", memory), self.mistakes)
        await disk.open()
        yield disk
