"""GracePeriod: freed things stay untouched until the readers that may have seen them are done.

The idea is RCU's, without its threads: a reader enters before it looks a thing up and exits when it is done with it;
whoever frees the thing retires it, and gets it back for a new use only after every reader who was inside at that
moment has left. Pure: no I/O, no asyncio, one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

__all__ = ["GracePeriod"]

_T = TypeVar("_T")


class GracePeriod(Generic[_T]):
    """Readers inside, and items that wait for them.

    Invariant: ``_inside`` counts the readers by the epoch they entered in, in ascending order of epochs, without
    zeroes; an item is retired with the epoch in which its last possible readers entered, and later readers are in later
    epochs. So the items older than the oldest reader, and only they, are nobody's.
    """

    __slots__ = ("_epoch", "_exit_flight", "_inside", "_retired")

    def __init__(self) -> None:
        self._epoch = 0
        self._exit_flight: tuple[int, Callable[[object, bool], None]] = (-1, _nobody)
        """What readers of that epoch call who entered with ``enter_flight``."""
        self._inside: dict[int, int] = {}
        self._retired: deque[tuple[int, _T]] = deque()

    def enter(self) -> int:
        """A reader begins; the token is for ``exit``."""
        epoch = self._epoch
        self._inside[epoch] = self._inside.get(epoch, 0) + 1
        return epoch

    def exit(self, token: int) -> None:
        """The reader that got *token* is done. KeyError for a token that is not out."""
        _leave(self._inside, token)

    def enter_flight(self) -> Callable[[object, bool], None]:
        """A reader begins; the answer is to be called once when it is done, as the leg of a ``Flight``.

        All readers of an epoch get the same.
        """
        epoch = self._epoch
        inside = self._inside
        inside[epoch] = inside.get(epoch, 0) + 1
        made_for, leg = self._exit_flight
        if made_for != epoch:
            leg = partial(_leave, inside, epoch)
            self._exit_flight = (epoch, leg)
        return leg

    def retire(self, item: _T) -> None:
        """*item* can be found by no new reader; those inside may still use it."""
        self._retired.append((self._epoch, item))
        if self._epoch in self._inside:
            self._epoch += 1

    def reclaim(self) -> list[_T]:
        """The items, in the order they were retired, that no reader can hold any more; each is given out once."""
        oldest = next(iter(self._inside), None)
        free: list[_T] = []
        retired = self._retired
        while retired and (oldest is None or retired[0][0] < oldest):
            free.append(retired.popleft()[1])
        return free

    @property
    def readers(self) -> int:
        """How many readers are inside."""
        return sum(self._inside.values())

    @property
    def pending(self) -> int:
        """How many retired items have not been reclaimed."""
        return len(self._retired)


def _nobody(_flight: object, _ok: bool) -> None:
    return


def _leave(inside: dict[int, int], epoch: int, _flight: object = None, _ok: bool = True) -> None:
    left = inside[epoch] - 1
    if left:
        inside[epoch] = left
    else:
        del inside[epoch]
