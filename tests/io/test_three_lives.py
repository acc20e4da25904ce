"""Every request of a format works, fails at any step, is cancelled at any await; and the node works on afterwards."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from blockio.errors import BlockError
from blockio.testing.cancel import cancel_at_every_await
from blockio.types import BlockLimits, RequestFlags
from tests.io.world import Disk, Rig, failing_after, in_format, on_disk, opened, pattern

LENGTH = 8 << 10
BASE = pattern(5 << 10, 9)

Scenario = Callable[[Rig], Awaitable[object]]

SCENARIOS: dict[str, Scenario] = {
    "read": lambda rig: rig.read(375, 3700),
    "small read": lambda rig: rig.read(100, 50),
    "write in one cluster": lambda rig: rig.write(1800, pattern(100, 2)),
    "write over many": lambda rig: rig.write(1800, pattern(3000, 2)),
    "overwrite": lambda rig: rig.write(0, pattern(1024, 2)),
    "write with FUA": lambda rig: rig.write(7000, pattern(100, 2), RequestFlags.FUA),
    "zero write": lambda rig: rig.io.co_pwrite_zeroes(375, 2500),
    "flush": lambda rig: rig.io.co_flush(),
    "status": lambda rig: rig.io.co_block_status(0, LENGTH),
    "copy on read": lambda rig: rig.read(375, 3700, RequestFlags.COPY_ON_READ),
}


def world(*, most: int, align: int = 512) -> AbstractAsyncContextManager[Rig]:
    """A format with a part already written over a shorter backing file, everything pausing everywhere."""
    file = Disk(64 << 10, limits=BlockLimits(request_alignment=align), pauses=1, fast=False)
    base = Disk(BASE, pauses=1, fast=False)
    return prepared(opened(in_format(file, length=LENGTH, cluster=512, backing=on_disk(base))), most)


def prepared(opening: AbstractAsyncContextManager[Rig], most: int) -> AbstractAsyncContextManager[Rig]:
    class Prepared(AbstractAsyncContextManager[Rig]):
        async def __aenter__(self) -> Rig:
            rig = await opening.__aenter__()
            await rig.write(0, pattern(1500, 3))
            await rig.io.co_pwrite_zeroes(2048, 512)
            rig.format.most = most
            rig.format.pauses = 1
            return rig

        async def __aexit__(self, *exc: object) -> None:
            await opening.__aexit__(*exc)  # type: ignore[arg-type]  # handed on as it came

    return Prepared()


def old() -> bytearray:
    disk = bytearray(LENGTH)
    disk[: len(BASE)] = BASE
    disk[:1500] = pattern(1500, 3)
    disk[2048:2560] = bytes(512)
    return disk


def new(name: str) -> bytearray:
    disk = old()
    if name == "write in one cluster":
        disk[1800:1900] = pattern(100, 2)
    elif name == "write over many":
        disk[1800:4800] = pattern(3000, 2)
    elif name == "overwrite":
        disk[:1024] = pattern(1024, 2)
    elif name == "write with FUA":
        disk[7000:7100] = pattern(100, 2)
    elif name == "zero write":
        disk[375:2875] = bytes(2500)
    return disk


def assert_old_or_new(got: bytes, name: str) -> None:
    before, after = old(), new(name)
    torn = [at for at in range(LENGTH) if got[at] != before[at] and got[at] != after[at]]
    assert not torn, f"neither old nor new: {torn}"


async def assert_usable(rig: Rig, name: str) -> None:
    """Whole, and every byte old or new; then the request is made once more and does all it should."""
    rig.whole()
    assert sum(room.ended is None for room in rig.format.rooms) == 0
    assert_old_or_new(await rig.read(0, LENGTH), name)
    await SCENARIOS[name](rig)
    assert await rig.read(0, LENGTH) == new(name)
    rig.whole()


MOST = pytest.mark.parametrize("most", [1 << 30, 1000], ids=["one piece", "many pieces"])
NAMES = pytest.mark.parametrize("name", SCENARIOS)


@MOST
@NAMES
async def test_cancelled_at_every_await(name: str, most: int) -> None:
    opening: AbstractAsyncContextManager[Rig] | None = None
    rig: Rig | None = None

    async def before(_nth: int) -> None:
        nonlocal opening, rig
        opening = world(most=most)
        rig = await opening.__aenter__()

    async def scenario() -> None:
        assert rig is not None
        await SCENARIOS[name](rig)

    async def afterwards(_nth: int) -> None:
        assert rig is not None
        assert opening is not None
        await assert_usable(rig, name)
        await opening.__aexit__(None, None, None)

    assert await cancel_at_every_await(scenario, afterwards, before=before) > 0


@MOST
@NAMES
@pytest.mark.parametrize("where", ["file", "backing", "format"])
async def test_failing_at_every_step(name: str, most: int, where: str) -> None:
    for count in itertools.count():
        async with world(most=most) as rig:
            boom = failing_after(count, BlockError(errno=errno.ENOSPC))
            calls = 0

            def fail(*what: object, boom: Callable[..., None] = boom) -> None:
                nonlocal calls
                calls += 1
                boom(*what)

            if where == "format":
                rig.format.failing = fail
            else:
                driver = rig.node.children[where].node.driver
                driver.disk.before = fail  # type: ignore[union-attr]  # a DiskDriver
            outcome = await asyncio.gather(SCENARIOS[name](rig), return_exceptions=True)
            failed = isinstance(outcome[0], BlockError) and outcome[0].errno == errno.ENOSPC
            assert failed or not isinstance(outcome[0], BaseException)
            rig.format.failing = None
            for disk in Disk.known.values():
                disk.before = None
            if calls <= count:
                assert not failed
                return
            # Failing to look for holes changes nothing; every other failure is the request's.
            assert failed
            await assert_usable(rig, name)


async def test_link_or_abandon_never_both_and_never_neither() -> None:
    async with world(most=1000) as rig:
        await rig.write(2500, pattern(2500, 2))
        assert {room.ended for room in rig.format.rooms} == {"link"}
        rig.format.rooms.clear()
        file = rig.node.children["file"].node.driver
        file.disk.before = failing_after(2)  # type: ignore[union-attr]  # a DiskDriver
        with pytest.raises(BlockError):
            await rig.write(5500, pattern(2000, 2))
        assert {room.ended for room in rig.format.rooms} == {"link", "abandon"}
        rig.whole()


async def test_a_cancellation_during_link_waits_for_it() -> None:
    async with world(most=1 << 30) as rig:
        rig.format.pauses = 50
        write = asyncio.ensure_future(rig.write(6250, pattern(100, 2)))
        before = len(rig.format.rooms)
        for _ in range(1000):
            if len(rig.format.rooms) > before and rig.format.rooms[-1].ended is not None:
                break
            await asyncio.sleep(0)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        rig.format.pauses = 0
        assert await rig.read(6250, 100) == pattern(100, 2)
        rig.whole()
