"""Quickstart: make a disk image, write to it from many tasks at once, read it back.

python examples/quickstart.py [IMAGE]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import blockio
from blockio.img import create


async def main(path: Path) -> None:
    """Ten tasks, one disk."""
    await create(str(path), "qcow2", size=64 << 20)

    async with blockio.open(str(path), format="qcow2") as disk:
        print(f"{path.name}: {disk.getlength() >> 20} MiB")

        async def work(number: int) -> None:
            await disk.co_pwritev(number << 20, f"task {number} was here".encode())

        await asyncio.gather(*(work(number) for number in range(10)))

        async with disk.drained():  # nothing is under way in here: a good moment for a snapshot of the file
            print("drained,", disk.in_flight, "requests in flight")

        memory = bytearray(15)
        await disk.co_preadv(7 << 20, memory)
        print(memory.decode())
        await disk.co_flush()

    async with blockio.open(str(path), format="qcow2", read_only=True) as disk:
        try:
            await disk.co_pwritev(0, b"no")
        except blockio.ReadOnly as error:
            print("read-only:", error)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(main(Path(sys.argv[1])))
    else:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(main(Path(folder, "quickstart.qcow2")))
