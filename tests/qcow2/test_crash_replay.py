"""Every file that a crash could leave opens, holds what was flushed, and has at worst leaks."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.driver.base import CheckFix
from blockio.errors import NotThisFormat
from blockio.testing.memory import MemoryChild
from blockio.types import Limits, OpenFlags, PreallocMode, RequestFlags
from blockio_drivers.qcow2.check import check_image
from blockio_drivers.qcow2.create import create_image
from blockio_drivers.qcow2.header import Header
from blockio_drivers.qcow2.options import Qcow2CreateOptions
from blockio_drivers.qcow2.repair import repair_image
from tests.qcow2.crash import Change, CrashImage, Promise, RecordingChild, crash_images, runs
from tests.qcow2.engine import UNMAP, Disk, Target, new_image, open_disk
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

    def _touch(self, offset: int, data: bytes) -> None:
        loose = self.promises[-1].loose
        for at in range(0, len(data), SECTOR):
            loose.setdefault((offset + at) // SECTOR, set()).add(data[at : at + SECTOR])

    async def write(self, offset: int, data: bytes) -> None:
        self._touch(offset, data)
        await self.disk.write(offset, data)
        self.content[offset : offset + len(data)] = data

    async def zero(self, offset: int, nbytes: int, flags: int) -> None:
        self._touch(offset, bytes(nbytes))
        await self.disk.zero(offset, nbytes, flags)
        self.content[offset : offset + nbytes] = bytes(nbytes)

    async def discard(self, offset: int, nbytes: int) -> None:
        self._touch(offset, bytes(nbytes))
        await self.disk.discard(offset, nbytes)
        self.content[offset : offset + nbytes] = bytes(nbytes)

    async def truncate(self, length: int, prealloc: PreallocMode = PreallocMode.OFF) -> None:
        old = len(self.content)
        self._touch(min(old, length), bytes(abs(length - old)))
        await self.disk.truncate(length, prealloc)
        self.content = self.content[:length].ljust(length, b"\0")

    async def flush(self) -> None:
        await self.disk.flush()
        self.promises.append(Promise(len(self.child.events), bytes(self.content)))


async def no_corruption(child: MemoryChild, at: int) -> None:
    """A check finds at worst leaks."""
    header = Header.decode(bytes(child.data[:65536]), trust=Limits())
    report: list[str] = []
    result = await check_image(child, header, trust=Limits(), report=report.append)
    assert not result.corruptions, (at, report)
    assert not result.check_errors


async def examine(image: CrashImage, guest: Guest, backing: MemoryChild | None) -> None:
    """The image is not corrupt, keeps the last promise made before the crash, and can be written on."""
    child = MemoryChild(image.data)
    promise = next(p for p in reversed(guest.promises) if p.at <= image.at)
    dirty = Header.decode(bytes(child.data[:65536]), trust=Limits()).dirty
    if not dirty:  # with the dirty bit the refcounts are not even meant to be right
        await no_corruption(child, image.at)
    async with open_disk(child, flags=OpenFlags(read_only=True), backing=backing) as disk:
        content = await disk.read(0, disk.driver.length)
    for sector in range(min(len(content), len(promise.content)) // SECTOR):
        found = content[sector * SECTOR : (sector + 1) * SECTOR]
        assert promise.allows(sector, found), f"sector {sector} after event {image.at}"
    if dirty or image.at % 7 == 0:
        new = b"new!" * 256
        async with open_disk(child, backing=backing) as disk:
            await disk.discard(0, disk.driver.length // 4 // 65536 * 65536)
            await disk.write(len(content) // 2, new)
            rest = await disk.read(len(content) // 2, len(content) - len(content) // 2)
            assert rest == new + content[len(content) // 2 + len(new) :]
        await no_corruption(child, image.at)


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
    for image in crash_images(child, rnd, tries, at_most=60 if cluster > 4096 else 150):
        await examine(image, guest, base)
    qemu_check(child.data)


SEEDS = st.integers(0, 2**32)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(("cluster", "bits"), [(512, 64), (512, 1), (4096, 16), (65536, 16)])
@runs(3)
@given(seed=SEEDS)
async def test_after_a_crash(cluster: int, bits: int, seed: int) -> None:
    size = 40 * cluster if cluster > 4096 else 300 * cluster
    await replay(cluster=cluster, seed=seed, refcount_bits=bits, size=size)


@pytest.mark.peer("qemu-img")
@runs(2)
@given(seed=SEEDS)
async def test_after_a_crash_of_an_overlay(seed: int) -> None:
    await replay(cluster=1024, seed=seed, backing=True)


@pytest.mark.peer("qemu-img")
@runs(3)
@given(seed=SEEDS)
async def test_after_a_crash_with_lazy_refcounts(seed: int) -> None:
    await replay(cluster=1024, seed=seed, lazy_refcounts=True)


@pytest.mark.peer("qemu-img")
@runs(2)
@given(seed=SEEDS)
async def test_after_a_crash_of_version_2(seed: int) -> None:
    await replay(cluster=1024, seed=seed, compat="0.10")


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
@pytest.mark.parametrize("lazy", [False, True], ids=["", "lazy"])
@pytest.mark.parametrize("prealloc", [PreallocMode.OFF, PreallocMode.METADATA, PreallocMode.FULL])
@runs(1)
@given(seed=SEEDS)
async def test_after_a_crash_while_resizing(prealloc: PreallocMode, lazy: bool, seed: int) -> None:
    """Longer, with an L1 table that moves, and shorter, with refcount blocks that go and a file that is cut."""
    rnd = random.Random(seed)
    size = 200 << 9
    child = RecordingChild((await new_image(size, cluster_size=512, lazy_refcounts=lazy)).data)
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
    for image in crash_images(child, rnd, 1, at_most=40):
        await examine(image, guest, None)
    qemu_check(child.data)


@pytest.mark.parametrize("discard", [False, True], ids=["write", "write-and-discard"])
@runs(3)
@given(seed=SEEDS)
async def test_after_a_crash_amid_many_requests(discard: bool, seed: int) -> None:
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


@pytest.mark.parametrize("before", ["nothing", "an old image"])
@pytest.mark.parametrize("options", [{}, {"preallocation": "metadata"}, {"preallocation": "full"}], ids=str)
@runs(1)
@given(seed=SEEDS)
async def test_after_a_crash_while_making_an_image(before: str, options: dict[str, Any], seed: int) -> None:
    """There is no image, or a whole one; on a device that held another, that one or none of both."""
    size = 100 << 9
    rnd = random.Random(seed)
    old = MemoryChild()
    if before == "an old image":
        old = await new_image(2 * size, cluster_size=4096)
        async with open_disk(old) as disk:
            await disk.write(0, b"old" * 20000)
    child = RecordingChild(old.data)
    name = "base.raw" * 60  # so that the header takes more than one sector
    await create_image(
        Target(child),
        Qcow2CreateOptions(
            size=size,
            cluster_size=4096,
            **(options if options else {"backing_file": name, "backing_fmt": "raw"}),
        ),
    )
    made = 0
    for image in crash_images(child, rnd, 20):
        file = MemoryChild(image.data)
        try:
            header = Header.decode(bytes(file.data[:65536]), trust=Limits())
        except NotThisFormat:
            continue
        if header.size == 2 * size:
            assert bytes(old.data) == bytes(file.data[: len(old.data)]), "the old image stays whole until it is gone"
            continue
        made += 1
        assert header.backing_file == (None if options else name)
        await no_corruption(file, image.at)
        async with open_disk(file, flags=OpenFlags(read_only=True)) as disk:
            assert await disk.read(0, size) == bytes(size)
    assert made, "the last moment shows the new image"


@pytest.mark.peer("qemu-img")
@runs(4)
@given(seed=SEEDS)
async def test_after_a_crash_while_repairing(seed: int) -> None:
    """A dirty image stays dirty until it is sound, and holds at every moment what it held before."""
    rnd = random.Random(seed)
    size = 200 << 9
    lazy = RecordingChild((await new_image(size, cluster_size=512, refcount_bits=rnd.choice((1, 16, 64)))).data)
    async with open_disk(lazy, lazy_refcounts=True) as disk:
        guest = Guest(disk, lazy, bytes(size))
        await workload(guest, rnd, 512, 40)
        await guest.flush()
        dirty = bytes(lazy.data)
        content = bytes(guest.content)
    child = RecordingChild(dirty)
    async with open_disk(child):
        pass
    assert not Header.decode(bytes(child.data[:512])).dirty
    for image in crash_images(child, rnd, 4):
        file = MemoryChild(image.data)
        if not Header.decode(bytes(file.data[:512])).dirty:
            await no_corruption(file, image.at)
        async with open_disk(file) as disk:
            assert await disk.read(0, size) == content
        await no_corruption(file, image.at)
        assert not Header.decode(bytes(file.data[:512])).dirty
    qemu_check(child.data)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("fix", [CheckFix.LEAKS, CheckFix.ALL])
@runs(2)
@given(seed=SEEDS)
async def test_after_a_crash_while_mending_leaks(fix: CheckFix, seed: int) -> None:
    """What a crash left behind is given back, and another crash meanwhile makes nothing worse."""
    rnd = random.Random(seed)
    size = 200 << 9
    first = RecordingChild((await new_image(size, cluster_size=512)).data)
    async with open_disk(first) as disk:
        await workload(Guest(disk, first, bytes(size)), rnd, 512, 30)
    for leaky in crash_images(first, rnd, 1, at_most=12):
        child = RecordingChild(leaky.data)
        async with open_disk(MemoryChild(leaky.data), flags=OpenFlags(read_only=True)) as disk:
            content = await disk.read(0, size)
        header = Header.decode(bytes(child.data[:512]))
        result, _ = await repair_image(child, header, fix, trust=Limits(), report=lambda _message: None)
        assert not result.leaks
        assert not result.corruptions
        for image in crash_images(child, rnd, 1):
            file = MemoryChild(image.data)
            await no_corruption(file, image.at)
            async with open_disk(file) as disk:
                assert await disk.read(0, size) == content
