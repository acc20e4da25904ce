"""``blkdebug`` in the graph: suspended requests and drains, cancellation, limits, names, and the shipped suite."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.driver.debug import DebugListener
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError
from blockio.graph.debug import (
    debug_breakpoint,
    debug_is_suspended,
    debug_remove_breakpoint,
    debug_resume,
    debug_wait,
)
from blockio.graph.events import NodeEvent, Reported
from blockio.graph.node import BlockNode
from blockio.img import create
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.conformance import Traits, check_driver
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm, RequestFlags
from tests.support.qemu import assert_clean

SIZE = 1 << 20


@asynccontextmanager
async def opened(disk: MemoryDisk, **options: Any) -> AsyncIterator[BlockBackend]:
    """A backend on blkdebug with *options* on *disk*."""
    blk = await BlockBackend.new_open(options={"driver": "blkdebug", "image": disk.options(), **options})
    async with blk:
        blk.set_perm(Perm.ALL, Perm.ALL)
        yield blk


def node_of(blk: BlockBackend) -> BlockNode:
    """The root of *blk*."""
    node = blk.bs
    assert node is not None
    return node


async def test_a_suspended_request_is_in_flight_and_holds_up_a_drain() -> None:
    with MemoryDisk(SIZE) as disk:
        async with opened(disk) as blk:
            node = node_of(blk)
            said: list[NodeEvent] = []
            node.listen(said.append)
            debug_breakpoint(node, "pwritev", "A")
            write = asyncio.ensure_future(blk.co_pwritev(0, b"x" * 512))
            await debug_wait(node, "A")
            assert debug_is_suspended(node, "A")
            assert node.in_flight == 1
            drain = asyncio.ensure_future(blk.drain())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not drain.done()
            assert not write.done()
            debug_resume(node, "A")
            assert not debug_is_suspended(node, "A")
            await drain
            assert write.done()
            await write
            assert disk.data[:512] == b"x" * 512
            assert [event.message for event in said if isinstance(event, Reported)] == [
                "blkdebug: Suspended request 'A'",
                "blkdebug: Resuming request 'A'",
            ]


async def test_others_pass_a_suspended_request() -> None:
    with MemoryDisk(SIZE) as disk:
        async with opened(disk) as blk:
            node = node_of(blk)
            debug_breakpoint(node, "pwritev", "A")
            write = asyncio.ensure_future(blk.co_pwritev(0, b"x" * 512))
            await debug_wait(node, "A")
            await blk.co_pwritev(4096, b"y" * 512)  # a breakpoint works once
            await blk.co_preadv(0, bytearray(512))
            debug_resume(node, "A")
            await write


@pytest.mark.parametrize("event", ["pwritev", "pwritev_done"])
async def test_a_cancelled_request_leaves_its_breakpoint(event: str) -> None:
    with MemoryDisk(SIZE) as disk:
        async with opened(disk) as blk:
            node = node_of(blk)
            debug_breakpoint(node, event, "A")
            write = asyncio.ensure_future(blk.co_pwritev(0, b"x" * 512))
            await debug_wait(node, "A")
            write.cancel()
            with pytest.raises(asyncio.CancelledError):
                await write
            assert not debug_is_suspended(node, "A")
            assert node.in_flight == 0
            with pytest.raises(BlockError) as caught:
                debug_resume(node, "A")
            assert caught.value.errno == errno.ENOENT
            await blk.co_pwritev(0, b"y" * 512)
            await blk.drain()
            assert disk.data[:512] == b"y" * 512


async def test_cancelled_in_the_turn_in_which_it_is_resumed() -> None:
    with MemoryDisk(SIZE) as disk:
        async with opened(disk) as blk:
            node = node_of(blk)
            debug_breakpoint(node, "pwritev", "A")
            write = asyncio.ensure_future(blk.co_pwritev(0, b"x" * 512))
            await debug_wait(node, "A")
            write.cancel()
            debug_resume(node, "A")
            with pytest.raises(asyncio.CancelledError):
                await write
            assert node.in_flight == 0


async def test_a_breakpoint_holds_a_formats_request_up() -> None:
    """qcow2 loads a table: its own events, and cancelling leaves it whole."""
    with MemoryDisk(bytearray()) as disk:
        blk = await BlockBackend.new_open(options=disk.options())
        async with blk:
            pass
        image = {"driver": "qcow2", "file": {"driver": "blkdebug", "image": disk.options()}}
        disk.data[:] = await _qcow2_bytes()
        async with await BlockBackend.new_open(options=image, gate=AllowAll()) as guest:
            guest.set_perm(Perm.ALL, Perm.ALL)
            await guest.co_pwritev(0, b"a" * 65536)
        async with await BlockBackend.new_open(options=image, gate=AllowAll()) as guest:
            node = node_of(guest)
            debug_breakpoint(node, "l2_load", "A")
            read = asyncio.ensure_future(guest.co_preadv(0, bytearray(4096)))
            await debug_wait(node, "A")
            other = asyncio.ensure_future(guest.co_preadv(4096, memory := bytearray(4096)))
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read
            await other
            assert memory == b"a" * 4096
            assert node.in_flight == 0


async def _qcow2_bytes() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new.qcow2"
        await create(str(path), "qcow2", size=SIZE)
        return await asyncio.to_thread(path.read_bytes)


async def test_removing_a_breakpoint_lets_its_requests_go_on() -> None:
    with MemoryDisk(SIZE) as disk:
        async with opened(disk) as blk:
            node = node_of(blk)
            debug_breakpoint(node, "pwritev", "A")
            write = asyncio.ensure_future(blk.co_pwritev(0, b"x" * 512))
            await debug_wait(node, "A")
            debug_breakpoint(node, "pwritev", "A")
            debug_remove_breakpoint(node, "A")
            await write
            await blk.co_pwritev(0, b"y" * 512)
            with pytest.raises(BlockError):
                debug_remove_breakpoint(node, "A")


async def test_nothing_suspends_where_nobody_listens() -> None:
    with MemoryDisk(SIZE) as disk:
        async with await BlockBackend.new_open(options=disk.options()) as blk:
            node = node_of(blk)
            assert not debug_is_suspended(node, "A")
            with pytest.raises(BlockError) as caught:
                debug_breakpoint(node, "none", "A")
            assert caught.value.errno == errno.ENOTSUP
            with pytest.raises(BlockError) as caught:
                debug_resume(node, "A")
            assert caught.value.errno == errno.ENOTSUP


async def test_edges_know_whether_somebody_listens() -> None:
    with MemoryDisk(SIZE) as disk:
        options = {"driver": "raw", "file": {"driver": "blkdebug", "image": disk.options()}}
        async with await BlockBackend.new_open(options=options) as blk:
            node = node_of(blk)
            listener: DebugListener | None = node.children["file"].debug_event
            assert listener is not None
            assert node.children["file"].node.children["image"].debug_event is None


async def test_rules_fail_what_they_say_and_once() -> None:
    with MemoryDisk(SIZE) as disk:
        rules = [{"event": "none", "errno": errno.ENOSPC, "iotype": "write", "sector": 3, "once": True}]
        async with opened(disk, **{"inject-error": rules}) as blk:
            await blk.co_pwritev(0, b"x" * 512)
            await blk.co_preadv(0, bytearray(4096))
            with pytest.raises(BlockError) as caught:
                await blk.co_pwritev(1024, b"x" * 1024)
            assert caught.value.errno == errno.ENOSPC
            await blk.co_pwritev(1024, b"x" * 1024)


def resume_if_suspended(node: BlockNode) -> None:
    if debug_is_suspended(node, "A"):
        debug_resume(node, "A")


async def test_states() -> None:
    with MemoryDisk(SIZE) as disk:
        options = {
            "set-state": [
                {"event": "pwritev", "state": 1, "new_state": 2},
                {"event": "pwritev", "state": 2, "new_state": 3},
            ],
            "inject-error": [{"event": "pwritev", "state": 3, "errno": errno.EIO, "once": True}],
        }
        async with opened(disk, **options) as blk:
            await blk.co_pwritev(0, b"x" * 512)
            await blk.co_pwritev(0, b"x" * 512)
            with pytest.raises(BlockError):
                await blk.co_pwritev(0, b"x" * 512)


async def test_padded_writes_tell_of_each_step() -> None:
    with MemoryDisk(SIZE) as disk:
        async with opened(disk, align=4096) as blk:
            node = node_of(blk)
            for event in (
                "pwritev_rmw_head",
                "pwritev_rmw_after_head",
                "pwritev_rmw_tail",
                "pwritev_rmw_after_tail",
                "pwritev",
                "pwritev_done",
            ):
                debug_breakpoint(node, event, event)
            write = asyncio.ensure_future(blk.co_pwritev(100, b"x" * 20000))
            for event in (
                "pwritev_rmw_head",
                "pwritev_rmw_after_head",
                "pwritev_rmw_tail",
                "pwritev_rmw_after_tail",
                "pwritev",
                "pwritev_done",
            ):
                await debug_wait(node, event)
                debug_resume(node, event)
            await write
            assert disk.data[100:20100] == b"x" * 20000


async def test_limits_are_kept() -> None:
    with MemoryDisk(SIZE) as disk:
        limits = {"align": 1024, "max-transfer": 4096, "opt-write-zero": 8192, "max-write-zero": 16384}
        async with opened(disk, **limits) as blk:
            assert blk.get_request_alignment() == 1024
            assert blk.get_max_transfer() == 4096
            disk.log.clear()
            await blk.co_pwritev(0, b"x" * 16384)
            assert sorted(disk.log) == [("write", at, 4096) for at in range(0, 16384, 4096)]
            disk.log.clear()
            await blk.co_pwrite_zeroes(0, 65536, RequestFlags.NONE)
            assert all(nbytes <= 16384 for _, _, nbytes in disk.log)


async def test_names(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    await asyncio.to_thread(image.write_bytes, bytes(512))
    async with await BlockBackend.new_open(f"blkdebug::{image}", options={"driver": "raw"}) as blk:
        assert node_of(blk).filename == f"blkdebug::{image}"
    options = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(image)}, "align": 512}
    async with await BlockBackend.new_open(options=options) as blk:
        assert node_of(blk).filename.startswith("json:")


async def test_it_takes_and_withholds_permissions() -> None:
    with MemoryDisk(SIZE) as disk:
        options = {"take-child-perms": ["resize"], "unshare-child-perms": ["write"]}
        async with opened(disk, **options) as blk:
            blk.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
            edge = node_of(blk).children["image"]
            assert edge.perm == Perm.CONSISTENT_READ | Perm.RESIZE
            assert edge.shared == Perm.ALL & ~Perm.WRITE


async def test_every_await_of_a_suspended_write_can_be_cancelled() -> None:
    with MemoryDisk(SIZE) as disk:
        async with opened(disk) as blk:
            node = node_of(blk)

            async def scenario() -> None:
                debug_breakpoint(node, "pwritev", "A")
                loop = asyncio.get_running_loop()
                loop.call_soon(loop.call_soon, resume_if_suspended, node)
                await blk.co_pwritev(0, b"x" * 512)

            async def afterwards(_nth: int) -> None:
                if not debug_is_suspended(node, "A"):
                    with suppress(BlockError):  # it was hit
                        debug_remove_breakpoint(node, "A")
                assert node.in_flight == 0
                await blk.co_pwritev(0, b"y" * 512)

            await cancel_at_every_await(scenario, afterwards)


@pytest.mark.parametrize("options", [{}, {"align": 4096}, {"max-transfer": 65536, "opt-write-zero": 4096}])
async def test_the_suite(options: dict[str, Any], tmp_path: Path) -> None:
    numbers = itertools.count()

    async def make(length: int) -> Mapping[str, Any]:
        path = tmp_path / f"disk{next(numbers)}.raw"
        with path.open("wb") as file:
            file.truncate(length)
        return {"driver": "blkdebug", "image": {"driver": "file", "filename": str(path)}, **options}

    report = await check_driver(make, Traits(fast_reads=False))
    assert report.ok, f"\n{report}"


@pytest.mark.peer("qemu-img")
async def test_qcow2_stays_whole_while_its_disk_fails_now_and_then(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    await create(str(path), "qcow2", size=16 << 20)
    states = [{"event": "write_aio", "state": at, "new_state": at % 7 + 1} for at in range(1, 8)]
    options = {
        "driver": "qcow2",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": str(path)},
            "set-state": states,
            "inject-error": [{"event": "write_aio", "state": 7, "once": False}, {"event": "flush_to_os", "errno": 0}],
        },
    }
    failed: list[int | None] = []
    async with await BlockBackend.new_open(options=options, gate=AllowAll()) as blk:
        blk.set_perm(Perm.ALL, Perm.ALL)
        for at in range(60):
            try:
                await blk.co_pwritev(at * 100_000, bytes([at]) * 70_000)
            except BlockError as error:
                failed.append(error.errno)
            await blk.co_flush()
    assert set(failed) == {errno.EIO}
    await asyncio.to_thread(assert_clean, path)
