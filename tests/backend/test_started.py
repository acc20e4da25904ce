"""Requests that plain calls start and an engine ends: counted, tracked and recorded like all others in all three lives.

While the ring is plugged a started request stays where it can be looked at.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockio.aio.context import AioContext
from blockio.aio.uring import Uring
from blockio.backend import BlockBackend
from blockio.backend.accounting import FAIRNESS_BUDGET, REQUEST_COST, STARTED_LOOK, STARTED_RUN
from blockio.errors import BlockError
from blockio.io.node_io import NodeIO
from blockio.types import OpenFlags
from tests.support.qemu import pattern, qemu_img

SIZE = 1 << 20
BLOCK = 4096


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A format and the path of an image of ``pattern(SIZE)`` in it."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(pattern(SIZE))
    if request.param == "raw":
        return "raw", raw
    path = tmp_path / "disk.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    return "qcow2", path


@pytest.fixture
async def blk(image: tuple[str, Path]) -> AsyncIterator[BlockBackend]:
    """The image on a ring, past the page cache. It must come out of the test with nothing in flight."""
    format, path = image
    options = {"driver": format, "file": {"driver": "file", "filename": str(path), "aio": "io_uring"}}
    try:
        Uring.acquire(AioContext.current())
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    try:
        async with await BlockBackend.new_open(options=options, flags=OpenFlags(cache_direct=True)) as blk:
            for offset in (0, SIZE - BLOCK):  # what the format knows of the disk is in memory from here on
                await blk.co_preadv(offset, blk.blockalign(BLOCK))
            # As does every write: the image is fit for changes.
            await blk.co_pwritev(0, memory_of(blk, pattern(BLOCK)))
            yield blk
            assert in_flight(blk) == [0, 0, 0]
    finally:
        AioContext.current().unshare(Uring)


def memory_of(blk: BlockBackend, data: bytes) -> memoryview:
    memory = blk.blockalign(len(data))
    memory[:] = data
    return memory


def in_flight(blk: BlockBackend) -> list[int]:
    """Of the backend, its root and the file below."""
    root = blk.bs
    assert root is not None
    return [blk.in_flight, root.in_flight, root.children["file"].node.in_flight]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_is_written_is_read(blk: BlockBackend, image: tuple[str, Path]) -> None:
    before = blk.stats.snapshot()
    model = bytearray(pattern(SIZE))
    offsets = range(0, SIZE, SIZE // 16)
    with blk.plugged():
        requests = [
            asyncio.create_task(blk.co_pwritev(offset, memory_of(blk, pattern(BLOCK, seed=offset))))
            for offset in offsets
        ]
        await turns()
        assert in_flight(blk) == [16, 16, 16]
        assert blk.stats.snapshot().write.operations == before.write.operations
    await asyncio.gather(*requests)
    for offset in offsets:
        model[offset : offset + BLOCK] = pattern(BLOCK, seed=offset)
    memory = [blk.blockalign(BLOCK) for _ in offsets]
    with blk.plugged():
        requests = [asyncio.create_task(blk.co_preadv(at, part)) for at, part in zip(offsets, memory, strict=True)]
        await turns()
        assert in_flight(blk) == [16, 16, 16]
    await asyncio.gather(*requests)
    for offset, part in zip(offsets, memory, strict=True):
        assert part == model[offset : offset + BLOCK]
    after = blk.stats.snapshot()
    assert after.write.operations - before.write.operations == 16
    assert after.read.operations - before.read.operations == 16
    assert after.read.bytes - before.read.bytes == 16 * BLOCK
    assert blk.bs is not None
    await blk.co_flush()


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_withdrawn_before_the_kernel_sees_it(blk: BlockBackend, write: bool) -> None:
    memory = memory_of(blk, b"n" * BLOCK)
    request = blk.co_pwritev if write else blk.co_preadv
    with blk.plugged():
        task = asyncio.create_task(request(BLOCK, memory))
        await turns()
        assert in_flight(blk) == [1, 1, 1]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert in_flight(blk) == [0, 0, 0]
    await blk.co_preadv(BLOCK, memory)
    assert memory == pattern(SIZE)[BLOCK : 2 * BLOCK]


async def test_cancelled_in_the_kernel_it_is_awaited(blk: BlockBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[Uring, int, int]] = []
    complete = Uring._complete
    monkeypatch.setattr(Uring, "_complete", lambda ring, slot, result: held.append((ring, slot, result)))
    memory = blk.blockalign(BLOCK)
    task = asyncio.create_task(blk.co_preadv(BLOCK, memory))
    while not held:  # noqa: ASYNC110  # the ring tells nobody
        await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await turns()
        assert in_flight(blk) == [1, 1, 1]
    monkeypatch.setattr(Uring, "_complete", complete)
    complete(*held[0])
    with pytest.raises(asyncio.CancelledError):
        await task
    assert in_flight(blk) == [0, 0, 0]
    await blk.co_preadv(0, memory)
    assert memory == pattern(BLOCK)


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_failed_by_the_kernel(blk: BlockBackend, write: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = Uring._complete
    results = [-errno.EIO]
    monkeypatch.setattr(
        Uring, "_complete", lambda ring, slot, result: complete(ring, slot, results.pop() if results else result)
    )
    memory = memory_of(blk, b"n" * BLOCK)
    request = blk.co_pwritev if write else blk.co_preadv
    before = blk.stats.snapshot()
    with pytest.raises(BlockError) as caught:
        await request(BLOCK, memory)
    assert caught.value.errno == errno.EIO
    after = blk.stats.snapshot()
    assert after.write.failed + after.read.failed == 1
    assert after.write.operations + after.read.operations == before.write.operations + before.read.operations
    assert in_flight(blk) == [0, 0, 0]
    await request(BLOCK, memory)


async def test_disturbed_it_goes_once_more(blk: BlockBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = Uring._complete
    results = [-errno.EAGAIN, -errno.EINTR]
    monkeypatch.setattr(
        Uring, "_complete", lambda ring, slot, result: complete(ring, slot, results.pop() if results else result)
    )
    memory = blk.blockalign(BLOCK)
    await blk.co_preadv(BLOCK, memory)
    assert not results
    assert memory == pattern(SIZE)[BLOCK : 2 * BLOCK]


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_cut_short_the_slow_lane_does_it_again(
    blk: BlockBackend, write: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Uring._complete
    results = [512]
    monkeypatch.setattr(
        Uring, "_complete", lambda ring, slot, result: complete(ring, slot, results.pop() if results else result)
    )
    memory = memory_of(blk, b"n" * BLOCK)
    before = blk.stats.snapshot()
    await (blk.co_pwritev if write else blk.co_preadv)(BLOCK, memory)
    assert not results
    after = blk.stats.snapshot()
    assert after.write.operations + after.read.operations == before.write.operations + before.read.operations + 1
    again = blk.blockalign(BLOCK)
    await blk.co_preadv(BLOCK, again)
    assert again == memory == (b"n" * BLOCK if write else pattern(SIZE)[BLOCK : 2 * BLOCK])


async def test_a_drain_waits_for_it_and_it_is_not_started_while_drained(blk: BlockBackend) -> None:
    memory = blk.blockalign(BLOCK)
    blk.io_plug()
    task = asyncio.create_task(blk.co_preadv(BLOCK, memory))
    await turns()
    end = asyncio.Event()
    inside = asyncio.Event()

    async def drain() -> None:
        async with blk.drained():
            inside.set()
            await end.wait()

    draining = asyncio.create_task(drain())
    await turns()
    assert not inside.is_set()
    blk.io_unplug()
    await inside.wait()
    assert task.done()
    parked = asyncio.create_task(blk.co_preadv(0, memory))
    await turns()
    assert in_flight(blk) == [0, 0, 0]
    end.set()
    await draining
    await parked
    assert memory == pattern(BLOCK)


async def test_serialising_requests_wait_for_it_and_it_for_them(blk: BlockBackend) -> None:
    assert blk.bs is not None
    memory = memory_of(blk, b"n" * BLOCK)
    blk.io_plug()
    task = asyncio.create_task(blk.co_pwritev(BLOCK, memory))
    await turns()
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def serialise() -> None:
        assert blk.bs is not None
        async with blk.bs.path.request(BLOCK, 2 * BLOCK, serialising=True):  # type: ignore[call-arg]  # NodeIO's own
            entered.set()
            await leave.wait()

    serialising = asyncio.create_task(serialise())
    await turns()
    assert not entered.is_set()
    blk.io_unplug()
    await task
    await entered.wait()
    late = asyncio.create_task(blk.co_preadv(BLOCK, memory))
    await turns()
    assert not late.done()
    leave.set()
    await late
    await serialising
    assert memory == b"n" * BLOCK


async def test_a_serialising_request_that_gave_up_waiting_for_it_leaves_nothing_behind(blk: BlockBackend) -> None:
    assert blk.bs is not None
    path = blk.bs.path
    assert isinstance(path, NodeIO)
    blk.io_plug()
    task = asyncio.create_task(blk.co_pwritev(BLOCK, memory_of(blk, b"n" * BLOCK)))
    await turns()

    async def serialise() -> None:
        async with path.request(BLOCK, 2 * BLOCK, serialising=True):
            raise AssertionError("it got past a write that has not ended")

    serialising = asyncio.create_task(serialise())
    await turns()
    serialising.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serialising
    assert path.tracked.waiters
    blk.io_unplug()
    await task
    assert not any((path.tracked.requests, path.tracked.serialising, path.tracked.waiters))


async def test_dirty_bitmaps_record_it(blk: BlockBackend) -> None:
    assert blk.bs is not None
    bitmap = blk.bs.dirty_bitmaps.create(SIZE, BLOCK, "b0")
    await blk.co_pwritev(3 * BLOCK, memory_of(blk, b"n" * BLOCK))
    assert [bitmap.get(at * BLOCK) for at in range(2, 5)] == [False, True, False]
    blk.bs.dirty_bitmaps.release(bitmap)


async def test_memory_that_does_not_fit_takes_the_slow_lane(blk: BlockBackend) -> None:
    memory = blk.blockalign(2 * BLOCK)
    odd = memory[1 : 1 + BLOCK]
    await blk.co_preadv(BLOCK, odd)
    assert odd == pattern(SIZE)[BLOCK : 2 * BLOCK]
    await blk.co_pwritev(BLOCK, bytes(BLOCK))
    parts = [memory[:BLOCK], memory[BLOCK:]]
    await blk.co_preadv(BLOCK, parts)
    assert memory == bytes(BLOCK) + pattern(SIZE)[2 * BLOCK : 3 * BLOCK]


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
async def test_a_lane_that_always_declines_is_asked_seldom(blk: BlockBackend, write: bool) -> None:
    request, counters = (blk.co_pwritev, blk.stats.write) if write else (blk.co_preadv, blk.stats.read)
    memory = memory_of(blk, pattern(BLOCK))
    asked = served = 0
    of_use = False

    def lane(offset: int, iov: object) -> bool:
        nonlocal asked, served
        asked += 1
        if of_use:
            served += 1
            counters.operations += 1
            counters.weight += BLOCK + REQUEST_COST
        return of_use

    async def send(count: int) -> int:
        nonlocal asked
        asked = 0
        for _ in range(count):
            await request(0, memory)
        return asked

    if write:
        blk._fast_write = blk._first_write = lane
    else:
        blk._fast_read = blk._first_read = lane
    await send(2 * STARTED_RUN)
    assert await send(2 * STARTED_LOOK) == 2 * STARTED_RUN, "for a while, now and then"
    of_use = True
    await send(STARTED_LOOK)
    assert served, "found out"
    assert await send(STARTED_LOOK) == STARTED_LOOK, "and asked each time from then on"
    before = counters.operations
    of_use = False
    await send(3 * STARTED_RUN)
    assert await send(STARTED_RUN) == 0
    assert counters.operations - before == 4 * STARTED_RUN


async def test_large_ones_are_started_too(blk: BlockBackend) -> None:
    started = blk.stats.write.started, blk.stats.read.started
    memory = memory_of(blk, pattern(SIZE // 2, seed=9))
    await blk.co_pwritev(SIZE // 4, memory)
    other = blk.blockalign(SIZE // 2)
    await blk.co_preadv(SIZE // 4, other)
    assert other == memory
    assert (blk.stats.write.started, blk.stats.read.started) == (started[0] + 1, started[1] + 1)


@pytest.mark.parametrize(("readers", "nbytes"), [(1, SIZE // 2), (2, SIZE // 2), (2, BLOCK)])
async def test_large_copies_of_several_readers_are_shared_with_the_kernel(
    blk: BlockBackend, readers: int, nbytes: int
) -> None:
    copied = 0

    def lane(offset: int, iov: object) -> bool:
        nonlocal copied
        copied += 1
        blk._reads.operations += 1
        blk._reads.weight += nbytes + REQUEST_COST
        return True

    blk._fast_read = blk._first_read = lane
    before = blk.stats.read.started
    count = 2 * FAIRNESS_BUDGET // nbytes

    async def read() -> None:
        memory = blk.blockalign(nbytes)
        for _ in range(count):
            await blk.co_preadv(0, memory)

    await asyncio.gather(*(read() for _ in range(readers)))
    started = blk.stats.read.started - before
    assert bool(started) is (readers > 1 and nbytes > BLOCK), "only what is large, and only by who is not alone"
    assert copied + started == readers * count
    assert blk._first_read is lane
