"""A backend and its nodes move between threads: nothing is lost, nothing is overtaken, whoever has a say is asked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from pathlib import Path

import pytest

from blockio.aio.context import AioContext, IOThread
from blockio.backend import BlockBackend
from blockio.errors import BlockError
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm
from tests.support.qemu import assert_clean, qemu_img


async def test_moved_and_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 16))
    options = {"driver": "raw", "file": {"driver": "file", "filename": str(path)}}
    here = AioContext.current()
    events: list[tuple[str, bool]] = []
    async with IOThread() as thread, await BlockBackend.new_open(options=options) as blk:
        there = thread.context
        blk.add_aio_context_notifier(
            lambda context: events.append((f"attached {context.name}", context.is_current)),
            lambda: events.append(("detach", here.is_current)),
        )
        await blk.co_pwritev(0, b"before")
        await blk.set_aio_context(there)
        assert blk.get_aio_context() is there
        assert blk.bs is not None
        assert blk.bs.context is there
        memory = bytearray(6)
        await blk.co_preadv(0, memory)
        assert memory == b"before"
        assert not blk.try_preadv(0, memory)
        assert await there.run(_tried(blk))
        await blk.co_pwritev(0, b"during")
        await blk.set_aio_context(there)
        await blk.set_aio_context(here)
        assert blk.try_preadv(0, memory)
        assert memory == b"during"
        assert blk.in_flight == 0
    assert events == [
        ("detach", True),
        (f"attached {there.name}", True),
        ("detach", False),
        (f"attached {here.name}", True),
    ]


async def _tried(blk: BlockBackend) -> bool:
    return blk.try_preadv(0, bytearray(6))


async def test_an_empty_one_moves_too() -> None:
    async with IOThread() as thread, BlockBackend(Perm.ALL) as blk:
        await blk.set_aio_context(thread.context)
        assert blk.get_aio_context() is thread.context
        await blk.drain()


@pytest.mark.parametrize("form", ["co", "aio"])
async def test_parked_requests_go_along_in_order(blk: BlockBackend, disk: MemoryDisk, form: str) -> None:
    called: list[int] = []
    async with IOThread() as thread:
        async with blk.drained():
            if form == "co":
                parked: list[asyncio.Future[object]] = [
                    asyncio.ensure_future(blk.co_pwritev(at, bytes([at]))) for at in range(20)
                ]
            else:
                requests = [blk.aio_pwritev(at, bytes([at]), 0, called.append) for at in range(20)]
                assert requests[0].context is AioContext.current()
                parked = [asyncio.ensure_future(asyncio.wait_for(request, 10)) for request in requests]
            await asyncio.sleep(0)
            await blk.set_aio_context(thread.context)
            assert disk.log == []
            with contextlib.suppress(asyncio.CancelledError):
                parked[7].cancel()
                await parked[7]
        await asyncio.gather(*parked, return_exceptions=True)
        await blk.co_pwritev(100, b"late")
        assert [offset for _, offset, _ in disk.log] == [at for at in range(20) if at != 7] + [100]
        if form == "aio":
            assert requests[0].context is thread.context
            assert sorted(called) == [-errno.ECANCELED] + [0] * 19
        await blk.drain()
        assert blk.in_flight == 0
        await blk.close()


async def test_whoever_has_a_say(blk: BlockBackend) -> None:
    assert blk.bs is not None
    async with IOThread() as thread, await BlockBackend.new_with_bs(blk.bs, Perm.CONSISTENT_READ, Perm.ALL) as other:
        with pytest.raises(BlockError, match="Cannot change iothread of active block backend") as caught:
            await blk.set_aio_context(thread.context)
        assert caught.value.errno == errno.EPERM
        assert blk.context is other.context is AioContext.current()
        await blk.co_pwritev(0, b"x")
        other.set_allow_aio_context_change(True)
        await blk.set_aio_context(thread.context)
        assert other.context is thread.context
        await other.co_preadv(0, bytearray(1))
        other.set_allow_aio_context_change(False)
        other.monitor_add_blk("named")  # nobody's device: it may follow
        await blk.set_aio_context(AioContext.current())
        assert other.context is AioContext.current()


async def test_where_nothing_runs(blk: BlockBackend) -> None:
    async with IOThread() as thread:
        gone = thread.context
    with pytest.raises(RuntimeError, match="does not run"):
        await blk.set_aio_context(gone)
    await blk.co_pwritev(0, b"x")


async def test_a_cancelled_move(blk: BlockBackend, disk: MemoryDisk) -> None:
    async with IOThread() as thread:
        disk.stall()
        request = blk.aio_pwritev(0, b"x")
        move = asyncio.create_task(blk.set_aio_context(thread.context))
        for _ in range(5):
            await asyncio.sleep(0)
        move.cancel()
        with pytest.raises(asyncio.CancelledError):
            await move
        disk.go()
        await request
        assert blk.context is AioContext.current()
        assert not blk.quiesced


@pytest.mark.both_loops
@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_under_load(tmp_path: Path, format: str) -> None:
    path = tmp_path / "disk"
    await asyncio.to_thread(qemu_img, "create", "-q", "-f", format, path, "16M")
    options = {"driver": format, "file": {"driver": "file", "filename": str(path)}}
    here = AioContext.current()
    async with IOThread() as one, IOThread(loop_factory=asyncio.new_event_loop) as two:
        blk = await BlockBackend.new_open(options=options)
        done = 0
        stop = False

        async def worker(number: int) -> None:
            nonlocal done
            memory = bytearray(512)
            turn = 0
            while not stop:
                turn += 1
                data = bytes([turn % 256, number] * 256)
                at = (turn % 40) * 262_144 + number * 512
                await blk.co_pwritev(at, data)
                await blk.co_preadv(at, memory)
                assert memory == data
                if turn % 7 == 0:
                    await blk.co_flush()
                done += 1
                await asyncio.sleep(0)

        workers = [asyncio.create_task(worker(number)) for number in range(8)]
        for turn in range(30):
            await blk.set_aio_context((one.context, two.context, here)[turn % 3])
            await asyncio.sleep(0)
        stop = True
        await asyncio.gather(*workers)
        assert done >= 8
        await blk.drain()
        assert blk.in_flight == 0
        await blk.close()
    if format == "qcow2":
        await asyncio.to_thread(assert_clean, path)
