"""What a guest that writes everywhere costs: the configured caches, however large the disk."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from pathlib import Path

import blockio
from blockio import img
from blockio.driver.gate import AllowAll
from blockio_drivers.qcow2.driver import Qcow2Driver
from tests.support.qemu import assert_clean

SIZE = 64 << 30
SLICE = 4096
L2_CACHE = 16 * SLICE
REFCOUNT_CACHE = 4 * SLICE
WRITERS = 4
ROUNDS = 3
WRITES = 12
"""Of each writer in each round; far more slices than the caches have room for."""


async def test_random_writes_into_an_unallocated_disk_stay_within_the_caches(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    await img.create(path, "qcow2", size=SIZE)
    dice = random.Random(64)
    options = {"l2-cache-size": L2_CACHE, "l2-cache-entry-size": SLICE, "refcount-cache-size": REFCOUNT_CACHE}
    held = []
    async with blockio.open(path, format="qcow2", options=options, gate=AllowAll()) as blk:
        assert blk.bs is not None
        driver = blk.bs.driver
        assert isinstance(driver, Qcow2Driver)

        async def write() -> None:
            memory = bytes((dice.randrange(1, 256),)) * 4096
            for _ in range(WRITES):
                await blk.co_pwritev(dice.randrange(SIZE // 4096) * 4096, memory)
                for cache in (driver.statistics()["l2"], driver.statistics()["refcount"]):
                    assert cache.cached <= cache.capacity + WRITERS  # each may pin one of its own

        tracemalloc.start()
        try:
            for _ in range(ROUNDS):
                await asyncio.gather(*(write() for _ in range(WRITERS)))
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        statistics = driver.statistics()
        assert statistics["l2"].evictions > 2 * statistics["l2"].capacity
    assert held[-1] - held[0] < 512 << 10, held
    assert max(held) < 2 * (L2_CACHE + REFCOUNT_CACHE) + (1 << 20), held
    assert_clean(path)
