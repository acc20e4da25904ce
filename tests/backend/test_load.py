"""Thirty-two readers and writers on a real image, with drains, growth, zeroes and cancellations among them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from blockio.backend import BlockBackend
from blockio.types import OpenFlags
from tests.support.qemu import assert_clean, qemu_img

UNIT = 48 << 10
"""Each worker's own stretch; it shares clusters with its neighbours'."""
WORKERS = 32


@pytest.mark.both_loops
@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("aio", ["threads", "io_uring"])
async def test_everything_at_once(tmp_path: Path, aio: str) -> None:
    base, top, out = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "out.raw"
    length = WORKERS * UNIT
    base.write_bytes(bytes(1 + at % 251 for at in range(length - 5 * 512)))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", "-o", "cluster_size=16k", top, str(length))
    model = bytearray(base.read_bytes().ljust(length, b"\0"))
    options = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(top), "aio": aio},
        "backing": {"driver": "raw", "file": {"driver": "file", "filename": str(base)}},
    }

    async with await BlockBackend.new_open(options=options, flags=OpenFlags(unmap=True), resize=True) as blk:

        async def worker(number: int) -> None:
            dice = random.Random(number)
            start = number * UNIT
            for turn in range(12):
                offset = start + dice.randrange(UNIT - 9000)
                nbytes = dice.choice((1, 512, 4096, 9000))
                if turn % 5 == 4:
                    await blk.co_pwrite_zeroes(offset, nbytes)
                    model[offset : offset + nbytes] = bytes(nbytes)
                else:
                    data = dice.randbytes(nbytes)
                    await blk.co_pwritev(offset, data)
                    model[offset : offset + nbytes] = data
                memory = bytearray(UNIT)
                await blk.co_preadv(start, memory)
                assert memory == model[start : start + UNIT]

        async def victim(number: int) -> None:
            memory = bytearray(UNIT)
            while True:
                await blk.co_preadv(number * UNIT, memory)
                await asyncio.sleep(0)

        workers = [asyncio.create_task(worker(number)) for number in range(WORKERS)]
        for turn in range(6):
            victims = [asyncio.create_task(victim(number)) for number in range(8)]
            for _ in range(10):
                await asyncio.sleep(0)
            for task in victims:
                task.cancel()
            async with blk.drained():
                assert blk.in_flight == 0
                if turn == 3:
                    await blk.co_truncate(length + UNIT)
            await asyncio.gather(*victims, return_exceptions=True)
            await blk.co_flush()
        await asyncio.gather(*workers)

    assert_clean(top)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", top, out)
    assert out.read_bytes() == model + bytes(UNIT)
