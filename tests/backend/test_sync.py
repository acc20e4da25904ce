"""Plain calls from outside the loop, and calls from foreign loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import anyio.from_thread
import pytest
from anyio.lowlevel import EventLoopToken

from blockio.aio.context import IOThread
from blockio.backend import BlockBackend, sync
from blockio.errors import NoMedium, OutOfRange
from blockio.testing.driver import MemoryDisk
from blockio.types import INT_MAX, Perm
from tests.backend.conftest import LENGTH


async def until(condition: Callable[[], bool]) -> None:
    """Give others turns until *condition* holds; another thread's progress cannot be awaited otherwise."""
    while not condition():  # noqa: ASYNC110  # see above
        await asyncio.sleep(0)


def test_from_a_thread_without_a_loop() -> None:
    """No loop here at all: the backend lives in an IOThread."""
    with MemoryDisk(LENGTH) as disk, IOThread() as thread:
        blk = sync.run_sync(thread.context, lambda: BlockBackend.new_open(options=disk.options(), resize=True))
        assert blk.pwrite(10, b"hello") == 5
        assert blk.pwrite(15, [b" wor", bytearray(b"ld")]) == 6
        assert blk.pread(10, 11) == b"hello world"
        into = bytearray(5)
        assert blk.pread_into(10, into) == 5
        assert into == b"hello"
        blk.pwrite_zeroes(10, 2)
        blk.pdiscard(0, 512)
        blk.flush()
        assert blk.pread(10, 5) == b"\0\0llo"
        blk.truncate(2 * LENGTH)
        assert blk.getlength() == 2 * LENGTH
        with pytest.raises(OutOfRange):
            blk.pread(2 * LENGTH, 1)
        with pytest.raises(OutOfRange):  # and no memory is taken for it
            blk.pread(0, INT_MAX + 1)
        with pytest.raises(ValueError, match="-1 bytes"):
            blk.pread(0, -1)
        with pytest.raises(TypeError, match="writable"):
            blk.pread_into(0, b"read-only")
        sync.run_sync(thread.context, blk.close)


async def test_in_its_own_thread_it_raises_at_once(blk: BlockBackend) -> None:
    for call in (
        lambda: blk.pread(0, 1),
        lambda: blk.pwrite(0, b"x"),
        blk.flush,
        lambda: blk.pwrite_zeroes(0, 1),
        lambda: blk.pdiscard(0, 1),
        lambda: blk.truncate(0),
    ):
        with pytest.raises(RuntimeError, match="await the co_ form"):
            call()


async def test_from_many_worker_threads(blk: BlockBackend, disk: MemoryDisk) -> None:
    def work(number: int) -> bytes:
        for _ in range(20):
            assert blk.pwrite(number * 512, bytes([number]) * 512) == 512
        return blk.pread(number * 512, 512)

    results = await asyncio.gather(*(asyncio.to_thread(work, number) for number in range(8)))
    assert results == [bytes([number]) * 512 for number in range(8)]


async def test_errors_cross(blk: BlockBackend) -> None:
    async with BlockBackend(Perm.ALL) as empty:
        with pytest.raises(NoMedium):
            await asyncio.to_thread(empty.pread, 0, 1)


async def test_cancelled_over_there(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    before = asyncio.all_tasks()

    def call() -> str:
        try:
            blk.pread(0, 1)
        except CancelledError:
            return "cancelled"
        return "read"

    waiting = asyncio.create_task(asyncio.to_thread(call))
    await until(lambda: disk.waiting > 0)
    for task in asyncio.all_tasks() - before - {waiting}:
        task.cancel()
    assert await waiting == "cancelled"
    assert blk.in_flight == 0


async def test_interrupted_here_the_memory_is_free(
    blk: BlockBackend, disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KeyboardInterrupt in the waiting thread cancels the request and waits for its end."""
    disk.stall()

    def interrupted(function: Any, *, token: EventLoopToken) -> None:
        asyncio.run_coroutine_threadsafe(function(), blk.context.loop)
        while not disk.waiting:
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(anyio.from_thread, "run", interrupted)

    def call() -> str:
        try:
            blk.pwrite(0, b"x")
        except KeyboardInterrupt:
            return f"interrupted, {blk.in_flight} in flight"
        return "not interrupted"

    assert await asyncio.to_thread(call) == "interrupted, 0 in flight"


def test_a_loop_that_is_gone() -> None:
    with MemoryDisk(LENGTH) as disk:

        async def leave_it_open() -> BlockBackend:
            return await BlockBackend.new_open(options=disk.options())

        with IOThread() as thread:
            context = thread.context
            blk = sync.run_sync(context, leave_it_open)
            sync.run_sync(context, blk.close)
        for call in (lambda: blk.pread(0, 1), blk.flush):
            with pytest.raises(RuntimeError, match="does not run"):
                call()


# -- foreign loops


@pytest.mark.both_loops
async def test_awaited_from_another_loop_it_hops(disk: MemoryDisk) -> None:
    async with IOThread() as thread:
        blk = await BlockBackend.new_open(options=disk.options(), resize=True, context=thread.context)
        assert blk.context is thread.context
        homes: set[int] = set()
        arrive = disk.arrive

        async def note(operation: str, offset: int, nbytes: int) -> None:
            homes.add(threading.get_ident())
            await arrive(operation, offset, nbytes)

        disk.arrive = note  # type: ignore[method-assign]  # to see where requests run
        memory = bytearray(3)
        await blk.co_pwritev(0, b"abc")
        await blk.co_preadv(0, memory)
        assert memory == b"abc"
        await blk.co_pwrite_zeroes(0, 3)
        await blk.co_pdiscard(0, 512)
        await blk.co_flush()
        await blk.co_truncate(LENGTH * 2)
        assert await blk.co_getlength() == LENGTH * 2
        assert (await blk.co_block_status(0, 512)).length == 512
        assert not blk.try_preadv(0, memory)
        async with blk.drained():
            assert blk.quiesced
            parked = asyncio.create_task(blk.co_flush())
        await parked
        assert homes == {thread.context.thread_id}
        with pytest.raises(NoMedium):
            async with BlockBackend(Perm.ALL, context=thread.context) as empty:
                await empty.co_flush()
        with pytest.raises(RuntimeError, match="own event loop"):
            blk.set_perm(Perm.NONE, Perm.ALL)
        await blk.close()


async def test_a_cancelled_hop_ends_over_there_first(disk: MemoryDisk) -> None:
    async with IOThread() as thread:
        blk = await BlockBackend.new_open(options=disk.options(), context=thread.context)

        async def stall() -> None:
            disk.stall()

        await thread.context.run(stall())
        task = asyncio.create_task(blk.co_pwritev(0, b"x"))
        await until(lambda: disk.waiting > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert blk.in_flight == 0
        disk._go = None
        await blk.co_pwritev(0, b"x")
        await blk.close()


async def test_many_contexts_at_once(disk: MemoryDisk) -> None:
    async with IOThread("one") as one, IOThread("two") as two:
        with MemoryDisk(LENGTH) as other:
            backends = [
                await BlockBackend.new_open(options=disk.options(), context=one.context),
                await BlockBackend.new_open(options=other.options(), context=two.context),
            ]

            async def work(blk: BlockBackend, number: int) -> None:
                data = bytes([number]) * 512
                await blk.co_pwritev(number * 512, data)
                memory = bytearray(512)
                await blk.co_preadv(number * 512, memory)
                assert memory == data

            await asyncio.gather(*(work(blk, number) for number in range(16) for blk in backends))
            for blk in backends:
                await blk.close()
