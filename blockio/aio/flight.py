"""Flight: a transfer that an engine has taken over without a coroutine for each layer it came through.

The third way of a request, between the fast lane, which never waits, and the slow one, which can do everything: plain
functions go down the nodes as in the fast lane, but the engine at the bottom hands the transfer to the kernel and
answers with a ``Flight``. Each layer on the way hangs a *leg* on it: what it has to do when the transfer has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Flight", "Start", "no_flight"]


class Flight(ABC):
    """One transfer under way, or ended already.

    Whoever started it awaits ``land`` once; until that returns or raises the memory is the kernel's. Invariant: each
    of ``legs`` is called once, the last one first, when the memory is the caller's again, with whether all went well.
    """

    __slots__ = ("legs",)

    def __init__(self) -> None:
        self.legs: list[Callable[[bool], None]] = []

    @abstractmethod
    async def land(self, nbytes: int) -> bool:
        """Wait until the transfer has ended. False: not all *nbytes* were moved, and the slow lane must do it again.

        BlockError with the kernel's errno. Cancelled before the kernel saw it, it is withdrawn; later it is awaited
        and then the cancellation goes on.
        """


Start: TypeAlias = "Callable[[int, Sequence[Buffer], int], Flight | None]"
"""Begin a transfer of so many bytes at an offset, or answer None having done nothing."""


def no_flight(offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
    """Where nothing can be started."""
    return None
