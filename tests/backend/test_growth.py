"""What a cancelled or failed write left in the storage is the disk's, not hidden behind a length nobody updated."""

from __future__ import annotations

import asyncio

import pytest

from blockio.backend import BlockBackend
from blockio.testing.driver import MemoryDisk, MemoryDriver


async def test_a_cancelled_write_past_the_end_that_arrived(
    blk: BlockBackend, disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kernel that had taken the write before we were cancelled: the file is longer, our driver was not told."""
    arrive = disk.arrive

    async def arrived(operation: str, offset: int, nbytes: int) -> None:
        if operation == "write":
            disk.data[offset:] = b"n" * nbytes
            raise asyncio.CancelledError
        await arrive(operation, offset, nbytes)

    async def measured(driver: MemoryDriver) -> int:
        driver.length = len(disk.data)
        return driver.length

    monkeypatch.setattr(MemoryDriver, "co_getlength", measured)
    monkeypatch.setattr(disk, "arrive", arrived)
    blk.set_allow_write_beyond_eof(True)
    end = len(disk.data)
    with pytest.raises(asyncio.CancelledError):
        await blk.co_pwritev(end, b"nnn")
    assert blk.getlength() == end + 3
    memory = bytearray(3)
    await blk.co_preadv(end, memory)
    assert memory == b"nnn"
