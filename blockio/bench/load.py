"""Sending a job's requests to a backend, and what came of it."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from blockio.bench.job import places
from blockio.bench.latency import Latency, summed_up
from blockio.buffers import aligned_buffers

if TYPE_CHECKING:
    from blockio.backend import BlockBackend
    from blockio.bench.job import Job

__all__ = ["Done", "at_once", "fill", "run_loop", "send", "timed"]

_T = TypeVar("_T")


class Done(msgspec.Struct, frozen=True):
    """What was done, and in how many seconds."""

    reads: int
    writes: int
    flushes: int
    nbytes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Reads and writes a second. ValueError where no time went by."""
        if self.seconds <= 0:
            raise ValueError("the clock did not move: ask for more requests")
        return (self.reads + self.writes) / self.seconds


async def send(blk: BlockBackend, job: Job, *, clock: Callable[[], float] = time.perf_counter) -> Done:
    """Send *job*'s requests to *blk* until there are enough.

    Raises BlockError where one fails, OptionError where the disk is too small. After a failure or a cancellation no
    request is under way.
    """
    with _ending(job, await blk.co_getlength()) as plan:
        stats = blk.stats
        counters = (stats.read, stats.write, stats.flush)
        before = [(each.operations, each.bytes) for each in counters]
        workers = [_worker(blk, job, plan, memory) for memory in _memories(job)]
        began = clock()
        await at_once(workers)
        seconds = clock() - began
        reads, writes, flushes = (
            (each.operations - count, each.bytes - nbytes)
            for each, (count, nbytes) in zip(counters, before, strict=True)
        )
        return Done(reads[0], writes[0], flushes[0], reads[1] + writes[1], seconds)


async def timed(blk: BlockBackend, job: Job, *, clock_ns: Callable[[], int] = time.perf_counter_ns) -> Latency:
    """The same with a look at the clock before and behind each request, which costs some: no rate comes of it.

    Flushes are sent but are no requests here. Errors as ``send``.
    """
    taken = array("Q")
    with _ending(job, await blk.co_getlength()) as plan:
        await at_once([_timed_worker(blk, job, plan, memory, clock_ns, taken) for memory in _memories(job)])
    return summed_up(taken)


@contextmanager
def _ending(job: Job, length: int) -> Generator[Iterator[int]]:
    """The job's places; they end by themselves when its time is over."""

    source = places(job, length)
    plan = chain([next(source)], source)  # whatever is to be refused or diced is so before the clock runs
    if job.seconds is None:
        yield plan
        return
    endable = (place for place in plan)
    timer = asyncio.get_running_loop().call_later(job.seconds, endable.close)
    try:
        yield endable
    finally:
        timer.cancel()


async def at_once(workers: list[Coroutine[object, object, None]]) -> None:
    """Run *workers* beside each other, or the only one by itself. Ends when all have; raises the first error."""
    if len(workers) == 1:
        await workers[0]
        return
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _memories(job: Job) -> list[memoryview]:
    """Memory for each worker, there before the clock runs: the first touch of a page costs more than a copy.

    Aligned, for O_DIRECT would have to copy from any other; and taken in one piece, as ``qemu-img bench`` does.
    """
    return [fill(memory) for memory in aligned_buffers(job.depth, job.block_size)]


async def _worker(blk: BlockBackend, job: Job, plan: Iterator[int], memory: memoryview) -> None:
    read, write = blk.co_preadv, blk.co_pwritev
    if not job.writes:
        for place in plan:
            await read(place, memory)
        return
    flush = _flusher(blk, job)
    for place in plan:
        if place >= 0:
            await read(place, memory)
            continue
        await write(~place, memory)
        if flush is not None and flush():
            await blk.co_flush()


async def _timed_worker(
    blk: BlockBackend,
    job: Job,
    plan: Iterator[int],
    memory: memoryview,
    clock: Callable[[], int],
    taken: array[int],
) -> None:
    flush = _flusher(blk, job)
    for place in plan:
        began = clock()
        if place >= 0:
            await blk.co_preadv(place, memory)
            taken.append(clock() - began)
            continue
        await blk.co_pwritev(~place, memory)
        taken.append(clock() - began)
        if flush is not None and flush():
            await blk.co_flush()


def fill(memory: memoryview) -> memoryview:
    """*memory*, with no zeroes in it, which some layer might not write at all."""
    memory[:] = bytes(range(1, 256)) * (memory.nbytes // 255) + bytes(range(1, 1 + memory.nbytes % 255))
    return memory


def run_loop(work: Coroutine[Any, Any, _T]) -> _T:
    """*work* on the fastest loop there is, from its beginning to its end."""
    try:
        import uvloop  # where it is missing asyncio's own does
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def _flusher(blk: BlockBackend, job: Job) -> Callable[[], bool] | None:
    """Whether a flush is due behind the write that has just ended: counted over all workers together."""
    if not job.flush_interval:
        return None
    writes, interval = blk.stats.write, job.flush_interval
    return lambda: writes.operations % interval == 0
