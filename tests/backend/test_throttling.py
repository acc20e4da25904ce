"""``blk.throttle``: what waits and what does not, groups of backends, drains, and a fast lane that comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from blockio.aio.clock import ManualClock
from blockio.aio.context import IOThread
from blockio.backend import BlockBackend
from blockio.errors import OutOfRange
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.driver import MemoryDisk
from blockio.throttle import ThrottleConfig, ThrottleGroup, find_group
from blockio.types import Perm
from tests.backend.conftest import LENGTH


async def turns(count: int = 8) -> None:
    """Let everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def group(clock: ManualClock) -> AsyncIterator[ThrottleGroup]:
    """1000 bytes a second, 100 of them at once. Nobody may be left waiting in it."""
    group = ThrottleGroup("bytes", ThrottleConfig.of(bps_total=1000), clock=clock)
    yield group
    assert group._turns == [None, None]


@pytest.fixture
async def throttled(blk: BlockBackend, group: ThrottleGroup) -> BlockBackend:
    """A backend in the group that has to wait 10 seconds before its next request."""
    blk.throttle.io_limits_enable(group)
    await blk.co_pwritev(0, bytes(10_100))
    return blk


def logged(disk: MemoryDisk) -> list[str]:
    return [operation for operation, _, _ in disk.log]


# -- what waits


async def test_reads_writes_and_zeroes_wait(throttled: BlockBackend, disk: MemoryDisk, clock: ManualClock) -> None:
    disk.log.clear()
    requests = [
        throttled.aio_preadv(0, bytearray(500)),
        throttled.aio_pwritev(0, b"x" * 500),
        throttled.aio_pwrite_zeroes(0, 500),
    ]
    await turns()
    assert throttled.throttle.waiting == throttled.in_flight == 3
    assert logged(disk) == []
    await throttled.co_pdiscard(0, 512)
    await throttled.co_flush()
    assert "read" not in logged(disk)
    assert "write" not in logged(disk)
    disk.log.clear()
    seen: list[list[str]] = []
    for _ in range(4):
        clock.advance(9.9 if not seen else 0.5)
        await turns()
        seen.append(logged(disk))
    clock.advance(1)
    await asyncio.gather(*requests)
    assert seen[0] == []
    assert sorted(seen[1]) == ["read", "write"], "one in each direction"
    assert logged(disk)[:2] == seen[1]
    assert logged(disk)[2] == "zero"


async def test_what_is_refused_uses_nothing(blk: BlockBackend, group: ThrottleGroup) -> None:
    blk.throttle.io_limits_enable(group)
    for _ in range(10):
        with pytest.raises(OutOfRange):
            await blk.co_preadv(LENGTH, bytearray(1000))
    await blk.co_preadv(0, bytearray(100))
    assert blk.throttle.waiting == 0


async def test_operations_in_flight_are_not_limited(blk: BlockBackend, disk: MemoryDisk, group: ThrottleGroup) -> None:
    """Limits are about what begins, not about how long it takes."""
    disk.stall()
    blk.throttle.io_limits_enable(group)
    requests = [blk.aio_preadv(0, bytearray(10)) for _ in range(10)]
    await turns()
    assert disk.waiting == 10
    disk.go()
    await asyncio.gather(*requests)


async def test_the_fast_lane_closes_and_comes_back(blk: BlockBackend, disk: MemoryDisk, group: ThrottleGroup) -> None:
    disk.fast = True
    memory = bytearray(10)
    assert blk.try_preadv(0, memory)
    blk.throttle.io_limits_enable(group)
    assert not blk.try_preadv(0, memory)
    assert not blk.try_pwritev(0, memory)
    await blk.co_preadv(0, memory)
    async with blk.drained():
        pass
    assert not blk.try_preadv(0, memory)
    await blk.throttle.io_limits_disable()
    assert blk.try_preadv(0, memory)
    assert blk.try_pwritev(0, memory)


# -- drain


async def test_a_drain_lets_what_waits_go(throttled: BlockBackend, disk: MemoryDisk) -> None:
    requests = [throttled.aio_pwritev(number, b"x") for number in range(20)]
    await turns()
    assert throttled.throttle.waiting == len(requests) == 20
    disk.log.clear()
    async with throttled.drained():
        assert [offset for _, offset, _ in disk.log] == list(range(20))
        parked = throttled.aio_pwritev(20, b"x")
        await turns()
        assert len(disk.log) == 20
    await turns()
    assert not parked.done(), "limits are back"
    assert throttled.throttle.waiting == 1
    await throttled.drain()
    assert parked.done()


async def test_without_queuing_nothing_waits_while_drained(throttled: BlockBackend) -> None:
    throttled.set_disable_request_queuing(True)
    async with throttled.drained():
        await throttled.co_pwritev(0, bytes(10_000))


async def test_enabled_while_drained(blk: BlockBackend, group: ThrottleGroup, clock: ManualClock) -> None:
    async with blk.drained():
        blk.throttle.io_limits_enable(group)
        request = blk.aio_pwritev(0, bytes(1000))
    await request
    second = blk.aio_pwritev(0, bytes(1000))
    await turns()
    assert not second.done()
    clock.advance(1)
    await second


@pytest.mark.parametrize("how", ["remove_bs", "close"])
async def test_the_medium_goes_while_requests_wait(throttled: BlockBackend, group: ThrottleGroup, how: str) -> None:
    requests = [throttled.aio_pwritev(0, b"x") for _ in range(3)]
    await turns()
    await getattr(throttled, how)()
    await asyncio.gather(*requests)
    assert len(group.members) == (0 if how == "close" else 1)


async def test_the_next_medium_is_limited_too(throttled: BlockBackend, clock: ManualClock) -> None:
    node = throttled.bs
    assert node is not None
    node.ref()
    await throttled.remove_bs()
    await throttled.insert_bs(node)
    await node.unref()
    request = throttled.aio_pwritev(0, b"x")
    await turns()
    assert not request.done()
    clock.advance(10)
    await request


# -- groups


async def test_enable_disable_update(blk: BlockBackend, group: ThrottleGroup) -> None:
    throttle = blk.throttle
    await throttle.io_limits_update_group("nobody's")  # in none: nothing to do
    assert find_group("nobody's") is None
    with pytest.raises(RuntimeError, match="io_limits_enable"):
        throttle.set_io_limits(ThrottleConfig())
    with pytest.raises(RuntimeError, match="is in no throttle group"):
        await throttle.io_limits_disable()
    with pytest.raises(TypeError, match="or the name of one"):
        throttle.io_limits_enable(7)  # type: ignore[arg-type]  # that is the mistake
    throttle.io_limits_enable("bytes")
    assert throttle.group is group
    with pytest.raises(RuntimeError, match="io_limits_update_group"):
        throttle.io_limits_enable(group)
    await throttle.io_limits_update_group(group)
    await throttle.io_limits_update_group("bytes")
    assert throttle.group is group
    await throttle.io_limits_update_group("another")
    other = throttle.group
    assert other is not None
    assert find_group("another") is other
    assert group.members == ()
    throttle.set_io_limits(ThrottleConfig.of(iops_total=5))
    assert other.config.iops_total.avg == 5
    await throttle.io_limits_disable()
    assert other.members == ()


async def test_closed(group: ThrottleGroup) -> None:
    blk = BlockBackend(Perm.ALL)
    blk.throttle.io_limits_enable(group)
    await blk.close()
    assert group.members == ()
    with pytest.raises(RuntimeError, match="is closed"):
        blk.throttle.io_limits_enable(group)


async def test_leaving_and_moving_let_what_waits_go(throttled: BlockBackend, group: ThrottleGroup) -> None:
    other = ThrottleGroup()
    requests = [throttled.aio_pwritev(0, b"x") for _ in range(3)]
    await turns()
    await throttled.throttle.io_limits_update_group(other)
    assert all(request.done() for request in requests)
    assert throttled.throttle.group is other
    await throttled.co_pwritev(0, bytes(100_000))
    await throttled.throttle.io_limits_disable()
    assert (group.members, other.members) == ((), ())


async def test_left_twice_at_once(throttled: BlockBackend, group: ThrottleGroup) -> None:
    """The second finds it done; a move that comes too late does not bring it back."""
    throttled.aio_pwritev(0, b"x")
    leave = throttled.throttle.io_limits_disable
    await asyncio.gather(leave(), leave(), throttled.throttle.io_limits_update_group(ThrottleGroup()))
    assert throttled.throttle.group is None
    assert group.members == ()


async def test_inside_a_request_leaving_raises(blk: BlockBackend, disk: MemoryDisk, group: ThrottleGroup) -> None:
    blk.throttle.io_limits_enable(group)
    seen: list[str] = []

    async def meddle(operation: str, offset: int, nbytes: int) -> None:
        for attempt in (blk.throttle.io_limits_disable(), blk.throttle.io_limits_update_group("x")):
            try:
                await attempt
            except RuntimeError as error:
                seen.append(str(error))

    disk.arrive = meddle  # type: ignore[method-assign]  # stands in the middle of a request
    await blk.co_preadv(0, bytearray(1))
    assert len(seen) == 2
    assert all("never end" in message for message in seen)
    assert blk.throttle.group is group
    del disk.arrive


async def test_backends_share_and_take_turns(clock: ManualClock, group: ThrottleGroup) -> None:
    group.set_config(ThrottleConfig.of(iops_write=10))
    async with AsyncExitStack() as stack:
        disks = [stack.enter_context(MemoryDisk()) for _ in range(3)]
        blks = [await stack.enter_async_context(await BlockBackend.new_open(options=d.options())) for d in disks]
        for blk in blks:
            blk.throttle.io_limits_enable(group)
        requests = [blk.aio_pwritev(0, b"x") for blk in blks for _ in range(5)]
        await turns()
        done = []
        for _ in range(20):
            done.append([sum(request.done() for request in requests[n * 5 : n * 5 + 5]) for n in range(3)])
            clock.advance(0.1001)
            await turns()
        assert done[0] == [2, 0, 0]
        assert done[4] == [4, 1, 1]
        assert done[6] == [4, 2, 2]
        assert done[-1] == [5, 5, 5]


async def test_a_group_across_threads(disk: MemoryDisk) -> None:
    """Two backends in two threads, 1000 operations a second between them; each goes on in its own."""
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=1000))

    async def enable(blk: BlockBackend) -> None:
        blk.throttle.io_limits_enable(group)

    with MemoryDisk(fast=False) as other:
        async with (
            IOThread() as thread,
            await BlockBackend.new_open(options=disk.options()) as here,
            await BlockBackend.new_open(options=other.options(), context=thread.context) as there,
        ):
            await enable(here)
            with pytest.raises(RuntimeError, match="own event loop"):
                there.throttle.io_limits_enable(group)
            await thread.context.run(enable(there))
            await asyncio.gather(*(blk.co_pwritev(n, b"x") for blk in (here, there) for n in range(75)))
            there.throttle.set_io_limits(ThrottleConfig.of(bps_total=1))
            await here.co_pwritev(0, b"x" * 1000)
            waits = asyncio.create_task(there.co_pwritev(0, b"x"))
            await turns()
            await there.throttle.io_limits_disable()
            await waits
    assert group.members == ()


# -- cancelling


async def test_cancelled_while_waiting(throttled: BlockBackend, clock: ManualClock) -> None:
    tasks = [asyncio.create_task(throttled.co_pwritev(0, b"x")) for _ in range(3)]
    requests = [throttled.aio_preadv(0, bytearray(1)) for _ in range(3)]
    await turns()
    assert throttled.throttle.waiting == 6
    tasks[0].cancel()
    await requests[1].cancel()
    await turns()
    assert throttled.throttle.waiting == throttled.in_flight == 4
    clock.advance(11)
    await turns()
    assert tasks[0].cancelled()
    assert all(task.done() for task in tasks)
    assert [request.ret for request in requests] == [0, -125, 0]


async def test_cancelled_at_every_await(blk: BlockBackend, clock: ManualClock, group: ThrottleGroup) -> None:
    blk.throttle.io_limits_enable(group)
    other = ThrottleGroup(config=ThrottleConfig.of(bps_total=1), clock=clock)

    async def before(_nth: int) -> None:
        clock.advance(1000)
        await blk.co_pwritev(0, bytes(200))

    async def scenario() -> None:
        asyncio.get_running_loop().call_soon(clock.advance, 1)
        await blk.co_pwritev(0, b"x" * 100)
        blk.aio_pwritev(0, bytes(100))
        await blk.throttle.io_limits_update_group(other)
        blk.aio_pwritev(0, bytes(100))
        await blk.throttle.io_limits_disable()

    async def afterwards(_nth: int) -> None:
        await blk.drain()
        assert (blk.in_flight, blk.throttle.waiting) == (0, 0)
        assert not blk.quiesced
        if blk.throttle.group is not None:
            await blk.throttle.io_limits_update_group(group)
        else:
            blk.throttle.io_limits_enable(group)

    assert await cancel_at_every_await(scenario, afterwards, before=before) >= 3


# -- everything at once


async def test_under_load_with_drains_and_changes(blk: BlockBackend, disk: MemoryDisk, clock: ManualClock) -> None:
    """Writers and readers, cancellations, drains, changes of limits and groups: data right, counts zero."""
    dice = random.Random(11)
    groups = [ThrottleGroup(clock=clock), ThrottleGroup(clock=clock)]
    unit = LENGTH // 16
    stop = False
    done = 0
    blk.throttle.io_limits_enable(groups[0])

    async def worker(number: int) -> None:
        nonlocal done
        dice = random.Random(number)
        while not stop:
            data = dice.randbytes(64)
            try:
                await asyncio.sleep(0)
                await blk.co_pwritev(number * unit, data)
                memory = bytearray(64)
                await blk.co_preadv(number * unit, memory)
            except asyncio.CancelledError:
                continue
            assert memory == data
            done += 1

    workers = [asyncio.create_task(worker(number)) for number in range(16)]
    for _ in range(150):
        what = dice.randrange(8)
        if what == 0:
            async with blk.drained():
                assert blk.in_flight == blk.throttle.waiting == 0
        elif what == 1:
            limits = dice.choice([{}, {"bps_total": 10_000}, {"iops_read": 100, "iops_write": 200}])
            blk.throttle.set_io_limits(ThrottleConfig.of(limits))
        elif what == 2:
            await blk.throttle.io_limits_update_group(dice.choice(groups))
        elif what == 3:
            dice.choice(workers).cancel()
        clock.advance(dice.random() / 100)
        await turns(3)
    stop = True
    await blk.throttle.io_limits_disable()
    await asyncio.gather(*workers)
    assert done > 100
    assert [group._turns for group in groups] == [[None, None]] * 2
