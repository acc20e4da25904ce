"""What a node's requests leave in its dirty bitmaps: the same in both lanes, and whether they end well or not."""

from __future__ import annotations

import errno

import pytest

from blockio.buffers import IoVector
from blockio.errors import BlockError, OptionError
from blockio.graph.bitmap_commands import (
    block_dirty_bitmap_add,
    block_dirty_bitmap_clear,
    block_dirty_bitmap_disable,
    block_dirty_bitmap_enable,
    block_dirty_bitmap_lookup,
    block_dirty_bitmap_merge,
    block_dirty_bitmap_remove,
)
from blockio.testing.cancel import cancel_at_every_await
from blockio.types import BlockLimits, OpenFlags
from tests.io.world import Disk, Rig, in_format, on_disk, opened

SIZE = 1 << 16


def dirty(rig: Rig) -> list[int]:
    (bitmap,) = rig.node.dirty_bitmaps
    return [offset // 512 for offset in bitmap]


async def test_both_lanes_record_writes() -> None:
    async with opened(on_disk(Disk(SIZE))) as rig:
        plain = rig.io._try_write
        bitmap = rig.node.create_dirty_bitmap(512, "b0")
        assert rig.io.try_pwritev(1000, [b"x" * 100], 100)
        assert dirty(rig) == [1, 2]
        assert not rig.io.try_pwritev(SIZE, [b"x"], 1)
        assert dirty(rig) == [1, 2]
        await rig.io.co_pwritev(5120, IoVector.of(b"y"))
        assert dirty(rig) == [1, 2, 10]
        bitmap.disable()
        assert rig.io.try_pwritev(8192, [b"x"], 1)
        assert dirty(rig) == [1, 2, 10]
        rig.node.release_dirty_bitmap(bitmap)
        assert rig.io._try_write == plain, "without bitmaps the fast lane is as short as before"


async def test_padding_zeroes_discards_and_growth() -> None:
    disk = Disk(SIZE, limits=BlockLimits(request_alignment=4096))
    async with opened(on_disk(disk), flags=OpenFlags(unmap=True)) as rig:
        bitmap = rig.node.create_dirty_bitmap(512)
        await rig.io.co_pwritev(100, IoVector.of(b"y"))
        assert dirty(rig) == list(range(8)), "padding is written too"
        bitmap.clear()
        await rig.io.co_pwrite_zeroes(8192, 4096)
        assert dirty(rig) == list(range(16, 24))
        bitmap.clear()
        await rig.io.co_pdiscard(4096, 4096)
        assert dirty(rig) == list(range(8, 16))
        bitmap.clear()
        await rig.io.co_pwritev(SIZE, IoVector.of(bytes(4096)))
        assert bitmap.size == SIZE + 4096
        assert dirty(rig) == list(range(128, 136))
        await rig.io.co_truncate(4096)
        assert (bitmap.size, dirty(rig)) == (4096, [])


async def test_a_failed_write_is_recorded_too() -> None:
    disk = Disk(SIZE)
    async with opened(on_disk(disk)) as rig:
        rig.node.create_dirty_bitmap(512)

        def fail(*_: object) -> None:
            raise BlockError(errno=errno.ENOSPC)

        disk.before = fail
        for offset, work in ((0, rig.io.co_pwritev(0, IoVector.of(b"x"))), (1024, rig.io.co_pwrite_zeroes(1024, 1))):
            with pytest.raises(BlockError):
                await work
            assert offset // 512 in dirty(rig)
        disk.before = None


async def test_a_cancelled_write_is_recorded_too() -> None:
    disk = Disk(SIZE, pauses=4)
    async with opened(on_disk(disk)) as rig:
        bitmap = rig.node.create_dirty_bitmap(512)

        async def afterwards(_: int) -> None:
            content = disk.data[512:1024]
            assert content == bytes(512) or dirty(rig) == [1]
            bitmap.clear()
            disk.data[512:1024] = bytes(512)

        await cancel_at_every_await(lambda: rig.io.co_pwritev(512, IoVector.of(b"x" * 512)), afterwards)


async def test_a_corrupt_node_keeps_its_record() -> None:
    async with opened(on_disk(Disk(SIZE))) as rig:
        bitmap = rig.node.create_dirty_bitmap(512)
        assert rig.io.try_pwritev(0, [b"x"], 1)
        rig.node.corrupted("bad", fatal=True)
        rig.node.length_changed()
        assert (dirty(rig), bitmap.size) == ([0], SIZE)
        with pytest.raises(BlockError):
            rig.node.create_dirty_bitmap(512)


async def test_reading_records_nothing() -> None:
    async with opened(in_format(Disk(0), length=8192)) as rig:
        rig.node.create_dirty_bitmap(512)
        memory = bytearray(4096)
        await rig.io.co_preadv(0, IoVector.of(memory))
        await rig.io.co_flush()
        assert dirty(rig) == []
        await rig.io.co_pwritev(4096, IoVector.of(memory))
        assert dirty(rig) == list(range(8, 16))


async def test_the_monitor_s_commands() -> None:
    async with opened(on_disk(Disk(SIZE))) as rig:
        node = rig.node
        bitmap = await block_dirty_bitmap_add(node, "b0", disabled=True)
        assert bitmap.granularity == 65536
        other = await block_dirty_bitmap_add(node, "b1", granularity=512)
        assert [info.name for info in node.query_dirty_bitmaps()] == ["b1", "b0"]
        assert not node.query_dirty_bitmaps()[1].recording
        block_dirty_bitmap_enable(node, "b0")
        await rig.io.co_pwritev(512, IoVector.of(b"y"))
        assert (bitmap.count, other.count) == (65536, 512)
        backup = block_dirty_bitmap_clear(node, "b1")
        assert other.count == 0
        other.restore(backup)
        block_dirty_bitmap_disable(node, "b1")
        third = await block_dirty_bitmap_add(node, "b2", granularity=1024)
        block_dirty_bitmap_merge(node, "b2", [(node, "b1")])
        assert list(third) == [0]
        with pytest.raises(OptionError, match="Dirty bitmap 'nope' not found"):
            block_dirty_bitmap_merge(node, "b1", [(node, "b0"), (node, "nope")])
        assert other.count == 512, "all or nothing"
        for work, message in (
            (block_dirty_bitmap_add(node, ""), "Bitmap name cannot be empty"),
            (block_dirty_bitmap_add(node, "x", granularity=768), "Granularity must be power of 2 and at least 512"),
            (block_dirty_bitmap_add(node, "b0"), "Bitmap already exists: b0"),
            (block_dirty_bitmap_add(node, "x", persistent=True), "Can't store persistent bitmaps to .*: Operation"),
        ):
            with pytest.raises(BlockError, match=message):
                await work
        node.dirty_bitmaps.create_successor(bitmap)
        with pytest.raises(BlockError, match="in use by another operation"):
            await block_dirty_bitmap_remove(node, "b0")
        node.dirty_bitmaps.reclaim(bitmap)
        for name in ("b0", "b1", "b2"):
            await block_dirty_bitmap_remove(node, name)
        with pytest.raises(OptionError, match="not found"):
            block_dirty_bitmap_lookup(node, "b0")
        assert not node.supports_persistent_dirty_bitmap
