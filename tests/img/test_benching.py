"""``img.bench``: which requests are sent, and what is left when one fails or all are cancelled."""

from __future__ import annotations

import asyncio
import errno
from itertools import count as ticks

import pytest

from blockio import img
from blockio.errors import BlockError
from blockio.testing.driver import MemoryDisk

KIB = 1024


def image_of(disk: MemoryDisk) -> img.Image:
    return img.Image(options=disk.options())


@pytest.mark.parametrize("depth", [1, 3, 64])
async def test_requests_lie_a_step_apart_and_go_round(depth: int) -> None:
    with MemoryDisk(64 * KIB, fast=False) as disk:
        result = await img.bench(
            image_of(disk), count=7, depth=depth, offset=4 * KIB, step=20 * KIB, buffer_size=512, clock=ticks().__next__
        )
        offsets = sorted(offset for operation, offset, *_ in disk.log if operation == "read")
    assert offsets == sorted((4 * KIB + number * 20 * KIB) % (64 * KIB) for number in range(7))
    assert (result.requests, result.nbytes, result.seconds) == (7, 7 * 512, 1)


@pytest.mark.parametrize("drain", [True, False])
async def test_flushes_come_after_so_many_writes(drain: bool) -> None:
    with MemoryDisk(64 * KIB, fast=False) as disk:
        await img.bench(
            image_of(disk), count=10, depth=2, write=True, pattern=7, flush_interval=4, drain_on_flush=drain
        )
        flushes = [operation for operation, *_ in disk.log].count("flush")
        assert disk.data[: 40 * KIB] == b"\7" * (40 * KIB)
        assert not any(disk.data[40 * KIB :])
    assert flushes >= 3


async def test_a_failed_request_ends_it_and_it_works_again() -> None:
    with MemoryDisk(64 * KIB, fast=False) as disk:
        disk.fail = BlockError(errno=errno.EIO)
        with pytest.raises(BlockError, match=r"^Failed request: Input/output error$"):
            await img.bench(image_of(disk), count=10, depth=4)
        disk.fail = None
        with pytest.raises(BlockError, match=r"^Failed request: Input/output error$"):
            await img.bench(image_of(disk), count=1, offset=64 * KIB)
        await img.bench(image_of(disk), count=10, depth=4)


@pytest.mark.both_loops
async def test_cancelled_no_request_is_left() -> None:
    with MemoryDisk(64 * KIB, fast=False) as disk:
        disk.stall()
        task = asyncio.create_task(img.bench(image_of(disk), count=100, depth=4))
        while disk.waiting < 4:  # noqa: ASYNC110  # the disk tells nobody
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert disk.waiting == 0
        disk.go()
        await img.bench(image_of(disk), count=100, depth=4)


async def test_mistakes_of_the_program() -> None:
    with MemoryDisk(64 * KIB) as disk:
        with pytest.raises(ValueError, match="depth is at least 1"):
            await img.bench(image_of(disk), depth=0)
        with pytest.raises(ValueError, match="flushes are for writes"):
            await img.bench(image_of(disk), flush_interval=64)
