"""Crashes, faults and cancellations while bitmaps are stored and removed.

After each a bitmap is in use, or right: every granule that was written since the last time it was right is dirty.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from contextlib import suppress
from typing import Any

import pytest

from blockio.buffers import IoVector
from blockio.driver.child import Child
from blockio.errors import BlockError
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.crash import CrashState, explore_crashes
from blockio.testing.faults import FaultPlan, FaultyChild
from blockio.testing.journal import Journal
from blockio.testing.memory import MemoryChild
from blockio.testing.wrapping import PausingChild
from blockio.types import Limits, OpenFlags, RequestFlags
from blockio_drivers.qcow2.check import check_image
from blockio_drivers.qcow2.header import Header
from tests.qcow2.engine import Disk, new_image, open_disk, open_driver
from tests.qcow2.engine import check_image as qemu_check
from tests.qcow2.test_engine_faults import for_every_fault

READ_ONLY = OpenFlags(read_only=True)
GRANULARITY = 4096
NAMES = ("a", "b", "c")


class Guest:
    """Writes, and remembers for each bitmap which granules must be dirty in it."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    async def write(self, offset: int, data: bytes) -> None:
        # As NodeIO does it: when the write has ended, well or not.
        try:
            await self.disk.write(offset, data)
        finally:
            self.disk.host.dirty_bitmaps.mark(offset, len(data))

    def add(self, name: str) -> None:
        bitmap = self.disk.host.dirty_bitmaps.create(self.disk.driver.length, GRANULARITY, name)
        bitmap.persistent = True

    async def remove(self, name: str) -> None:
        bitmap = self.disk.host.dirty_bitmaps.find(name)
        assert bitmap is not None
        bitmap.persistent = False
        try:
            await self.disk.driver.co_remove_persistent_dirty_bitmap(name)
        except BaseException:
            bitmap.persistent = True
            raise
        self.disk.host.dirty_bitmaps.release(bitmap)

    def dirty(self) -> dict[str, set[int]]:
        return {
            bitmap.name: set(bitmap) for bitmap in self.disk.host.dirty_bitmaps if bitmap.name and bitmap.persistent
        }


async def sound(child: MemoryChild, at: object) -> None:
    """A check finds at worst leaks."""
    header = Header.decode(bytes(child.data[:65536]), trust=Limits())
    if header.dirty:
        return
    report: list[str] = []
    result = await check_image(child, header, trust=Limits(), report=report.append)
    assert not result.corruptions, (at, report)
    assert not result.check_errors, (at, report)


async def believed(child: MemoryChild) -> dict[str, set[int]]:
    """The bitmaps that the image says are right."""
    async with open_disk(child, flags=READ_ONLY) as disk:
        return {
            bitmap.name: set(bitmap)
            for bitmap in disk.host.dirty_bitmaps
            if bitmap.name is not None and not bitmap.inconsistent
        }


class History:
    """What was dirty at each moment: the union of everything recorded since the bitmap was made."""

    def __init__(self) -> None:
        self.moments: list[tuple[int, dict[str, set[int]]]] = []

    def note(self, at: int, dirty: dict[str, set[int]]) -> None:
        self.moments.append((at, dirty))

    def before(self, at: int) -> dict[str, set[int]]:
        return next((dirty for moment, dirty in reversed(self.moments) if moment <= at), {})


async def sessions(child: MemoryChild, journal: Journal, rnd: random.Random, history: History) -> None:
    """Some times: open, write, add or remove bitmaps, close."""
    through = journal.over("file", child)
    for turn in range(4):
        async with open_disk(child, through=through) as disk:
            guest = Guest(disk)
            for _ in range(4):
                offset = rnd.randrange(disk.driver.length // 512) * 512
                data = rnd.randbytes(min(rnd.randrange(1, 9) * 512, disk.driver.length - offset))
                await guest.write(offset, data)
                history.note(journal.tick(), guest.dirty())
            if turn < len(NAMES):
                guest.add(NAMES[turn])
            if turn == 2:
                await guest.remove("a")
            history.note(journal.tick(), guest.dirty())


async def explored(seed: int, states: int, sample: list[bytes], **options: Any) -> str:
    """Judge what crashes leave of some sessions; the answer is what was found."""
    child = await new_image(1 << 20, **options)
    journal, history = Journal(), History()
    journal.add("file", child.data)
    await sessions(child, journal, random.Random(seed), history)

    async def judge(state: CrashState) -> None:
        crashed = MemoryChild(state.disks["file"])
        await sound(crashed, state.name)
        wanted = history.before(state.tick)
        for name, bits in (await believed(crashed)).items():
            missing = wanted.get(name, set()) - bits
            assert not missing, f"bitmap {name} misses {sorted(missing)}"
        if state.digest % 8 == 0:  # and it can be used
            async with open_disk(crashed) as disk:
                guest = Guest(disk)
                await guest.write(0, b"x" * 512)
                for name in guest.dirty():
                    await guest.remove(name)
            await sound(crashed, state.name)
            assert await believed(crashed) == {}
        if state.digest % 100 == 0:
            sample.append(bytes(state.disks["file"]))

    report = await explore_crashes(journal, judge, states=states, seed=seed)
    return "" if report.ok else str(report)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    ("states", "options"),
    [
        (1500, {"cluster_size": 512}),
        (1000, {"cluster_size": 4096, "lazy_refcounts": True}),
        (300, {"cluster_size": 65536}),
    ],
    ids=str,
)
def test_a_crash_anywhere(states: int, options: dict[str, Any]) -> None:
    """Not an async test: a loop in debug mode would judge half as many in the same time."""
    states = states * int(os.environ.get("CRASH_STATES", "20000")) // 20_000
    sample: list[bytes] = []
    seed = int(os.environ.get("CRASH_SEED", "1"))
    assert not asyncio.run(explored(seed, states, sample, **options))
    for data in sample:
        qemu_check(data, leaks=True)


async def start(**options: Any) -> MemoryChild:
    """An image with two bitmaps."""
    child = await new_image(1 << 20, **options)
    async with open_disk(child) as disk:
        guest = Guest(disk)
        guest.add("a")
        guest.add("b")
        await guest.write(8192, b"x" * 512)
    return child


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("cluster_size", [512, 65536])
async def test_every_operation_fails_once(cluster_size: int) -> None:
    """Opening, marking, removing, storing: whichever operation fails, it is said, and nothing is missed."""
    plan = FaultPlan()

    async def scenario() -> None:
        nth, plan.nth = plan.nth, 0
        child = await start(cluster_size=cluster_size)
        wanted: dict[str, set[int]] = {}
        plan.arm(nth)
        with suppress(OSError):
            driver, host = await open_driver(FaultyChild(child, plan))
            disk = Disk(driver, host, child)
            guest = Guest(disk)
            try:
                with suppress(OSError):
                    await guest.write(40960, b"y" * 5000)
                with suppress(OSError):
                    await guest.remove("a")
                guest.add("c")
                # Stored, and then written on all the same, as when a reopen fails.
                with suppress(OSError):
                    await driver.inactivate()
                with suppress(OSError):
                    await guest.write(81920, b"z" * 600)
                wanted = guest.dirty()
            finally:
                await disk.close()
        plan.nth = 0
        await sound(child, nth)
        for name, bits in (await believed(child)).items():
            assert bits >= wanted.get(name, set()), name
        left.append(bytes(child.data))
        async with open_disk(child) as disk:
            guest = Guest(disk)
            await guest.write(0, b"x" * 512)
            for name in guest.dirty():
                await guest.remove(name)
        assert await believed(child) == {}
        left.append(bytes(child.data))

    left: list[bytes] = []
    assert await for_every_fault(plan, scenario) > 30
    for data in list(dict.fromkeys(left))[::6]:
        qemu_check(data, leaks=True)


def slow(child: MemoryChild) -> Child:
    """A file whose operations suspend."""
    return PausingChild(child, turns=2, rnd=random.Random(5))


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("what", ["remove", "store", "open"])
async def test_cancelled_at_every_await(what: str) -> None:
    child = MemoryChild()
    disk: Disk | None = None

    async def before(_nth: int) -> None:
        nonlocal child, disk
        child = MemoryChild((await start(cluster_size=512)).data)
        if what != "open":
            driver, host = await open_driver(slow(child))
            disk = Disk(driver, host, child)

    async def scenario() -> None:
        nonlocal disk
        if what == "open":
            driver, host = await open_driver(slow(child))
            disk = Disk(driver, host, child)
            return
        assert disk is not None
        guest = Guest(disk)
        await guest.write(40960, b"y" * 512)
        if what == "remove":
            await guest.remove("a")
        else:
            await disk.driver.inactivate()

    async def afterwards(_nth: int) -> None:
        nonlocal disk
        wanted: dict[str, set[int]] = {}
        if disk is not None:
            guest = Guest(disk)
            await guest.write(81920, b"z" * 512)
            wanted = guest.dirty()
            await disk.close()
            disk = None
            assert await believed(child) == wanted, "the driver works on, and loses nothing"
        await sound(child, what)
        left.append(bytes(child.data))

    left: list[bytes] = []
    assert await cancel_at_every_await(scenario, afterwards, before=before) > 5
    for data in list(dict.fromkeys(left))[::4]:
        qemu_check(data, leaks=True)


@pytest.mark.peer("qemu-img")
async def test_a_bitmap_that_cannot_be_stored_is_said_to_be_lost() -> None:
    child = await start()
    plan = FaultPlan(operations=frozenset({"write"}))
    driver, host = await open_driver(FaultyChild(child, plan))
    disk = Disk(driver, host, child)
    plan.arm(1)
    with pytest.raises(OSError, match="Lost persistent bitmaps during inactivation of node 'node0'"):
        await disk.close()
    async with open_disk(child, flags=READ_ONLY) as disk:
        assert all(bitmap.inconsistent for bitmap in disk.host.dirty_bitmaps)
    await sound(child, "close")
    qemu_check(child.data)


@pytest.mark.peer("qemu-img")
async def test_what_could_not_be_stored_is_stored_later() -> None:
    """Going to sleep failed and nothing was written since: closing tries again."""
    child = await start()
    plan = FaultPlan(operations=frozenset({"write"}))
    driver, host = await open_driver(FaultyChild(child, plan))
    guest = Guest(Disk(driver, host, child))
    await guest.write(40960, b"y" * 512)
    plan.arm(1)
    with pytest.raises(OSError, match="Lost persistent bitmaps"):
        await driver.inactivate()
    await driver.close()
    assert await believed(child) == guest.dirty()
    qemu_check(child.data)


class Liar(MemoryChild):
    """A file whose *nth* write from ``arm`` on is done, and then said to have failed."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.left = 0

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        await super().co_pwritev(offset, iov, flags)
        self.left -= 1
        if self.left == 0:
            raise BlockError(errno=errno.EIO)


@pytest.mark.parametrize("remove", [False, True])
async def test_a_write_that_failed_may_have_been_done(remove: bool) -> None:
    """The header may lead to the new directory although turning it there failed: nobody may believe that either."""
    original = bytes((await start(cluster_size=512)).data)
    failed = 0
    for nth in range(1, 30):
        child = Liar(original)
        driver, host = await open_driver(child)
        guest = Guest(Disk(driver, host, child))
        await guest.write(40960, b"y" * 512)
        child.left = nth
        try:
            await (guest.remove("a") if remove else driver.inactivate())
        except OSError:
            failed += 1
        child.left = 0
        await guest.write(81920, b"z" * 512)
        wanted = guest.dirty()
        await sound(MemoryChild(child.data), nth)
        for bits in (await believed(MemoryChild(child.data))).values():
            assert 81920 in bits, "the machine dies here"
        await driver.close()
        assert await believed(child) == wanted
        await sound(child, nth)
    assert failed >= 3
