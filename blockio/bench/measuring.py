"""Jobs become workloads: ours and the peers' contenders on one disk."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.bench.load import Done, run_loop, send, timed
from blockio.bench.peers import PEERS, Shared, peers
from blockio.bench.workload import Contender, Workload

if TYPE_CHECKING:
    from blockio.bench.job import Job
    from blockio.bench.latency import Latency
    from blockio.bench.stack import Stack

__all__ = ["LATENCY_REQUESTS", "measure_latency", "run_once", "workload_of"]

LATENCY_REQUESTS: Final = 100_000
"""How many at most are timed one by one: the thousandth of the slowest is a hundred of them."""

_MIB: Final = 1 << 20


def workload_of(
    job: Job, stack: Stack, disk: Shared, *, wanted: Collection[str] = PEERS, title: str = "", series: str = ""
) -> Workload:
    """*job* on *stack*, beside those of *wanted* who can do it on *disk*, which is the same disk for them."""
    rivals, left_out = peers(job, disk, wanted)
    large = job.block_size >= _MIB // 4
    name = "blockio" if stack.lane == "auto" else f"blockio, lane {stack.lane}"
    scale = job.block_size / _MIB if large else 1.0
    return Workload(
        title or job.title,
        "MiB/s" if large else "requests/s",
        _scaled(Contender(name, lambda: run_loop(run_once(job, stack)).rate), scale),
        [_scaled(rival, scale) for rival in rivals],
        left_out=left_out,
        series=series,
        depth=job.depth,
    )


def _scaled(contender: Contender, scale: float) -> Contender:
    run = contender.run
    return Contender(contender.name, lambda: run() * scale, contender.group, contender.target)


async def run_once(job: Job, stack: Stack) -> Done:
    """*job* once, on *stack* opened anew."""
    async with stack.opened(write=job.writes) as blk:
        return await send(blk, job)


def measure_latency(job: Job, stack: Stack) -> Latency:
    """The latencies of *job*, or of as many of its requests as tell enough."""
    count = LATENCY_REQUESTS if job.count is None else min(job.count, LATENCY_REQUESTS)
    fewer = msgspec.structs.replace(job, count=count)

    async def once() -> Latency:
        async with stack.opened(write=job.writes) as blk:
            return await timed(blk, fewer)

    return run_loop(once())
