"""Disks that always have more to do, on a clock that is turned by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

from blockio.aio.clock import ManualClock
from blockio.aio.context import AioContext
from blockio.throttle import Direction, ThrottleGroup, ThrottleMember

__all__ = ["Load", "member_of", "turns"]


async def turns(count: int = 3) -> None:
    """Let everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


def member_of(group: ThrottleGroup) -> ThrottleMember:
    """A new member in the running loop."""
    member = ThrottleMember(AioContext.current())
    member.join(group)
    return member


class Load:
    """``async with Load(…)``: *depth* workers on each member send requests without a pause.

    ``history`` has what had gone through, in units, at each step of the clock.
    """

    def __init__(
        self,
        clock: ManualClock,
        members: Iterable[ThrottleMember],
        *,
        sizes: tuple[int, int] = (512, 1024),
        directions: tuple[Direction, ...] = (Direction.READ,),
        depth: int = 4,
        op_size: int = 0,
        seed: int = 0,
    ) -> None:
        self.clock = clock
        self.members = list(members)
        self.bytes = dict.fromkeys(self.members, 0)
        self.operations = dict.fromkeys(self.members, 0.0)
        self.by_direction = dict.fromkeys(Direction, 0)
        self.history: list[tuple[float, int, float]] = []
        self._sizes = sizes
        self._directions = directions
        self._depth = depth
        self._op_size = op_size
        self._dice = random.Random(seed)

    async def __aenter__(self) -> Load:
        self._tasks = [
            asyncio.create_task(self._work(member, direction))
            for member in self.members
            for direction in self._directions
            for _ in range(self._depth)
        ]
        await self._settle()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert [member.waiting for member in self.members] == [0] * len(self.members)

    async def _work(self, member: ThrottleMember, direction: Direction) -> None:
        while True:
            nbytes = self._dice.randint(*self._sizes)
            await member.intercept(direction, nbytes)
            self.bytes[member] += nbytes
            self.by_direction[direction] += nbytes
            self.operations[member] += max(nbytes / self._op_size, 1) if self._op_size else 1

    async def _settle(self) -> None:
        """Until everybody waits."""
        before = -1.0
        while before != sum(self.operations.values()):
            before = sum(self.operations.values())
            await turns()
        self.history.append((self.clock.now(), sum(self.bytes.values()), sum(self.operations.values())))

    async def run(self, seconds: float, step: float) -> None:
        """Turn the clock, *step* by *step*."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            await self._settle()
