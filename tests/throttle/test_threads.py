"""A group whose members live in different loops, on different threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from blockio.aio.context import AioContext, IOThread
from blockio.throttle import Direction, ThrottleConfig, ThrottleGroup, ThrottleMember

READ, WRITE = Direction


async def joined(group: ThrottleGroup) -> ThrottleMember:
    """A member in the loop this runs in."""
    member = ThrottleMember(AioContext.current())
    member.join(group)
    return member


async def requests(member: ThrottleMember, count: int, log: list[str], name: str) -> None:
    for _ in range(count):
        await member.intercept(WRITE, 1)
        assert asyncio.get_running_loop() is member.context.loop
        log.append(name)


async def off(member: ThrottleMember) -> None:
    member.limits_off()
    member.limits_on()


async def leave(member: ThrottleMember) -> None:
    member.leave()


@pytest.mark.both_loops
async def test_turns_go_round_between_threads() -> None:
    """5 members on 4 threads and the test's own, all with more to do: one each, again and again."""
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=20_000))
    log: list[str] = []
    async with AsyncExitStack() as stack:
        threads = [await stack.enter_async_context(IOThread(f"io{n}")) for n in range(4)]
        contexts = [AioContext.current(), *(thread.context for thread in threads)]
        members = [await context.run(joined(group)) for context in contexts]
        await asyncio.gather(
            *(
                context.run(requests(member, 200, log, context.name))
                for context, member in zip(contexts, members, strict=True)
                for _ in range(4)
            )
        )
        assert len(log) == 5 * 4 * 200
        assert [member.waiting for member in members] == [0] * 5
        for context, member in zip(contexts, members, strict=True):
            await context.run(leave(member))
    assert group._turns == [None, None]


async def until(ready: Callable[[], bool]) -> None:
    """Whatever happens on the other threads."""
    while not ready():  # noqa: ASYNC110  # there is no event for what other threads and timers do
        await asyncio.sleep(0)


async def waiting(member: ThrottleMember, count: int) -> None:
    """Until *count* requests wait there."""
    await until(lambda: member.waiting == count)


def whose_turn(group: ThrottleGroup) -> ThrottleMember | None:
    turn = group._turns[WRITE]
    return None if turn is None else turn.member


async def test_changed_from_a_thread_without_a_loop() -> None:
    group = ThrottleGroup(config=ThrottleConfig.of(bps_total=1))
    log: list[str] = []
    async with IOThread() as thread:
        here, there = await joined(group), await thread.context.run(joined(group))
        await here.intercept(WRITE, 1 << 40)
        tasks = [
            asyncio.create_task(requests(here, 1, log, "here")),
            asyncio.create_task(thread.context.run(requests(there, 1, log, "there"))),
        ]
        await waiting(here, 1)
        await thread.context.run(waiting(there, 1))
        changer = threading.Thread(target=group.set_config, args=(ThrottleConfig(),))
        changer.start()
        await asyncio.gather(*tasks)
        changer.join()
    assert sorted(log) == ["here", "there"]


async def test_the_turn_leaves_a_thread_with_its_member() -> None:
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=1000))
    log: list[str] = []
    async with IOThread() as thread:
        there = await thread.context.run(joined(group))
        here = await joined(group)
        for _ in range(3):
            theirs = asyncio.create_task(thread.context.run(requests(there, 1000, log, "there")))
            ours = asyncio.create_task(requests(here, 20, log, "here"))
            await until(lambda: "there" in log)
            await thread.context.run(off(there))
            theirs.cancel()
            with pytest.raises(asyncio.CancelledError):
                await theirs
            await ours
            log.clear()
        assert there.waiting == here.waiting == 0


async def test_a_thread_that_ends_does_not_keep_the_turn() -> None:
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=1000))
    log: list[str] = []
    here = await joined(group)
    async with IOThread() as thread:
        there = await thread.context.run(joined(group))
        group.set_config(ThrottleConfig.of(bps_total=1))
        await here.intercept(WRITE, 1 << 40)
        thread.context.schedule_bh(lambda: AioContext.current().loop.create_task(requests(there, 1, log, "there")))
        await thread.context.run(waiting(there, 1))
        ours = asyncio.create_task(requests(here, 1, log, "here"))
        await waiting(here, 1)
        assert whose_turn(group) is there
    assert whose_turn(group) is here
    group.set_config(ThrottleConfig())
    await ours
    assert log == ["here"]


async def test_moved_to_another_thread() -> None:
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=1000))
    log: list[str] = []
    async with IOThread() as thread:
        member = await joined(group)
        await asyncio.gather(*(requests(member, 5, log, "here") for _ in range(25)))
        member.move(thread.context)
        await asyncio.gather(*(thread.context.run(requests(member, 5, log, "there")) for _ in range(25)))
        await thread.context.run(leave(member))
    assert log == ["here"] * 125 + ["there"] * 125
    assert group._turns == [None, None]
