"""The filter ``preallocate``: what it asks of its child, and where the disk ends meanwhile."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.driver.registry import register, unregister
from blockio.errors import BlockError, OptionError, PermissionConflict
from blockio.graph.activation import activate_node, inactivate_node
from blockio.graph.node import BlockNode, find_node
from blockio.graph.reopen import reopen
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.conformance import Traits, check_driver
from blockio.testing.driver import MemoryDisk
from blockio.testing.faults import FaultFilter, FaultPlan, for_every_fault
from blockio.types import Perm, RequestFlags

K = 1024
SIZE, ALIGN = 100 * K, 64 * K


def above(disk: MemoryDisk, **more: Any) -> dict[str, Any]:
    """A preallocating filter over *disk*, in steps of 100 KiB up to a multiple of 64."""
    return {
        "driver": "preallocate",
        "prealloc-size": SIZE,
        "prealloc-align": ALIGN,
        "file": disk.options(**{"node-name": "below"}),
        **more,
    }


@asynccontextmanager
async def opened(disk: MemoryDisk, **more: Any) -> AsyncIterator[BlockBackend]:
    """A backend that may grow the disk and does not ask where it ends."""
    async with await BlockBackend.new_open(options=above(disk, **more), resize=True) as blk:
        blk.set_allow_write_beyond_eof(True)
        yield blk
        assert blk.in_flight == 0


def room(disk: MemoryDisk) -> list[tuple[int, int]]:
    """The zero writes that reached the disk, as (offset, end)."""
    return [(offset, offset + nbytes) for what, offset, nbytes in disk.log if what == "zero"]


async def turns(number: int = 20) -> None:
    """Let what is scheduled happen."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_conformance() -> None:
    disks: list[MemoryDisk] = []

    async def make(length: int) -> Mapping[str, Any]:
        disk = MemoryDisk(length)
        disk.__enter__()
        disks.append(disk)
        return {**above(disk), "file": disk.options()}

    report = await check_driver(make, Traits())
    for disk in disks:
        disk.__exit__()
    assert report.ok, f"\n{report}"


async def test_a_growing_disk_asks_for_room_now_and_then() -> None:
    with MemoryDisk(1000) as disk:
        async with opened(disk) as blk:
            for number in range(200):
                await blk.co_pwritev(1000 + number * K, bytes([number + 1]) * K)
                assert blk.getlength() == 1000 + (number + 1) * K
            assert room(disk) == [(1000, 128 * K), (128 * K, 256 * K)]
            assert len(disk.data) == 256 * K
            memory = bytearray(K)
            await blk.co_preadv(1000 + 199 * K, memory)
            assert memory == bytes([200]) * K
        assert len(disk.data) == 1000 + 200 * K


async def test_inside_the_disk_nothing_is_asked_and_the_fast_lane_is_open() -> None:
    with MemoryDisk(64 * K) as disk:
        async with opened(disk) as blk:
            assert blk.try_pwritev(60 * K, bytes(4 * K))
            assert not blk.try_pwritev(60 * K, bytes(4 * K + 1))
            await blk.co_pwritev(0, bytes(64 * K))
            assert room(disk) == []


async def test_zero_writes_at_the_end_are_part_of_the_room() -> None:
    with MemoryDisk(10 * K) as disk:
        async with opened(disk) as blk:
            await blk.co_pwrite_zeroes(8 * K, 4 * K)
            assert room(disk) == [(8 * K, 128 * K)]
            await blk.co_pwrite_zeroes(12 * K, 20 * K)
            assert room(disk) == [(8 * K, 128 * K)]
            assert blk.getlength() == 32 * K
            # Durable, they are zero writes of their own.
            await blk.co_pwrite_zeroes(32 * K, K, RequestFlags.FUA)
            assert room(disk)[1:] == [(32 * K, 33 * K)]


async def test_data_in_the_room_is_zeroed_when_it_must_be() -> None:
    """A zero write that reaches past the end over data inside it (QEMU 7.2 leaves the data)."""
    with MemoryDisk(0) as disk:
        async with opened(disk) as blk:
            await blk.co_pwrite_zeroes(0, 64 * K)
            assert blk.try_pwritev(0, b"x") is False
            await blk.co_pwritev(0, b"x" * 64 * K)
            await blk.co_pwrite_zeroes(32 * K, 64 * K)
            memory = bytearray(96 * K)
            await blk.co_preadv(0, memory)
            assert memory == b"x" * 32 * K + bytes(64 * K)


async def test_a_discard_spoils_the_zeroes() -> None:
    with MemoryDisk(0) as disk:
        async with opened(disk, discard="unmap") as blk:
            assert blk.bs is not None
            below = find_node("below")
            assert below is not None
            below.flags = below.flags.with_(unmap=True)
            await blk.co_pwrite_zeroes(0, 64 * K)
            await blk.co_pdiscard(32 * K, 32 * K)
            await blk.co_pwrite_zeroes(48 * K, 32 * K)
            memory = bytearray(32 * K)
            await blk.co_preadv(48 * K, memory)
            assert not any(memory)


async def test_writes_at_once_lose_nothing() -> None:
    with MemoryDisk(0, fast=False) as disk:
        async with opened(disk) as blk:
            disk.stall()
            writes = [
                asyncio.ensure_future(blk.co_pwritev(number * 60 * K, bytes([number + 1]) * 60 * K))
                for number in (0, 3, 1, 9, 2)
            ]
            await turns()
            disk.go()
            await asyncio.gather(*writes)
            for number in (0, 3, 1, 9, 2):
                memory = bytearray(60 * K)
                await blk.co_preadv(number * 60 * K, memory)
                assert memory == bytes([number + 1]) * 60 * K
            assert blk.getlength() == 600 * K
        assert len(disk.data) == 600 * K


async def test_no_room_is_no_error() -> None:
    with MemoryDisk(0, fast=False) as disk:
        async with opened(disk) as blk:
            disk.fail = BlockError(errno=errno.ENOSPC)
            with pytest.raises(BlockError):
                await blk.co_pwritev(0, b"x" * K)
            disk.fail = None
            await blk.co_pwritev(0, b"y" * K)
            memory = bytearray(K)
            await blk.co_preadv(0, memory)
            assert memory == b"y" * K


async def test_truncating() -> None:
    with MemoryDisk(10 * K) as disk:
        async with opened(disk) as blk:
            await blk.co_pwritev(10 * K, b"x" * K)
            assert len(disk.data) == 128 * K
            await blk.co_truncate(100 * K, prealloc="falloc")
            assert (blk.getlength(), len(disk.data)) == (100 * K, 128 * K)
            await blk.co_truncate(110 * K)
            assert (blk.getlength(), len(disk.data)) == (110 * K, 110 * K)
            await blk.co_truncate(5 * K)
            assert (blk.getlength(), len(disk.data)) == (5 * K, 5 * K)
            await blk.co_pwritev(5 * K, b"x" * K)
            assert len(disk.data) == 128 * K
            disk.fail = BlockError(errno=errno.EIO)
            with pytest.raises(BlockError, match="failed to drop write-zero preallocation"):
                await blk.co_truncate(20 * K)
            disk.fail = None
            assert blk.getlength() == await blk.co_getlength() == 6 * K


async def test_given_up_permissions_cut_the_file() -> None:
    """Nobody else may write the room until it is gone; taken back in time, it stays."""
    with MemoryDisk(0, fast=False) as disk:
        async with opened(disk) as blk:
            await blk.co_pwritev(0, b"x" * K)
            perm, shared = blk.get_perm()
            node = find_node("below")
            assert node is not None
            disk.stall()
            blk.set_perm(perm & ~Perm.RESIZE, shared)
            assert node.parents[0].perm & Perm.RESIZE
            other = BlockBackend(Perm.WRITE, Perm.ALL)
            with pytest.raises(PermissionConflict):
                await other.insert_bs(node)
            await turns()
            disk.go()
            await turns()
            assert len(disk.data) == K
            assert not node.parents[0].perm & Perm.RESIZE
            blk.set_perm(perm, shared)
            await blk.co_pwritev(K, b"x" * K)
            assert len(disk.data) == 128 * K
            blk.set_perm(perm & ~Perm.RESIZE, shared)
            blk.set_perm(perm, shared)
            await turns()
            await blk.drain()
            assert len(disk.data) == 128 * K
            async with blk.drained():
                blk.set_perm(perm & ~Perm.RESIZE, shared)
                await turns()
                assert len(disk.data) == 128 * K
            await turns()
            assert len(disk.data) == 2 * K
            await other.close()


async def test_a_cut_that_fails_is_told_and_tried_again() -> None:
    with MemoryDisk(0) as disk:
        async with opened(disk) as blk:
            assert blk.bs is not None
            said: list[str] = []
            blk.bs.listen(lambda event: said.append(str(event)))
            await blk.co_pwritev(0, b"x" * K)
            perm, shared = blk.get_perm()
            disk.fail = BlockError(errno=errno.EIO)
            blk.set_perm(perm & ~Perm.RESIZE, shared)
            await turns()
            disk.fail = None
            assert "Failed to truncate file: Input/output error" in said[0]
            assert len(disk.data) == 128 * K
        assert len(disk.data) == K


async def test_read_only_and_back() -> None:
    with MemoryDisk(0) as disk:
        async with opened(disk) as blk:
            await blk.co_pwritev(0, b"x" * K)
            assert blk.bs is not None
            with pytest.raises(BlockError):
                await reopen(blk.bs, read_only=True)  # somebody writes
            await blk.co_pwritev(K, b"x" * K)
            assert len(disk.data) == 128 * K
            perm, shared = blk.get_perm()
            blk.set_perm(perm & ~(Perm.WRITE | Perm.RESIZE), shared)
            await reopen(blk.bs, read_only=True)
            assert len(disk.data) == 2 * K
            await reopen(blk.bs, read_only=False)
            blk.set_perm(perm, shared)
            await blk.co_pwritev(2 * K, b"x" * K)
            assert len(disk.data) == 128 * K


async def test_asleep_and_awake() -> None:
    with MemoryDisk(0) as disk:
        async with opened(disk) as blk:
            await blk.co_pwritev(0, b"x" * K)
            assert blk.bs is not None
            blk.set_force_allow_inactivate()
            await inactivate_node(blk.bs)
            assert len(disk.data) == K
            below = find_node("below")
            assert below is not None
            assert below.driver is not None
            disk.data.extend(b"y" * K)  # the other process; a memory disk does not look by itself
            below.driver.length = 2 * K
            await activate_node(blk.bs)
            await blk.co_pwritev(2 * K, b"x" * K)
            assert blk.getlength() == 3 * K
        assert disk.data == b"x" * K + b"y" * K + b"x" * K


async def test_a_fault_at_every_operation() -> None:
    register(FaultFilter)
    plan = FaultPlan()

    async def scenario() -> None:
        with MemoryDisk(K) as disk:
            nth, plan.nth = plan.nth, 0
            options = above(disk)
            options["file"] = {"driver": FaultFilter.name, "plan": plan.name, "file": options["file"]}
            blk = await BlockBackend.new_open(options=options, resize=True)
            blk.set_allow_write_beyond_eof(True)
            plan.arm(nth)
            kept = bytearray(K)
            for offset in (K, 2 * K, 300 * K):
                try:
                    await blk.co_pwritev(offset, b"x" * K)
                    kept[offset:] = bytes(offset - len(kept)) + b"x" * K
                except BlockError:
                    kept[offset:] = bytes(offset - len(kept)) + b"?" * K
            try:
                await blk.co_truncate(400 * K)
                kept.extend(bytes(400 * K - len(kept)))
            except BlockError:
                pass
            try:
                await blk.close()
            except BlockError:
                return  # the file may be longer than the disk
            assert len(disk.data) == len(kept)
            assert all(
                mine == want or (want == ord("?") and mine in b"x\0")
                for mine, want in zip(disk.data, kept, strict=True)
            )

    try:
        with plan:
            assert await for_every_fault(plan, scenario) > 5
    finally:
        unregister(FaultFilter)


class SlowDisk(MemoryDisk):
    """One whose requests take their time."""

    async def arrive(self, operation: str, offset: int, nbytes: int) -> None:
        await asyncio.sleep(0)
        await super().arrive(operation, offset, nbytes)


async def test_cancelled_at_every_await() -> None:
    with SlowDisk(0, fast=False) as disk:
        async with opened(disk) as blk:
            end = 0

            async def scenario() -> None:
                await blk.co_pwritev(end, b"x" * K)
                await blk.co_pwrite_zeroes(end + K, K)
                await blk.co_truncate(end + 300 * K)

            async def afterwards(nth: int) -> None:
                nonlocal end
                assert blk.in_flight == 0
                end = await blk.co_getlength() + 400 * K
                await blk.co_pwritev(end - K, bytes([nth % 256]) * K)
                memory = bytearray(K)
                await blk.co_preadv(end - K, memory)
                assert memory == bytes([nth % 256]) * K

            assert await cancel_at_every_await(scenario, afterwards) >= 1
            end = blk.getlength()
        assert len(disk.data) == end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prealloc-align": 1000}, "not aligned to 512"),
        ({"prealloc-size": "nine"}, "Parameter 'prealloc-size' expects a"),
        ({"prealloc-colour": 1}, "does not support the option 'prealloc-colour'"),
    ],
)
async def test_bad_options(options: dict[str, Any], message: str) -> None:
    with MemoryDisk() as disk, pytest.raises(OptionError, match=message):
        await BlockBackend.new_open(options=above(disk, **options))


async def test_it_follows_its_child_while_nobody_grows_it() -> None:
    with MemoryDisk(64 * K) as disk:
        async with await BlockBackend.new_open(options=above(disk)) as blk:
            node = find_node("below")
            assert isinstance(node, BlockNode)
            other = BlockBackend(Perm.RESIZE | Perm.WRITE, Perm.ALL)
            perm, _ = blk.get_perm()
            blk.set_perm(perm, Perm.ALL)
            await other.insert_bs(node)
            await other.co_truncate(128 * K)
            assert blk.getlength() == 128 * K
            await other.close()
