"""Every operation below the driver fails once, and every await is cancelled once.

Afterwards the same driver serves the whole workload, closes, and QEMU finds nothing worse than leaks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

import pytest

from blockio.testing.faults import FaultPlan, FaultyChild
from blockio.testing.memory import MemoryChild
from blockio.types import PreallocMode, RequestFlags
from tests.qcow2.engine import Disk, check_image, new_image, open_disk, qemu_reads

MAY_UNMAP = int(RequestFlags.MAY_UNMAP)
CLUSTER = 512
SIZE = 80 * 1024


class Cautious:
    """Sends requests that may fail; where one did, the range may hold old or new content, and is not compared."""

    def __init__(self, disk: Disk, model: bytearray) -> None:
        self.disk = disk
        self.model = model
        self.unsure: set[int] = set()
        self.failures = 0

    async def try_(self, work: Awaitable[None], offset: int, content: bytes) -> None:
        try:
            await work
        except OSError:
            self.failures += 1
            self.unsure.update(range(offset, offset + len(content)))
        else:
            self.model[offset : offset + len(content)] = content
            self.unsure.difference_update(range(offset, offset + len(content)))

    async def verify(self) -> None:
        content = await self.disk.read(0, len(self.model))
        for at, (got, wanted) in enumerate(zip(content, self.model, strict=True)):
            assert got == wanted or at in self.unsure, f"byte {at}"


async def workload(guest: Cautious, seed: int) -> None:
    """Something of everything: new clusters, several at once, overwriting, zeroes, discards, flushes."""
    rnd = random.Random(seed)
    disk = guest.disk
    for turn in range(3):
        for offset, nbytes in ((700, 300), (CLUSTER * 40, CLUSTER * 5), (CLUSTER * 42 + 7, CLUSTER), (300, 9000)):
            data = rnd.randbytes(nbytes)
            await guest.try_(disk.write(offset, data), offset, data)
        start = CLUSTER * (2 + turn)
        await guest.try_(disk.zero(start, CLUSTER * 3, MAY_UNMAP * (turn & 1)), start, bytes(CLUSTER * 3))
        start = CLUSTER * (41 + turn)
        await guest.try_(disk.discard(start, CLUSTER * 2), start, bytes(CLUSTER * 2))
        await guest.try_(disk.flush(), 0, b"")


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
@pytest.mark.parametrize(
    "options", [{}, {"lazy_refcounts": True}, {"refcount_bits": 64}], ids=["plain", "lazy", "wide"]
)
async def test_every_fault_once(options: dict[str, Any]) -> None:
    plan = FaultPlan()

    async def scenario() -> None:
        nth, plan.nth = plan.nth, 0
        child = await _image(**options)
        async with open_disk(child, through=FaultyChild(child, plan), l2_cache_size=1024) as disk:
            plan.arm(nth)
            guest = Cautious(disk, bytearray(SIZE))
            await workload(guest, 1)
            plan.nth = 0
            before = guest.failures
            await workload(guest, 2)
            assert guest.failures == before, "the driver works after a fault"
            await guest.verify()
        assert not guest.unsure or before
        check_image(child.data, leaks=True)
        content = qemu_reads(child.data)
        assert all(a == b or at in guest.unsure for at, (a, b) in enumerate(zip(content, guest.model, strict=True)))

    assert await for_every_fault(plan, scenario) > 30


@pytest.mark.peer("qemu-img")
async def test_a_disk_that_dies_and_comes_back() -> None:
    """From some operation on all fail; later they work again: nothing dirty was lost meanwhile."""
    for nth in range(1, 60, 4):
        plan = FaultPlan(sticky=True)
        child = await _image()
        async with open_disk(child, through=FaultyChild(child, plan)) as disk:
            plan.arm(nth)
            guest = Cautious(disk, bytearray(SIZE))
            await workload(guest, 3)
            plan.nth = 0
            await workload(guest, 4)
            await guest.verify()
            await disk.flush()
        check_image(child.data, leaks=True)


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


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("prealloc", [PreallocMode.OFF, PreallocMode.METADATA, PreallocMode.FULL])
async def test_every_fault_of_a_resize(prealloc: PreallocMode) -> None:
    plan = FaultPlan()

    async def scenario() -> None:
        nth, plan.nth = plan.nth, 0
        child = await _image(refcount_bits=64)  # 64 clusters a block: many come and go
        async with open_disk(child, through=FaultyChild(child, plan)) as disk:
            await disk.write(0, b"a" * SIZE)
            plan.arm(nth)
            for length in (SIZE + 24 * 512, SIZE // 2):
                with suppress(OSError):
                    await disk.truncate(length, prealloc if length > SIZE else PreallocMode.OFF)
            plan.nth = 0
            await disk.truncate(SIZE * 2)
            half = await disk.read(0, SIZE // 2)
            assert half == b"a" * (SIZE // 2)
            await disk.write(SIZE, b"b" * SIZE)
            assert await disk.read(SIZE, SIZE) == b"b" * SIZE
        check_image(child.data, leaks=True)

    assert await for_every_fault(plan, scenario) > 10


# -- cancellation


class _Yielding(MemoryChild):
    """Every operation suspends once before and once after it was carried out, as a real file does."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.fast = False

    def _slow(name: str) -> Callable[..., Any]:  # type: ignore[misc]  # noqa: N805  # a maker of methods
        async def operation(self: _Yielding, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            result = await getattr(MemoryChild, name)(self, *args, **kwargs)
            await asyncio.sleep(0)
            return result

        return operation

    co_preadv = _slow("co_preadv")
    co_pwritev = _slow("co_pwritev")
    co_pwrite_zeroes = _slow("co_pwrite_zeroes")
    co_pdiscard = _slow("co_pdiscard")
    co_flush = _slow("co_flush")
    co_truncate = _slow("co_truncate")


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


async def _cancelled_scenario(nth: int, options: dict[str, Any]) -> int:
    child = _Yielding((await _image(**options)).data)
    model = bytearray(SIZE)
    rnd = random.Random(1)
    async with open_disk(child, l2_cache_size=1024) as disk:
        cancel = CancelAt(nth)
        unsure: set[int] = set()

        async def request(work: Awaitable[None], offset: int, content: bytes) -> None:
            if await cancel.run(work):
                unsure.update(range(offset, offset + len(content)))
            else:
                model[offset : offset + len(content)] = content
                unsure.difference_update(range(offset, offset + len(content)))

        for turn in range(2):
            for offset, nbytes in ((700, 300), (CLUSTER * 40, CLUSTER * 5), (300, 9000)):
                data = rnd.randbytes(nbytes)
                await request(disk.write(offset, data), offset, data)
            await request(disk.zero(CLUSTER * 2, CLUSTER * 3, MAY_UNMAP * turn), CLUSTER * 2, bytes(CLUSTER * 3))
            await request(disk.discard(CLUSTER * 41, CLUSTER), CLUSTER * 41, bytes(CLUSTER))
            await request(disk.flush(), 0, b"")
        writer = disk.driver._writer
        assert not len(writer.locks), "no guest cluster stays held"
        assert not disk.driver._image.retired.readers, "no reader stays inside"
        assert not disk.driver.statistics()["l2"].pinned
        content = await disk.read(0, SIZE)
        assert all(a == b or at in unsure for at, (a, b) in enumerate(zip(content, model, strict=True)))
        await disk.write(0, b"again" * 2000)
    check_image(child.data, leaks=True)
    return cancel.suspensions


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("options", [{}, {"refcount_bits": 64, "lazy_refcounts": True}], ids=["plain", "lazy"])
async def test_every_await_cancelled_once(options: dict[str, Any]) -> None:
    nth, total = 1, 2
    while nth <= total:
        total = await _cancelled_scenario(nth, options)
        nth += 1
    assert total > 15


@pytest.mark.peer("qemu-img")
async def test_a_resize_cancelled_at_every_await() -> None:
    nth, total = 1, 2
    while nth <= total:
        child = _Yielding((await _image(refcount_bits=64)).data)
        async with open_disk(child) as disk:
            await disk.write(0, b"a" * SIZE)
            cancel = CancelAt(nth)
            await cancel.run(disk.truncate(SIZE * 30))
            await cancel.run(disk.truncate(SIZE // 2))
            await disk.truncate(SIZE * 2)
            assert (await disk.read(0, SIZE // 2)) == b"a" * (SIZE // 2)
            await disk.write(SIZE, b"b" * SIZE)
        check_image(child.data, leaks=True)
        total = cancel.suspensions
        nth += 1
    assert total > 15


@pytest.mark.peer("qemu-img")
async def test_a_growing_refcount_table_cancelled_at_every_await() -> None:
    """Regression: cancelled after the header had the new table, memory kept the old one, and freed the new one."""
    nth, total = 1, 2
    fresh = await new_image(3 << 20, cluster_size=512, refcount_bits=64)
    async with open_disk(fresh) as disk:  # one cluster of refcount table counts 4096 clusters: almost all of them
        for start in range(0, 1940 << 10, 97 << 10):
            await disk.write(start, b"a" * (97 << 10))
    while nth <= total:
        child = _Yielding(fresh.data)
        async with open_disk(child) as disk:
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
