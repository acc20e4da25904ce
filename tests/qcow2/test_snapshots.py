"""Internal snapshots: any sequence of writes, snapshots, applies and deletes against a dict of disks; QEMU agrees."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.buffers import IoVector
from blockio.driver.snapshots import SnapshotInfo
from blockio.testing.cancel import explore_cancellations
from blockio.testing.faults import FaultReport, explore_faults
from blockio.testing.guest import Guest
from blockio.testing.memory import MemoryChild
from tests.qcow2.engine import Disk, check_image, new_image, open_disk, qemu_reads
from tests.qcow2.snapshot_work import SnapshotRig, digest
from tests.support.explore import exploring, few

SIZE = 1 << 18


async def saved_state(disk: Disk, nbytes: int, pos: int = 0) -> bytes:
    data = bytearray(nbytes)
    await disk.driver.co_load_vmstate(IoVector.of(data), pos)
    return bytes(data)


class Model:
    """A disk, and what each of its snapshots kept."""

    def __init__(self, disk: Disk, rnd: random.Random, backing: bytes | None, version: int) -> None:
        self.disk = disk
        self.rnd = rnd
        self.version = version
        self.now = bytearray((backing or b"").ljust(disk.length, b"\0")[: disk.length])
        self.backing = backing
        self.kept: dict[str, bytes] = {}
        self.count = 0

    async def step(self) -> None:
        rnd, driver = self.rnd, self.disk.driver
        length = len(self.now)
        offset = rnd.randrange(length)
        nbytes = min(length - offset, rnd.choice((1, 512, 5000, 40000)))
        action = rnd.choices(
            ("write", "zero", "create", "goto", "delete", "flush", "resize", "rename", "reopen"),
            (10, 2, 3, 2, 2, 1, 1, 1, 0),
        )[0]
        if action == "write":
            data = bytes([rnd.randrange(256)]) * nbytes
            await self.disk.write(offset, data)
            self.now[offset : offset + nbytes] = data
        elif action == "zero" and self.backing is None:
            offset &= ~65535
            nbytes = min(65536, length - offset)
            await self.disk.zero(offset, nbytes, 0)
            self.now[offset : offset + nbytes] = bytes(nbytes)
        elif action == "create":
            self.count += 1
            made = await driver.co_snapshot_create(SnapshotInfo(name=f"s{self.count}"))
            assert made.id not in self.kept
            self.kept[made.id] = bytes(self.now)
        elif action == "flush":
            await self.disk.flush()
        elif action == "resize" and self.version == 3 and self.backing is None:
            size = rnd.randrange(1, 2 * SIZE // 512) * 512
            await self.disk.truncate(size)
            self.now = self.now[:size] + bytes(max(0, size - length))
        elif self.kept:
            id = rnd.choice(sorted(self.kept))
            if action == "goto":
                await driver.co_snapshot_goto(id)
                self.now = bytearray(self.kept[id])
            elif action == "delete":
                await driver.co_snapshot_delete(id, None)
                del self.kept[id]
            elif action == "rename":
                await driver.co_snapshot_rename(id, None, f"r{id}")
        assert self.disk.length == len(self.now)

    async def look(self) -> None:
        assert await self.disk.read(0, len(self.now)) == self.now
        assert {one.id for one in await self.disk.driver.co_snapshot_list()} == set(self.kept)


@few(8, part=2)
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.peer("qemu-img")
async def test_model(seed: int) -> None:
    rnd = random.Random(seed)
    version = rnd.choice((2, 3))
    options: dict[str, Any] = {"cluster_size": rnd.choice((512, 4096, 65536))}
    backing = rnd.choice((None, rnd.randbytes(SIZE // 2)))
    if version == 2:
        options["compat"] = "0.10"
    else:
        options["refcount_bits"] = rnd.choice((8, 16, 32, 64))
        options["lazy_refcounts"] = rnd.random() < 0.3
        if rnd.random() < 0.3:
            options |= {"extended_l2": True, "cluster_size": rnd.choice((16384, 65536))}
    if backing is not None:
        options |= {"backing_file": "base.raw", "backing_fmt": "raw"}
    child = await new_image(SIZE, **options)
    base = None if backing is None else MemoryChild(backing, name="backing")
    async with open_disk(child, backing=base) as disk:
        model = Model(disk, rnd, backing, version)
        for _ in range(30):
            await model.step()
        await model.look()
    check_image(child.data)
    assert qemu_reads(child.data, backing) == model.now
    async with open_disk(child, backing=base) as disk:
        model.disk = disk
        await model.look()
        for id, content in sorted(model.kept.items()):
            await disk.driver.co_snapshot_goto(id)
            assert await disk.read(0, len(content)) == content
        assert not (await disk.check()).corruptions
        for id in sorted(model.kept):
            await disk.driver.co_snapshot_delete(id, None)
        assert not (await disk.check()).leaks
    check_image(child.data)


async def _image(**options: Any) -> dict[str, bytearray]:
    return {"file": (await new_image(4096, cluster_size=512, **options)).data}


async def _work(guest: Guest) -> None:
    """A snapshot of something, applied after a change, and deleted."""
    disk = guest.disk
    assert isinstance(disk, Disk)
    await guest.write(0, b"a" * 1024)
    content = await guest.read(0, guest.length)
    if guest.failures:
        return
    await guest.do(disk.driver.co_snapshot_create(SnapshotInfo(name=digest(content))))
    await guest.write(512, b"b" * 512)
    if any(one.name == digest(content) for one in await disk.driver.co_snapshot_list()):
        await guest.replace(content, disk.driver.co_snapshot_goto(digest(content)))
        await guest.do(disk.driver.co_snapshot_delete(None, digest(content)))


def test_every_fault_does_all_or_nothing() -> None:
    """Not an async test: a loop in debug mode would take twice the time."""

    async def explore() -> FaultReport:
        sticky = (False, True) if exploring() else (False,)
        return await explore_faults(SnapshotRig(), await _image(refcount_bits=64), _work, errors=(5,), sticky=sticky)

    report = asyncio.run(explore())
    assert report.ok, report
    assert report.faults > 50


def test_every_cancellation_does_all_or_nothing() -> None:
    async def explore() -> int:
        return await explore_cancellations(SnapshotRig(), await _image(), _work)

    assert asyncio.run(explore()) > 50
