"""What blockio's layers add to a request that the ring serves, beside the same request to the ring by itself.

The ring with its entries, completions, futures and tasks is what Python can reach; mapping, counts, tracking and the
backend come on top. Both send the same O_DIRECT reads to one image's file, from as many tasks, in short passes in turn.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from time import thread_time_ns
from typing import TYPE_CHECKING, Final

from blockio.bench.figures import median
from blockio.bench.scratch import Scratch, make_scratch
from blockio.bench.workload import Contender, Workload

if TYPE_CHECKING:
    from blockio.bench.stack import Stack
    from blockio.bench.suites.scale import Scale

__all__ = ["started"]

_BLOCK: Final = 4096
_READS: Final = 1024
_DEPTHS: Final = (1, 32)


def started(folder: Path, scale: Scale) -> Iterator[Workload]:
    """CPU time of the loop's thread at depth 1 and 32, as rates; nothing where there is no ring."""
    import uvloop  # the other benchmarks do without

    if uvloop.run(_refused()) is not None:
        return
    for depth in _DEPTHS:
        stack, _ = make_scratch(folder, Scratch(size=scale.disk, cache="none"))
        bare: list[float] = []

        def ours(stack: Stack = stack, depth: int = depth, bare: list[float] = bare) -> float:
            limit, whole = uvloop.run(_measure(stack, depth, scale.passes))
            bare.append(1e9 / limit)
            return 1e9 / whole

        yield Workload(
            f"processor time of a started 4 KiB O_DIRECT read, QD {depth}",
            "/s",
            Contender("blockio", ours),
            [Contender("the ring by itself", bare.pop)],
        )
        for file in folder.iterdir():
            file.unlink()


async def _refused() -> OSError | None:
    from blockio.aio.context import AioContext
    from blockio.aio.uring import Uring

    context = AioContext.current()
    try:
        Uring.acquire(context)
    except OSError as error:
        return error
    context.unshare(Uring)
    return None


async def _measure(stack: Stack, depth: int, passes: int) -> tuple[float, float]:
    """Nanoseconds of the loop's thread for one read by the ring alone, and through the whole stack."""
    from blockio.aio.context import AioContext
    from blockio.aio.uring import Uring
    from blockio.buffers import aligned_buffers

    memory = aligned_buffers(depth, _BLOCK)
    async with stack.opened(write=False) as blk:
        length = await blk.co_getlength()
        offsets = [index * 257 * _BLOCK % length for index in range(_READS)]
        for offset in range(0, length, 1 << 16):  # tables in memory, and the ring made
            await blk.co_preadv(offset, memory[0])
        root = blk.bs
        assert root is not None
        fd = os.open(root.children["file"].node.filename, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        ring = Uring.acquire(AioContext.current())
        try:
            start = ring.starter(fd, writes=False, direct=True, alignment=512, batch=0)

            async def bare(offset: int, memory: memoryview) -> None:
                flight = start(offset, (memory,), _BLOCK)
                assert flight is not None
                await flight.land()

            limits, wholes = [], []
            for _ in range(passes):
                limits.append(await _pass(bare, offsets, memory))
                wholes.append(await _pass(blk.co_preadv, offsets, memory))
        finally:
            AioContext.current().unshare(Uring)
            os.close(fd)
    return median(limits) / _READS, median(wholes) / _READS


async def _pass(
    request: Callable[[int, memoryview], Awaitable[None]], offsets: Sequence[int], memory: Sequence[memoryview]
) -> int:
    plan = iter(offsets)

    async def worker(part: memoryview) -> None:
        for offset in plan:
            await request(offset, part)

    began = thread_time_ns()
    await asyncio.gather(*(worker(part) for part in memory))
    return thread_time_ns() - began
