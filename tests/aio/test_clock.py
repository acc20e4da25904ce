from __future__ import annotations

import asyncio

import pytest

from blockio.aio.clock import LoopClock, ManualClock


def test_timers_come_in_the_order_of_their_times() -> None:
    clock = ManualClock(100.0)
    seen: list[tuple[str, float]] = []
    clock.call_later(2, lambda: seen.append(("late", clock.now())))
    clock.call_later(1, lambda: seen.append(("early", clock.now())))
    clock.call_later(1, lambda: seen.append(("early too", clock.now())))
    clock.call_later(1.5, lambda: seen.append(("never", clock.now()))).cancel()
    clock.advance(0.5)
    assert seen == []
    clock.advance(2)
    assert seen == [("early", 101.0), ("early too", 101.0), ("late", 102.0)]
    assert clock.now() == 102.5


def test_a_timer_may_set_the_next_one() -> None:
    clock = ManualClock()
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(clock.now())
        clock.call_later(1, tick)

    tick()
    clock.advance(3.5)
    assert ticks == [0, 1, 2, 3]


async def test_sleepers_wake_when_the_clock_is_turned() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(10))
    await asyncio.sleep(0)
    clock.advance(9.9)
    await asyncio.sleep(0)
    assert not sleeper.done()
    clock.advance(0.1)
    await sleeper


async def test_a_cancelled_sleeper_takes_its_timer_along() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    clock.advance(2)


async def test_the_loops_own_time() -> None:
    clock = LoopClock()
    before = clock.now()
    called = asyncio.Event()
    clock.call_later(0, called.set)
    await called.wait()
    await clock.sleep(0)
    assert clock.now() >= before
