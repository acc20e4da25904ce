"""The fast lane: same effect as the slow one, nothing done when it declines, and turns for everybody else."""

from __future__ import annotations

import asyncio

import pytest

from blockio.backend import BlockBackend, accounting
from blockio.backend.lanes import Lanes
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm
from tests.backend.conftest import LENGTH


@pytest.fixture
def disk(disk: MemoryDisk) -> MemoryDisk:
    disk.fast = True
    return disk


async def test_taken_when_nothing_is_out_of_the_ordinary(blk: BlockBackend, disk: MemoryDisk) -> None:
    memory = bytearray(5)
    assert blk.try_pwritev(7, b"hello")
    assert blk.try_preadv(7, memory)
    assert memory == b"hello"
    assert blk.try_pwritev(0, [b"ab", bytearray(b"cd")])
    assert blk.try_preadv(0, memoryview(memory)[:4])
    assert memory == b"abcdo"
    parts = [bytearray(2), bytearray(2)]
    assert blk.try_preadv(0, parts)
    assert parts == [b"ab", b"cd"]
    await blk.co_pwritev(0, b"x")
    await blk.co_preadv(0, memory)
    assert disk.log == []


async def test_declined_and_untouched(blk: BlockBackend, disk: MemoryDisk) -> None:
    memory = bytearray(b"same")
    for offset in (-1, LENGTH, LENGTH - 3):
        assert not blk.try_preadv(offset, memory)
        assert not blk.try_pwritev(offset, b"xxxx")
    assert not blk.try_preadv(0, bytearray())
    async with blk.drained():
        assert not blk.try_preadv(0, memory)
        assert not blk.try_pwritev(0, b"x")
    assert not await asyncio.to_thread(blk.try_preadv, 0, memory)
    assert not await asyncio.to_thread(blk.try_pwritev, 0, b"x")
    async with BlockBackend(Perm.ALL) as empty:
        assert not empty.try_preadv(0, memory)
    assert memory == b"same"
    assert not any(disk.data)


async def test_flags_and_the_write_cache_take_the_slow_lane(blk: BlockBackend, disk: MemoryDisk) -> None:
    blk.set_enable_write_cache(False)
    assert not blk.try_pwritev(0, b"x")
    await blk.co_pwritev(0, b"x")
    assert [entry[0] for entry in disk.log] == ["write", "flush"]
    blk.set_enable_write_cache(True)
    assert blk.try_pwritev(0, b"x")
    blk.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
    assert not blk.try_pwritev(0, b"x")


async def test_it_follows_the_length(blk: BlockBackend) -> None:
    assert not blk.try_preadv(LENGTH, bytearray(1))
    await blk.co_truncate(2 * LENGTH)
    assert blk.try_preadv(LENGTH, bytearray(1))
    await blk.co_truncate(512)
    assert not blk.try_preadv(512, bytearray(1))


@pytest.mark.both_loops
async def test_a_busy_reader_lets_others_run(blk: BlockBackend) -> None:
    """Inline completions never suspend by themselves: the budget gives the loop its turn."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    memory = bytearray(4096)
    count = 4 * accounting.FAIRNESS_BUDGET // (accounting.REQUEST_COST + len(memory))
    for _ in range(count):
        await blk.co_preadv(0, memory)
    assert 3 <= turns <= 5
    turns = 0
    for _ in range(count):
        await blk.co_pwritev(0, memory)
    assert 3 <= turns <= 5
    task.cancel()


async def test_lanes_can_be_left_out(blk: BlockBackend, disk: MemoryDisk) -> None:
    memory = bytearray(5)
    left_out: tuple[Lanes, ...] = ("slow", "started")
    for lanes in left_out:
        blk.set_lanes(lanes)
        assert blk.lanes == lanes
        assert not blk.try_pwritev(0, b"hello")
        assert not blk.try_preadv(0, memory)
        await blk.co_pwritev(0, b"hello")
        await blk.co_preadv(0, memory)
        assert memory == b"hello"
        assert [entry[0] for entry in disk.log] == ["write", "read"]
        disk.log.clear()
    async with blk.drained():
        pass
    assert not blk.try_preadv(0, memory), "whatever opens the lanes again knows which may be"
    open_ones: tuple[Lanes, ...] = ("fast", "auto")
    for lanes in open_ones:
        blk.set_lanes(lanes)
        assert blk.try_preadv(0, memory)
    with pytest.raises(ValueError, match="no lane is called 'bus'"):
        blk.set_lanes("bus")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(RuntimeError, match="own event loop"):
        await asyncio.to_thread(blk.set_lanes, "slow")
