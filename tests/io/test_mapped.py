"""What a format's reads and writes cost below: which requests its file and backing file see."""

from __future__ import annotations

import asyncio

import pytest

from blockio.buffers import IoVector
from blockio.driver.base import Allocation
from blockio.types import DetectZeroes, Extent, ExtentKind
from tests.io.world import Disk, in_format, on_disk, opened, pattern

K = 1024


async def test_a_partial_cluster_is_one_write_of_head_data_and_tail() -> None:
    file, base = Disk(0), Disk(pattern(64 * K))
    async with opened(in_format(file, length=64 * K, backing=on_disk(base))) as rig:
        await rig.write(5000, b"x" * 100)
        assert file.ranges("write") == [(0, 4096)]
        assert base.ranges("read") == [(4096, 4096)]  # head and tail lie close together: one read
        assert bytes(file.data) == pattern(64 * K)[4096:5000] + b"x" * 100 + pattern(64 * K)[5100:8192]


async def test_head_and_tail_far_apart_are_read_alone() -> None:
    file, base = Disk(0), Disk(pattern(64 * K))
    async with opened(in_format(file, length=64 * K, backing=on_disk(base))) as rig:
        await rig.write(1000, b"x" * (30 * K))
        assert base.ranges("read") == [(0, 1000), (1000 + 30 * K, 32 * K - 1000 - 30 * K)]
        assert file.ranges("write") == [(0, 32 * K)]


async def test_whole_clusters_copy_nothing() -> None:
    file, base = Disk(0), Disk(pattern(64 * K))
    async with opened(in_format(file, length=64 * K, backing=on_disk(base))) as rig:
        await rig.write(4096, b"x" * (16 * K))
        assert base.log == []
        assert file.ranges("write") == [(0, 16 * K)]


@pytest.mark.parametrize(("fresh", "written"), [(True, (904, 100)), (False, (0, 4096))])
async def test_old_zeroes_are_written_only_where_the_file_holds_something_else(
    fresh: bool, written: tuple[int, int]
) -> None:
    file = Disk(0 if fresh else b"\xdd" * 8192)
    async with opened(in_format(file, length=64 * K)) as rig:
        rig.format.fresh = fresh
        await rig.write(5000, b"x" * 100)
        assert file.ranges("write") == [written]
        assert await rig.read(4096, 4096) == bytes(904) + b"x" * 100 + bytes(3092)


async def test_past_the_end_of_the_backing_file_there_is_nothing_to_copy() -> None:
    file, base = Disk(0), Disk(pattern(5000))
    async with opened(in_format(file, length=64 * K, backing=on_disk(base))) as rig:
        await rig.write(8192, b"x" * 100)
        assert base.log == []
        await rig.write(4100, b"y" * 100)
        assert base.ranges("read") == [(4096, 904)]
        assert await rig.read(4096, 1000) == pattern(5000)[4096:4100] + b"y" * 100 + pattern(5000)[4200:] + bytes(96)


async def test_the_last_cluster_may_reach_past_the_disks_end() -> None:
    file, base = Disk(b"\xdd" * 8192), Disk(pattern(64 * K))
    async with opened(in_format(file, length=5000, backing=on_disk(base))) as rig:
        rig.format.fresh = False
        await rig.write(4500, b"x" * 100)
        assert bytes(file.data[:4096]) == (
            pattern(64 * K)[4096:4500] + b"x" * 100 + pattern(64 * K)[4600:5000] + bytes(4096 - 904)
        )


async def test_one_extent_starts_no_task_and_many_go_at_once() -> None:
    file = Disk(0, pauses=2, fast=False)
    async with opened(in_format(file, length=256 * K)) as rig:
        for cluster in (*range(0, 64, 2), *range(1, 64, 2)):
            await rig.write(cluster * 4096, pattern(4096, cluster))
        most = tasks = 0

        def look(*_: object) -> None:
            nonlocal most, tasks
            most = max(most, file.running)
            tasks = max(tasks, len(asyncio.all_tasks()))

        file.before = look
        alone = len(asyncio.all_tasks())
        await rig.read(4096, 4096)
        assert tasks == alone
        got = await rig.read(0, 256 * K)
        assert got == b"".join(pattern(4096, cluster) for cluster in range(64))
        assert most == 8
        rig.whole()


async def test_cached_extents_of_a_slow_request_need_no_task() -> None:
    file = Disk(0)
    async with opened(in_format(file, length=64 * K)) as rig:
        await rig.write(0, pattern(4096))
        await rig.write(12288, pattern(4096))
        file.log.clear()
        assert await rig.read(0, 64 * K) == pattern(4096) + bytes(8192) + pattern(4096) + bytes(48 * K)
        assert file.operations == ["try-read", "try-read"]


@pytest.mark.parametrize(
    "extent",
    [
        Extent(ExtentKind.DATA, 0, 0),
        Extent(ExtentKind.DATA, 100, 0),
        Extent(ExtentKind.ZERO, 101),
        Extent(ExtentKind.ZERO, 0),
    ],
)
async def test_an_impossible_extent_names_the_driver(extent: Extent) -> None:
    async with opened(in_format(Disk(0))) as rig:
        rig.format._map = lambda offset, nbytes: extent  # type: ignore[method-assign]  # a broken driver
        with pytest.raises(RuntimeError, match="test-format"):
            await rig.read(0, 100)
        rig.whole()


async def test_an_impossible_allocation_names_the_driver_and_is_abandoned() -> None:
    async with opened(in_format(Disk(0))) as rig:
        allocate = rig.format.co_allocate

        async def wrong(offset: int, nbytes: int) -> Allocation:
            room = await allocate(offset, nbytes)
            room.offset += 1
            return room

        rig.format.co_allocate = wrong  # type: ignore[method-assign]  # a broken driver
        with pytest.raises(RuntimeError, match="test-format"):
            await rig.write(0, b"x")
        assert [room.ended for room in rig.format.rooms] == ["abandon"]
        rig.whole()


async def test_overlapping_writes_of_unallocated_clusters_all_survive() -> None:
    file, base = Disk(0, pauses=4, fast=False), Disk(pattern(16 * K), pauses=2, fast=False)
    async with opened(in_format(file, length=16 * K, backing=on_disk(base))) as rig:
        rig.format.pauses = 2
        spans = [(at, 700) for at in range(0, 14000, 700)]
        await asyncio.gather(*(rig.write(at, bytes([number + 1]) * n) for number, (at, n) in enumerate(spans)))
        expected = b"".join(bytes([number + 1]) * n for number, (_, n) in enumerate(spans))
        assert await rig.read(0, 16 * K) == expected + pattern(16 * K)[14000:]
        rig.whole()


async def test_writing_from_many_views_reads_back() -> None:
    async with opened(in_format(Disk(0), length=64 * K)) as rig:
        payload = pattern(20000)
        await rig.io.co_pwritev(3000, IoVector.of([payload[at : at + 999] for at in range(0, 20000, 999)]))
        assert await rig.read(3000, 20000) == payload


@pytest.mark.parametrize("first", ["write", "zero"])
async def test_zeroing_a_part_of_a_cluster_does_not_undo_a_write_beside_it(first: str) -> None:
    file = Disk(0, pauses=2, fast=False)
    async with opened(in_format(file, length=64 * K)) as rig:
        rig.format.zero_pauses = 50
        jobs = [rig.write(100, b"x" * 100), rig.io.co_pwrite_zeroes(300, 100)]
        await asyncio.gather(*(jobs if first == "write" else reversed(jobs)))
        assert await rig.read(0, 500) == bytes(100) + b"x" * 100 + bytes(300)
        rig.whole()


async def test_detected_zeroes_beside_a_write_do_not_undo_it() -> None:
    file = Disk(0, pauses=2, fast=False)
    async with opened(in_format(file, length=64 * K), detect_zeroes=DetectZeroes.ON) as rig:
        rig.format.zero_pauses = 50
        await asyncio.gather(rig.write(300, bytes(100)), rig.write(100, b"x" * 100))
        assert await rig.read(0, 500) == bytes(100) + b"x" * 100 + bytes(300)
        rig.whole()
