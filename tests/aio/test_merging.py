"""Neighbouring transfers of one batch become one for the kernel, and nobody sees it by what comes of them."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.aio import uring
from blockio.aio.engine import FileEngine
from blockio.aio.merging import MAX_MERGED, MAX_PARTS, follows, shares
from blockio.errors import BlockError
from tests.aio.test_engine import CONTENT, SIZE, needs_ring, ring_on

PIECE = 512


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_the_shares_are_what_each_would_have_heard(lengths: list[int], data: st.DataObject) -> None:
    result = data.draw(st.integers(-5, sum(lengths)))
    told = list(shares(result, lengths))
    heard = [share or 0 for share in told]
    assert sum(heard) == max(result, 0)
    assert all(share is None or 0 < share <= length for share, length in zip(told, lengths, strict=True))
    reached = [share == length for share, length in zip(told, lengths, strict=True)]
    assert sorted(reached, reverse=True) == reached
    assert 0 not in told


def test_only_what_goes_on_in_the_same_way_follows() -> None:
    first = (1, 0, 0, 7, 4096, 0xAAAA, 512, 0)
    assert follows((1, 0, 0, 7, 4608, 0xBBBB, 512, 0), first, 4608)
    for other in (
        (2, 0, 0, 7, 4608, 0xBBBB, 512, 0),
        (1, 16, 0, 7, 4608, 0xBBBB, 512, 0),
        (1, 0, 0, 8, 4608, 0xBBBB, 512, 0),
        (1, 0, 0, 7, 4607, 0xBBBB, 512, 0),
        (1, 0, 0, 7, 4608, 0xBBBB, 512, os.RWF_DSYNC),
    ):
        assert not follows(other, first, 4608)


def content(path: Path) -> bytes:
    return path.read_bytes()


async def together(engine: FileEngine, enter: list[int], *requests: tuple[int, memoryview, bool]) -> list[object]:
    """Make (offset, memory, is it a write) *requests* in one batch; what came of each."""
    engine.plug()
    tasks = [
        asyncio.create_task(engine.pwritev(offset, [view]) if write else engine.preadv(offset, [view]))
        for offset, view, write in requests
    ]
    await asyncio.sleep(0)
    del enter[:]
    engine.unplug()
    return await asyncio.gather(*tasks, return_exceptions=True)


def pieces(*numbers: int) -> list[tuple[int, memoryview, bool]]:
    return [(PIECE * number, memoryview(bytearray(PIECE)), False) for number in numbers]


@needs_ring
@pytest.mark.both_loops
async def test_neighbours_are_one_for_the_kernel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, enter):
        wanted = pieces(3, 4, 5, 9, 10, 2, 6)
        assert await together(engine, enter.batches, *wanted) == [PIECE] * 7
        assert enter.batches == [4]
        for offset, view, _ in wanted:
            assert view == CONTENT[offset : offset + PIECE]
        news = [(PIECE * n, memoryview(bytearray([n]) * PIECE), True) for n in range(5)]
        assert await together(engine, enter.batches, *news, *pieces(5)) == [PIECE] * 6
        assert enter.batches == [2]
        assert content(path) == b"".join(bytes([n]) * PIECE for n in range(5)) + CONTENT[5 * PIECE :]
        assert (ring._in_flight, len(ring._free)) == (0, uring.ENTRIES)


@needs_ring
@pytest.mark.parametrize("nbytes", [PIECE, MAX_MERGED // 4])
async def test_there_is_an_end_to_it(path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    with ring_on(path, monkeypatch) as (engine, _, enter):
        count = 2 * min(MAX_PARTS, MAX_MERGED // nbytes) if nbytes > PIECE else uring.ENTRIES - 1
        wanted = [(nbytes * n % SIZE, memoryview(bytearray(nbytes)), False) for n in range(count)]
        assert await together(engine, enter.batches, *wanted) == [nbytes] * count
        assert enter.batches == [2 if nbytes > PIECE else 1]


@needs_ring
async def test_the_end_of_the_file_is_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(path, 3 * PIECE - 100)
    with ring_on(path, monkeypatch) as (engine, _, enter):
        assert await together(engine, enter.batches, *pieces(1, 2, 3, 4)) == [PIECE, PIECE - 100, 0, 0]


@needs_ring
@pytest.mark.parametrize("result", [-errno.EIO, -errno.EAGAIN, 0, PIECE, PIECE + 100])
async def test_what_spoils_all_of_them_is_asked_of_each(
    path: Path, monkeypatch: pytest.MonkeyPatch, result: int
) -> None:
    """An error, or a transfer cut short: each is told its own outcome, and what was not done is done."""
    with ring_on(path, monkeypatch) as (engine, ring, enter):
        real, once = ring._complete, [result]
        monkeypatch.setattr(ring, "_complete", lambda slot, told: real(slot, once.pop() if once else told))
        news = [(PIECE * n, memoryview(bytearray([n]) * PIECE), True) for n in range(4)]
        assert await together(engine, enter.batches, *news) == [PIECE] * 4
        assert enter.batches[0] == 1
        assert sum(enter.batches) == (4 if result >= PIECE else 5)
        assert (
            content(path)[: 5 * PIECE]
            == b"".join(bytes([n]) * PIECE for n in range(4)) + CONTENT[4 * PIECE : 5 * PIECE]
        )
        assert (len(ring._queue), ring._in_flight, len(ring._free)) == (0, 0, uring.ENTRIES)


@needs_ring
async def test_an_error_is_told_to_whom_it_belongs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, enter):
        real, results = ring._complete, [-errno.EIO, PIECE, -errno.ENOSPC, PIECE]
        monkeypatch.setattr(ring, "_complete", lambda slot, _: real(slot, results.pop(0)))
        first, second, third = await together(engine, enter.batches, *pieces(0, 1, 2))
        assert (first, third) == (PIECE, PIECE)
        assert isinstance(second, BlockError)
        assert second.errno == errno.ENOSPC
        enter.errors = [errno.ENXIO, errno.ENXIO]
        monkeypatch.setattr(ring, "_complete", real)
        refused = await together(engine, enter.batches, *pieces(0, 1))
        assert [error.errno for error in refused if isinstance(error, BlockError)] == [errno.ENXIO] * 2
        assert (ring._unsent, ring._in_flight, len(ring._free)) == (0, 0, uring.ENTRIES)


@needs_ring
async def test_one_is_cancelled_while_the_kernel_has_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, _):
        reap = ring._reap
        monkeypatch.setattr(ring, "_reap", lambda: None)
        engine.plug()
        memory = [bytearray(PIECE) for _ in range(3)]
        tasks = [asyncio.create_task(engine.preadv(PIECE * n, [memoryview(m)])) for n, m in enumerate(memory)]
        await asyncio.sleep(0)
        engine.unplug()
        assert ring._in_flight == 1
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        with pytest.raises(BufferError):
            memory[1].clear()  # it is the kernel's
        monkeypatch.setattr(ring, "_reap", reap)
        reap()
        assert await asyncio.gather(*tasks, return_exceptions=True) != []
        assert [task.cancelled() for task in tasks] == [False, True, False]
        assert b"".join(memory) == CONTENT[: 3 * PIECE]
        assert (ring._in_flight, len(ring._free)) == (0, uring.ENTRIES)
