"""Those who read for us, each a process of its own that times itself: ``python -m benchmarks.readers WHO FILE …``.

All of them read 4 KiB at the places at which ``qemu-img bench -S STEP`` reads: 0, STEP, 2·STEP … modulo the disk.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeAlias

__all__ = ["BLOCK", "STEP"]

BLOCK: Final = 4096
STEP: Final = 257 * BLOCK
"""Far enough to come to another cluster each time, so that the mapping is looked up anew."""

Reader: TypeAlias = Callable[[str, int, int, int], Coroutine[Any, Any, float]]


def _offsets(worker: int, depth: int, count: int, size: int) -> range | list[int]:
    return [(index * STEP) % size for index in range(worker, count, depth)]


async def _blockio(path: str, count: int, depth: int, size: int) -> float:
    import blockio  # noqa: PLC0415  # the others do not pay for it

    async with blockio.open(path, format="qcow2", read_only=True) as blk:

        async def read(worker: int) -> None:
            memory = bytearray(BLOCK)
            co_preadv = blk.co_preadv
            for offset in _offsets(worker, depth, count, size):
                await co_preadv(offset, memory)

        return await _timed(read, depth)


async def _aiofiles(path: str, count: int, depth: int, size: int) -> float:
    import aiofiles  # noqa: PLC0415  # as above

    async def read(worker: int) -> None:
        async with aiofiles.open(path, "rb", buffering=0) as file:
            for offset in _offsets(worker, depth, count, size):
                await file.seek(offset)
                await file.read(BLOCK)

    return await _timed(read, depth)


async def _preadv(path: str, count: int, depth: int, size: int) -> float:
    """The limit: what the system call itself costs from Python."""
    fd = os.open(path, os.O_RDONLY)
    memory = [bytearray(BLOCK)]
    started = time.perf_counter()
    for offset in _offsets(0, 1, count, size):
        try:
            os.preadv(fd, memory, offset, os.RWF_NOWAIT)
        except BlockingIOError:  # the kernel took the page back meanwhile
            os.preadv(fd, memory, offset)
    seconds = time.perf_counter() - started
    os.close(fd)
    return seconds


async def _timed(read: Callable[[int], Coroutine[Any, Any, None]], depth: int) -> float:
    started = time.perf_counter()
    if depth == 1:
        await read(0)
    else:
        async with asyncio.TaskGroup() as group:
            for worker in range(depth):
                group.create_task(read(worker))
    return time.perf_counter() - started


_READERS: Final[dict[str, Reader]] = {"blockio": _blockio, "aiofiles": _aiofiles, "preadv": _preadv}


def main(argv: list[str]) -> None:
    """``WHO FILE COUNT DEPTH SIZE``: read, and print the time in the words of ``qemu-img bench``."""
    import uvloop  # noqa: PLC0415  # the module is imported for its constants too

    who, path, count, depth, size = argv
    seconds = uvloop.run(_READERS[who](path, int(count), int(depth), int(size)))
    print(f"Run completed in {seconds:.6f} seconds.")


if __name__ == "__main__":
    main(sys.argv[1:])
