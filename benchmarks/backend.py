"""What the backend layer adds to a cached read, beside what a bare read costs: the same reads in turn, in one process.

A figure is the median of many short passes, each of which makes all three kinds of reads: bare, through the node alone,
through the backend. So what else the machine does meets all of them, and a pass that was disturbed does not count.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from time import thread_time_ns
from typing import TYPE_CHECKING, Final

from blockio.bench.figures import median
from blockio.bench.workload import Contender, Workload

if TYPE_CHECKING:
    from blockio.backend.accounting import TryTransfer
    from blockio.bench.suites.scale import Scale

__all__ = ["backend"]

_BLOCK: Final = 4096
_DISK: Final = 1 << 20
_READS: Final = 2000


def backend(folder: Path, scale: Scale) -> Iterator[Workload]:
    """Counting alone, and with the time of each request taken; the bare read is the limit in both."""
    import uvloop  # the other benchmarks do without

    disk = folder / "backend.raw"
    disk.write_bytes(random.Random(1).randbytes(_DISK))
    for timing in (False, True):
        bare: list[float] = []

        def added(timing: bool = timing, bare: list[float] = bare) -> float:
            alone, share = uvloop.run(_measure(disk, timing, scale.passes))
            bare.append(1e9 / alone)
            return 1e9 / share

        how = "timed" if timing else "counted"
        yield Workload(
            f"what the backend adds to a cached 4 KiB read, {how}",
            "/s",
            Contender("blockio", added),
            [Contender("bare os.preadv", bare.pop, target=1.0)],
        )
    disk.unlink()


async def _measure(path: Path, timing: bool, passes: int) -> tuple[float, float]:
    """Nanoseconds of CPU time of one bare read, and of what the backend adds to the node's."""
    import blockio

    memory = bytearray(_BLOCK)
    offsets = [index * _BLOCK % _DISK for index in range(_READS)]
    fd = os.open(path, os.O_RDONLY)
    try:
        async with blockio.open(str(path), format="raw", read_only=True) as blk:
            blk.stats.set_timing(timing)
            root = blk.root
            assert root is not None
            bare, added = [], []
            for _ in range(passes):
                alone = _bare(fd, memory, offsets)
                node = _node(root.try_preadv, memory, offsets)
                began = thread_time_ns()
                for offset in offsets:
                    await blk.co_preadv(offset, memory)
                bare.append(alone)
                added.append(thread_time_ns() - began - node)
    finally:
        os.close(fd)
    return median(bare) / _READS, max(median(added) / _READS, 1.0)


def _bare(fd: int, memory: bytearray, offsets: list[int]) -> int:
    bufs = [memory]
    preadv = os.preadv
    began = thread_time_ns()
    for offset in offsets:
        preadv(fd, bufs, offset)
    return thread_time_ns() - began


def _node(try_preadv: TryTransfer, memory: bytearray, offsets: list[int]) -> int:
    bufs = (memory,)
    began = thread_time_ns()
    for offset in offsets:
        try_preadv(offset, bufs, _BLOCK)
    return thread_time_ns() - began
