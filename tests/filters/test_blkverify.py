"""The filter ``blkverify``: two copies that must stay alike."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.img import create
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.conformance import Traits, check_driver
from blockio.testing.driver import MemoryDisk
from tests.support.qemu import assert_clean, pattern, qemu_io

SIZE = 1 << 20
KIB = 1024


@pytest.fixture
def disks() -> Iterator[tuple[MemoryDisk, MemoryDisk]]:
    """The raw copy and the one that is tested."""
    with MemoryDisk(SIZE, fast=False) as raw, MemoryDisk(SIZE, fast=False) as test:
        yield raw, test


@asynccontextmanager
async def opened(raw: MemoryDisk, test: MemoryDisk) -> AsyncIterator[BlockBackend]:
    options = {"driver": "blkverify", "raw": raw.options(), "test": test.options()}
    async with await BlockBackend.new_open(options=options) as blk:
        yield blk
        assert blk.in_flight == 0


async def test_conformance() -> None:
    disks: list[MemoryDisk] = []

    async def make(length: int) -> Mapping[str, Any]:
        for _ in range(2):
            disks.append(MemoryDisk(length))
            disks[-1].__enter__()
        return {"driver": "blkverify", "raw": disks[-2].options(), "test": disks[-1].options()}

    report = await check_driver(make, Traits(resizable=False, faults=False))
    for disk in disks:
        disk.__exit__()
    assert report.ok, f"\n{report}"


async def test_what_is_written_goes_to_both(disks: tuple[MemoryDisk, MemoryDisk]) -> None:
    raw, test = disks
    async with opened(raw, test) as blk:
        await blk.co_pwritev(5, b"hello")
        await blk.co_pwrite_zeroes(6, 2)
        memory = bytearray(12)
        await blk.co_preadv(0, memory)
        assert memory == b"\0" * 5 + b"h\0\0lo\0\0"
        await blk.co_flush()
    assert raw.data == test.data
    assert bytes(raw.data[:12]) == bytes(memory)


async def test_the_first_difference_is_named(disks: tuple[MemoryDisk, MemoryDisk]) -> None:
    raw, test = disks
    async with opened(raw, test) as blk:
        test.data[70_001] = 1
        message = "blkverify: read offset=65536 bytes=65536 contents mismatch at offset 70001"
        with pytest.raises(BlockError, match=message) as caught:
            await blk.co_preadv(64 * KIB, bytearray(64 * KIB))
        assert caught.value.errno == errno.EIO
        await blk.co_preadv(0, bytearray(64 * KIB))
        await blk.co_pwritev(70_000, b"mend it")
        await blk.co_preadv(64 * KIB, bytearray(64 * KIB))


@pytest.mark.parametrize("failing", [0, 1], ids=["raw", "test"])
async def test_one_that_fails_alone_is_a_difference(disks: tuple[MemoryDisk, MemoryDisk], failing: int) -> None:
    async with opened(*disks) as blk:
        disks[failing].fail = BlockError(errno=errno.ENOSPC)
        with pytest.raises(BlockError, match="blkverify: write offset=0 bytes=3 return value mismatch"):
            await blk.co_pwritev(0, b"abc")
        disks[failing].fail = None
        await blk.co_pwritev(0, b"abc")
        await blk.co_preadv(0, bytearray(512))


async def test_both_that_fail_alike_are_an_error_like_any(disks: tuple[MemoryDisk, MemoryDisk]) -> None:
    async with opened(*disks) as blk:
        for disk in disks:
            disk.fail = BlockError(errno=errno.ENOSPC)
        with pytest.raises(BlockError) as caught:
            await blk.co_pwritev(0, b"abc")
        assert caught.value.errno == errno.ENOSPC
        for disk in disks:
            disk.fail = None
        await blk.co_preadv(0, bytearray(512))


async def test_cancelled_the_copies_stay_alike(disks: tuple[MemoryDisk, MemoryDisk]) -> None:
    raw, test = disks
    async with opened(raw, test) as blk:

        async def scenario() -> None:
            await blk.co_pwritev(0, b"x" * 4096)
            await blk.co_preadv(0, bytearray(4096))
            await blk.co_pwritev(0, b"y" * 4096)

        async def afterwards(_nth: int) -> None:
            assert blk.in_flight == 0
            assert raw.data == test.data
            await blk.co_preadv(0, bytearray(4096))

        await cancel_at_every_await(scenario, afterwards)


async def test_requests_for_the_same_bytes_do_not_overtake_each_other(disks: tuple[MemoryDisk, MemoryDisk]) -> None:
    raw, test = disks
    async with opened(raw, test) as blk:
        test.stall()
        writes = [asyncio.create_task(blk.co_pwritev(100, bytes([at]) * 1000)) for at in range(1, 5)]
        read = asyncio.create_task(blk.co_preadv(0, memory := bytearray(2000)))
        for _ in range(20):
            await asyncio.sleep(0)
        test.go()
        await asyncio.gather(*writes, read)
        assert memory == bytes(100) + b"\4" * 1000 + bytes(900)
    assert raw.data == test.data


async def test_lengths_and_discards_are_left_alone(disks: tuple[MemoryDisk, MemoryDisk]) -> None:
    raw, test = disks
    options = {"driver": "blkverify", "discard": "unmap", "raw": raw.options(), "test": test.options()}
    async with await BlockBackend.new_open(options=options, resize=True) as blk:
        with pytest.raises(UnsupportedFeature):
            await blk.co_truncate(2 * SIZE)
        await blk.co_pwritev(0, b"kept")
        await blk.co_pdiscard(0, 64 * KIB)
        await blk.co_preadv(0, memory := bytearray(4))
        assert memory == b"kept"


async def test_a_child_that_is_missing(disks: tuple[MemoryDisk, MemoryDisk]) -> None:
    raw, _ = disks
    for name, other in (("raw", "test"), ("test", "raw")):
        options = {"driver": "blkverify", name: raw.options()}
        with pytest.raises(OptionError, match=f'A block device must be specified for "{other}"'):
            await BlockBackend.new_open(options=options)
    with pytest.raises(OptionError, match="blkverify requires raw copy and original image path"):
        await BlockBackend.new_open("blkverify:one")


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_a_raw_copy_beside_qcow2_by_name(tmp_path: Path) -> None:
    raw, path = tmp_path / "copy.raw", tmp_path / "disk.qcow2"
    await create(str(raw), "raw", size=SIZE)
    await create(str(path), "qcow2", size=SIZE, options={"cluster_size": 4096})
    name = f"blkverify:{raw}:{path}"
    async with await BlockBackend.new_open(name, options={"driver": "blkverify"}, gate=AllowAll()) as blk:
        assert blk.bs is not None
        assert blk.bs.filename == name
        for at in range(0, SIZE - 20_000, 70_001):
            await blk.co_pwritev(at, pattern(20_000, seed=at))
        await blk.co_pwrite_zeroes(100_000, 50_000)
        await blk.co_preadv(0, bytearray(SIZE))
    assert_clean(path)
    qemu_io(raw, "write -P 9 300k 512", format="raw")
    async with await BlockBackend.new_open(name, options={"driver": "blkverify"}, gate=AllowAll()) as blk:
        with pytest.raises(BlockError, match=f"contents mismatch at offset {300 * KIB}"):
            await blk.co_preadv(0, bytearray(SIZE))
