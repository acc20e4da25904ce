"""A ``file`` driver alone, over ``MemoryHost``: what the tests of it share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from blockio.buffers import IoVector
from blockio.errors import ReadOnly
from blockio.testing.memory import MemoryHost, MemoryOpener
from blockio.types import OpenFlags, Perm, StatusFlags
from blockio_drivers.file import FileDriver, FileOptions, HostDeviceDriver

__all__ = ["EVERYTHING", "Host", "content", "open_driver", "picture", "read", "write"]

EVERYTHING = Perm.ALL


class Host(MemoryHost):
    """Falls back to read-only as a node does."""

    def fall_back_read_only(self, message: str) -> None:
        if not self.flags.auto_read_only:
            raise ReadOnly(message)
        self.flags = self.flags.with_(read_only=True)
        self.events.append(("read-only", message))


@asynccontextmanager
async def open_driver(
    path: Path | str,
    flags: OpenFlags | None = None,
    *,
    cls: type[FileDriver] = FileDriver,
    **options: Any,
) -> AsyncIterator[FileDriver]:
    """The driver opened on *path* with *flags* and FileOptions *options*; closed on leaving."""
    driver = cls(Host(flags=flags))
    await driver.open(FileOptions(filename=str(path), **options), MemoryOpener())
    try:
        yield driver
    finally:
        await driver.close()


def device(path: Path | str, flags: OpenFlags | None = None, **options: Any) -> Any:
    """``open_driver`` for ``host_device``."""
    return open_driver(path, flags, cls=HostDeviceDriver, **options)


async def read(driver: FileDriver, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(b"\xee" * nbytes)
    await driver.co_preadv(offset, IoVector.of(buffer), 0)
    return bytes(buffer)


async def write(driver: FileDriver, offset: int, data: bytes, flags: int = 0) -> None:
    await driver.co_pwritev(offset, IoVector.of(data), flags)
    driver.length = max(driver.length, offset + len(data))  # as the request path does


def content(path: Path) -> bytes:
    return path.read_bytes()


async def picture(driver: FileDriver, unit: int = 4096) -> str:
    """What block status says, a letter a *unit*: ``D`` data, ``-`` hole."""
    drawn = ""
    offset = 0
    while offset < driver.length:
        status = await driver.co_block_status(offset, driver.length - offset, want_zero=True)
        assert status.host_offset == offset
        assert status.flags & StatusFlags.OFFSET_VALID
        drawn += ("D" if status.flags & StatusFlags.DATA else "-") * -(-status.length // unit)
        offset += status.length
    return drawn
