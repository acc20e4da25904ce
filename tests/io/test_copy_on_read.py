"""Copy-on-read: what comes from below stays."""

from __future__ import annotations

import asyncio

import pytest

from blockio.buffers import IoVector
from blockio.errors import BlockError
from blockio.types import RequestFlags
from tests.io.world import Disk, Rig, failing_after, in_format, on_disk, opened, pattern

LENGTH = 32768
COR = RequestFlags.COPY_ON_READ
PREFETCH = COR | RequestFlags.PREFETCH


def clusters(rig: Rig) -> str:
    """Each cluster: ``A`` stored, ``0`` zero, ``-`` nothing."""
    kinds = {None: "-", rig.format.ZEROED: "0"}
    return "".join(kinds.get(rig.format.table.get(index), "A") for index in range(LENGTH // 4096))


async def test_a_read_keeps_whole_clusters_and_zeroes_as_zeroes() -> None:
    base = Disk(pattern(10000) + bytes(10000))
    async with opened(in_format(Disk(0), length=LENGTH, backing=on_disk(base))) as rig:
        assert await rig.read(5000, 8000, COR) == pattern(10000)[5000:] + bytes(3000)
        assert clusters(rig) == "-AA0----"
        assert all(room.cow_head == room.cow_tail == 0 for room in rig.format.rooms)
        base.log.clear()
        assert await rig.read(5000, 8000, COR) == pattern(10000)[5000:] + bytes(3000)
        assert base.log == []
        rig.whole()


async def test_a_node_may_always_copy_and_then_its_fast_lane_is_closed() -> None:
    base = Disk(pattern(LENGTH))
    async with opened(in_format(Disk(0), length=LENGTH, backing=on_disk(base))) as rig:
        rig.node.copy_on_read = 1
        rig.node.path.refresh_lanes()
        rig.format.cached = True
        await rig.read(0, 100)
        assert clusters(rig) == "A-------"
        assert not rig.io.try_preadv(0, [bytearray(10)], 10)
        rig.node.copy_on_read = 0
        rig.node.path.refresh_lanes()
        assert rig.io.try_preadv(0, [bytearray(10)], 10)


async def test_prefetch_needs_no_memory() -> None:
    base = Disk(pattern(LENGTH))
    async with opened(in_format(Disk(0), length=LENGTH, backing=on_disk(base))) as rig:
        await rig.io.co_preadv(4096, IoVector([], 8192), PREFETCH)
        assert clusters(rig) == "-AA-----"
        assert await rig.read(0, LENGTH) == pattern(LENGTH)


async def test_an_inactive_or_read_only_node_keeps_nothing() -> None:
    base = Disk(pattern(LENGTH))
    async with opened(in_format(Disk(0), length=LENGTH, backing=on_disk(base))) as rig:
        flags = rig.node.flags
        for change in ("inactive", "read_only"):
            rig.node.flags = flags.with_(**{change: True})
            assert await rig.read(0, 100, COR) == pattern(LENGTH)[:100]
            await rig.io.co_preadv(0, IoVector([], 100), PREFETCH)
        rig.node.flags = flags
        assert clusters(rig) == "--------"


async def test_a_write_between_reading_and_keeping_is_not_undone() -> None:
    base = Disk(pattern(LENGTH), fast=False)
    async with opened(in_format(Disk(0), length=LENGTH, backing=on_disk(base))) as rig:
        base.gate = asyncio.Event()
        read = asyncio.ensure_future(rig.read(0, 4096, COR))
        for _ in range(3):
            await asyncio.sleep(0)
        write = asyncio.ensure_future(rig.write(100, b"x" * 100))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not write.done()
        base.gate.set()
        assert await read == pattern(LENGTH)[:4096]
        await write
        assert await rig.read(0, 300) == pattern(LENGTH)[:100] + b"x" * 100 + pattern(LENGTH)[200:300]
        rig.whole()


async def test_failing_to_keep_is_an_error_of_the_read() -> None:
    file, base = Disk(0), Disk(pattern(LENGTH))
    async with opened(in_format(file, length=LENGTH, backing=on_disk(base))) as rig:
        file.before = failing_after(0)
        with pytest.raises(BlockError):
            await rig.read(0, 100, COR)
        assert clusters(rig) == "--------"
        rig.whole()
        assert await rig.read(0, 100, COR) == pattern(LENGTH)[:100]


async def test_up_to_the_end_of_a_disk_that_ends_inside_a_cluster() -> None:
    base = Disk(pattern(LENGTH))
    async with opened(in_format(Disk(0), length=6000, backing=on_disk(base))) as rig:
        assert await rig.read(5000, 2000, COR) == pattern(LENGTH)[5000:6000] + bytes(1000)
        assert await rig.read(4096, 1904) == pattern(LENGTH)[4096:6000]
        rig.whole()
