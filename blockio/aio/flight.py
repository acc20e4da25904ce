"""Flight: a transfer that an engine has taken over without a coroutine for each layer it came through.

The third way of a request, between the fast lane, which never waits, and the slow one, which can do everything: plain
functions go down the nodes as in the fast lane, but the engine at the bottom hands the transfer to the kernel and
answers with a ``Flight``. Each layer on the way hangs a *leg* on it: what it has to do when the transfer has ended.
Legs are made once and told which flight it was, which a layer can know its own notes by: nothing is made for a request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ASYNC_TRANSFER", "Flight", "Leg", "Start", "no_flight"]

ASYNC_TRANSFER: Final = 256 << 10
"""From this many bytes on a copy out of the page cache is worth a kernel worker's time instead of the loop's."""


class Flight(ABC):
    """One transfer under way, or ended already. Hashable by identity.

    Whoever started it awaits ``land`` once; until that returns or raises the memory is the kernel's. Invariant: each
    of ``legs`` is called once, from the engine upwards, when the memory is the caller's again, with whether all went
    well.
    """

    __slots__ = ("error", "legs", "length", "note")

    def __init__(self, length: int) -> None:
        self.legs: list[Leg] = []
        self.length = length
        """Bytes to be moved."""
        self.error: BaseException | None = None
        """What ``land`` is about to raise, for legs that count."""
        self.note: Any = None
        """Whatever who started it wants to know at the end."""

    @abstractmethod
    async def land(self) -> bool:
        """Wait until the transfer has ended. False: less than ``length`` was moved, and the slow lane must do it again.

        BlockError with the kernel's errno. Cancelled before the kernel saw it, it is withdrawn; later it is awaited
        and then the cancellation goes on.
        """


Leg: TypeAlias = Callable[[Flight, bool], None]
"""What a layer does when a flight has ended: well, or not."""

Start: TypeAlias = "Callable[[int, Sequence[Buffer], int], Flight | None]"
"""Begin a transfer of so many bytes at an offset, or answer None having done nothing."""


def no_flight(offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
    """Where nothing can be started."""
    return None
