"""Copying inside the storage, between two backends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockio.aio.context import IOThread
from blockio.backend import BlockBackend
from blockio.errors import NoMedium, OutOfRange, ReadOnly, UnsupportedFeature
from blockio.types import OpenFlags, Perm, RequestFlags

SIZE = 1 << 20


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[BlockBackend, BlockBackend]]:
    """A disk that holds a pattern, and an empty one."""
    (tmp_path / "a.raw").write_bytes(bytes(at * 7 % 251 for at in range(SIZE)))
    (tmp_path / "b.raw").write_bytes(bytes(SIZE))
    source, target = [
        await BlockBackend.new_open(
            options={"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / name)}}
        )
        for name in ("a.raw", "b.raw")
    ]
    yield source, target
    assert source.in_flight == target.in_flight == 0
    await source.close()
    await target.close()


async def read(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    memory = bytearray(nbytes)
    await blk.co_preadv(offset, memory)
    return bytes(memory)


async def test_copied(pair: tuple[BlockBackend, BlockBackend]) -> None:
    source, target = pair
    await source.co_copy_range(5000, target, 100, 10_000)
    assert await read(target, 99, 10_002) == b"\0" + await read(source, 5000, 10_000) + b"\0"
    await source.co_copy_range(0, source, 500_000, 4096, 0, RequestFlags.FUA)
    assert await read(source, 500_000, 4096) == await read(source, 0, 4096)
    await source.co_copy_range(0, target, 200, 300, 0, RequestFlags.ZERO_WRITE)
    assert await read(target, 200, 300) == bytes(300)
    assert source.stats.snapshot().read.operations == 3  # a copy is nobody's read


async def test_the_source_is_checked_first(pair: tuple[BlockBackend, BlockBackend]) -> None:
    source, target = pair
    async with BlockBackend(Perm.ALL) as empty:
        with pytest.raises(OutOfRange):
            await source.co_copy_range(SIZE, empty, 0, 1)
        with pytest.raises(NoMedium):
            await source.co_copy_range(0, empty, 0, 1)
        with pytest.raises(NoMedium):
            await empty.co_copy_range(0, target, SIZE, 1)
    with pytest.raises(OutOfRange):
        await source.co_copy_range(0, target, SIZE - 1, 2)
    with pytest.raises(ValueError, match="NO_FALLBACK"):
        await source.co_copy_range(0, target, 0, 1, RequestFlags.NO_FALLBACK)
    with pytest.raises(ValueError, match="-1"):
        await source.co_copy_range(0, target, 0, -1)
    target.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
    with pytest.raises(ReadOnly):
        await source.co_copy_range(0, target, 0, 1)


async def test_where_it_cannot_be(pair: tuple[BlockBackend, BlockBackend], blk: BlockBackend, tmp_path: Path) -> None:
    source, target = pair
    with pytest.raises(UnsupportedFeature):
        await source.co_copy_range(0, blk, 0, 512)
    async with IOThread() as thread:
        options = {"driver": "raw", "file": {"driver": "file", "filename": str(tmp_path / "a.raw")}}
        flags = OpenFlags(read_only=True)
        far = await BlockBackend.new_open(options=options, flags=flags, context=thread.context)
        with pytest.raises(UnsupportedFeature):
            await far.co_copy_range(0, target, 0, 512)
        await far.close()


async def test_a_drained_end_holds_it(pair: tuple[BlockBackend, BlockBackend]) -> None:
    source, target = pair
    for end in pair:
        async with end.drained():
            copy = asyncio.create_task(source.co_copy_range(0, target, 0, 512))
            for _ in range(5):
                await asyncio.sleep(0)
            assert end.in_flight == 0
            assert not copy.done()
        await copy
