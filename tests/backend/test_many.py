"""A thousand backends on one loop: 64 requests in flight in each, what an idle one costs, and that nothing is left."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from blockio.backend import BlockBackend, all_backends
from blockio.graph.names import all_nodes
from blockio.testing.driver import MemoryDisk

BACKENDS: Final = 1000
DEPTH: Final = 64
BLOCK: Final = 512
LIMIT: Final = 32 << 10
"""Bytes of memory for an idle backend with its two nodes."""


async def opened(stack: AsyncExitStack, count: int) -> list[BlockBackend]:
    """*count* backends, each on a raw image in a small disk of its own."""
    backends = []
    for _ in range(count):
        disk = stack.enter_context(MemoryDisk(DEPTH * BLOCK, fast=False))
        options = {"driver": "raw", "file": disk.options()}
        backends.append(await stack.enter_async_context(await BlockBackend.new_open(options=options)))
    return backends


def known() -> tuple[int, int]:
    """How many nodes and backends there are in the process."""
    return len(all_nodes()), len(list(all_backends()))


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """The cyclic collector looks at 64,000 live requests again and again, which is half of the test's time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
async def test_64_requests_in_flight_in_each_of_a_thousand() -> None:
    asyncio.get_running_loop().set_debug(False)  # where each of 64,000 tasks was made costs more than the tasks
    before = known()
    ended: list[int] = []
    gone: list[weakref.ref[Any]] = []
    async with AsyncExitStack() as stack:
        backends = await opened(stack, BACKENDS)
        for blk in backends:
            gone += [weakref.ref(blk), weakref.ref(blk.bs)]
        assert known() == (before[0] + 2 * BACKENDS, before[1] + BACKENDS)
        disks = [MemoryDisk.named(name) for name in list(MemoryDisk._known)[-BACKENDS:]]
        for disk in disks:
            disk.stall()
        for number, blk in enumerate(backends):
            for slot in range(DEPTH):
                blk.aio_pwritev(slot * BLOCK, bytes([number % 256]) * BLOCK, 0, ended.append)
        await asyncio.sleep(0)
        assert all(blk.in_flight == DEPTH for blk in backends)
        assert not ended
        for disk in disks:
            disk.go()
        for blk in backends:
            await blk.drain()
            assert blk.in_flight == 0
        assert ended == [0] * BACKENDS * DEPTH
        assert all(disk.data == bytes([number % 256]) * BLOCK * DEPTH for number, disk in enumerate(disks))
        backends.clear()
        del blk, disk, disks
    assert known() == before
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]


async def test_what_an_idle_one_costs() -> None:
    """Memory while it is open, and nothing of it after it was closed."""
    asyncio.get_running_loop().set_debug(False)
    before = known()
    async with AsyncExitStack() as stack:
        await opened(stack, 10)  # what is made once
    gc.collect()
    tracemalloc.start()
    try:
        empty = tracemalloc.get_traced_memory()[0]
        async with AsyncExitStack() as stack:
            backends = await opened(stack, BACKENDS)
            gc.collect()
            each = (tracemalloc.get_traced_memory()[0] - empty) // BACKENDS - DEPTH * BLOCK
            assert each < LIMIT, f"{each} bytes for an idle backend"
            print(f"{each} bytes for an idle backend and its two nodes")
            backends.clear()
        del stack, backends
        gc.collect()
        left = (tracemalloc.get_traced_memory()[0] - empty) // BACKENDS
        assert left < 256, f"{left} bytes of each closed backend are left"
    finally:
        tracemalloc.stop()
    assert known() == before
