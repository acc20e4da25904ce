"""RangeLocks, as pictures: a request is ``X`` (exclusive) or ``s`` (shared) on a line of ten bytes."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.aio.ranges import RangeHold, RangeLocks


def interval(picture: str) -> tuple[int, int, bool]:
    """``"..XX...."`` as start, length and whether it is exclusive."""
    inside = picture.strip(".")
    return picture.index(inside[0]), len(inside), inside[0] == "X"


def queue(locks: RangeLocks, *pictures: str) -> list[RangeHold]:
    holds = []
    for picture in pictures:
        start, nbytes, exclusive = interval(picture)
        holds.append(locks.hold(start, nbytes, exclusive=exclusive))
    return holds


def granted(holds: list[RangeHold]) -> str:
    return "".join("-" if "blockers=0" in repr(hold) else "w" for hold in holds)


@pytest.mark.parametrize(
    ("pictures", "states"),
    [
        (("XXX.......", "...XXX...."), "--"),
        (("XXX.......", "..XXX....."), "-w"),
        (("sss.......", "..sss....."), "--"),
        (("sss.......", "..XXX....."), "-w"),
        (("XXX.......", "..sss....."), "-w"),
        (("ssssssssss", "..XXX.....", "....s....."), "-ww"),  # later readers do not overtake a waiting writer
        (("X.........", "XXXXXXXXXX", ".........X"), "-ww"),
    ],
)
def test_who_waits_for_whom(pictures: tuple[str, ...], states: str) -> None:
    assert granted(queue(RangeLocks(), *pictures)) == states


def test_releasing_grants_in_the_order_of_arrival() -> None:
    locks = RangeLocks()
    first, second, third = holds = queue(locks, "XXXX......", "..XXXX....", "....XXXX..")
    assert granted(holds) == "-ww"
    first.release()
    assert granted(holds) == "--w"
    second.release()
    assert granted(holds) == "---"
    third.release()
    assert len(locks) == 0


async def test_waiting_and_going_on() -> None:
    locks = RangeLocks()
    order = []

    async def use(name: str, start: int, nbytes: int) -> None:
        async with locks.hold(start, nbytes):
            order.append(name)
            await asyncio.sleep(0)
            order.append(name)

    await asyncio.gather(use("a", 0, 4), use("b", 2, 4), use("c", 8, 1))
    assert order == ["a", "c", "a", "c", "b", "b"]
    assert len(locks) == 0


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    locks = RangeLocks()
    held = await locks.acquire(0, 10)
    waiter = asyncio.create_task(locks.acquire(5, 10))
    behind = asyncio.create_task(locks.acquire(12, 2))
    await asyncio.sleep(0)
    assert not behind.done()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    (await behind).release()
    held.release()
    assert len(locks) == 0
    assert locks.try_hold(0, 100) is not None


async def test_cancelled_in_the_moment_of_being_granted() -> None:
    locks = RangeLocks()
    held = await locks.acquire(0, 10)
    waiter = asyncio.create_task(locks.acquire(0, 10))
    await asyncio.sleep(0)
    held.release()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert len(locks) == 0


def test_try_hold_never_waits() -> None:
    locks = RangeLocks()
    hold = locks.try_hold(0, 4)
    assert hold is not None
    assert locks.try_hold(3, 1) is None
    assert len(locks) == 1
    hold.release()
    with pytest.raises(RuntimeError, match="not held"):
        hold.release()


@pytest.mark.parametrize(("start", "nbytes"), [(0, 0), (-1, 4), (4, -1)])
def test_nonsense_is_refused(start: int, nbytes: int) -> None:
    with pytest.raises(ValueError, match="cannot lock"):
        RangeLocks().hold(start, nbytes)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.booleans(), st.integers(0, 5)), max_size=25))
def test_granted_holds_never_conflict_and_all_are_granted_in_the_end(
    requests: list[tuple[int, int, bool, int]],
) -> None:
    locks = RangeLocks()
    live: list[RangeHold] = []
    for start, nbytes, exclusive, release in requests:
        live.append(locks.hold(start, nbytes, exclusive=exclusive))
        for _ in range(release):
            running = [hold for hold in live if "blockers=0" in repr(hold)]
            for one in running:
                for other in running:
                    if one is not other and (one.exclusive or other.exclusive):
                        assert one.end <= other.start or other.end <= one.start
            if running:
                live.remove(running[0])
                running[0].release()
    while live:
        running = [hold for hold in live if "blockers=0" in repr(hold)]
        assert running, "nobody can go on"
        live.remove(running[0])
        running[0].release()
    assert len(locks) == 0
