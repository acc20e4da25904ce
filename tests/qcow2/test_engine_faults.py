"""Faults and cancellations that need a place of their own; ``test_fault_states.py`` has all the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

import pytest

from blockio.testing.faults import FaultPlan, FaultyChild
from blockio.testing.memory import MemoryChild
from blockio.testing.wrapping import PausingChild
from tests.qcow2.engine import check_image, new_image, open_disk

CLUSTER = 512
SIZE = 80 * 1024


async def for_every_fault(plan: FaultPlan, scenario: Callable[[], Awaitable[None]]) -> int:
    """As ``blockio.testing.faults`` has it, but with nothing of blockio on the stack: the scenario runs programs."""
    nth = 0
    while True:
        nth += 1
        plan.arm(nth)
        await scenario()
        if not plan.fired:
            return nth - 1


async def _image(**options: Any) -> MemoryChild:
    child = await new_image(SIZE, cluster_size=CLUSTER, **options)
    child.fast = False
    return child


@pytest.mark.peer("qemu-img")
async def test_a_failed_close_raises_and_a_later_open_finds_no_corruption() -> None:
    for nth in range(1, 12):
        plan = FaultPlan()
        child = await _image()
        with suppress(OSError):
            async with open_disk(child, through=FaultyChild(child, plan)) as disk:
                await disk.write(0, b"a" * 5000)
                await disk.flush()
                await disk.write(20000, b"b" * 5000)
                plan.arm(nth)
        check_image(child.data, leaks=True)
        async with open_disk(child) as disk:
            assert await disk.read(0, 5000) == b"a" * 5000


# -- cancellation


class CancelAt:
    """Awaits *work* and cancels it at its Nth suspension. ``suspensions`` says how many it had."""

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.suspensions = 0

    async def run(self, work: Awaitable[None]) -> bool:
        """Whether *work* was cancelled."""
        cancelled = False
        current = asyncio.current_task()
        assert current is not None
        task: asyncio.Task[Any] = current
        outer = self

        class Watch:
            def __await__(self) -> Generator[Any, Any, None]:
                inner = work.__await__()
                value: Any = None
                error: BaseException | None = None
                while True:
                    try:
                        waited = inner.send(value) if error is None else inner.throw(error)
                    except StopIteration:
                        return
                    outer.suspensions += 1
                    if outer.suspensions == outer.nth:
                        task.cancel()
                    error = None
                    try:
                        value = yield waited
                    except BaseException as caught:
                        error = caught

        try:
            await Watch()
        except asyncio.CancelledError:
            task.uncancel()
            cancelled = True
        return cancelled


@pytest.mark.peer("qemu-img")
async def test_a_growing_refcount_table_cancelled_at_every_await() -> None:
    """Regression: cancelled after the header had the new table, memory kept the old one, and freed the new one."""
    nth, total = 1, 2
    fresh = await new_image(3 << 20, cluster_size=512, refcount_bits=64)
    async with open_disk(fresh) as disk:  # one cluster of refcount table counts 4096 clusters: almost all of them
        for start in range(0, 1940 << 10, 97 << 10):
            await disk.write(start, b"a" * (97 << 10))
    while nth <= total:
        child = MemoryChild(fresh.data)
        async with open_disk(child, through=PausingChild(child)) as disk:
            image, allocator = disk.driver._image, disk.driver._allocator
            cancel = CancelAt(nth)
            at = 1940 << 10
            while image.header.refcount_table_clusters == 1:
                await cancel.run(disk.write(at, b"b" * 4096))
                at += 4096
            assert len(allocator.table) * 8 == image.header.refcount_table_clusters * 512
            await disk.write(at, b"c" * 8192)
            await disk.flush()
            for cluster in range(image.header.refcount_table_clusters):
                assert await allocator.refcount(image.header.refcount_table_offset + cluster * 512) == 1
        total = cancel.suspensions
        if nth == 1:
            first = total - 30  # only the write that makes the table grow is of interest
            nth = max(first, 1)
        nth += 1
    check_image(child.data, leaks=True)
    assert total > 15
