"""Setting the length."""

from __future__ import annotations

import asyncio
import errno

import pytest
from msgspec.structs import replace

from blockio.errors import BlockError, OutOfRange, ReadOnly, UnsupportedFeature
from blockio.testing.cancel import cancel_at_every_await
from blockio.types import Capability, OpenFlags, Perm, PreallocMode, RequestFlags
from tests.io.world import ALL_NATIVE, Disk, failing_after, in_format, on_disk, opened, pattern


async def test_growing_and_shrinking_tells_the_parents() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_truncate(8192, exact=True, prealloc="falloc")
        assert (rig.node.length, rig.top.resizes) == (8192, 1)
        await rig.io.co_truncate(100)
        assert (rig.node.length, rig.top.resizes) == (100, 2)
        await rig.io.co_truncate(100, prealloc=PreallocMode.FULL)
        assert (await rig.io.co_getlength(), rig.top.resizes) == (100, 2)
        rig.whole()


async def test_growth_waits_for_writes_there_and_they_wait_for_it() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:
        disk.gate = asyncio.Event()
        before = asyncio.ensure_future(rig.write(5000, b"x" * 100))
        await asyncio.sleep(0)
        grow = asyncio.ensure_future(rig.io.co_truncate(8192))
        await asyncio.sleep(0)
        behind = asyncio.ensure_future(rig.write(6000, b"y" * 100))
        below = asyncio.ensure_future(rig.write(0, b"z" * 100))
        for _ in range(3):
            await asyncio.sleep(0)
        assert disk.operations == ["write", "write"]
        disk.gate.set()
        await asyncio.gather(before, grow, behind, below)
        assert disk.operations == ["write", "write", "truncate", "write"]
        rig.whole()


async def test_shrinking_waits_for_writes_there_and_no_later_one_brings_back_what_is_cut() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk)) as rig:
        gate = disk.gate = asyncio.Event()
        before = asyncio.ensure_future(rig.write(5000, b"x" * 100))
        await asyncio.sleep(0)
        cut = asyncio.ensure_future(rig.io.co_truncate(4096))
        await asyncio.sleep(0)
        disk.gate = None
        assert not rig.io.try_pwritev(6000, [b"y"], 1)
        assert disk.operations == ["write"]
        gate.set()
        await asyncio.gather(before, cut)
        assert (rig.node.length, len(disk.data)) == (4096, 4096)
        rig.whole()


async def test_two_changes_of_the_length_one_behind_the_other() -> None:
    """The second must see what the first left: else a longer backing file would show through."""
    async with opened(in_format(Disk(0), length=16384, backing=on_disk(Disk(pattern(12288))))) as rig:
        await asyncio.gather(rig.io.co_truncate(4096), rig.io.co_truncate(32768))
        assert await rig.read(4096, 8192) == bytes(8192)
        rig.whole()


@pytest.mark.parametrize(("backing", "zeroed"), [(3000, False), (4096, False), (6000, True), (None, False)])
async def test_what_a_longer_backing_file_holds_does_not_appear(backing: int | None, zeroed: bool) -> None:
    below = None if backing is None else on_disk(Disk(pattern(backing)))
    async with opened(in_format(Disk(0), length=4096, backing=below)) as rig:
        await rig.io.co_truncate(12288)
        assert (await rig.read(4096, 8192)) == bytes(8192)
        assert (1 in rig.format.table) is zeroed


async def test_what_is_refused() -> None:
    async with opened(on_disk(Disk(4096))) as rig:
        with pytest.raises(BlockError, match="Image size cannot be negative") as caught:
            await rig.io.co_truncate(-1)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OutOfRange):
            await rig.io.co_truncate(2**63)
        with pytest.raises(ValueError, match="nothing"):
            await rig.io.co_truncate(1, prealloc="nothing")
    async with opened(on_disk(Disk(4096)), flags=OpenFlags(read_only=True), perm=Perm.CONSISTENT_READ) as rig:
        with pytest.raises(ReadOnly, match="Image is read-only") as caught:
            await rig.io.co_truncate(1)
        assert caught.value.errno == errno.EACCES
    fixed = Disk(4096, capabilities=replace(ALL_NATIVE, resize=Capability.NONE))
    async with opened(on_disk(fixed)) as rig:
        with pytest.raises(UnsupportedFeature, match="Image format driver does not support resize"):
            await rig.io.co_truncate(1)
        assert fixed.log == []


async def test_a_failed_growth_leaves_the_length() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:
        disk.before = failing_after(0, BlockError(errno=errno.ENOSPC))
        with pytest.raises(BlockError) as caught:
            await rig.io.co_truncate(8192)
        assert caught.value.errno == errno.ENOSPC
        assert (rig.node.length, rig.top.resizes) == (4096, 0)
        rig.whole()
        await rig.io.co_truncate(8192)


async def test_cancelled_at_every_await() -> None:
    disk = Disk(4096, pauses=4)
    async with opened(on_disk(disk)) as rig:
        length = 4096

        async def scenario() -> None:
            await rig.io.co_truncate(length + 4096, flags=RequestFlags.ZERO_WRITE)

        async def afterwards(_nth: int) -> None:
            nonlocal length
            rig.whole()
            assert rig.node.length == len(disk.data)
            length = rig.node.length
            assert rig.top.resizes == (length - 4096) // 4096

        assert await cancel_at_every_await(scenario, afterwards) > 0
