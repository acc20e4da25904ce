"""``bench``: how fast one image answers requests of one size, as ``qemu-img bench`` asks.

For more than one number (paired runs, peers, percentiles) there is the benchmark harness.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from blockio.buffers import aligned_buffers
from blockio.errors import BlockError
from blockio.img.opening import ImageLike, image_of, opened, sectors_up, with_engine
from blockio.img.results import BenchResult
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.backend import BlockBackend

__all__ = ["AIO_MODES", "bench"]

AIO_MODES: Final = ("threads", "native", "io_uring")


async def bench(
    image: ImageLike,
    *,
    count: int = 75_000,
    depth: int = 64,
    offset: int = 0,
    buffer_size: int = 4096,
    step: int | None = None,
    write: bool = False,
    pattern: int = 0,
    flush_interval: int = 0,
    drain_on_flush: bool = True,
    aio: str | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_start: Callable[[], object] | None = None,
) -> BenchResult:
    """Send *count* requests of *buffer_size* bytes, *depth* at a time, and say how long they took.

    They begin at *offset* and lie *step* bytes apart (by default one behind the other), modulo the length of the disk.
    With *write* they write bytes of value *pattern*, **over what the image holds**, and *flush_interval* sends a flush
    after so many of them: with *drain_on_flush* when those are done, else beside them. *aio* forces the engine of the
    file. *on_start* is called when the image is open.

    Raises what opening raises, and BlockError (``Failed request: …``); after a failure or cancellation no request is
    under way.
    """
    if count < 0 or depth < 1 or buffer_size < 0 or offset < 0 or (step or 0) < 0 or not 0 <= pattern <= 0xFF:
        raise ValueError("counts, offsets and sizes cannot be negative, depth is at least 1 and a pattern one byte")
    if flush_interval and (not write or flush_interval < depth):
        raise ValueError("flushes are for writes, and at least depth requests apart")
    image = image_of(image)
    if aio is not None:
        image = with_engine(image, aio)
    async with opened(image, OpenFlags(read_only=not write)) as blk:
        length = sectors_up(await blk.co_getlength())
        if on_start is not None:
            on_start()
        run = _Run(blk, length, offset, buffer_size if step is None else step, buffer_size, pattern if write else None)
        started = clock()
        try:
            await _all(run, count, depth, flush_interval, drain_on_flush)
        except BlockError as error:
            raise BlockError(f"Failed request: {os.strerror(error.errno or 0)}", error.errno) from error
        return BenchResult(count, count * buffer_size, clock() - started)


async def _all(run: _Run, count: int, depth: int, flush_interval: int, drain_on_flush: bool) -> None:
    if not flush_interval:
        await run.requests(0, count, depth)
        return
    async with asyncio.TaskGroup() as flushes:
        for first in range(0, count, flush_interval):
            last = min(first + flush_interval, count)
            await run.requests(first, last, depth)
            if drain_on_flush:
                await run.blk.co_flush()
            else:
                flushes.create_task(run.blk.co_flush())


class _Run:
    """The requests by their number: number *n* is at ``offset + n * step`` of a disk that goes round."""

    def __init__(
        self, blk: BlockBackend, length: int, offset: int, step: int, buffer_size: int, pattern: int | None
    ) -> None:
        self.blk = blk
        self._length = length
        self._offset = offset
        self._step = step
        self._size = buffer_size
        self._pattern = pattern

    async def requests(self, first: int, last: int, depth: int) -> None:
        """Send those from *first* up to *last*, *depth* at a time."""
        # O_DIRECT would have to copy from memory that is not aligned.
        memory = aligned_buffers(max(1, min(depth, last - first)), self._size)
        if depth == 1:
            await self._send(first, last, 1, memory[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                for worker, part in enumerate(memory[: last - first]):
                    group.create_task(self._send(first + worker, last, depth, part))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _send(self, first: int, last: int, stride: int, memory: memoryview) -> None:
        if self._pattern:
            memory[:] = bytes([self._pattern]) * self._size
        request: Callable[[int, memoryview], Awaitable[object]]
        request = self.blk.co_preadv if self._pattern is None else self.blk.co_pwritev
        offset, step, length = self._offset, self._step, self._length
        if not first:
            first += stride
            # As asked for, even past the end: only those that follow go round.
            await request(offset, memory)
        if not length:
            length = 1
        for number in range(first, last, stride):
            await request((offset + number * step) % length, memory)
