"""Throttle groups: turns, live change, leaving, cancelling; nothing hangs and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest

from blockio.aio.clock import ManualClock
from blockio.aio.context import AioContext
from blockio.testing.cancel import cancel_at_every_await
from blockio.throttle import Direction, ThrottleConfig, ThrottleGroup, ThrottleMember, find_group
from tests.throttle.rig import Load, member_of, turns

READ, WRITE = Direction


def ten_a_second(clock: ManualClock) -> ThrottleGroup:
    """10 operations a second in total; its bucket holds one, and the next one goes too."""
    return ThrottleGroup(config=ThrottleConfig.of(iops_total=10), clock=clock)


def assert_idle(group: ThrottleGroup) -> None:
    assert all(not member.waiting for member in group.members)
    assert all(not pending for pending in group._pending)
    assert group._turns == [None, None]


async def use_up(member: ThrottleMember, direction: Direction = READ) -> None:
    """Until the next request has to wait."""
    await member.intercept(direction, 1)
    await member.intercept(direction, 1)


# -- turns


async def test_in_the_order_of_arrival() -> None:
    clock = ManualClock()
    member = member_of(ten_a_second(clock))
    await use_up(member)
    done: list[int] = []

    async def request(number: int) -> None:
        await member.intercept(READ, 1)
        done.append(number)

    tasks = [asyncio.create_task(request(number)) for number in range(5)]
    await turns()
    assert member.waiting == 5
    seen = []
    for _ in range(6):
        clock.advance(0.1)
        await turns()
        seen.append(list(done))
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    await asyncio.gather(*tasks)


async def test_members_take_turns_however_much_they_want() -> None:
    clock = ManualClock()
    group = ten_a_second(clock)
    greedy, modest, small = (member_of(group) for _ in range(3))
    await use_up(greedy)
    done: list[str] = []

    async def request(member: ThrottleMember, name: str) -> None:
        await member.intercept(WRITE, 1)
        done.append(name)

    tasks = [asyncio.create_task(request(greedy, "g")) for _ in range(6)]
    tasks += [asyncio.create_task(request(modest, "m")) for _ in range(3)]
    tasks += [asyncio.create_task(request(small, "s"))]
    await turns()
    for _ in tasks:
        clock.advance(0.1)
        await turns()
    assert "".join(done) == "gmsgmgmggg"
    await asyncio.gather(*tasks)
    assert_idle(group)


async def test_fair_shares_under_load() -> None:
    """Unequal queue depths, equal shares."""
    clock = ManualClock()
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=1000), clock=clock)
    members = [member_of(group) for _ in range(5)]
    loads = [Load(clock, [member], depth=depth) for member, depth in zip(members, (1, 2, 4, 8, 32), strict=True)]
    async with loads[0], loads[1], loads[2], loads[3], loads[4]:
        before = [sum(load.operations.values()) for load in loads]
        for _ in range(2000):
            clock.advance(0.001)
            await turns(4)
        shares = [sum(load.operations.values()) - start for load, start in zip(loads, before, strict=True)]
    assert shares == pytest.approx([400] * 5, rel=0.01)
    assert_idle(group)


async def test_a_thousand_members() -> None:
    """Each has three requests; nobody gets a second one before everybody has had one."""
    clock = ManualClock()
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=100), clock=clock)
    members = [member_of(group) for _ in range(1000)]
    for _ in range(11):  # what the bucket holds, and one more
        await members[0].intercept(READ, 1)
    served: list[int] = []

    async def request(number: int) -> None:
        await members[number].intercept(READ, 1)
        served.append(number)

    tasks = [asyncio.create_task(request(number)) for number in range(1000) for _ in range(3)]
    await turns()
    clock.advance(31)
    await asyncio.gather(*tasks)
    assert [sorted(served[start : start + 1000]) for start in (0, 1000, 2000)] == [list(range(1000))] * 3
    assert_idle(group)


async def test_nothing_is_asked_of_a_group_without_limits() -> None:
    group = ThrottleGroup()
    member = member_of(group)
    for _ in range(100):
        await member.intercept(WRITE, 1 << 30)
    assert not group.limited
    assert not group.config.enabled


# -- live change


async def test_lowered_and_raised_while_requests_wait() -> None:
    clock = ManualClock()
    group = ten_a_second(clock)
    member, other = member_of(group), member_of(group)
    group.set_config(ThrottleConfig.of(bps_total=1))
    await member.intercept(READ, 1_000_000)
    tasks = [asyncio.create_task(each.intercept(READ, 1)) for each in (other, member, other)]
    await turns()
    clock.advance(100)
    await turns()
    assert other.waiting + member.waiting == 3
    group.set_config(ThrottleConfig.of(iops_total=10))  # empty buckets: two go at once
    await turns()
    assert other.waiting + member.waiting == 1
    clock.advance(0.1)
    await asyncio.gather(*tasks)
    assert_idle(group)


async def test_limits_taken_away_let_everybody_go() -> None:
    clock = ManualClock()
    group = ten_a_second(clock)
    members = [member_of(group) for _ in range(3)]
    await use_up(members[0])
    tasks = [asyncio.create_task(member.intercept(d, 1)) for member in members for d in Direction for _ in range(3)]
    await turns()
    group.set_config(ThrottleConfig())
    await asyncio.gather(*tasks)
    assert_idle(group)
    with pytest.raises(TypeError, match="a ThrottleConfig"):
        group.set_config({"bps-total": 1})  # type: ignore[arg-type]  # that is the mistake


# -- off, leaving, moving between groups


async def test_limits_off_lets_go_and_still_counts() -> None:
    clock = ManualClock()
    group = ten_a_second(clock)
    drained, other = member_of(group), member_of(group)
    await use_up(drained)
    tasks = [asyncio.create_task(drained.intercept(READ, 1)) for _ in range(4)]
    theirs = asyncio.create_task(other.intercept(READ, 1))
    await turns()
    drained.limits_off()
    drained.limits_off()
    await asyncio.gather(*tasks)
    await drained.intercept(READ, 1)  # without waiting
    drained.limits_on()
    await drained.intercept(READ, 1)
    drained.limits_on()
    late = asyncio.create_task(drained.intercept(READ, 1))
    await turns()
    assert not late.done()
    assert not theirs.done()
    clock.advance(0.75)
    await turns()
    assert theirs.done()
    assert not late.done(), "theirs, and the six without waiting, came before it"
    clock.advance(0.1)
    await late
    assert_idle(group)
    with pytest.raises(RuntimeError, match="without limits_off"):
        drained.limits_on()


async def test_who_leaves_takes_no_turn_along() -> None:
    clock = ManualClock()
    group = ten_a_second(clock)
    leaver, stayer = member_of(group), member_of(group)
    await use_up(leaver)
    gone = [asyncio.create_task(leaver.intercept(READ, 1)) for _ in range(2)]
    await turns()
    kept = asyncio.create_task(stayer.intercept(READ, 1))
    await turns()
    leaver.leave()
    await asyncio.gather(*gone)
    assert not kept.done()
    clock.advance(0.35)
    await kept
    assert group.members == (stayer,)
    assert_idle(group)
    with pytest.raises(RuntimeError, match="in no throttle group"):
        leaver.leave()


async def test_from_one_group_to_another() -> None:
    clock = ManualClock()
    slow = ThrottleGroup(config=ThrottleConfig.of(iops_total=1), clock=clock)
    quick = ten_a_second(clock)
    member = member_of(slow)
    with pytest.raises(RuntimeError, match="already"):
        member.join(quick)
    await member.intercept(READ, 1)
    member.leave()
    member.join(quick)
    await use_up(member)
    waits = asyncio.create_task(member.intercept(WRITE, 1))
    await turns()
    with pytest.raises(RuntimeError, match="drain them first"):
        member.move(AioContext.current())
    clock.advance(0.15)
    await waits
    member.move(AioContext.current())
    assert slow.members == ()


async def test_outside_a_group_nothing_waits() -> None:
    member = ThrottleMember(AioContext.current())
    member.limits_off()
    member.limits_on()
    await member.intercept(READ, 1 << 40)


# -- cancelling


async def test_cancelled_at_every_await() -> None:
    """Waiting or just released: nothing of it is left, and it has used nothing up."""
    clock = ManualClock()
    group = ten_a_second(clock)
    member, other = member_of(group), member_of(group)

    async def before(_nth: int) -> None:
        clock.advance(100)
        await use_up(other)

    async def scenario() -> None:
        asyncio.get_running_loop().call_soon(clock.advance, 0.15)  # released in the turn in which it is cancelled
        await member.intercept(READ, 1)

    async def afterwards(_nth: int) -> None:
        await turns()
        assert_idle(group)
        clock.advance(1)
        await other.intercept(READ, 1)

    assert await cancel_at_every_await(scenario, afterwards, before=before) >= 1


async def test_cancelled_after_its_release_it_used_nothing() -> None:
    clock = ManualClock()
    group = ten_a_second(clock)
    member, other = member_of(group), member_of(group)
    await use_up(member)
    tasks = [asyncio.create_task(each.intercept(READ, 1)) for each in (member, other)]
    await turns()
    clock.advance(0.1)  # the first is released, and has not run
    tasks[0].cancel()
    await turns()
    assert tasks[0].cancelled()
    assert tasks[1].done(), "what the cancelled one gave back is the next one's"
    assert_idle(group)


async def test_who_has_the_turn_is_cancelled() -> None:
    clock = ManualClock()
    group = ten_a_second(clock)
    first, second = member_of(group), member_of(group)
    await use_up(first)
    task = asyncio.create_task(first.intercept(READ, 1))
    await turns()
    heir = asyncio.create_task(second.intercept(READ, 1))
    await turns()
    task.cancel()
    await turns()
    clock.advance(0.1)
    await heir
    assert_idle(group)


async def test_everything_at_once() -> None:
    """Requests, cancellations, changes, members who come and go: in the end all is idle and everybody was served."""
    dice = random.Random(3)
    clock = ManualClock()
    groups = [ThrottleGroup(config=ThrottleConfig.of(iops_total=100), clock=clock) for _ in range(2)]
    members = [member_of(dice.choice(groups)) for _ in range(6)]
    tasks: list[asyncio.Task[None]] = []
    for _ in range(2000):
        what = dice.randrange(12)
        member = dice.choice(members)
        if what < 6:
            tasks.append(asyncio.create_task(member.intercept(dice.choice([READ, WRITE]), dice.randrange(10_000))))
        elif what == 6 and tasks:
            dice.choice(tasks[-20:]).cancel()
        elif what == 7:
            limits = dice.choice([{}, {"iops_total": 50}, {"bps_read": 100_000, "iops_write": 20}])
            dice.choice(groups).set_config(ThrottleConfig.of(limits))
        elif what == 8:
            member.leave()
            member.join(dice.choice(groups))
        elif what == 9:
            member.limits_off()
            await turns()
            assert member.waiting == 0
            member.limits_on()
        else:
            clock.advance(dice.random() / 10)
            await turns(1)
        for group in groups:
            for direction in Direction:
                turn = group._turns[direction]
                assert (turn is not None) == bool(group._pending[direction])
                assert turn is None or turn.member is next(iter(group._pending[direction]))
    clock.advance(1000)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(end) for end in ends} == {type(None), asyncio.CancelledError}
    for group in groups:
        assert_idle(group)


# -- names


def test_names() -> None:
    group = ThrottleGroup("shared")
    assert find_group("shared") is group
    assert repr(group) == "<ThrottleGroup shared, 0 members>"
    with pytest.raises(ValueError, match="there is a throttle group 'shared' already"):
        ThrottleGroup("shared")
    with pytest.raises(ValueError, match="cannot be empty"):
        ThrottleGroup("")
    del group
    gc.collect()
    assert find_group("shared") is None


async def test_a_name_is_given_back_at_once() -> None:
    clock = ManualClock()
    group = ThrottleGroup("shared", ThrottleConfig.of(iops_total=10), clock=clock)
    member = member_of(group)
    with pytest.raises(RuntimeError, match="throttle group 'shared' is in use"):
        group.delete()
    await use_up(member)
    for _ in range(2):
        task = asyncio.create_task(member.intercept(READ, 1))
        await turns()
        clock.advance(0.15)
        await task
    member.leave()
    del group  # no timer that came keeps it
    assert find_group("shared") is None
    group = ThrottleGroup("shared")
    group.delete()
    assert find_group("shared") is None
