"""Events: a stream that never holds up the sender, and callbacks."""

from __future__ import annotations

import asyncio
import gc

import pytest

from blockio.aio.context import IOThread
from blockio.backend import (
    BlockBackend,
    DeviceTrayMoved,
    EventsDropped,
    EventStream,
    all_events,
    listen_to_all,
)
from blockio.graph.events import ImageCorrupted
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm


def moved(n: int) -> DeviceTrayMoved:
    return DeviceTrayMoved("disk0", str(n), True)


async def read_all(stream: EventStream) -> list[object]:
    return [event async for event in stream]


async def test_in_their_order_until_the_backend_is_gone() -> None:
    blk = BlockBackend()
    stream = blk.events()
    reader = asyncio.create_task(read_all(stream))
    for n in range(3):
        blk.emit(moved(n))
        await asyncio.sleep(0)
    blk.emit(moved(3))
    await blk.close()
    assert await reader == [moved(0), moved(1), moved(2), moved(3)]
    with pytest.raises(RuntimeError, match="is closed"):
        blk.events()


async def test_only_from_its_making_on() -> None:
    async with BlockBackend() as blk:
        blk.emit(moved(0))
        early = blk.events()
        blk.emit(moved(1))
        late = blk.events()
        blk.emit(moved(2))
    assert await read_all(early) == [moved(1), moved(2)]
    assert await read_all(late) == [moved(2)]


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    async with BlockBackend() as blk:
        stream = blk.events(limit=2)
        for n in range(5):
            blk.emit(moved(n))
        assert stream.dropped == 3
        assert await anext(stream) == EventsDropped(3)
        assert await anext(stream) == moved(3)
        blk.emit(moved(5))
        blk.emit(moved(6))
    assert await read_all(stream) == [EventsDropped(1), moved(5), moved(6)]
    assert stream.dropped == 4


async def test_a_cancelled_read_loses_nothing() -> None:
    async with BlockBackend() as blk:
        stream = blk.events()
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        reading.cancel()
        blk.emit(moved(0))
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await anext(stream) == moved(0)


async def test_one_reader_each() -> None:
    async with BlockBackend() as blk, blk.events() as stream:
        reading = asyncio.create_task(read_all(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="has a reader"):
            await anext(stream)
        stream.close()
        assert await reading == []
    with pytest.raises(ValueError, match="at least one"):
        all_events(limit=0)


async def test_all_backends_from_all_threads() -> None:
    heard: list[object] = []
    stop = listen_to_all(heard.append)
    stream = all_events()
    async with IOThread() as thread, BlockBackend() as here, BlockBackend(context=thread.context) as there:
        here.emit(moved(0))
        reading = asyncio.create_task(read_all(stream))

        async def emit() -> None:
            there.emit(moved(1))

        await thread.context.run(emit())
        stream.close()
        assert await reading == heard == [moved(0), moved(1)]
        stop()
        stop()
        here.emit(moved(2))
    assert len(heard) == 2


async def test_a_reader_in_another_thread() -> None:
    async with IOThread() as thread, BlockBackend() as blk:
        stream = blk.events()
        reading = asyncio.create_task(thread.context.run(read_all(stream)))
        await asyncio.sleep(0)
        for n in range(100):
            blk.emit(moved(n))
        stream.close()
        assert await reading == [moved(n) for n in range(100)]


async def test_nobody_reads_any_more() -> None:
    async with BlockBackend() as blk:

        async def first() -> object:
            async for event in blk.events():
                return event
            return None

        reading = asyncio.create_task(first())
        await asyncio.sleep(0)
        blk.emit(moved(0))
        assert await reading == moved(0)
        del reading
        gc.collect()
        assert blk._feed is not None
        assert blk._feed.watchers() == ([], [])


async def test_a_listener_that_fails_changes_nothing() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["message"]))
    heard: list[object] = []

    def broken(event: object) -> None:
        raise LookupError

    async with BlockBackend() as blk:
        blk.monitor_add_blk("disk0")
        stop = blk.listen(broken)
        blk.listen(heard.append)
        blk.emit(moved(0))
        stop()
        blk.emit(moved(1))
    assert heard == [moved(0), moved(1)]
    assert reported == ["A listener to the events of block backend 'disk0' failed"]


async def test_a_corrupt_image_is_told_to_every_backend_above(disk: MemoryDisk) -> None:
    everywhere: list[object] = []
    heard: list[tuple[str, object]] = []
    stop = listen_to_all(everywhere.append)
    options = {"driver": "raw", "file": disk.options(**{"node-name": "below"})}
    async with await BlockBackend.new_open(options=options) as one, BlockBackend() as empty:
        assert one.bs is not None
        async with await BlockBackend.new_with_bs(one.bs, Perm.NONE, Perm.ALL) as two:
            for name, blk in (("one", one), ("two", two), ("empty", empty)):
                blk.listen(lambda event, name=name: heard.append((name, event)))  # type: ignore[misc]  # its default
            node = one.bs.children["file"].node
            node.report("a line for the person at the tool")
            node.corrupted("it contradicts itself", offset=512, size=512)
            event = ImageCorrupted("below", "it contradicts itself", 512, 512, True)
            assert sorted(heard, key=lambda pair: pair[0]) == [("one", event), ("two", event)]
            assert everywhere == [event]
    stop()
