"""A guest that takes, applies and deletes snapshots, and a disk whose check looks into all of them.

Each snapshot is named after what it holds (a digest), so that nobody has to remember it through a crash.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from blockio.driver.base import CheckResult
from blockio.driver.snapshots import SnapshotInfo
from blockio.testing.guest import Guest
from blockio.testing.memory import MemoryChild
from blockio.testing.rig import Disks
from blockio.testing.wrapping import Wrap
from blockio.types import OpenFlags
from tests.qcow2.engine import Disk, Qcow2Rig, open_disk

__all__ = ["KeepingDisk", "SnapshotRig", "digest", "snapshots_at_work"]


class KeepingDisk(Disk):
    """A disk whose snapshots hold what their names say."""

    async def check(self) -> CheckResult:
        result = await super().check()
        if self.driver._image.header.nb_snapshots:
            await self._look_at_snapshots()
        return result

    async def _look_at_snapshots(self) -> None:
        copy = MemoryChild(self.file.data)
        driver = self.driver
        async with open_disk(
            copy, flags=OpenFlags(read_only=True), backing=driver.backing, encrypt=driver._options.encrypt
        ) as disk:
            for snapshot in await disk.driver.co_snapshot_list():
                await disk.driver.co_snapshot_load(snapshot.id, None)
                content = await disk.read(0, disk.length)
                assert digest(content) == snapshot.name, f"snapshot {snapshot.id} holds something else"


class SnapshotRig(Qcow2Rig):
    """As ``Qcow2Rig``, with disks that check their snapshots."""

    @asynccontextmanager
    async def open(self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False) -> AsyncIterator[Disk]:
        async with super().open(disks, wrap=wrap, read_only=read_only) as disk:
            yield KeepingDisk(disk.driver, disk.host, disk.file)


def digest(content: bytes) -> str:
    """The name of a snapshot that holds *content*."""
    return hashlib.sha256(content).hexdigest()[:16]


async def snapshots_at_work(rnd: random.Random, guest: Guest, requests: int = 4) -> None:
    """Some requests, a snapshot, more requests; another; the first is applied, or one deleted."""
    disk = guest.disk
    assert isinstance(disk, Disk)
    driver = disk.driver
    kept: dict[str, bytes] = {}

    async def some_requests() -> None:
        for _ in range(requests):
            sector = rnd.randrange(guest.length // 512)
            await guest.write(sector * 512, rnd.randbytes(min(rnd.randrange(1, 9), guest.length // 512 - sector) * 512))
        if rnd.random() < 0.5:
            await guest.flush()

    async def create() -> None:
        failures = guest.failures
        content = await guest.read(0, guest.length)
        if guest.failures > failures:
            return  # nobody knows what it would hold
        await guest.do(driver.co_snapshot_create(SnapshotInfo(name=digest(content))))
        kept[digest(content)] = content

    async def goto() -> None:
        held = [one for one in await driver.co_snapshot_list() if one.name in kept]
        if held:
            one = rnd.choice(held)
            await guest.replace(kept[one.name], driver.co_snapshot_goto(one.id))

    async def delete() -> None:
        held = await driver.co_snapshot_list()
        if held:
            await guest.do(driver.co_snapshot_delete(rnd.choice(held).id, None))

    await some_requests()
    await create()
    await some_requests()
    for _ in range(3):
        await rnd.choice((create, goto, delete))()
        await some_requests()
