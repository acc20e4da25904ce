"""The ``aio_`` form: the callback runs exactly once, never before the call has returned."""

from __future__ import annotations

import asyncio
import errno
import gc
from typing import Any

import pytest

from blockio.backend import AioRequest, BlockBackend
from blockio.errors import BlockError, NoMedium, OutOfRange
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm
from tests.backend.conftest import LENGTH


@pytest.mark.parametrize("fast", [True, False])
async def test_calls_back_once_and_later(blk: BlockBackend, disk: MemoryDisk, fast: bool) -> None:
    disk.fast = fast
    seen: list[tuple[int, int]] = []
    memory = bytearray(4)
    disk.data[:4] = b"abcd"
    for request in (
        blk.aio_preadv(0, memory, cb=lambda ret: seen.append((ret, blk.in_flight))),
        blk.aio_pwritev(8, b"efgh", cb=lambda ret: seen.append((ret, blk.in_flight))),
    ):
        assert seen == []
        assert request.ret is None
        assert not request.done()
    assert blk.in_flight == 2
    await blk.drain()
    assert sorted(seen) == [(0, 1), (0, 2)]  # still in flight while called back
    assert memory == b"abcd"
    assert disk.data[8:12] == b"efgh"
    assert request.ret == 0
    await request
    await request
    assert len(seen) == 2


async def test_every_form(blk: BlockBackend, disk: MemoryDisk) -> None:
    await blk.aio_pwrite_zeroes(0, 512)
    await blk.aio_pdiscard(0, 512)  # stops at the node: discard=unmap was not asked for
    await blk.aio_flush()
    await blk.aio_pwritev(0, [b"x", b"y"])
    assert disk.log == [("zero", 0, 512), ("flush", 0, 0), ("write", 0, 2)]


async def test_errors(blk: BlockBackend, disk: MemoryDisk) -> None:
    seen: list[int] = []
    request = blk.aio_preadv(LENGTH, bytearray(1), cb=seen.append)
    with pytest.raises(OutOfRange):
        await request
    disk.fail = BlockError(errno=errno.ENOSPC)
    request = blk.aio_pwritev(0, b"x", cb=seen.append)
    with pytest.raises(BlockError, match="No space left"):
        await request
    assert seen == [-errno.EIO, -errno.ENOSPC]
    assert blk.in_flight == 0


async def test_no_medium() -> None:
    async with BlockBackend(Perm.ALL) as empty:
        request = empty.aio_flush(cb=lambda _ret: None)
        await empty.drain()
        assert request.ret == -errno.ENOMEDIUM
        with pytest.raises(NoMedium):
            await request


async def test_mistakes_raise_at_the_call(blk: BlockBackend) -> None:
    calls: list[Any] = [
        lambda: blk.aio_preadv(0, b"read-only"),
        lambda: blk.aio_pwritev(0, 5),  # type: ignore[arg-type]  # on purpose
        lambda: blk.aio_preadv("0", bytearray(1)),  # type: ignore[arg-type]  # on purpose
        lambda: blk.aio_pdiscard(0, 1.5),  # type: ignore[arg-type]  # on purpose
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="-1 bytes"):
        blk.aio_pwrite_zeroes(0, -1)
    assert blk.in_flight == 0


async def test_cancel_waits(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    seen: list[int] = []
    request = blk.aio_pwritev(0, b"x", cb=seen.append)
    await asyncio.sleep(0)
    await request.cancel()
    assert seen == [-errno.ECANCELED]
    assert request.ret == -errno.ECANCELED
    assert blk.in_flight == 0
    with pytest.raises(asyncio.CancelledError):
        await request
    await request.cancel()  # again: nothing happens


async def test_cancel_before_it_started(blk: BlockBackend, disk: MemoryDisk) -> None:
    request = blk.aio_pwritev(0, b"x")
    await request.cancel()
    assert blk.in_flight == 0
    assert disk.log == []


async def test_cancel_async_asks(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    seen: list[int] = []
    request = blk.aio_pwritev(0, b"x", cb=seen.append)
    await asyncio.sleep(0)
    request.cancel_async()
    assert seen == []
    with pytest.raises(asyncio.CancelledError):
        await request
    assert seen == [-errno.ECANCELED]
    request.cancel_async()


async def test_cancelling_who_awaits_cancels_the_request(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    request = blk.aio_pwritev(0, b"x")

    async def wait() -> None:
        await request

    task = asyncio.create_task(wait())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert request.done()


async def test_two_may_wait(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    request = blk.aio_pwritev(0, b"x")

    async def wait() -> int | None:
        await request
        return request.ret

    tasks = [asyncio.create_task(wait()) for _ in range(2)]
    await asyncio.sleep(0)
    disk.go()
    assert await asyncio.gather(*tasks) == [0, 0]


async def test_a_failing_callback_is_reported_and_the_count_is_right(blk: BlockBackend) -> None:
    reports: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: reports.append(context))

    def bad(_ret: int) -> None:
        raise ZeroDivisionError

    request = blk.aio_flush(cb=bad)
    await blk.drain()
    await request
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]
    assert blk.in_flight == 0


async def test_an_error_nobody_looked_at_is_reported(blk: BlockBackend, disk: MemoryDisk) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))
    disk.fail = BlockError(errno=errno.EIO)
    request: AioRequest | None = blk.aio_pwritev(0, b"x")
    await blk.drain()
    disk.fail = None
    assert request is not None
    assert request.done()
    request = None
    gc.collect()
    assert [report["message"] for report in reports] == ["An AioRequest failed and nobody looked"]


async def test_only_at_home(blk: BlockBackend) -> None:
    with pytest.raises(RuntimeError, match="own event loop"):
        await asyncio.to_thread(blk.aio_flush)
