"""Every file that a crash could leave opens, holds what was flushed, and has at worst leaks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from blockio.testing.memory import MemoryChild
from blockio.types import Limits, OpenFlags, PreallocMode, RequestFlags
from blockio_drivers.qcow2.check import check_image
from blockio_drivers.qcow2.header import Header
from tests.qcow2.crash import Change, CrashImage, Promise, RecordingChild, crash_images
from tests.qcow2.engine import UNMAP, Disk, new_image, open_disk
from tests.qcow2.engine import check_image as qemu_check

SECTOR = 512
MAY_UNMAP = int(RequestFlags.MAY_UNMAP)


class Guest:
    """A guest that knows what it was promised: the content at each flush, and what it changed since."""

    def __init__(self, disk: Disk, child: RecordingChild, content: bytes) -> None:
        self.disk = disk
        self.child = child
        self.content = bytearray(content)
        self.promises = [Promise(0, content)]

    def _touch(self, offset: int, nbytes: int) -> None:
        self.promises[-1].loose.update(range(offset // SECTOR, (offset + nbytes - 1) // SECTOR + 1))

    async def write(self, offset: int, data: bytes) -> None:
        self._touch(offset, len(data))
        await self.disk.write(offset, data)
        self.content[offset : offset + len(data)] = data

    async def zero(self, offset: int, nbytes: int, flags: int) -> None:
        self._touch(offset, nbytes)
        await self.disk.zero(offset, nbytes, flags)
        self.content[offset : offset + nbytes] = bytes(nbytes)

    async def discard(self, offset: int, nbytes: int) -> None:
        self._touch(offset, nbytes)
        await self.disk.discard(offset, nbytes)
        self.content[offset : offset + nbytes] = bytes(nbytes)

    async def truncate(self, length: int, prealloc: PreallocMode = PreallocMode.OFF) -> None:
        if length < len(self.content):
            self._touch(length, len(self.content) - length)
        await self.disk.truncate(length, prealloc)
        old = len(self.content)
        self.content = self.content[:length].ljust(length, b"\0")
        if length > old:
            self._touch(old, length - old)

    async def flush(self) -> None:
        await self.disk.flush()
        self.promises.append(Promise(len(self.child.events), bytes(self.content)))


async def examine(image: CrashImage, guest: Guest, backing: MemoryChild | None) -> None:
    """The image opens, is not corrupt, and keeps the last promise made before the crash."""
    child = MemoryChild(image.data)
    promise = next(p for p in reversed(guest.promises) if p.at <= image.at)
    header = Header.decode(bytes(child.data[:65536]), trust=Limits())
    if not header.dirty:  # with the dirty bit the refcounts are not even meant to be right
        report: list[str] = []
        result = await check_image(child, header, trust=Limits(), report=report.append)
        assert not result.corruptions, (image.at, report)
        assert not result.check_errors
    async with open_disk(child, flags=OpenFlags(read_only=True), backing=backing) as disk:
        content = await disk.read(0, disk.driver.length)
        for start in range(0, min(len(content), len(promise.content)), SECTOR):
            if start // SECTOR not in promise.loose:
                got, wanted = content[start : start + SECTOR], promise.content[start : start + SECTOR]
                assert got == wanted[: len(got)], f"sector {start // SECTOR} after event {image.at}"


async def workload(guest: Guest, rnd: random.Random, cluster: int, steps: int) -> None:
    for _ in range(steps):
        size = len(guest.content)
        offset = rnd.randrange(size // SECTOR) * SECTOR
        nbytes = min(rnd.randrange(1, 6) * rnd.choice((SECTOR, cluster)), size - offset)
        aligned = offset // cluster * cluster
        whole = min(-(-nbytes // cluster) * cluster, size - aligned)
        action = rnd.randrange(10)
        if action < 5:
            await guest.write(offset, rnd.randbytes(nbytes))
        elif action < 6:
            await guest.zero(aligned, whole, rnd.choice((0, MAY_UNMAP)))
        elif action < 8:
            await guest.discard(aligned, whole)
        else:
            await guest.flush()


async def replay(
    *, cluster: int, seed: int, steps: int = 40, tries: int = 2, size: int = 0, backing: bool = False, **options: Any
) -> None:
    rnd = random.Random(seed)
    size = size or cluster * 150
    fresh = await new_image(size, cluster_size=cluster, **options)
    child = RecordingChild(fresh.data)
    base = MemoryChild(rnd.randbytes(size // 2)) if backing else None
    content = bytes(base.data).ljust(size, b"\0") if base else bytes(size)
    async with open_disk(child, backing=base) as disk:
        guest = Guest(disk, child, content)
        await workload(guest, rnd, cluster, steps)
        await guest.flush()
    for image in crash_images(child, rnd, tries):
        await examine(image, guest, base)
    qemu_check(child.data)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("cluster", "bits"), [(512, 64), (512, 1), (4096, 16), (65536, 16)])
async def test_after_a_crash(cluster: int, bits: int, seed: int) -> None:
    size = 40 * cluster if cluster > 4096 else 300 * cluster
    await replay(cluster=cluster, seed=seed, refcount_bits=bits, size=size)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("seed", range(2))
async def test_after_a_crash_of_an_overlay(seed: int) -> None:
    await replay(cluster=1024, seed=seed, backing=True)


@pytest.mark.peer("qemu-img")
async def test_after_a_crash_with_lazy_refcounts() -> None:
    await replay(cluster=1024, seed=7, lazy_refcounts=True)


@pytest.mark.peer("qemu-img")
async def test_after_a_crash_of_version_2() -> None:
    await replay(cluster=1024, seed=8, compat="0.10")


async def test_a_reftable_that_grows_is_never_lost() -> None:
    """512-byte clusters with 64-bit refcounts: one refcount table cluster covers 2 MiB, and 4 MiB are written."""
    rnd = random.Random(3)
    child = RecordingChild((await new_image(6 << 20, cluster_size=512, refcount_bits=64)).data)
    async with open_disk(child) as disk:
        guest = Guest(disk, child, bytes(6 << 20))
        for step in range(6):
            await guest.write(step << 20, rnd.randbytes(700 << 10))
            if step & 1:
                await guest.flush()
        assert disk.driver._image.header.refcount_table_clusters > 1
    # The moments that matter are around the header's writes; the rest is covered by the others.
    switches = [at for at, event in enumerate(child.events) if isinstance(event, Change) and event.offset == 48]
    assert switches
    for image in crash_images(child, rnd, 3, moments={at + near for at in switches for near in range(-3, 5)}):
        await examine(image, guest, None)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("prealloc", [PreallocMode.OFF, PreallocMode.METADATA, PreallocMode.FULL])
async def test_after_a_crash_while_resizing(prealloc: PreallocMode) -> None:
    rnd = random.Random(5)
    size = 200 << 9
    child = RecordingChild((await new_image(size, cluster_size=512)).data)
    async with open_disk(child, flags=UNMAP) as disk:
        guest = Guest(disk, child, bytes(size))
        await workload(guest, rnd, 512, 10)
        await guest.flush()
        await guest.truncate(size * 20, prealloc)
        await workload(guest, rnd, 512, 10)
        await guest.flush()
        await guest.truncate(size // 2)
        await workload(guest, rnd, 512, 10)
        await guest.flush()
    for image in crash_images(child, rnd, 1):
        await examine(image, guest, None)
    qemu_check(child.data)


@pytest.mark.parametrize("seed", [0, 3, 8])
@pytest.mark.parametrize("discard", [False, True], ids=["write", "write-and-discard"])
async def test_after_a_crash_amid_many_requests(seed: int, discard: bool) -> None:
    """Guests that write only their own number into their own part: what is found there is theirs, or zero."""
    guests, part, cluster = 6, 24 << 9, 512
    child = RecordingChild((await new_image(guests * part, cluster_size=cluster, refcount_bits=64)).data, turns=3)
    async with open_disk(child, l2_cache_size=1024) as disk:

        async def guest(number: int) -> None:
            rnd = random.Random(seed * 100 + number)
            base = number * part
            for _ in range(25):
                offset = base + rnd.randrange(part // SECTOR) * SECTOR
                nbytes = min(rnd.randrange(1, 5) * SECTOR, base + part - offset)
                action = rnd.randrange(8)
                if action < 5:
                    await disk.write(offset, bytes((number + 1,)) * nbytes)
                elif action == 5:
                    await disk.flush()
                elif discard:
                    await disk.discard(offset, nbytes)
                else:
                    await disk.read(offset, nbytes)

        await asyncio.gather(*map(guest, range(guests)))
    for image in crash_images(child, random.Random(seed), 1, at_most=120):
        file = MemoryChild(image.data)
        report: list[str] = []
        header = Header.decode(bytes(file.data[:cluster]), trust=Limits())
        result = await check_image(file, header, trust=Limits(), report=report.append)
        assert not result.corruptions, (image.at, report)
        async with open_disk(file, flags=OpenFlags(read_only=True)) as disk:
            content = await disk.read(0, guests * part)
            for number in range(guests):
                found = set(content[number * part : (number + 1) * part])
                assert found <= {0, number + 1}, f"after event {image.at} guest {number} finds {found}"
