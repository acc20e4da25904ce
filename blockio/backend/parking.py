"""Where requests wait for the end of a drained section (``queued_requests`` of the reference document)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NewType
from weakref import WeakKeyDictionary

__all__ = ["Moved", "Parking", "Place", "holding", "holds"]

Place = NewType("Place", int)
"""A place in the line: who took it earlier goes on earlier."""


_held: WeakKeyDictionary[asyncio.Task[Any], list[object]] = WeakKeyDictionary()


@contextmanager
def holding(what: object) -> Iterator[None]:
    """The current task is in a drained section of *what*, a backend, or of everything (None)."""
    task = asyncio.current_task()
    if task is None:
        yield
        return
    sections = _held.setdefault(task, [])
    sections.append(what)
    try:
        yield
    finally:
        sections.remove(what)


def holds(blk: object) -> bool:
    """Whether the current task is in a drained section that *blk* is in: it would wait there for itself."""
    sections = _held.get(task) if (task := asyncio.current_task()) is not None else None
    return bool(sections) and any(what is blk or what is None for what in sections or ())


class Moved(Exception):
    """The backend lives in another loop now, where ``place`` is kept; the request has to go on there."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.place = place


class Parking:
    """Parked requests, on an ``asyncio.Condition``, going on in the order of their arrival.

    A Condition alone promises no order: who comes to its lock late, or wakes up early, would overtake. So each takes a
    place in ``_line`` when it arrives, and only the first in the line leaves. Once released, a place may go on even if
    a new section begins before its request has run: that section then waits for it, as in the reference document.

    Invariants:

    * Every place in ``_line`` belongs to one parked request and is given back however that request ends. The
      released ones, those below ``_released``, are the first of the line.
    * While the first in the line is released, its waiter has been woken, has yet to begin to wait, or ``_waker`` is
      about to wake it. ``_overtaken`` says that somebody woke up out of turn and sleeps again.
    """

    __slots__ = ("_condition", "_left", "_line", "_next", "_overtaken", "_released", "_waker")

    def __init__(self) -> None:
        self._left = False
        self._condition = asyncio.Condition()
        self._line: dict[Place, None] = {}  # a dict keeps the order and lets go of a place in the middle at once
        self._next = 0
        self._released = 0
        self._overtaken = False
        self._waker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._line)

    def take(self) -> Place:
        """A place at the end of the line; every place must reach ``wait`` or ``give_up``."""
        place = Place(self._next)
        self._next += 1
        self._line[place] = None
        return place

    def leave_for_another_loop(self) -> Parking:
        """The line as it stands, for the loop that the backend moves to; who waits here is sent away with Moved.

        Nobody in it may be released. A place that is given up from here on is given up there.
        """
        there = Parking()
        there._line = self._line
        there._next = self._next
        there._released = self._released
        self._line = {}
        self._left = True
        self._wake()
        return there

    @property
    def left(self) -> bool:
        """Whether the line is in another loop now."""
        return self._left

    def is_released(self, place: Place) -> bool:
        """Whether *place* was let go on; it may not have run yet."""
        return place < self._released

    def release(self) -> int:
        """Let everybody in the line go on; returns how many that are who were not released before."""
        count = sum(place >= self._released for place in self._line)
        self._released = self._next
        if count:
            self._wake()
        return count

    def holds(self, place: Place) -> bool:
        """Whether *place* is still in the line."""
        return place in self._line

    def give_up(self, place: Place) -> None:
        """*place* is no longer wanted. May be called again."""
        self._line.pop(place, None)
        if self._overtaken:
            self._overtaken = False
            self._wake()

    async def wait(self, place: Place) -> None:
        """Until *place* is released and the first in the line, which it then leaves. Cancelled, it is given up.

        Moved where the line is in another loop: the place is kept there.
        """
        try:
            async with self._condition:
                while not self._left and (place >= self._released or next(iter(self._line)) != place):
                    self._overtaken = self._overtaken or place < self._released
                    await self._condition.wait()
        finally:
            self.give_up(place)
        if self._left:
            raise Moved(place)

    def _wake(self) -> None:
        if self._waker is None:  # notifying needs the condition's lock, and who releases may not be able to wait for it
            self._waker = asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        try:
            async with self._condition:
                self._condition.notify_all()
        finally:
            self._waker = None
