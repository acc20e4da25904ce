"""Every await of a request's path, cancelled, with the backend used afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.graph.node import all_nodes
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.driver import MemoryDisk
from blockio.types import OpenFlags, RequestFlags
from tests.backend.conftest import LENGTH
from tests.support.qemu import assert_clean, qemu_img

Scenario = Callable[[BlockBackend], Coroutine[Any, Any, object]]


async def parked(blk: BlockBackend) -> None:
    async with blk.drained():
        request = asyncio.create_task(blk.co_pwritev(100, b"parked"))
        await asyncio.sleep(0)
    await request


async def called_back(blk: BlockBackend) -> None:
    await blk.aio_pwritev(100, b"called back")


SCENARIOS: dict[str, Scenario] = {
    "read": lambda blk: blk.co_preadv(100, bytearray(70_000)),
    "write": lambda blk: blk.co_pwritev(100, b"w" * 70_000),
    "fua": lambda blk: blk.co_pwritev(100, b"w" * 70_000, RequestFlags.FUA),
    "zeroes": lambda blk: blk.co_pwrite_zeroes(100, 200_000),
    "unmap": lambda blk: blk.co_pwrite_zeroes(65536, 131_072, RequestFlags.MAY_UNMAP),
    "discard": lambda blk: blk.co_pdiscard(65536, 131_072),
    "flush": lambda blk: blk.co_flush(),
    "grow": lambda blk: blk.co_truncate(2 * LENGTH),
    "status": lambda blk: blk.co_block_status(0, LENGTH),
    "drain": lambda blk: blk.drain(),
    "parked": parked,
    "aio": called_back,
}


async def check(blk: BlockBackend, number: int) -> None:
    """Nothing is left of the cancelled request, and the disk does what it should."""
    await blk.drain()
    assert blk.in_flight == 0
    assert not blk.quiesced
    data = bytes([number % 255 + 1]) * 5000
    await blk.co_pwritev(300, data)
    memory = bytearray(5000)
    await blk.co_preadv(300, memory)
    assert memory == data
    memory = bytearray(512)
    await blk.co_preadv(512 * 1024, memory)
    assert memory == b"k" * 512, "a cancelled request changed other data"
    await blk.co_truncate(LENGTH)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_over_memory(blk: BlockBackend, disk: MemoryDisk, name: str) -> None:
    await blk.co_pwritev(512 * 1024, b"k" * 512)
    await cancel_at_every_await(lambda: nothing(SCENARIOS[name](blk)), lambda nth: check(blk, nth))


async def nothing(coro: Coroutine[Any, Any, object]) -> None:
    await coro


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("aio", ["threads", "io_uring"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_over_qcow2(tmp_path: Path, name: str, aio: str) -> None:
    """With metadata to write, and a file below; afterwards the image is clean, leaks aside for none were made."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, str(LENGTH))
    options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path), "aio": aio}}
    async with await BlockBackend.new_open(options=options, flags=OpenFlags(unmap=True), resize=True) as blk:
        await blk.co_pwritev(512 * 1024, b"k" * 512)
        await blk.co_pwritev(0, b"x" * 100_000)
        await cancel_at_every_await(lambda: nothing(SCENARIOS[name](blk)), lambda nth: check(blk, nth))
    assert_clean(path)


async def test_opening(disk: MemoryDisk) -> None:
    async def open_and_close() -> None:
        async with await BlockBackend.new_open(options=disk.options()) as blk:
            await blk.co_flush()

    async def nothing_is_open(_nth: int) -> None:
        assert all_nodes() == []

    await cancel_at_every_await(open_and_close, nothing_is_open)


@pytest.mark.peer("qemu-img")
async def test_opening_a_chain(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    backing = {"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}}
    options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(top)}, "backing": backing}

    async def open_and_close() -> None:
        blk = await BlockBackend.new_open(options=options)
        try:
            await blk.co_pwritev(0, b"x")
        finally:
            await blk.close()

    async def nothing_is_open(_nth: int) -> None:
        assert all_nodes() == []

    assert await cancel_at_every_await(open_and_close, nothing_is_open)
    assert_clean(top)
