"""Run a coroutine to its end although the task around it is cancelled.

``asyncio.shield`` needs a task of its own for what it shields, some ten microseconds that every allocating write
would pay. Here the coroutine runs in the caller's task; only when it really suspends is its future kept apart from
the task, so that a cancellation hits the waiting and not the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

__all__ = ["shielded"]

T = TypeVar("T")


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Shielded(Generic[T]):
    __slots__ = ("_work",)

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work

    def __await__(self) -> Generator[Any, None, T]:
        work = self._work
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                waited = work.send(None)
            except StopIteration as stop:
                result: T = stop.value
                break
            except BaseException as error:
                if cancelled is not None:
                    raise cancelled from error
                raise
            if waited is None:  # a bare yield: only a turn of the loop was wanted
                try:
                    yield
                except asyncio.CancelledError as error:
                    cancelled = error
                continue
            # Future.__await__ set this flag for a Task to see; the task is given a future of ours instead.
            waited._asyncio_future_blocking = False
            while not waited.done():
                waiter = waited.get_loop().create_future()
                waited.add_done_callback(lambda _, waiter=waiter: _wake(waiter))
                try:
                    yield from waiter
                except asyncio.CancelledError as error:
                    cancelled = error
        if cancelled is not None:
            raise cancelled
        return result


def shielded(work: Coroutine[Any, Any, T]) -> _Shielded[T]:
    """``await shielded(work())``: *work* ends by itself; a cancellation meanwhile is raised afterwards.

    The cancellation wins over an error of *work*, which is chained to it.
    """
    return _Shielded(work)
