"""Drain: nothing under way inside, parked requests go on in the order of their arrival, no drain waits for itself."""

from __future__ import annotations

import asyncio
import random

import pytest

from blockio.backend import BlockBackend, drain_all, drained_all
from blockio.errors import NoMedium
from blockio.graph.drain import outside_requests
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm
from tests.backend.conftest import LENGTH


async def turns(count: int = 5) -> None:
    """Let everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


def is_quiesced(blk: BlockBackend) -> bool:
    """A function, because mypy takes it that a property does not change."""
    return blk.quiesced


async def test_waits_for_what_is_in_flight(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    request = asyncio.create_task(blk.co_preadv(0, bytearray(1)))
    await turns()
    drain = asyncio.create_task(blk.drain())
    await turns()
    assert disk.waiting == 1
    assert blk.in_flight == 1
    assert not drain.done()
    disk.go()
    await drain
    assert request.done()


async def test_parks_and_resumes_in_order(blk: BlockBackend, disk: MemoryDisk) -> None:
    async with blk.drained():
        tasks = [asyncio.create_task(blk.co_pwritev(n * 512, bytes([n]) * 512)) for n in range(10)]
        await turns()
        requests = [blk.aio_pwritev(n * 512, bytes([n]) * 512) for n in range(10, 20)]
        await turns()
        assert disk.log == []
        assert blk.in_flight == 0
        assert blk.quiesced
    await asyncio.gather(*tasks)
    for request in requests:
        await request
    assert [offset // 512 for _, offset, _ in disk.log] == list(range(20))


@pytest.mark.parametrize("everything", [False, True])
async def test_a_request_awaited_inside_the_tasks_own_section_is_refused(
    blk: BlockBackend, disk: MemoryDisk, everything: bool
) -> None:
    async with drained_all() if everything else blk.drained():
        later = asyncio.create_task(blk.co_pwritev(0, b"later"))
        started = blk.aio_pwritev(512, b"after")
        with pytest.raises(RuntimeError, match="own drained section would never end"):
            await blk.co_preadv(0, bytearray(1))
        with pytest.raises(RuntimeError, match="own drained section"):
            await blk.co_flush()
        async with blk.drained():
            with pytest.raises(RuntimeError, match="own drained section"):
                await blk.co_pdiscard(0, 512)
        assert blk.in_flight == 0
        blk.set_disable_request_queuing(True)
        await blk.co_preadv(0, bytearray(1))
        blk.set_disable_request_queuing(False)
    await later
    await started
    assert disk.data[:5] + disk.data[512:517] == b"laterafter"
    assert blk.in_flight == 0
    await blk.co_preadv(0, bytearray(1))


async def test_newcomers_queue_behind_the_parked(blk: BlockBackend, disk: MemoryDisk) -> None:
    """Between the end of the section and the first parked request's turn nobody slips in, in either lane."""
    disk.fast = True
    memory = bytearray(1)
    async with blk.drained():
        parked = asyncio.create_task(blk.co_pwritev(0, b"parked"))
        await turns()
    assert not blk.try_preadv(0, memory)
    late = blk.aio_pwritev(0, b"later.")
    await asyncio.gather(parked, late)
    assert disk.log == [("write", 0, 6), ("write", 0, 6)]
    assert disk.data[:6] == b"later."
    assert blk.try_preadv(0, memory)


async def test_drained_again_before_the_released_ran(blk: BlockBackend, disk: MemoryDisk) -> None:
    async with blk.drained():
        first = [asyncio.create_task(blk.co_pwritev(n, b"x")) for n in range(3)]
        await turns()
    async with blk.drained():  # waits for the three
        assert [offset for _, offset, _ in disk.log] == [0, 1, 2]
        second = asyncio.create_task(blk.co_pwritev(3, b"x"))
        await turns()
        assert len(disk.log) == 3
    await asyncio.gather(*first, second)
    assert [offset for _, offset, _ in disk.log] == [0, 1, 2, 3]


async def test_nests(blk: BlockBackend, disk: MemoryDisk) -> None:
    async with blk.drained():
        async with blk.drained():
            request = asyncio.create_task(blk.co_flush())
            await turns()
        await turns()
        assert not request.done()
    await request


async def test_cancelled_while_parked(blk: BlockBackend, disk: MemoryDisk) -> None:
    async with blk.drained():
        tasks = [asyncio.create_task(blk.co_pwritev(n, b"x")) for n in range(4)]
        requests = [blk.aio_pwritev(n, b"x") for n in range(4, 8)]
        await turns()
        tasks[1].cancel()
        requests[1].cancel_async()
        await turns()
        assert requests[1].done()
        assert blk.in_flight == 0
    await asyncio.gather(*tasks, *requests, return_exceptions=True)
    # an aio_ call arrives when it is made, a task when it first runs
    assert [offset for _, offset, _ in disk.log] == [4, 6, 7, 0, 2, 3]


async def test_cancelled_after_its_release(blk: BlockBackend, disk: MemoryDisk) -> None:
    async with blk.drained():
        tasks = [asyncio.create_task(blk.co_pwritev(n, b"x")) for n in range(3)]
        requests = [blk.aio_pwritev(n, b"x") for n in range(3, 6)]
        await turns()
    for task in tasks:
        task.cancel()
    requests[0].cancel_async()
    await asyncio.gather(*tasks, *requests, return_exceptions=True)
    assert [offset for _, offset, _ in disk.log] == [4, 5]
    disk.fast = True
    assert blk.try_preadv(0, bytearray(1)), "the fast lane did not come back"


async def test_a_cancelled_drain_lets_everything_go_on(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    request = asyncio.create_task(blk.co_pwritev(0, b"x"))
    await turns()
    drain = asyncio.create_task(blk.drain())
    await turns()
    parked = asyncio.create_task(blk.co_preadv(0, bytearray(1)))
    await turns()
    assert disk.waiting == 1
    drain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await drain
    await turns()
    assert disk.waiting == 2
    disk.go()
    await asyncio.gather(request, parked)


async def test_a_section_cancelled_in_its_body_ends(blk: BlockBackend) -> None:
    async def body() -> None:
        async with blk.drained():
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await turns()
    assert is_quiesced(blk)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_quiesced(blk)
    await blk.co_flush()


async def test_requests_without_a_medium_count() -> None:
    async with BlockBackend(Perm.ALL) as empty:
        request = empty.aio_flush()
        assert empty.in_flight == 1
        await empty.drain()
        assert request.done()
        with pytest.raises(NoMedium):
            await request


async def test_an_empty_backend_parks_too(disk: MemoryDisk) -> None:
    async with (
        BlockBackend(Perm.ALL) as empty,
        await BlockBackend.new_open(options=disk.options(), resize=True) as donor,
    ):
        async with empty.drained():
            request = asyncio.create_task(empty.co_pwritev(0, b"x"))
            await turns()
            assert donor.bs is not None
            await empty.insert_bs(donor.bs)
            await turns()
            assert disk.log == []
        await request
        assert disk.log == [("write", 0, 1)]


async def test_queuing_disabled(blk: BlockBackend, disk: MemoryDisk) -> None:
    blk.set_disable_request_queuing(True)
    async with blk.drained():
        await blk.co_pwritev(0, b"x")
        assert disk.log == [("write", 0, 1)]


async def test_resize_while_drained(blk: BlockBackend) -> None:
    async with blk.drained():
        await blk.co_truncate(2 * LENGTH)
        assert blk.getlength() == 2 * LENGTH


async def test_a_drain_inside_a_request_raises(blk: BlockBackend, disk: MemoryDisk) -> None:
    seen: list[str] = []

    async def meddle(operation: str, offset: int, nbytes: int) -> None:
        for attempt in (blk.drain, drain_all, blk.remove_bs, blk.close):
            try:
                await attempt()
            except RuntimeError as error:
                seen.append(str(error))

    disk.arrive = meddle  # type: ignore[method-assign]  # stands in the middle of a request
    await blk.co_preadv(0, bytearray(1))
    assert len(seen) == 4
    assert all("never end" in message for message in seen)
    del disk.arrive
    await blk.drain()


async def test_a_callback_of_a_request_may_drain(blk: BlockBackend) -> None:
    """The callback, and tasks it starts, inherit the request's context but not its being inside."""
    drains: list[asyncio.Task[None]] = []
    await blk.aio_flush(cb=lambda _ret: drains.append(asyncio.create_task(blk.drain())))
    await drains[0]


async def test_a_task_that_is_no_part_of_the_request_may_drain(blk: BlockBackend, disk: MemoryDisk) -> None:
    """Started inside, it inherits being inside unless it is told not to; the drain then waits for the request."""
    started: list[asyncio.Task[None]] = []

    async def meddle(operation: str, offset: int, nbytes: int) -> None:
        started.append(asyncio.create_task(blk.drain()))
        started.append(asyncio.create_task(blk.drain(), context=outside_requests()))
        await turns()

    disk.arrive = meddle  # type: ignore[method-assign]  # stands in the middle of a request
    await blk.co_preadv(0, bytearray(1))
    del disk.arrive
    inherited, free = started
    with pytest.raises(RuntimeError, match="outside_requests"):
        await inherited
    await free


async def test_drain_all(disk: MemoryDisk) -> None:
    with MemoryDisk(fast=False) as other:
        async with (
            await BlockBackend.new_open(options=disk.options()) as one,
            await BlockBackend.new_open(options=other.options()) as two,
            BlockBackend() as empty,
        ):
            requests = [one.aio_flush(), two.aio_flush(), empty.aio_flush(cb=lambda _ret: None)]
            async with drained_all():
                assert all(request.done() for request in requests)
                parked = [asyncio.create_task(blk.co_flush()) for blk in (one, two)]
                await turns()
                assert not any(task.done() for task in parked)
            await asyncio.gather(*parked)


@pytest.mark.both_loops
async def test_drain_under_load(blk: BlockBackend, disk: MemoryDisk) -> None:
    """32 readers and writers, drains at random: nothing is lost, nothing moves while drained."""
    unit = LENGTH // 32
    stop = False
    done = 0

    async def worker(number: int) -> None:
        nonlocal done
        dice = random.Random(number)
        while not stop:
            data = dice.randbytes(64)
            await blk.co_pwritev(number * unit, data)
            memory = bytearray(64)
            await blk.co_preadv(number * unit, memory)
            assert memory == data
            done += 1
            await asyncio.sleep(0)

    workers = [asyncio.create_task(worker(number)) for number in range(32)]
    for turn in range(30):
        disk.fast = turn % 2 == 0
        await turns(3)
        async with blk.drained():
            before = done, len(disk.log), bytes(disk.data)
            await turns(3)
            assert (done, len(disk.log), bytes(disk.data)) == before
            assert blk.in_flight == 0
    stop = True
    await asyncio.gather(*workers)
    assert done > 32
