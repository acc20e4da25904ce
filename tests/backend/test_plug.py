"""Plug and unplug: what is held back goes to the kernel in one call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from blockio.aio.context import AioContext
from blockio.aio.uring import Uring
from blockio.backend import BlockBackend
from blockio.types import OpenFlags, Perm


async def test_one_call_for_all(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 18))
    options = {"driver": "raw", "file": {"driver": "file", "filename": str(path), "aio": "io_uring"}}
    try:
        ring = Uring.acquire(AioContext.current())
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    try:
        async with await BlockBackend.new_open(options=options, flags=OpenFlags(cache_direct=True)) as blk:
            calls: list[int] = []
            enter = ring._enter

            def counted(fd: int, to_submit: int) -> int:
                calls.append(to_submit)
                return enter(fd, to_submit)

            ring._enter = counted
            memory = [blk.blockalign(4096) for _ in range(16)]
            blk.io_plug()
            with blk.plugged():
                requests = [blk.aio_preadv(at * 8192 % 61440, part) for at, part in enumerate(memory)]
                for _ in range(5):
                    await asyncio.sleep(0)
            assert calls == []
            blk.io_unplug()
            assert calls == [16]
            for request in requests:
                await request
            with blk.plugged():
                requests = [blk.aio_preadv(at * 4096, part) for at, part in enumerate(memory)]
                for _ in range(5):
                    await asyncio.sleep(0)
            assert calls == [16, 1]  # neighbours are one
            for request in requests:
                await request
            with pytest.raises(RuntimeError, match="not plugged"):
                blk.io_unplug()
    finally:
        AioContext.current().unshare(Uring)


async def test_without_a_medium(blk: BlockBackend) -> None:
    async with BlockBackend(Perm.ALL) as empty:
        with empty.plugged():
            pass
    blk.io_plug()
    await blk.remove_bs()
    blk.io_unplug()
