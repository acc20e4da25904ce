"""Persistent bitmaps: QEMU reads ours, we read QEMU's, and both agree on who may believe what."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import blockio
from blockio.driver.base import CheckFix
from blockio.errors import BlockError, CorruptImage, ImageError, LimitExceeded
from blockio.graph.activation import activate_node, inactivate_node
from blockio.graph.bitmap_commands import (
    block_dirty_bitmap_add,
    block_dirty_bitmap_disable,
    block_dirty_bitmap_merge,
    block_dirty_bitmap_remove,
)
from blockio.graph.node import BlockNode
from blockio.graph.reopen import reopen
from blockio.testing.memory import MemoryChild
from blockio.types import Limits, OpenFlags
from blockio_drivers.qcow2.bitmap_directory import (
    ALL_ONES,
    DirectoryEntry,
    decode_directory,
    encode_directory,
    persistent_size,
)
from blockio_drivers.qcow2.bitmap_header import crosses, plan_bitmaps
from blockio_drivers.qcow2.extensions import BitmapsExtension, UnknownExtension
from blockio_drivers.qcow2.header import Header
from blockio_drivers.qcow2.tables import table_from_bytes
from tests.qcow2.bitmap_rig import bitmaps_of, listed, qemu_bits, qemu_list
from tests.qcow2.engine import Disk, check_image, new_image, open_disk
from tests.support.qemu import assert_clean, qemu_img, qemu_img_json, qemu_io

READ_ONLY = OpenFlags(read_only=True)
MIB = 1 << 20


def opened(path: Path, **options: Any) -> Any:
    return blockio.open(str(path), format="qcow2", **options)


def node_of(blk: blockio.BlockBackend) -> BlockNode:
    assert blk.bs is not None
    return blk.bs


def persistent(disk: Disk, name: str, granularity: int = 65536, size: int = MIB) -> Any:
    bitmap = disk.host.dirty_bitmaps.create(size, granularity, name)
    bitmap.persistent = True
    return bitmap


# -- both ways


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    ("cluster_size", "granularity", "options"),
    [
        (65536, 65536, ""),
        (512, 512, ",refcount_bits=1"),
        (4096, 4096, ",lazy_refcounts=on"),
        (2 * MIB, 1024, ",refcount_bits=64"),
        (16384, 2048, ",extended_l2=on"),
    ],
)
async def test_qemu_reads_what_we_record(cluster_size: int, granularity: int, options: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    size = 20 * MIB
    qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster_size}{options}", path, str(size))
    rnd = random.Random(cluster_size)
    for turn in range(2):  # the second time what is there is replaced
        async with opened(path) as blk:
            if not turn:
                await block_dirty_bitmap_add(node_of(blk), "ours", granularity=granularity, persistent=True)
            for _ in range(30):
                offset = rnd.randrange(size - 9000)
                await blk.co_pwritev(offset, rnd.randbytes(rnd.randrange(1, 9000)))
            await blk.co_pwritev(3 * MIB, bytes(MIB))
            bitmap = node_of(blk).find_dirty_bitmap("ours")
            assert bitmap is not None
            areas = list(bitmap.areas())
        assert qemu_bits(path, "ours") == areas
        assert qemu_list(path) == [("ours", granularity, ["auto"])]
        assert_clean(path)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("cluster_size", [512, 65536])
async def test_we_read_what_qemu_records(cluster_size: int, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster_size}", path, "20M")
    qemu_img("bitmap", "--add", "-g", "4k", path, "fine")
    qemu_img("bitmap", "--add", "--disable", "-g", "1M", path, "off")
    qemu_img("bitmap", "--add", path, "ü" * 511)
    qemu_io(path, "write 100k 1k", "write -z 5M 2M", "write 20400k 80k", format="qcow2")
    async with opened(path, read_only=True) as blk:
        infos = {info.name: info for info in node_of(blk).query_dirty_bitmaps()}
        assert set(infos) == {"fine", "off", "ü" * 511}
        assert (infos["off"].count, infos["off"].recording) == (0, False)
        fine = node_of(blk).find_dirty_bitmap("fine")
        assert fine is not None
        assert list(fine.areas()) == qemu_bits(path, "fine")
        with pytest.raises(BlockError, match="Bitmap 'fine' is readonly and cannot be modified"):
            fine.clear()
        with pytest.raises(BlockError, match="Bitmap 'off' is readonly and cannot be modified"):
            await block_dirty_bitmap_remove(node_of(blk), "off")
        with pytest.raises(BlockError, match="No write access"):
            await block_dirty_bitmap_add(node_of(blk), "new", persistent=True)
    assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_merging_and_removing_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    qemu_img("bitmap", "--add", "-g", "64k", path, "a")
    qemu_io(path, "write 1M 1M", format="qcow2")
    async with opened(path) as blk:
        node = node_of(blk)
        await block_dirty_bitmap_add(node, "b", granularity=4096, persistent=True)
        await blk.co_pwritev(8 * MIB, b"x")
        block_dirty_bitmap_merge(node, "b", [(node, "a")])
        block_dirty_bitmap_disable(node, "a")
        await block_dirty_bitmap_add(node, "forgotten", granularity=4096)
    assert qemu_list(path) == [("a", 65536, []), ("b", 4096, ["auto"])]
    assert qemu_bits(path, "b") == [(MIB, MIB), (8 * MIB, 65536)]
    qemu_img("bitmap", "--remove", path, "a")
    async with opened(path) as blk:
        assert [info.name for info in node_of(blk).query_dirty_bitmaps()] == ["b"]
        await block_dirty_bitmap_remove(node_of(blk), "b")
        assert node_of(blk).query_dirty_bitmaps() == []
    assert qemu_list(path) == []
    assert_clean(path)
    assert Header.decode(path.read_bytes()[:65536]).autoclear == 0


# -- who may believe it


@pytest.mark.peer("qemu-img")
async def test_in_use_while_it_is_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    qemu_img("bitmap", "--add", path, "b0")
    async with opened(path) as blk:
        node = node_of(blk)
        assert qemu_list(path) == [("b0", 65536, ["in-use", "auto"])]
        await blk.co_pwritev(0, b"x")
        await reopen_read_only(blk)
        assert qemu_list(path) == [("b0", 65536, ["auto"])], "stored by a reopen"
        bitmap = node.find_dirty_bitmap("b0")
        assert bitmap is not None
        assert (listed(bitmap), bitmap.readonly) == ([0], True)
        await reopen(node, read_only=False)
        blk.set_perm(blockio.Perm.CONSISTENT_READ | blockio.Perm.WRITE, blockio.Perm.ALL)
        assert qemu_list(path) == [("b0", 65536, ["in-use", "auto"])]
        assert not bitmap.readonly
        await blk.co_pwritev(MIB, b"x")
    assert qemu_bits(path, "b0") == [(0, 65536), (MIB, 65536)]
    assert_clean(path)


async def reopen_read_only(blk: blockio.BlockBackend) -> None:
    blk.set_perm(blockio.Perm.CONSISTENT_READ, blockio.Perm.ALL)
    await reopen(node_of(blk), read_only=True)


@pytest.mark.peer("qemu-img")
async def test_a_reopen_that_comes_to_nothing(tmp_path: Path) -> None:
    """The bitmaps were stored for it already: they are in use again before anybody can write."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    qemu_img("bitmap", "--add", path, "b0")
    async with opened(path) as blk:
        await blk.co_pwritev(0, b"x")
        with pytest.raises(BlockError, match="cannot support read-write users"):
            await reopen(node_of(blk), read_only=True)
        assert qemu_list(path) == [("b0", 65536, ["in-use", "auto"])]
        bitmap = node_of(blk).find_dirty_bitmap("b0")
        assert bitmap is not None
        assert not bitmap.readonly
        await blk.co_pwritev(MIB, b"x")
    assert qemu_bits(path, "b0") == [(0, 65536), (MIB, 65536)]
    assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_a_dirty_image_is_repaired_with_its_bitmaps(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "10M")
    qemu_img("bitmap", "--add", path, "b0")
    qemu_io(path, "write 1M 64k", format="qcow2")
    data = bytearray(path.read_bytes())
    data[79] |= 1  # the dirty bit
    path.write_bytes(data)
    async with opened(path) as blk:
        await blk.co_pwritev(5 * MIB, b"x")
    assert qemu_bits(path, "b0") == [(MIB, 65536), (5 * MIB, 65536)]
    assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_a_bitmap_moves_to_another_thread_with_its_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    qemu_img("bitmap", "--add", path, "b0")
    async with blockio.IOThread() as thread, opened(path) as blk:
        blk.set_allow_aio_context_change(True)
        await blk.co_pwritev(0, b"x")
        await blk.set_aio_context(thread.context)
        await blk.co_pwritev(MIB, b"x")
        await blk.set_aio_context(blockio.AioContext.current())
    assert qemu_bits(path, "b0") == [(0, 65536), (MIB, 65536)]
    assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_one_that_is_in_use_can_only_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    for name in ("b0", "b1"):
        qemu_img("bitmap", "--add", path, name)
    data = bytearray(path.read_bytes())
    header = Header.decode(bytes(data[:65536]))
    assert header.bitmaps is not None
    data[header.bitmaps.directory_offset + 15] |= 1
    path.write_bytes(data)
    async with opened(path, resize=True) as blk:
        node = node_of(blk)
        bitmap = node.find_dirty_bitmap("b0")
        assert bitmap is not None
        assert bitmap.inconsistent
        await blk.co_pwritev(0, b"x")
        with pytest.raises(BlockError, match="Bitmap 'b0' is inconsistent and cannot be used"):
            bitmap.clear()
        with pytest.raises(BlockError, match="Bitmap 'b0' is inconsistent and cannot be used"):
            await blk.co_truncate(20 * MIB)
        assert not bitmap.count
    assert qemu_list(path) == [("b0", 65536, ["in-use", "auto"]), ("b1", 65536, ["auto"])]
    async with opened(path) as blk:
        await block_dirty_bitmap_remove(node_of(blk), "b0")
    assert qemu_list(path) == [("b1", 65536, ["auto"])]
    assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_the_disk_changes_its_length(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    qemu_img("bitmap", "--add", "-g", "512", path, "b0")
    for size in (30 * MIB, 5 * MIB):
        async with opened(path, resize=True) as blk:
            await blk.co_pwritev(4 * MIB, b"x" * 2000)
            await blk.co_truncate(size)
            await blk.co_pwritev(size - 512, b"x" * 512)
        assert qemu_bits(path, "b0") == [(4 * MIB, 2048), (size - 512, 512)]
        assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_inactive_images_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    qemu_img("bitmap", "--add", path, "b0")
    async with opened(path) as blk:
        await blk.co_pwritev(MIB, b"x")
        blk.set_perm(blockio.Perm.NONE, blockio.Perm.ALL)
        await inactivate_node(node_of(blk))
        assert qemu_list(path) == [("b0", 65536, ["auto"])]
        qemu_io(path, "write 3M 1", format="qcow2")  # the other side has it
        await activate_node(node_of(blk))
        blk.set_perm(blockio.Perm.CONSISTENT_READ | blockio.Perm.WRITE, blockio.Perm.ALL)
        bitmap = node_of(blk).find_dirty_bitmap("b0")
        assert bitmap is not None
        assert list(bitmap.areas()) == [(MIB, 65536), (3 * MIB, 65536)]
        await blk.co_pwritev(5 * MIB, b"x")
    assert qemu_bits(path, "b0") == [(MIB, 65536), (3 * MIB, 65536), (5 * MIB, 65536)]
    assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_somebody_without_bitmaps_wrote_to_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    qemu_img("bitmap", "--add", path, "b0")
    data = bytearray(path.read_bytes())
    data[95] = 0
    path.write_bytes(data)
    for read_only in (True, False):
        async with opened(path, read_only=read_only) as blk:
            assert node_of(blk).query_dirty_bitmaps() == []
        assert Header.decode(path.read_bytes()[:65536]).stale_bitmaps == read_only
    assert qemu_img("check", path, check=False).returncode == 3, "leaks, as QEMU has them"
    async with opened(path) as blk:
        await block_dirty_bitmap_add(node_of(blk), "b0", persistent=True)
    assert qemu_list(path) == [("b0", 65536, ["auto"])]


# -- checks and repairs


async def bitmapped(names: int = 2) -> MemoryChild:
    """An image of 1 MiB with some bitmaps, a granule dirty in each but the last, which is all dirty."""
    child = await new_image(MIB)
    async with open_disk(child) as disk:
        for number in range(names):
            bitmap = persistent(disk, f"b{number}", 512)
            bitmap.set(number * 512, 1)
        bitmap.set(0, MIB)
    return child


@pytest.mark.peer("qemu-img")
async def test_full_and_empty_clusters_take_no_room() -> None:
    child = await bitmapped(3)
    async with open_disk(child, flags=READ_ONLY) as disk:
        entries = disk.driver._bitmaps.entries
        tables = [table_from_bytes(child.data[e.table_offset : e.table_offset + 8]) for e in entries]
        found = bitmaps_of(disk.host)
    # The newest comes first, as in the node's list.
    assert [entry.name for entry in entries] == ["b2", "b1", "b0"]
    assert list(tables[0]) == [ALL_ONES]
    assert found == {"b0": (512, True, [0]), "b1": (512, True, [1]), "b2": (512, True, list(range(2048)))}
    check_image(child.data)


async def test_repair_leaves_bitmaps_alone() -> None:
    child = await bitmapped()
    before = bytes(child.data)
    async with open_disk(child, flags=OpenFlags(check=True)) as disk:
        result = await disk.driver.co_check(CheckFix.ALL)
        assert (result.corruptions, result.leaks, result.leaks_fixed) == (0, 0, 0)
    assert bytes(child.data) == before


async def test_the_directory_is_not_written_over() -> None:
    child = await bitmapped()
    async with open_disk(child) as disk:
        image = disk.driver._image
        found = image.header.bitmaps
        assert found is not None
        assert image.guard.hit(found.directory_offset, 1) == "bitmap directory"
        assert image.guard.hit(found.directory_offset, 1, "bitmap directory") is None
        assert image.guard.hit(found.directory_offset + 65536, 1) is None
        with pytest.raises(CorruptImage, match="overlaps with bitmap directory"):
            image.guard.check(found.directory_offset - 65536, 65537)


# -- hostile images


def entry(**changes: Any) -> DirectoryEntry:
    return replace(DirectoryEntry("b0", 16, 2, 0x50000, 1), **changes)


def raw_entry(kind: int, flags: int, extra: int) -> bytes:
    return struct.pack(">QIIBBHI", 0x50000, 1, flags, kind, 16, 1, extra)


@pytest.mark.parametrize(
    ("directory", "count", "message"),
    [
        (b"", 1, "Requested bitmap directory size is zero"),
        (b"\0" * 23, 1, "Broken bitmap directory"),
        (encode_directory([entry()])[:-8], 1, "Broken bitmap directory"),
        (encode_directory([entry()] * 2), 1, "More bitmaps found than specified in header extension"),
        (encode_directory([entry()]), 2, "Less bitmaps found than specified in header extension"),
        (encode_directory([entry(table_offset=0)]), 1, "Bitmap 'b0' doesn't satisfy the constraints"),
        (encode_directory([entry(table_offset=0x50200)]), 1, "Bitmap 'b0' doesn't satisfy the constraints"),
        (encode_directory([entry(table_size=0)]), 1, "Bitmap 'b0' doesn't satisfy the constraints"),
        (encode_directory([entry(table_size=8193, flags=1)]), 1, "Bitmap 'b0' doesn't satisfy the constraints"),
        (encode_directory([entry(granularity_bits=8)]), 1, "Bitmap 'b0' doesn't satisfy the constraints"),
        (encode_directory([entry(granularity_bits=32)]), 1, "Bitmap 'b0' doesn't satisfy the constraints"),
        (encode_directory([entry(flags=4)]), 1, "Bitmap 'b0' doesn't satisfy the constraints"),
        (encode_directory([entry(name="n" * 1024)]), 1, "doesn't satisfy the constraints"),
        (raw_entry(1, 2, 8) + b"extra..." + b"x" * 8, 1, "Bitmap extra data is not supported"),
        (raw_entry(1, 2, 4096) + b"x" * 8, 1, "Broken bitmap directory"),
        (raw_entry(2, 2, 0) + b"x" * 8, 1, "Bitmap 'x' doesn't satisfy the constraints"),
    ],
)
@pytest.mark.peer("qemu-img")
async def test_a_broken_directory(directory: bytes, count: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=message):
        decode_directory(directory, count, 65536, MIB)
    child = await bitmapped(1)
    header = Header.decode(bytes(child.data[:65536]))
    assert header.bitmaps is not None
    at = header.bitmaps.directory_offset
    child.data[at : at + 65536] = directory.ljust(65536, b"\0")
    extension = BitmapsExtension(count, len(directory), header.bitmaps.directory_offset)
    child.data[0:1024] = header.with_(bitmaps=extension).encode().ljust(1024, b"\0")
    with pytest.raises(ImageError) as ours:
        async with open_disk(child, flags=READ_ONLY):
            pass
    path = tmp_path / "disk.qcow2"
    path.write_bytes(child.data)
    theirs = qemu_img("info", "-f", "qcow2", path, check=False)
    assert theirs.stderr == f"qemu-img: Could not open '{path}': {ours.value.message}\n"


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("value", [0x50001, 0x50200, 1 << 56, 2, 1 << 63])
async def test_a_broken_table(value: int, tmp_path: Path) -> None:
    child = await bitmapped(1)
    async with open_disk(child, flags=READ_ONLY) as disk:
        at = disk.driver._bitmaps.entries[0].table_offset
    child.data[at : at + 8] = value.to_bytes(8, "big")
    with pytest.raises(ImageError) as ours:
        async with open_disk(child, flags=READ_ONLY):
            pass
    path = tmp_path / "disk.qcow2"
    path.write_bytes(child.data)
    theirs = qemu_img("info", "-f", "qcow2", path, check=False)
    assert theirs.stderr == f"qemu-img: Could not open '{path}': {ours.value.message}\n"


@pytest.mark.peer("qemu-img")
async def test_data_past_the_end_does_not_pass_for_clean() -> None:
    child = await new_image(MIB)
    async with open_disk(child) as disk:
        persistent(disk, "b0").set(0, 1)
    async with open_disk(child, flags=READ_ONLY) as disk:
        at = disk.driver._bitmaps.entries[0].table_offset
    sound = bytes(child.data)
    child.data[at : at + 8] = (1 << 40).to_bytes(8, "big")
    async with open_disk(child, flags=READ_ONLY) as disk:
        (bitmap,) = disk.host.dirty_bitmaps
        assert bitmap.inconsistent
    child.data[:] = sound
    del child.data[at:]
    with pytest.raises(ImageError):
        async with open_disk(child, flags=READ_ONLY):
            pass  # the directory went as well


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(("size", "entries"), [("30G", 0), ("10M", 2)])
async def test_a_table_of_another_length(size: str, entries: int, tmp_path: Path) -> None:
    """Too short for the disk: no entry of a directory. Too long: no table."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, size)
    qemu_img("bitmap", "--add", path, "b0")
    data = bytearray(path.read_bytes())
    found = Header.decode(bytes(data[:65536])).bitmaps
    assert found is not None
    at = found.directory_offset + 8
    data[at : at + 4] = entries.to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(ImageError) as ours:
        async with opened(path, read_only=True):
            pass
    theirs = qemu_img("info", "-f", "qcow2", path, check=False)
    assert theirs.stderr == f"qemu-img: Could not open '{path}': {ours.value.message}\n"


async def test_memory_is_bounded() -> None:
    child = await new_image(1 << 40)
    async with open_disk(child) as disk:
        bitmap = persistent(disk, "b0", 65536, 1 << 40)
        for offset in range(0, 1 << 40, 1 << 31):
            bitmap.set(offset, 1)
    blocks = child
    for limit, fits in ((64 << 10, False), (4 << 20, True)):
        driver_flags = READ_ONLY
        if fits:
            async with open_disk(blocks, flags=driver_flags) as disk:
                assert sum(one.nbytes for one in disk.host.dirty_bitmaps) <= limit
        else:
            with pytest.raises(LimitExceeded, match="Bitmap 'b0' takes too much memory"):
                await _open_with(blocks, Limits(max_bitmap_memory=limit))


async def _open_with(child: MemoryChild, trust: Limits) -> None:
    from blockio.testing.memory import MemoryHost, MemoryOpener
    from blockio_drivers.qcow2.driver import Qcow2Driver
    from blockio_drivers.qcow2.options import Qcow2Options

    await Qcow2Driver(MemoryHost(flags=READ_ONLY, trust=trust)).open(Qcow2Options(), MemoryOpener(file=child))


async def test_clusters_that_were_never_the_bitmap_s_are_not_freed() -> None:
    """A table that names the header and the L1 table: removing the bitmap must not free them."""
    child = await bitmapped(1)
    async with open_disk(child, flags=READ_ONLY) as disk:
        table = disk.driver._bitmaps.entries[0].table_offset
        l1 = disk.driver._image.header.l1_table_offset
        at = disk.driver._bitmaps._place.offset
    child.data[at + 15] |= 1  # in use: nobody looks at the table
    child.data[table : table + 8] = l1.to_bytes(8, "big")
    async with open_disk(child) as disk:
        await disk.driver.co_remove_persistent_dirty_bitmap("b0")
        (bitmap,) = disk.host.dirty_bitmaps
        disk.host.dirty_bitmaps.release(bitmap)
        assert any("not freed" in str(event) for event in disk.host.events)
        await disk.write(0, b"x" * 512)
    async with open_disk(child, flags=READ_ONLY) as disk:
        assert await disk.driver._allocator.refcount(l1) == 1


# -- limits of what can be stored


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    ("size", "compat", "name", "granularity"),
    [
        (1 << 46, "1.1", "b0", 512),
        (MIB, "0.10", "b0", 65536),
        (MIB, "1.1", "n" * 1024, 65536),
        (MIB, "1.1", "b0", 1 << 32),
    ],
)
async def test_what_cannot_be_stored(size: int, compat: str, name: str, granularity: int, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"compat={compat}", path, str(size))
    before = path.read_bytes()
    async with opened(path) as blk:
        node = node_of(blk)
        with pytest.raises(BlockError) as ours:
            await block_dirty_bitmap_add(node, name, granularity=granularity, persistent=True)
        assert ours.value.message.startswith(f"Can't make bitmap '{name}' persistent in '{node.node_name}': ")
    if granularity < 1 << 32:  # qemu-img cuts the number down to 32 bits
        theirs = qemu_img("bitmap", "--add", "-g", str(granularity), path, name, check=False).stderr
        assert theirs.rpartition("': ")[2].strip() == ours.value.message.rpartition("': ")[2]
    assert path.read_bytes() == before


async def test_no_more_than_65535() -> None:
    child = await new_image(MIB)
    async with open_disk(child) as disk:
        driver = disk.driver
        one = DirectoryEntry("", 16, 3, 0x50000, 1)
        driver._bitmaps.entries = [replace(one, name=str(number)) for number in range(65535)]
        with pytest.raises(BlockError, match="Maximum number of persistent bitmaps is already reached"):
            await driver.co_can_store_new_dirty_bitmap("one more", 65536)
        driver._bitmaps.entries = driver._bitmaps.entries[:-1]
        await driver.co_can_store_new_dirty_bitmap("one more", 65536)
        driver._bitmaps.entries = []


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("size", ["1M", "1G", "100G"])
def test_how_much_they_take(size: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, size)
    qemu_img("bitmap", "--add", "-g", "4k", path, "b0")
    qemu_img("bitmap", "--add", path, "another")
    measured = qemu_img_json("measure", "-O", "qcow2", path)["bitmaps"]
    length = qemu_img_json("info", path)["virtual-size"]
    assert persistent_size([("b0", 4096), ("another", 65536)], length, 65536) == measured


# -- the header


@pytest.mark.parametrize("cluster_size", [512, 4096, 65536])
@pytest.mark.parametrize("backing", [None, "base.raw", "b" * 200])
@pytest.mark.parametrize("unknown", [(), (UnknownExtension(0x12345678, b"hello"),)])
async def test_steps_of_the_header(cluster_size: int, backing: str | None, unknown: Any) -> None:
    """Every step but the last shows the same as before; the last shows the new; nothing else is lost on the way."""
    fresh = await new_image(MIB, cluster_size=cluster_size)
    header = Header.decode(bytes(fresh.data[:cluster_size])).with_(
        backing_file=backing, backing_format=backing and "raw", unknown_extensions=unknown
    )
    area = bytearray(header.encode().ljust(cluster_size, b"\0"))
    wanted: BitmapsExtension | None
    for wanted in (
        BitmapsExtension(1, 32, fresh_offset(8 * cluster_size)),
        BitmapsExtension(2, 64, fresh_offset(9 * cluster_size)),
        None,
        BitmapsExtension(3, 96, fresh_offset(10 * cluster_size)),
        None,
    ):
        struct.pack_into(">Q", area, 88, 1)  # so that the extension counts
        before = Header.decode(bytes(area))
        steps = plan_bitmaps(bytes(area), wanted)
        for number, step in enumerate(steps):
            assert Header.decode(bytes(area)) == before, number
            area[step.offset : step.offset + len(step.data)] = step.data
        assert not crosses(steps[-1])
        after = Header.decode(bytes(area))
        kept = tuple(item for item in after.unknown_extensions if item.magic == 0x12345678)
        assert after.with_(unknown_extensions=kept) == before.with_(bitmaps=wanted, unknown_extensions=unknown)
        assert plan_bitmaps(bytes(area), wanted) == [] or wanted is not None


def fresh_offset(offset: int) -> Any:
    return offset


async def test_a_header_without_room() -> None:
    fresh = await new_image(MIB, cluster_size=512)
    header = Header.decode(bytes(fresh.data[:512]))
    extension = BitmapsExtension(1, 32, fresh_offset(0x1000))
    for full in (
        header.with_(backing_file="b" * 380),
        header.with_(unknown_extensions=(UnknownExtension(1, b"x" * 376),)),
    ):
        area = full.encode().ljust(512, b"\0")
        with pytest.raises(BlockError, match="No space left in the file header"):
            plan_bitmaps(area, extension)
