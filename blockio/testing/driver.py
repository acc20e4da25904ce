"""A protocol driver whose disks are memory: for tests of what stands above a driver.

``with MemoryDisk(1 << 20) as disk:`` makes a disk and, inside, ``disk.options()`` opens it like any other. The disk
outlives its nodes, so a second life can be tested. ``disk.stall()`` holds requests back until ``disk.go()``, which
makes *in the middle of a request* a place a test can stand on.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.buffers import IoVector
from blockio.driver.base import Capabilities, ProtocolDriver
from blockio.driver.registry import register, unregister
from blockio.errors import OptionError
from blockio.types import Capability, PreallocMode, RequestFlags

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.driver.base import ChildOpener

__all__ = ["MemoryDisk", "MemoryDriver"]


class MemoryDisk:
    """The bytes of a disk (*content*, or so many zeroes), and what was done to them.

    ``with`` makes it known to the ``memory`` driver.

    ``log`` has ``(operation, offset, nbytes)`` of every request that reached the driver by the slow lane, in the order
    of their arrival. ``fast`` allows the fast lane. ``fail`` is raised by the next requests while it is set.
    """

    _known: Final[dict[str, MemoryDisk]] = {}
    _numbers = itertools.count(1)

    def __init__(self, content: int | bytearray = 1 << 20, *, fast: bool = True) -> None:
        self.data = content if isinstance(content, bytearray) else bytearray(content)
        self.name = f"disk{next(self._numbers)}"
        self.fast = fast
        self.log: list[tuple[str, int, int]] = []
        self.fail: OSError | None = None
        self.waiting = 0
        self._go: asyncio.Event | None = None

    def __enter__(self) -> MemoryDisk:
        if not self._known:
            register(MemoryDriver)
        self._known[self.name] = self
        return self

    def __exit__(self, *_exc: object) -> None:
        del self._known[self.name]
        if not self._known:
            unregister(MemoryDriver)

    @classmethod
    def named(cls, name: str) -> MemoryDisk:
        """The disk of that name. OptionError where there is none."""
        try:
            return cls._known[name]
        except KeyError:
            raise OptionError(f"no memory disk '{name}'") from None

    def options(self, **more: Any) -> dict[str, Any]:
        """What opens it."""
        return {"driver": MemoryDriver.name, "disk": self.name, **more}

    def stall(self) -> None:
        """Hold back every request from now on; ``waiting`` counts them. In the loop of the disk's node."""
        self._go = asyncio.Event()

    def go(self) -> None:
        """Let the held back requests, and all later ones, go on."""
        if self._go is not None:
            self._go.set()
            self._go = None

    async def arrive(self, operation: str, offset: int, nbytes: int) -> None:
        """A request has reached the driver."""
        self.log.append((operation, offset, nbytes))
        if self._go is not None:
            self.waiting += 1
            try:
                await self._go.wait()
            finally:
                self.waiting -= 1
        if self.fail is not None:
            raise self.fail


class MemoryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``disk``: the name of a ``MemoryDisk``."""

    disk: str


class MemoryDriver(ProtocolDriver):
    """Moves bytes to and from a ``MemoryDisk``."""

    name = "memory"
    Options = MemoryOptions
    capabilities = Capabilities(
        write_zeroes=Capability.NATIVE,
        discard=Capability.NATIVE,
        resize=Capability.NATIVE,
        zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK,
    )

    async def open(self, options: Any, opener: ChildOpener) -> None:
        self.disk = MemoryDisk.named(options.disk)
        self.length = len(self.disk.data)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.disk.arrive("read", offset, iov.nbytes)
        iov.copy_from(bytes(self.disk.data[offset : offset + iov.nbytes]).ljust(iov.nbytes, b"\0"))

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.disk.arrive("write", offset, iov.nbytes)
        self._store(offset, iov.tobytes())

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        await self.disk.arrive("zero", offset, nbytes)
        self._store(offset, bytes(nbytes))

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        await self.disk.arrive("discard", offset, nbytes)
        self._store(offset, b"\xdd" * nbytes)

    async def co_flush_to_disk(self) -> None:
        await self.disk.arrive("flush", 0, 0)

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        await self.disk.arrive("truncate", length, 0)
        data = self.disk.data
        if length < len(data):
            del data[length:]
        else:
            data.extend(bytes(length - len(data)))
        self.length = length

    def _store(self, offset: int, payload: bytes) -> None:
        data = self.disk.data
        end = offset + len(payload)
        if end > len(data):
            data.extend(bytes(end - len(data)))
            self.length = end
        data[offset:end] = payload

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        disk = self.disk
        if not disk.fast or disk._go is not None or disk.fail is not None or offset + nbytes > self.length:
            return False
        IoVector.of(list(bufs)).copy_from(memoryview(disk.data)[offset : offset + nbytes])
        return True

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        disk = self.disk
        if not disk.fast or disk._go is not None or disk.fail is not None or offset + nbytes > self.length:
            return False
        disk.data[offset : offset + nbytes] = IoVector.of(list(bufs)).tobytes()
        return True
