"""Who waits for whom, as pictures: ``S`` serialising, ``o`` ordinary, in the order they arrive."""

from __future__ import annotations

import asyncio
import errno

import pytest

from blockio.errors import BlockError
from blockio.io.tracked import TrackedRequests


class Scene:
    """Requests named by a letter; ``running`` are those that do not wait."""

    def __init__(self) -> None:
        self.tracked = TrackedRequests()
        self.running = ""
        self.tickets: dict[str, int] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, name: str, picture: str) -> None:
        """*picture*: spaces up to where the request starts, then ``S`` or ``o`` for each of its bytes."""
        start = len(picture) - len(picture.lstrip())
        ticket = self.tracked.enter(start, len(picture), serialising="S" in picture)
        self.tickets[name] = ticket

        async def run() -> None:
            await self.tracked.wait(ticket)
            self.running += name

        self.tasks[name] = asyncio.ensure_future(run())
        await self.settle()

    async def leave(self, name: str) -> None:
        self.running = self.running.replace(name, "")
        self.tracked.leave(self.tickets.pop(name))
        await self.settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await self.leave(name)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for name in list(self.tickets):
            await self.leave(name)
        assert not self.tracked.requests
        assert not self.tracked.serialising
        assert not self.tracked.waiters


async def test_ordinary_requests_overlap_freely() -> None:
    scene = Scene()
    await scene.arrive("a", "oooo")
    await scene.arrive("b", "  oooo")
    assert scene.running == "ab"
    await scene.end()


async def test_a_serialising_request_waits_for_those_it_overlaps_and_stops_those_behind_it() -> None:
    scene = Scene()
    await scene.arrive("a", "oooo")
    await scene.arrive("b", "  SSSS")
    await scene.arrive("c", "     ooo")
    await scene.arrive("d", "         oo")
    assert scene.running == "ad"
    await scene.leave("a")
    assert scene.running == "db"
    await scene.leave("b")
    assert scene.running == "dc"
    await scene.end()


async def test_requests_go_on_in_the_order_they_came() -> None:
    scene = Scene()
    await scene.arrive("a", "SSSS")
    for name in "bcd":
        await scene.arrive(name, "SSSS")
    order = ""
    for _ in range(4):
        order += scene.running
        await scene.leave(scene.running)
    assert order == "abcd"


async def test_a_waiting_request_does_not_stop_those_it_waits_for() -> None:
    scene = Scene()
    await scene.arrive("a", "oo")
    await scene.arrive("b", "SSSS")
    # What ``a`` does next on its own part of the disk must not wait for ``b``: a ticket is for all of a request.
    await asyncio.wait_for(scene.tracked.wait(scene.tickets["a"]), 1)
    assert scene.running == "a"
    await scene.end()


async def test_a_later_request_never_overtakes_a_waiting_one_it_overlaps() -> None:
    scene = Scene()
    await scene.arrive("a", "SS")
    await scene.arrive("b", " SSS")
    await scene.arrive("c", "   SS")
    assert scene.running == "a"
    await scene.leave("a")
    assert scene.running == "b"
    await scene.end()


async def test_cancelled_while_waiting_leaves_no_trace() -> None:
    scene = Scene()
    await scene.arrive("a", "SSSS")
    await scene.arrive("b", "SSSS")
    await scene.arrive("c", "SSSS")
    await scene.cancel("b")
    assert scene.running == "a"
    await scene.leave("a")
    assert scene.running == "c"
    await scene.end()


async def test_one_wait_may_be_for_several_in_turn() -> None:
    scene = Scene()
    await scene.arrive("a", "oo")
    await scene.arrive("b", "  oo")
    await scene.arrive("c", "SSSS")
    await scene.leave("a")
    assert scene.running == "b"
    await scene.leave("b")
    assert scene.running == "c"
    await scene.end()


async def test_no_wait_answers_busy() -> None:
    tracked = TrackedRequests()
    first = tracked.enter(0, 10)
    second = tracked.enter(5, 15, serialising=True)
    with pytest.raises(BlockError) as caught:
        await tracked.wait(second, no_wait=True)
    assert caught.value.errno == errno.EBUSY
    tracked.leave(second)
    tracked.leave(first)
    third = tracked.enter(0, 10, serialising=True)
    await tracked.wait(third, no_wait=True)
    tracked.leave(third)
