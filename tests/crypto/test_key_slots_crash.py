"""Key slots changed by amending a luks disk: whatever a crash leaves opens with each passphrase that was not to go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import pytest

from blockio.buffers import IoVector
from blockio.driver.child import Child
from blockio.errors import OptionError
from blockio.testing.crash import CrashState, explore_crashes
from blockio.testing.faults import FaultPlan, FaultyChild, for_every_fault
from blockio.testing.journal import Journal
from blockio.testing.memory import MemoryChild, MemoryHost, MemoryOpener
from blockio.types import OpenFlags
from blockio_drivers.crypto import volume
from blockio_drivers.luks import LuksAmendOptions, LuksDriver, LuksOptions
from tests.crypto.rig import PASSPHRASE, MemoryPlace, secrets, unsplit_keys, volume_in

_DATA: Final = b"what the disk holds".ljust(512, b".")


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Secrets, few rounds (as many as QEMU demands), and one wipe instead of forty."""
    monkeypatch.setattr(volume, "_WIPES", 1)
    with secrets(s=PASSPHRASE, n="the new one", x="another"):
        yield


async def image() -> bytes:
    place = MemoryPlace()
    await volume_in(place)
    child = MemoryChild(place.data)
    driver = await opened(child, "s")
    await driver.co_pwritev(0, iov(_DATA), 0)
    return bytes(child.data)


def iov(data: bytes | bytearray) -> IoVector:
    return IoVector.of(data)


async def opened(child: Child, secret: str) -> LuksDriver:
    driver = LuksDriver(MemoryHost(flags=OpenFlags()))
    await driver.open(LuksOptions(key_secret=secret), MemoryOpener(file=child))
    return driver


async def amend(driver: LuksDriver, **options: Any) -> None:
    async def resize(length: int) -> None:
        raise AssertionError("nobody asked for it")

    await driver.co_amend(LuksAmendOptions(**options), force=False, resize=resize)


async def opens(data: bytes | bytearray, secret: str) -> bool:
    """Whether that passphrase opens the disk, which then holds what it shall."""
    try:
        driver = await opened(MemoryChild(bytearray(data)), secret)
    except OptionError as error:
        if "Invalid password" not in str(error):
            raise
        return False
    found = bytearray(512)
    await driver.co_preadv(0, iov(found), 0)
    assert found == _DATA
    return True


async def test_no_crash_takes_a_passphrase_that_stays_nor_tears_the_disk() -> None:
    child = MemoryChild(await image())
    journal = Journal()
    journal.add("file", child.data)
    driver = await opened(journal.over("file", child), "s")
    await amend(driver, state="active", new_secret="n", keyslot=6, iter_time=1)  # its fields cross a sector
    added = journal.tick()
    await amend(driver, state="inactive", old_secret="s")
    erased = journal.tick()

    async def judge(state: CrashState) -> None:
        data = state.disks["file"]
        if state.tick > added:
            assert await opens(data, "n")
        else:
            assert await opens(data, "s")
        if state.tick > erased:
            assert not await opens(data, "s")

    report = await explore_crashes(journal, judge, states=50, seed=3)
    assert report.ok, f"\n{report}"
    assert report.images > 30


async def test_every_fault_leaves_a_disk_that_opens_and_a_driver_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    unsplit_keys(monkeypatch)
    original = await image()
    plan = FaultPlan()

    async def scenario() -> None:
        nth, plan.nth = plan.nth, 0
        child = MemoryChild(original)
        driver = await opened(FaultyChild(child, plan), "s")
        plan.arm(nth)
        with suppress(OSError):
            await amend(driver, state="active", new_secret="n", keyslot=6, iter_time=1)
            await amend(driver, state="inactive", keyslot=6)
        plan.nth = 0
        assert await opens(child.data, "s")
        await amend(driver, state="active", new_secret="x", keyslot=2, iter_time=1)
        assert await opens(child.data, "x")

    assert await for_every_fault(plan, scenario) > 10


async def test_what_the_driver_refuses() -> None:
    driver = await opened(MemoryChild(await image()), "s")
    for words, options in (
        ("Parameter 'state' is missing", {"new_secret": "n"}),
        ("Parameter 'state' does not accept value 'on'", {"state": "on"}),
        ("Invalid keyslot 4294967295 specified", {"state": "active", "new_secret": "n", "keyslot": -1}),
        ("the only active keyslot 0", {"state": "inactive", "keyslot": 0}),
    ):
        with pytest.raises(OptionError, match=words):
            await amend(driver, **options)
