"""A machine's state beside the disk: kept by the first driver down the primary children that can."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar

import pytest

from blockio.backend import BlockBackend
from blockio.buffers import IoVector
from blockio.driver.registry import register, unregister
from blockio.errors import NoMedium, UnsupportedFeature
from blockio.testing.driver import MemoryDisk, MemoryDriver


class StateDriver(MemoryDriver):
    """A memory disk with room for a machine's state."""

    name = "memory-with-state"
    area: ClassVar[bytearray] = bytearray()

    async def co_save_vmstate(self, iov: IoVector, pos: int) -> None:
        await self.disk.arrive("save", pos, iov.nbytes)
        self.area.extend(bytes(max(0, pos + iov.nbytes - len(self.area))))
        self.area[pos : pos + iov.nbytes] = iov.tobytes()

    async def co_load_vmstate(self, iov: IoVector, pos: int) -> None:
        iov.copy_from(bytes(self.area[pos : pos + iov.nbytes]))


@pytest.fixture
def kept(disk: MemoryDisk) -> Iterator[MemoryDisk]:
    register(StateDriver)
    StateDriver.area.clear()
    yield disk
    unregister(StateDriver)


async def test_saved_and_loaded(kept: MemoryDisk) -> None:
    options = {"driver": "raw", "file": kept.options() | {"driver": StateDriver.name}}
    async with await BlockBackend.new_open(options=options) as blk:
        assert await blk.co_save_vmstate([b"mach", b"ine"], 10) == 7
        memory = bytearray(7)
        assert await blk.co_load_vmstate(memory, 10) == 7
        assert memory == b"machine"
        assert [entry[0] for entry in kept.log] == ["save"]
        blk.set_enable_write_cache(False)
        assert await asyncio.to_thread(blk.save_vmstate, b"M", 10) == 1
        assert [entry[0] for entry in kept.log] == ["save", "save", "flush"]
        assert await asyncio.to_thread(blk.load_vmstate, memory, 10) == 7
        assert memory == b"Machine"
        async with blk.drained():  # a machine's state is saved while its disks stand still
            await blk.co_save_vmstate(b"m", 10)
        with pytest.raises(ValueError, match="byte -1"):
            await blk.co_save_vmstate(b"", -1)


async def test_who_cannot(blk: BlockBackend) -> None:
    with pytest.raises(UnsupportedFeature):
        await blk.co_save_vmstate(b"x", 0)
    with pytest.raises(UnsupportedFeature):
        await blk.co_load_vmstate(bytearray(1), 0)
    await blk.remove_bs()
    with pytest.raises(NoMedium):
        await blk.co_save_vmstate(b"x", 0)
