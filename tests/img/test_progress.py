"""Progress: what an observer is told, above all what is waited for, on clocks of the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.img.progress import Counting, Meter
from blockio.testing.driver import MemoryDisk

MIB = 1 << 20
Side = img.Side


class Clocks:
    """The time, and what the process has computed."""

    def __init__(self) -> None:
        self.now = 100.0
        self.computed = 5.0

    def meter(self, seen: list[img.Progress], *, otherwise: img.Side | None = None) -> Meter:
        return Meter(seen.append, 1000, otherwise=otherwise, clock=lambda: self.now, busy=lambda: self.computed)


async def wait(clocks: Clocks, meter: Meter, side: img.Side, seconds: float) -> None:
    async def take() -> str:
        clocks.now += seconds
        return "done"

    assert await meter.timed(side, take)() == "done"


@pytest.mark.parametrize("side", [Side.SOURCE, Side.TARGET, Side.LIMIT])
async def test_what_took_longest_lately_is_the_bottleneck(side: img.Side) -> None:
    clocks, seen = Clocks(), list[img.Progress]()
    meter = clocks.meter(seen)
    meter.start()
    for other in Side:
        if other is not Side.WORK:
            await wait(clocks, meter, other, 3.0 if other is side else 1.0)
    meter.advance(100)
    assert [progress.bottleneck for progress in seen] == [None, side]
    assert (seen[-1].rate, seen[-1].remaining) == (20.0, 45.0)


async def test_a_process_that_computes_all_the_time_waits_for_nobody() -> None:
    clocks, seen = Clocks(), list[img.Progress]()
    meter = clocks.meter(seen)
    await wait(clocks, meter, Side.SOURCE, 2.0)
    clocks.computed += 1.8
    meter.advance(1)
    assert seen[-1].bottleneck is Side.WORK


async def test_the_answer_follows_what_happens_and_the_last_one_is_about_everything() -> None:
    clocks, seen = Clocks(), list[img.Progress]()
    meter = clocks.meter(seen)
    await wait(clocks, meter, Side.SOURCE, 1.0)
    meter.advance(1)
    await wait(clocks, meter, Side.TARGET, 0.5)
    meter.advance(1)
    await wait(clocks, meter, Side.LIMIT, 0.1)
    meter.advance(1)
    meter.finish()
    assert [progress.bottleneck for progress in seen] == [Side.SOURCE, Side.TARGET, Side.TARGET, Side.SOURCE]


async def test_where_nothing_is_timed_the_operation_says_what_it_waits_for() -> None:
    clocks, seen = Clocks(), list[img.Progress]()
    meter = clocks.meter(seen, otherwise=Side.SOURCE)
    clocks.now += 1
    meter.advance(1)
    assert seen[-1].bottleneck is Side.SOURCE


async def test_a_failure_is_time_that_was_waited_too() -> None:
    clocks, seen = Clocks(), list[img.Progress]()
    meter = clocks.meter(seen)

    async def fail() -> None:
        clocks.now += 1
        raise KeyError

    with pytest.raises(KeyError):
        await meter.timed(Side.TARGET, fail)()
    meter.advance(1)
    assert seen[-1].bottleneck is Side.TARGET


def test_who_only_counts_or_does_not_look_costs_nothing() -> None:
    async def work() -> None: ...

    seen: list[img.Progress] = []
    counting = Meter(Counting(seen.append), 10)
    assert counting.timed(Side.SOURCE, work) is work
    assert Meter(None, 10).timed(Side.SOURCE, work) is work
    counting.finish()
    assert [(progress.fraction, progress.bottleneck) for progress in seen] == [(1.0, None)]


async def test_every_long_command_tells_how_far_it_is(tmp_path: Path) -> None:
    seen: dict[str, list[img.Progress]] = {}

    def told(name: str) -> img.Observer:
        return seen.setdefault(name, []).append

    base, top = str(tmp_path / "base.qcow2"), str(tmp_path / "top.qcow2")
    with MemoryDisk(0) as disk:
        disk.data[:] = b"base" * MIB
        source = img.Image(options=disk.options(), label="memory")
        await img.convert(source, base, "qcow2", observer=told("convert"))
        await img.compare(source, base, observer=told("compare"))
    await img.create(top, "qcow2", backing_file=base, backing_format="qcow2", gate=AllowAll())
    await img.check(base, observer=told("check"))
    await img.dd(base, str(tmp_path / "part.raw"), block_size=MIB, count=2, observer=told("dd"))
    await img.commit(img.Image(filename=top, format="qcow2", gate=AllowAll()), observer=told("commit"))
    for name, events in seen.items():
        assert events, name
        assert events[-1].fraction == 1.0, name
        assert [event.done for event in events] == sorted(event.done for event in events), name
