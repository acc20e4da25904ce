"""Requests in flight as intervals, and those that must not overlap any other.

A *serialising* request (read-modify-write, copy-on-read, growth) waits for every request it overlaps that came
before it, and makes those that overlap it and come after it wait. Ordinary requests do not look at each other.

This is not ``aio.ranges.RangeLocks``: here nearly every request is an ordinary one in a table that nobody searches,
so entering and leaving must cost next to nothing and only the rare serialising one pays for looking.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from typing import TypeAlias

from blockio.aio.flight import Flight
from blockio.errors import BlockError

__all__ = ["Ticket", "TrackedRequests"]

Ticket: TypeAlias = "int | Flight"
"""What a request is known by while it is in flight."""


class TrackedRequests:
    """The requests of one node.

    Invariant: tickets grow in the order of arrival, a request never turns serialising after it arrived, and it waits
    only for requests that came before it. So waiting follows the order of arrival, nobody starves, and no two
    requests can wait for each other (QEMU, where a request can turn serialising late, needs ``waiting_for`` for that).

    ``requests`` are all in flight, in the order of arrival; ``serialising`` those of them that are that, waiting ones
    included. While there are none an ordinary request need not call ``wait``, and may enter itself into ``requests``
    as the ``Flight`` it is: that one never waits, and may leave by itself while
    ``serialising`` and ``waiters`` are empty.
    """

    __slots__ = ("_next", "requests", "serialising", "waiters")

    def __init__(self) -> None:
        self.requests: dict[Ticket, tuple[int, int]] = {}
        self.serialising: dict[int, tuple[int, int]] = {}
        self.waiters: dict[Ticket, list[asyncio.Future[None]]] = {}
        self._next = 0

    def enter(self, start: int, end: int, *, serialising: bool = False) -> int:
        """A request for the bytes from *start* up to *end* arrives; the ticket must be given to ``leave``."""
        ticket = self._next
        self._next = ticket + 1
        self.requests[ticket] = (start, end)
        if serialising:
            self.serialising[ticket] = (start, end)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The request is over, however it ended: let those go on who waited for it."""
        del self.requests[ticket]
        if self.serialising or self.waiters:
            if isinstance(ticket, int):
                self.serialising.pop(ticket, None)
            for waiter in self.waiters.pop(ticket, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, ticket: int, *, no_wait: bool = False) -> None:
        """Wait until no earlier request is in the way of *ticket*'s. With *no_wait* BlockError(EBUSY) instead."""
        while (blocker := self._blocker(ticket)) is not None:
            if no_wait:
                raise BlockError(errno=errno.EBUSY)
            waiter = asyncio.get_running_loop().create_future()
            self.waiters.setdefault(blocker, []).append(waiter)
            await waiter

    def _blocker(self, ticket: int) -> Ticket | None:
        """The earliest request that *ticket*'s must wait for."""
        start, end = self.requests[ticket]
        rivals: Iterable[tuple[Ticket, tuple[int, int]]]
        rivals = self.requests.items() if ticket in self.serialising else self.serialising.items()
        for other, (other_start, other_end) in rivals:
            if isinstance(other, int) and other >= ticket:
                return None
            if other_start < end and start < other_end:
                return other
        return None
