"""The small parts: shielding without a task, workers, the padding's arithmetic, limits, zero memory."""

from __future__ import annotations

import asyncio

import pytest

from blockio.buffers import IoVector
from blockio.errors import OutOfRange
from blockio.io.align import Padding
from blockio.io.limits import MAX_LENGTH, check_range, check_transfer, merged_limits
from blockio.io.memory import zero_vector
from blockio.io.shield import shielded
from blockio.io.workers import MAX_WORKERS, Workers
from blockio.types import INT_MAX, BlockLimits

# -- shielded


async def test_shielded_gives_the_result_without_a_task() -> None:
    async def work() -> int:
        return len(asyncio.all_tasks())

    assert await shielded(work()) == 1


@pytest.mark.both_loops
async def test_a_cancellation_waits_until_the_work_is_done() -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        await gate.wait()
        done.append("work")

    async def caller() -> None:
        await shielded(work())
        done.append("unreached")

    task = asyncio.ensure_future(caller())
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["work"]


async def test_what_the_work_raises_comes_through_and_the_cancellation_wins_over_it() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise OutOfRange

    with pytest.raises(OutOfRange):
        await shielded(work())

    task = asyncio.ensure_future(_await_shielded(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert task.cancelled()
    assert caught.value is not None


async def _await_shielded(work: object) -> None:
    await shielded(work)  # type: ignore[arg-type]  # a coroutine, whose type does not matter here


async def test_a_timeout_around_shielded_work_is_a_timeout() -> None:
    async def work() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def hurried() -> None:
        async with asyncio.timeout(0):
            await shielded(work())

    with pytest.raises(TimeoutError):
        await hurried()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


# -- workers


async def test_no_more_than_so_many_work_at_a_time() -> None:
    busy = most = done = 0

    async def piece() -> None:
        nonlocal busy, most, done
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0)
        busy -= 1
        done += 1

    async with Workers() as workers:
        for _ in range(30):
            await workers.add(piece())
    assert (busy, most, done) == (0, MAX_WORKERS, 30)


async def test_the_first_error_stops_the_adding_and_the_others_end_by_themselves() -> None:
    ended: list[int] = []

    async def piece(number: int) -> None:
        await asyncio.sleep(0)
        if number == 2:
            raise OutOfRange
        await asyncio.sleep(0)
        ended.append(number)

    async def all_of_them() -> None:
        async with Workers() as workers:
            for number in range(100):
                await workers.add(piece(number))

    with pytest.raises(OutOfRange):
        await all_of_them()
    assert 0 in ended
    assert 2 not in ended
    assert len(ended) < 20


async def test_a_cancellation_cancels_the_workers_and_waits_for_them() -> None:
    ended: list[str] = []

    async def piece() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)
            ended.append("x")

    async def caller() -> None:
        async with Workers() as workers:
            for _ in range(3):
                await workers.add(piece())

    task = asyncio.ensure_future(caller())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["x"] * 3


# -- padding


@pytest.mark.parametrize(
    ("offset", "nbytes", "padded", "merged"),
    [
        # blocks of 4:  0..4 | 4..8 | 8..12 | 12..16
        (1, 2, "hxxt", True),
        (0, 3, "xxxt", True),
        (1, 3, "hxxx", True),
        (2, 4, "hhxxxxtt", True),
        (2, 8, "hhxxxxxxxxtt", False),
        (2, 6, "hhxxxxxx", False),
        (0, 6, "xxxxxxtt", False),
        (7, 1, "hhhx", True),
    ],
)
def test_padding_widens_to_whole_blocks(offset: int, nbytes: int, padded: str, merged: bool) -> None:
    padding = Padding(offset, nbytes, 4)
    assert "h" * padding.head + "x" * nbytes + "t" * padding.tail == padded
    assert padding.start % 4 == 0
    assert padding.end - padding.start == len(padded)
    assert padding.merged is merged
    around = padding.around(IoVector.of(b"x" * nbytes))
    assert sum(view.nbytes for view in around.views) == around.nbytes == len(padded)
    assert around.tobytes().strip(b"\0") == b"x" * nbytes


@pytest.mark.parametrize(
    ("offset", "nbytes", "reads"),
    [
        (2, 8, [(0, 4), (8, 4)]),
        (2, 4, [(0, 8)]),
        (1, 2, [(0, 4)]),
        (2, 6, [(0, 4)]),
        (0, 6, [(4, 4)]),
    ],
)
async def test_read_modify_write_reads_each_edge_once(offset: int, nbytes: int, reads: list[tuple[int, int]]) -> None:
    disk = bytes(range(100, 120))
    seen: list[tuple[int, int]] = []

    async def read(at: int, iov: IoVector) -> None:
        seen.append((at, iov.nbytes))
        iov.copy_from(disk[at : at + iov.nbytes])

    padding = Padding(offset, nbytes, 4)
    await padding.read_edges(read)
    assert seen == reads
    around = padding.around(IoVector.of(b"x" * nbytes)).tobytes()
    assert around == disk[padding.start : offset] + b"x" * nbytes + disk[offset + nbytes : padding.end]


# -- limits and checks


def test_children_tighten_limits_but_do_not_align_requests() -> None:
    own = BlockLimits(request_alignment=1, max_transfer=0, max_iov=1024, pwrite_zeroes_alignment=65536)
    child = BlockLimits(
        request_alignment=4096,
        max_transfer=1 << 20,
        max_iov=16,
        min_mem_alignment=512,
        opt_mem_alignment=8192,
        opt_transfer=4096,
        pwrite_zeroes_alignment=512,
        max_pwrite_zeroes=512,
        pdiscard_alignment=4096,
        max_pdiscard=4096,
    )
    merged = merged_limits(own, [child, BlockLimits(max_transfer=1 << 16)])
    assert merged == BlockLimits(
        request_alignment=1,
        max_transfer=1 << 16,
        max_iov=16,
        min_mem_alignment=512,
        opt_mem_alignment=8192,
        opt_transfer=4096,
        pwrite_zeroes_alignment=65536,
        max_pwrite_zeroes=0,
        pdiscard_alignment=4096,
        max_pdiscard=0,
    )


def test_a_transfer_limit_is_whole_blocks() -> None:
    assert merged_limits(BlockLimits(request_alignment=512, max_transfer=1000), []).max_transfer == 512
    assert merged_limits(BlockLimits(request_alignment=512, max_transfer=100), []).max_transfer == 512


def test_an_alignment_must_be_a_power_of_two() -> None:
    with pytest.raises(RuntimeError):
        merged_limits(BlockLimits(request_alignment=3), [])


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, -1), (MAX_LENGTH, 1), (2**64, 1)])
def test_what_is_no_request(offset: int, nbytes: int) -> None:
    with pytest.raises(OutOfRange):
        check_range(offset, nbytes)


def test_memory_requests_are_shorter() -> None:
    check_range(0, INT_MAX + 1)
    check_transfer(0, INT_MAX)
    with pytest.raises(OutOfRange):
        check_transfer(0, INT_MAX + 1)


def test_zeroes_share_their_memory() -> None:
    vector = zero_vector((5 << 20) + 100)
    assert vector.nbytes == sum(view.nbytes for view in vector.views) == (5 << 20) + 100
    assert vector.is_zero()
    assert all(view.readonly for view in vector.views)
    assert zero_vector(0).views == []
