"""Cancellation: cancel a scenario at its first await, at its second …, and look at what is left each time.

asyncio cancels a task where it waits. So a scenario with N suspensions can be cancelled in N places;
``cancel_at_every_await`` visits all of them, each on a fresh scenario. Suspensions of tasks that the scenario starts
are not visited by themselves, but their cancellation by the scenario is. ``explore_cancellations`` does it for a whole
driver stack and a guest at work on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from blockio.testing.guest import Guest, Promises, Workload
from blockio.testing.rig import Rig, sound, still_works
from blockio.testing.wrapping import PausingChild

__all__ = ["cancel_at_every_await", "explore_cancellations"]

_ENOUGH: Final = 10_000


class _CancelledAt:
    """Awaits *work* and cancels the running task at its *nth* suspension (from 1 on)."""

    __slots__ = ("_nth", "_work", "reached")

    def __init__(self, work: Coroutine[Any, Any, None], nth: int) -> None:
        self._work = work
        self._nth = nth
        self.reached = False

    def __await__(self) -> Generator[Any, Any, None]:
        task = asyncio.current_task()
        assert task is not None
        suspended = 0
        throw: BaseException | None = None
        while True:
            try:
                waited = self._work.send(None) if throw is None else self._work.throw(throw)
            except StopIteration:
                return
            throw = None
            suspended += 1
            if suspended == self._nth:
                self.reached = True
                # Queued before anything that could end the suspension: the task is cancelled in it.
                asyncio.get_running_loop().call_soon(task.cancel)
            try:
                yield waited
            except BaseException as error:  # handed on to the coroutine, as asyncio would
                throw = error


async def cancel_at_every_await(
    scenario: Callable[[], Coroutine[Any, Any, None]],
    afterwards: Callable[[int], Awaitable[None]],
    *,
    before: Callable[[int], Awaitable[None]] | None = None,
) -> int:
    """Run ``scenario()`` cancelled at its Nth await, then ``afterwards(N)``, for N = 1, 2 … until it ends before that.

    *before* prepares each run. *afterwards* checks that the objects are whole, and uses them. Returns how many
    awaits there were; the last run, which is not cancelled, is checked as well. AssertionError where the scenario
    swallows its cancellation.
    """
    for nth in range(1, _ENOUGH):
        if before is not None:
            await before(nth)
        run = _CancelledAt(scenario(), nth)

        async def main(run: _CancelledAt = run) -> None:
            await run

        task = asyncio.ensure_future(main())
        await asyncio.wait([task])
        if run.reached:
            assert task.cancelled(), f"the cancellation at await {nth} was swallowed: {task!r}"
        else:
            task.result()
        await afterwards(nth)
        if not run.reached:
            return nth - 1
    raise AssertionError(f"the scenario suspends more than {_ENOUGH} times")


async def explore_cancellations(
    rig: Rig,
    disks: Mapping[str, bytes | bytearray],
    workload: Workload,
    *,
    leaks: bool = True,
    repairs: bool = False,
    discard_zeroes: bool = False,
) -> int:
    """Cancel a guest's *workload* at its first await, at its second …, each time on a stack over copies of *disks*.

    Each operation below the stack suspends before and after it is carried out, as a real file's does. After each
    cancellation nothing is held, each sector has a content that it may have, and the same stack does the whole workload
    well; closed, its disks are ``sound`` (which says what *leaks* and *repairs* mean). Returns how many awaits there
    were; AssertionError, naming the await, where something is wrong.
    """
    stack = AsyncExitStack()
    copies: dict[str, bytearray] = {}
    guest: Guest

    async def before(_nth: int) -> None:
        nonlocal guest
        copies.update({name: bytearray(data) for name, data in disks.items()})
        async with rig.open(copies, read_only=True) as disk:
            promises = Promises(await disk.read(0, disk.length))
        disk = await stack.enter_async_context(rig.open(copies, wrap=lambda _name, child: PausingChild(child)))
        guest = Guest(disk, promises, discard_zeroes=discard_zeroes)

    async def scenario() -> None:
        await workload(guest)

    async def afterwards(nth: int) -> None:
        try:
            await still_works(guest.disk, guest, workload)
            await stack.aclose()
            await sound(rig, copies, guest.promises.now(), leaks=leaks, repairs=repairs)
        except Exception as error:
            raise AssertionError(f"after a cancellation at await {nth}: {type(error).__name__}: {error}") from error

    async with stack:
        return await cancel_at_every_await(scenario, afterwards, before=before)
