"""Several pieces of one request at a time, but not too many.

A request over a fragmented image is many small transfers; eight of them are under way at once, as in QEMU's
``qcow2_co_preadv_task``. Whoever waits here owns the request's memory: it does not return before every piece has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final

__all__ = ["MAX_WORKERS", "Workers"]

MAX_WORKERS: Final = 8


class Workers:
    """``async with Workers() as workers: await workers.add(piece())``; leaving waits for all of them.

    Invariant: at most ``MAX_WORKERS`` pieces run, and after ``__aexit__`` none does. The first error is raised, by
    ``add`` or on leaving; pieces that are under way then still end by themselves, because what they do (linking an
    allocation) must not be torn. Only a cancellation of the whole request cancels them, and it too waits for them.
    """

    __slots__ = ("_error", "_running")

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    async def __aenter__(self) -> Workers:
        return self

    async def add(self, piece: Coroutine[Any, Any, None]) -> None:
        """Start *piece*, as soon as there is room. Raises what an earlier piece raised; then *piece* never ran."""
        try:
            while len(self._running) >= MAX_WORKERS:
                await self._some(asyncio.FIRST_COMPLETED)
            if self._error is not None:
                raise self._error
        except BaseException:
            piece.close()
            raise
        self._running.add(asyncio.get_running_loop().create_task(piece))

    async def _some(self, when: str) -> None:
        done, self._running = await asyncio.wait(self._running, return_when=when)
        for task in done:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if self._error is None:
                self._error = error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        if cancelled is not None:
            self._cancel()
        while self._running:
            try:
                await self._some(asyncio.ALL_COMPLETED)
            except asyncio.CancelledError as again:
                cancelled = again
                self._cancel()
        if cancelled is not None and cancelled is not error:
            raise cancelled
        if error is not None:
            return
        if self._error is not None:
            raise self._error

    def _cancel(self) -> None:
        for task in self._running:
            task.cancel()
