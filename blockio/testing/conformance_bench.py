"""What the conformance checks work with: new disks, what the driver promises, and how a check says what it found."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from blockio.backend.backend import BlockBackend
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.driver.gate import OpenGate

__all__ = [
    "LENGTH",
    "UNIT",
    "Bench",
    "MakeDisk",
    "Skip",
    "Traits",
    "expect",
    "expect_error",
    "needs",
    "pattern",
    "read",
    "slow_read",
]

MakeDisk: TypeAlias = Callable[[int], Awaitable[Mapping[str, Any]]]
"""A new disk of so many bytes; the options that open it."""

LENGTH: Final = 1 << 20
"""Of most disks."""
UNIT: Final = LENGTH // 16
"""Of what most requests move."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What the driver under test promises."""

    writable: bool = True
    read_only: bool = True
    """It also opens read-only."""
    keeps_data: bool = True
    """What was written is read back, also after closing and opening again."""
    reads_zero: bool = True
    """A new disk reads as zeroes."""
    resizable: bool = True
    grows_zero: bool = True
    """What growing adds reads as zeroes; on an encrypted disk it is noise, as with QEMU."""
    fast_reads: bool = False
    """Reading back what was just written never needs the slow lane."""
    faults: bool = True
    """The driver has a ``file`` child, below which faults can be placed."""


class Skip(Exception):  # not an error: the check does not apply
    """Raised by a check that does not apply to the driver."""


class Bench:
    """What a check works with: new disks, and ways to open them."""

    def __init__(self, make: MakeDisk, traits: Traits, gate: OpenGate) -> None:
        self.make = make
        self.traits = traits
        self.gate = gate

    async def options(self, length: int = LENGTH) -> Mapping[str, Any]:
        """A new disk."""
        return await self.make(length)

    @asynccontextmanager
    async def open(self, options: Mapping[str, Any], **flags: bool) -> AsyncIterator[BlockBackend]:
        """Open a disk; afterwards nothing of it may be left in flight."""
        blk = await BlockBackend.new_open(options=options, flags=OpenFlags(**flags), gate=self.gate, resize=True)
        try:
            yield blk
            expect(blk.in_flight == 0, f"{blk.in_flight} requests are still in flight")
        finally:
            await blk.close()

    @asynccontextmanager
    async def disk(self, length: int = LENGTH, **flags: bool) -> AsyncIterator[BlockBackend]:
        """A new disk, opened."""
        async with self.open(await self.options(length), **flags) as blk:
            yield blk


def expect(condition: bool, message: str) -> None:
    """AssertionError with *message* where the driver does not keep a promise."""
    if not condition:
        raise AssertionError(message)


async def expect_error(awaitable: Awaitable[object], kind: type[BaseException], what: str) -> None:
    """*what*, awaited, raises an error of that *kind*."""
    try:
        await awaitable
    except kind:
        return
    raise AssertionError(f"{what} did not raise {kind.__name__}")


def needs(promise: bool, what: str) -> None:
    """Skip the check where the driver does not promise *what*."""
    if not promise:
        raise Skip(what)


def pattern(seed: int, nbytes: int) -> bytes:
    """Bytes that are the same for the same *seed*."""
    return random.Random(seed).randbytes(nbytes)


async def read(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    """What a request reads, in whatever lane."""
    memory = bytearray(b"\xa5" * nbytes)
    await blk.co_preadv(offset, memory)
    return bytes(memory)


async def slow_read(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    """Without the fast lane: a request that parks and goes on takes the slow one all the way."""
    memory = bytearray(b"\x5a" * nbytes)
    async with blk.drained():
        request = blk.aio_preadv(offset, memory)
    await request
    return bytes(memory)
