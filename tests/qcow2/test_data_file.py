"""Images whose guest data is in a file of its own, beside QEMU's tools, and where nothing of it is as it should be.

What crashes leave of them is judged in ``test_crash_states``, faults and cancellations in ``test_fault_states``.
"""

from __future__ import annotations

import asyncio
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest

import blockio
from blockio import AllowAll
from blockio.buffers import IoVector
from blockio.errors import BlockError, CorruptImage, OptionError, UnsupportedFeature
from blockio.graph.reopen import reopen
from blockio.testing.memory import MemoryChild
from blockio.types import ExtentKind, OpenFlags, PreallocMode, RequestFlags
from blockio_drivers.qcow2.tables import COMPRESSED, COPIED, ZERO
from tests.qcow2.engine import check_image, first_l2_table, new_image, new_image_with_data_file, open_disk, put
from tests.support.qemu import assert_clean, qemu_img, qemu_img_json, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

CLUSTER = 4096
SIZE = 64 * CLUSTER
MAY_UNMAP = int(RequestFlags.MAY_UNMAP)


def opened(path: Path, **options: Any) -> Any:
    return blockio.open(str(path), format="qcow2", gate=AllowAll(), **options)


# -- both ways


@pytest.mark.parametrize("options", ["data_file_raw=off", "data_file_raw=on", "extended_l2=on", "lazy_refcounts=on"])
async def test_qemu_reads_what_we_write_and_we_what_it_writes(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file=d.raw,{options}", path, "1M")
    wanted = bytearray(1 << 20)
    rnd = random.Random(options)
    for turn in range(4):
        if turn % 2:
            qemu_io(path, "write -P 7 0 100k", "discard 64k 64k", "write -z -u 256k 64k", "write -P 9 300k 1k")
            wanted[: 100 << 10] = b"\x07" * (100 << 10)
            wanted[64 << 10 : 128 << 10] = bytes(64 << 10)
            wanted[256 << 10 : 320 << 10] = bytes(64 << 10)
            wanted[300 << 10 : 301 << 10] = b"\x09" * 1024
        else:
            async with opened(path) as blk:
                for _ in range(12):
                    offset = rnd.randrange(1 << 20)
                    data = rnd.randbytes(min(rnd.randrange(1, 90000), (1 << 20) - offset))
                    await blk.co_pwritev(offset, data)
                    wanted[offset : offset + len(data)] = data
                start = rnd.randrange(15) << 16
                await blk.co_pwrite_zeroes(start, 65536, RequestFlags(rnd.choice((0, MAY_UNMAP))))
                wanted[start : start + 65536] = bytes(65536)
        assert_clean(path)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, "out")
        assert (tmp_path / "out").read_bytes() == wanted
        async with opened(path, read_only=True) as blk:
            memory = bytearray(1 << 20)
            await blk.co_preadv(0, memory)
            assert memory == wanted
        if options == "data_file_raw=on":
            assert (tmp_path / "d.raw").read_bytes() == wanted


@pytest.mark.parametrize("raw", [False, True])
async def test_locks_are_those_of_qemu(raw: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file=d.raw,data_file_raw={'on' if raw else 'off'}", path, "1M")
    async with opened(path):
        done = qemu_img("resize", "-f", "raw", "d.raw", "2M", check=False)
        assert 'Failed to get "resize" lock' in done.stderr
        assert qemu_img("info", "-f", "raw", "d.raw", check=False).stderr == ""
    qemu_img("resize", "-f", "raw", "d.raw", "1M")


async def test_qemu_agrees_with_an_image_made_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "d.qcow2"
    options = {"size": 1 << 20, "data_file": "file:d.raw", "data_file_raw": True, "extended_l2": True}
    await blockio.img.create(str(path), format="qcow2", options=options)
    specific = qemu_img_json("info", path)["format-specific"]["data"]
    assert (specific["data-file"], specific["data-file-raw"]) == ("d.raw", True)
    async with opened(path) as blk:
        await blk.co_pwritev(1000, b"x" * 70000)
    assert_clean(path)
    assert (tmp_path / "d.raw").read_bytes() == bytes(1000) + b"x" * 70000 + bytes((1 << 20) - 71000)
    before = sorted(os.listdir(tmp_path))
    for wrong in ({"data_file": "nowhere/d"}, {"data_file": "e.raw", "preallocation": "x"}):
        with pytest.raises(BlockError):
            await blockio.img.create(str(tmp_path / "e.qcow2"), format="qcow2", options={"size": 1 << 20, **wrong})
    assert sorted(os.listdir(tmp_path)) == before, "what was begun is removed"


async def test_the_raw_bit_survives_writers_and_is_kept_beside_the_bitmaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", path, "1M")
    qemu_img("bitmap", "--add", path, "b")
    async with opened(path) as blk:
        await blk.co_pwritev(0, b"x" * 512)
        assert blk.bs is not None
        await reopen(blk.bs, options={"lazy-refcounts": "on"})
        await blk.co_pwritev(1 << 19, b"x" * 512)
    specific = qemu_img_json("info", path)["format-specific"]["data"]
    assert specific["data-file-raw"]
    assert [bitmap["name"] for bitmap in specific["bitmaps"]] == ["b"]
    assert_clean(path)


# -- in memory


async def test_what_is_refused() -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER)
    async with open_disk(child, data=data) as disk:
        with pytest.raises(UnsupportedFeature):
            await disk.driver.co_pwritev_compressed(0, IoVector.of(bytes(CLUSTER)))
        with pytest.raises(UnsupportedFeature):
            await disk.driver.co_save_vmstate(IoVector.of(b"state"), 0)
        with pytest.raises(UnsupportedFeature):
            await disk.driver.co_snapshot_goto("x")
        disk.at_rest()
    with pytest.raises(OptionError, match="'data-file' is required for this image"):
        async with open_disk(child):
            pass
    with pytest.raises(OptionError, match="'data-file' can only be set for images with an external data file"):
        async with open_disk(await new_image(SIZE), data=data):
            pass


async def test_opened_for_information_the_data_is_out_of_reach() -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER, data_file_raw=True)
    async with open_disk(child, data=data, flags=OpenFlags(read_only=True, no_io=True)) as disk:
        assert disk.driver._image.data is not data
        for work in (disk.read(0, 512), disk.write(0, b"x"), disk.discard(0, CLUSTER)):
            with pytest.raises(UnsupportedFeature, match="without its data file"):
                await work
        assert not disk.driver.try_preadv(512, [memoryview(bytearray(512))], 512)
        assert not (await disk.check()).corruptions


@pytest.mark.parametrize("passed", [None, True, False])
async def test_what_is_let_go_of_is_discarded_when_that_is_safe(passed: bool | None) -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER)
    async with open_disk(child, data=data, pass_discard_request=passed) as disk:
        await disk.write(0, b"a" * 8 * CLUSTER)
        await disk.flush()
        data.log.clear()
        await disk.discard(0, 4 * CLUSTER)
        await disk.discard(6 * CLUSTER, CLUSTER)
        await disk.write(CLUSTER, b"b" * CLUSTER)  # taken again before it was discarded
        assert not [entry for entry in data.log if entry[0] == "discard"], "its entry is not on disk yet"
        await disk.flush()
        gone = [(0, CLUSTER), (2 * CLUSTER, 2 * CLUSTER), (6 * CLUSTER, CLUSTER)]
        assert [entry[1:] for entry in data.log if entry[0] == "discard"] == (gone if passed is not False else [])
        assert await disk.read(0, 4 * CLUSTER) == bytes(CLUSTER) + b"b" * CLUSTER + bytes(2 * CLUSTER)
        await disk.write(0, b"c")
        await disk.flush()
        assert await disk.read(0, CLUSTER) == b"c".ljust(CLUSTER, b"\0")
    check_image(child.data)


async def test_data_is_stable_before_what_names_it() -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER)
    async with open_disk(child, data=data) as disk:
        await disk.write(0, b"a" * CLUSTER)
        order: list[str] = []
        for name, file in (("data", data), ("file", child)):
            real = file.co_flush

            async def flush(name: str = name, real: Any = real) -> None:
                order.append(name)
                await real()

            file.co_flush = flush  # type: ignore[method-assign]  # listened to
        await disk.driver.co_flush_to_os()
        assert order[:2] == ["data", "file"]


async def test_no_zeroes_overtake_a_write_into_a_raw_data_file() -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER, data_file_raw=True)
    async with open_disk(child, data=data) as disk:
        room = await disk.driver.co_allocate(0, 512)
        zeroes = asyncio.ensure_future(disk.zero(0, CLUSTER, MAY_UNMAP))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not zeroes.done()
        assert disk.driver.start_pwritev(CLUSTER + 512, [b"x" * 512], 512) is None
        await room.child.co_pwritev(0, IoVector.of(b"x" * 512))
        await room.link()
        await zeroes
        assert await disk.read(0, CLUSTER) == bytes(CLUSTER) == data.data[:CLUSTER]
        disk.at_rest()
    check_image(child.data)


@pytest.mark.parametrize("raw", [False, True])
async def test_a_data_file_that_is_too_short_reads_as_zeroes(raw: bool) -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER, data_file_raw=raw)
    async with open_disk(child, data=data) as disk:
        await disk.write(0, b"a" * SIZE)
    del data.data[CLUSTER + 100 :]
    async with open_disk(child, data=data) as disk:
        assert await disk.read(0, SIZE) == (b"a" * (CLUSTER + 100)).ljust(SIZE, b"\0")
        await disk.write(8 * CLUSTER, b"b" * 512)
        assert await disk.read(8 * CLUSTER, 512) == b"b" * 512
    check_image(child.data)


ENTRIES = {
    "elsewhere": COPIED | 5 * CLUSTER,
    "elsewhere, in reserve": COPIED | ZERO | 5 * CLUSTER,
    "far away": COPIED | 1 << 50,
    "at the data file's start": COPIED,
    "crooked": COPIED | CLUSTER + 512,
    "compressed": COMPRESSED | CLUSTER,
}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
async def test_an_entry_that_cannot_be_true_reads_and_writes_nothing(entry: int, raw: bool) -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER, data_file_raw=raw)
    async with open_disk(child, data=data) as disk:
        await disk.write(0, b"a" * SIZE)
    put(child, first_l2_table(child)[1] + 8, entry)
    before = bytes(data.data)
    for read_only in (True, False):
        async with open_disk(child, data=data, flags=OpenFlags(read_only=read_only)) as disk:
            with pytest.raises(CorruptImage):
                await (disk.read(CLUSTER, 512) if read_only else disk.write(CLUSTER, b"b" * 512))
            assert not disk.driver.try_preadv(CLUSTER, [memoryview(bytearray(512))], 512)
    assert data.data == before
    with pytest.raises(CorruptImage, match="cannot be opened read/write"):
        async with open_disk(child, data=data):
            pass


async def test_an_entry_that_is_not_said_to_be_copied_is_ours_all_the_same() -> None:
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER, data_file_raw=True)
    async with open_disk(child, data=data) as disk:
        await disk.write(0, b"a" * SIZE)
    put(child, first_l2_table(child)[1] + 8, CLUSTER)
    async with open_disk(child, data=data) as disk:
        await disk.write(CLUSTER, b"b" * 512)
        assert await disk.read(CLUSTER, CLUSTER) == b"b" * 512 + b"a" * (CLUSTER - 512)
        assert (await disk.check()).corruptions == 1


@pytest.mark.parametrize("extended", [False, True])
async def test_the_first_cluster_is_data_at_0(extended: bool) -> None:
    size = 16384 if extended else CLUSTER
    child, data = await new_image_with_data_file(8 * size, cluster_size=size, extended_l2=extended)
    async with open_disk(child, data=data) as disk:
        await disk.write(0, b"a" * 2 * size)
        found = await disk.driver.co_map(0, 2 * size)
        assert (found.kind, found.length, found.host_offset) == (ExtentKind.DATA, 2 * size, 0)
        await disk.discard(0, size)
        assert (await disk.driver.co_map(0, size)).kind is ExtentKind.ZERO
        await disk.write(0, b"b" * 512)
        assert await disk.read(0, 1024) == b"b" * 512 + bytes(512)
        await disk.zero(0, size)
        assert await disk.read(0, size) == bytes(size)
        await disk.truncate(4 * size, PreallocMode.OFF)
        assert len(data.data) == 4 * size
    check_image(child.data)
    (word,) = struct.unpack(">Q", child.data[(at := first_l2_table(child)[1]) : at + 8])
    assert word & ~(COPIED | ZERO) == 0


async def test_emptied_it_shows_what_is_below() -> None:
    base = MemoryChild(b"B" * SIZE)
    child, data = await new_image_with_data_file(SIZE, cluster_size=CLUSTER, backing_file="base.raw", backing_fmt="raw")
    async with open_disk(child, data=data, backing=base) as disk:
        await disk.write(0, b"a" * 10)
        assert await disk.read(0, CLUSTER) == b"a" * 10 + b"B" * (CLUSTER - 10)
        await disk.driver.co_make_empty()
        assert await disk.read(0, SIZE) == b"B" * SIZE
    check_image(child.data)
