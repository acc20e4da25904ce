"""Conversions that are interrupted at a moment that a test chooses, however fast or slow the machine is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final
from unittest import mock

from blockio.img import copying, resuming
from blockio.img.limiting import RateLimit

__all__ = ["CHUNK", "Steps", "interrupting"]

CHUNK: Final = 64 << 10
"""How much is copied at a time within ``interrupting``."""
_AHEAD: Final = 2


class Steps(RateLimit):
    """Lets pieces begin only as far as the journal keeps up: ``noted`` counts its lines behind the first."""

    def __init__(self) -> None:
        super().__init__(0)
        self.noted = 0
        self._taken = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, nbytes: int) -> None:
        self._taken += 1
        number = self._taken
        while number > self.noted + _AHEAD:
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]

    def note(self) -> None:
        """One more line is there."""
        self.noted += 1
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()


@contextmanager
def interrupting(interrupt: Callable[[], object], *, after: int) -> Iterator[Steps]:
    """Within, ``convert(resume=True, limit=…)`` with the limit given here is in small pieces, and a line is written for
    each; *interrupt* is called when the journal has *after* of them."""
    steps = Steps()
    note = resuming.ResumablePlace._note

    async def noted(place: resuming.ResumablePlace, done: int) -> None:
        await note(place, done)
        steps.note()
        if steps.noted == after:
            interrupt()

    with (
        mock.patch.object(copying, "CHUNK", CHUNK),
        mock.patch.object(resuming, "EVERY", 0),
        mock.patch.object(resuming.ResumablePlace, "_note", noted),
    ):
        yield steps
