"""null-co and null-aio: disks that keep nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from blockio.aio.clock import ManualClock
from blockio.buffers import IoVector
from blockio.errors import OptionError, UnsupportedFeature
from blockio.graph.node import BlockNode
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.types import StatusFlags
from blockio_drivers.null import NullAioDriver, NullCoDriver
from tests.support.qemu import qemu_img, qemu_img_json


async def opened(name: str | None = None, **options: Any) -> BlockNode:
    given = {key.replace("_", "-"): value for key, value in options.items()}
    return await open_node(name, options=given or None, path_factory=NodeIO)


@pytest.mark.parametrize("driver", ["null-co", "null-aio"])
async def test_a_gibibyte_unless_told_otherwise(driver: str) -> None:
    node = await opened(f"{driver}://")
    assert node.length == 1 << 30
    await node.unref()
    node = await opened(driver=driver, size="1000")
    assert node.length == 1024
    await node.unref()


async def test_reads_leave_the_memory_or_zero_it() -> None:
    for zeroes, expected in ((False, b"\xee"), (True, b"\0")):
        node = await opened(driver="null-co", read_zeroes=zeroes)
        memory = bytearray(b"\xee" * 100)
        await node.path.co_preadv(5, IoVector.of(memory))
        assert memory == expected * 100
        memory = bytearray(b"\xee" * 100)
        assert node.path.try_preadv(5, [memory], 100)
        assert memory == expected * 100
        status = await node.path.co_block_status(0, 100)
        zero = StatusFlags.ZERO | StatusFlags.ALLOCATED if zeroes else StatusFlags.NONE
        assert status.flags == StatusFlags.OFFSET_VALID | zero
        with pytest.raises(UnsupportedFeature, match="does not support resize"):
            await node.path.co_truncate(10)
        await node.unref()


async def test_latency_passes_on_the_clock() -> None:
    node = await opened(driver="null-co", latency_ns=2_000_000_000)
    driver = node.driver
    assert isinstance(driver, NullCoDriver)
    driver.clock = clock = ManualClock()
    assert not node.path.try_preadv(0, [bytearray(1)], 1)
    assert not node.path.try_pwritev(0, [b"x"], 1)
    done: list[float] = []

    async def read() -> None:
        await node.path.co_preadv(0, IoVector.of(bytearray(1)))
        done.append(clock.now())

    task = asyncio.ensure_future(read())
    for seconds in (1.5, 1.0):
        await asyncio.sleep(0)
        assert not done
        clock.advance(seconds)
    await task
    assert done == [2.5]
    driver.clock = ManualClock()
    flush = asyncio.ensure_future(driver.co_flush_to_disk())
    await asyncio.sleep(0)
    driver.clock.advance(2)
    await flush
    await node.unref()


async def test_aio_answers_in_a_later_turn() -> None:
    node = await opened(driver="null-aio")
    assert isinstance(node.driver, NullAioDriver)
    assert not node.path.try_preadv(0, [bytearray(1)], 1)
    task = asyncio.ensure_future(node.path.co_preadv(0, IoVector.of(bytearray(1))))
    await asyncio.sleep(0)
    assert not task.done()
    await task
    await node.unref()


async def test_what_is_refused() -> None:
    with pytest.raises(OptionError, match="The only allowed filename for this driver is 'null-co://'"):
        await opened("null-co://1")
    with pytest.raises(OptionError, match="latency-ns is invalid"):
        await opened(driver="null-co", latency_ns=-1)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("zeroes", [False, True])
async def test_status_is_as_qemu_sees_it(zeroes: bool) -> None:
    words = "true" if zeroes else "false"
    told = qemu_img_json("map", "--output=json", f'json:{{"driver":"null-co","size":1000,"read-zeroes":{words}}}')
    node = await opened(driver="null-co", size=1000, read_zeroes=zeroes)
    status = await node.path.co_block_status(0, 1 << 20)
    assert told[0]["length"] == status.length == node.length
    assert told[0]["zero"] == bool(status.flags & StatusFlags.ZERO)
    assert told[0]["data"] == bool(status.flags & StatusFlags.DATA)
    await node.unref()
    refused = qemu_img("info", "null-co://1", check=False)
    with pytest.raises(OptionError) as caught:
        await opened("null-co://1")
    assert str(caught.value) in refused.stderr
