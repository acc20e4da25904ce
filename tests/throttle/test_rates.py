"""With a clock turned by hand the achieved rate is the configured one, over any window longer than the burst."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.aio.clock import ManualClock
from blockio.throttle import Direction, ThrottleConfig, ThrottleGroup
from tests.support.explore import few
from tests.throttle.rig import Load, member_of

READ, WRITE = Direction
WITHIN = 0.01


def off_rate(history: Sequence[tuple[float, float]], rate: float, window: float) -> float:
    """The worst deviation from *rate*, as a part of it, of any stretch of *history* that is at least *window* long.

    What went through, less what should have, at any two moments apart by the window or more.
    """
    ahead = [(now, done - rate * now) for now, done in history]
    worst = 0.0
    lowest = highest = ahead[0][1]
    start = 0
    for now, here in ahead:
        while ahead[start][0] <= now - window:
            lowest = min(lowest, ahead[start][1])
            highest = max(highest, ahead[start][1])
            start += 1
        if start:
            worst = max(worst, here - lowest, highest - here)
    return worst / (rate * window)


@few(6, part=10)
@given(
    rate=st.integers(2_000_000, 20_000_000),
    members=st.integers(1, 4),
    depth=st.integers(1, 8),
    step=st.sampled_from([0.0003, 0.001, 0.004]),
    both=st.booleans(),
    seed=st.integers(0, 1000),
)
async def test_bytes_without_burst(rate: int, members: int, depth: int, step: float, both: bool, seed: int) -> None:
    clock = ManualClock(1e6)
    group = ThrottleGroup(config=ThrottleConfig.of(bps_total=rate), clock=clock)
    sizes = (1, rate // 3000)
    directions = (READ, WRITE) if both else (WRITE,)
    load = Load(
        clock, [member_of(group) for _ in range(members)], sizes=sizes, directions=directions, depth=depth, seed=seed
    )
    async with load:
        await load.run(0.3, step)
    history = [(now, done) for now, done, _ in load.history]
    # the bucket's tenth of a second is through at once
    assert history[0][1] == pytest.approx(rate / 10, rel=WITHIN)
    assert off_rate(history, rate, 0.1 + step) <= WITHIN


@few(6, part=10)
@given(
    rate=st.integers(1000, 50_000),
    size=st.sampled_from([0, 512, 4096]),
    members=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
async def test_operations(rate: int, size: int, members: int, seed: int) -> None:
    clock = ManualClock()
    group = ThrottleGroup(config=ThrottleConfig.of(iops_read=rate, iops_size=size), clock=clock)
    load = Load(clock, [member_of(group) for _ in range(members)], sizes=(1, 6000), op_size=size, seed=seed)
    largest = 6000 / size if size else 1
    window = max(0.2, 2 * largest / rate / WITHIN)
    async with load:
        await load.run(window + 0.2, window / 50)
    assert off_rate([(now, operations) for now, _, operations in load.history], rate, window) <= WITHIN


@few(3, part=10)
@given(rate=st.integers(100_000, 1_000_000), factor=st.integers(2, 5), length=st.integers(2, 3), seed=st.integers(0, 9))
async def test_a_burst_then_the_average(rate: int, factor: int, length: int, seed: int) -> None:
    high = rate * factor
    clock = ManualClock()
    config = ThrottleConfig.of(bps_write=rate, bps_write_max=high, bps_write_max_length=length)
    group = ThrottleGroup(config=config, clock=clock)
    load = Load(clock, [member_of(group)], sizes=(1, rate // 80), directions=(WRITE,), depth=8, seed=seed)
    burst = high * length / (high - rate)  # the bucket fills by what does not leak meanwhile
    async with load:
        await load.run(burst + high * length / rate + 1, 0.01)
    history = [(now, done) for now, done, _ in load.history]
    during = [at for at in history if at[0] < burst - 0.2]
    assert off_rate(during, high, 1) <= WITHIN
    after = [at for at in history if at[0] > burst + 0.2]
    assert off_rate(after, rate, high * length / rate) <= WITHIN
    now, done = history[-1]
    assert done == pytest.approx(high * length + rate * now, rel=WITHIN)


async def test_late_timers_cost_nothing() -> None:
    """A loop that comes round every 40 ms only: within what the bucket holds, it catches up."""
    clock = ManualClock()
    group = ThrottleGroup(config=ThrottleConfig.of(iops_total=1000), clock=clock)
    load = Load(clock, [member_of(group)], depth=1)
    async with load:
        await load.run(4, 0.04)
    assert off_rate([(now, operations) for now, _, operations in load.history], 1000, 1) <= WITHIN


async def test_directions_that_share_a_bucket() -> None:
    clock = ManualClock()
    group = ThrottleGroup(config=ThrottleConfig.of(bps_total=1_000_000), clock=clock)
    load = Load(clock, [member_of(group)], directions=(READ, WRITE), sizes=(500, 500))
    async with load:
        assert load.by_direction == {READ: 100_500, WRITE: 0}, "at once, for who comes first"
        await load.run(1.5, 0.002)
    assert off_rate([(now, done) for now, done, _ in load.history], 1_000_000, 0.5) <= WITHIN
    assert load.by_direction[READ] - 100_500 == pytest.approx(load.by_direction[WRITE], rel=WITHIN)


async def test_directions_of_their_own() -> None:
    clock = ManualClock()
    group = ThrottleGroup(config=ThrottleConfig.of(bps_read=1_000_000, bps_write=250_000), clock=clock)
    load = Load(clock, [member_of(group)], directions=(READ, WRITE), sizes=(500, 500))
    async with load:
        await load.run(2, 0.01)
    assert load.by_direction[READ] == pytest.approx(2_100_000, rel=WITHIN)
    assert load.by_direction[WRITE] == pytest.approx(525_000, rel=WITHIN)
