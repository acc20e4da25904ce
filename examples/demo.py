"""``make demo``: what blockio does, on a real disk, step by step.

A raw base made of this Python's own standard library, a qcow2 overlay on it, 32 workers reading and writing at once
and checking every byte they read, a drain in the middle, growing, converting, comparing, checking, a picture.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

import blockio
from blockio import img
from blockio.img.drawing import LEGEND

MIB: Final = 1 << 20
DISK: Final = 256 * MIB
GROWN: Final = 320 * MIB
WORKERS: Final = 32
ROUNDS: Final = 60
BUSY: Final = 3 * MIB
"""How much of its slice a worker works on: the rest shows the base in the picture."""

console = Console(highlight=False)


def say(text: str) -> None:
    """One line of what happened."""
    console.print(f"   {text}", soft_wrap=True)


def step(text: str) -> None:
    """The next thing to happen."""
    console.print(f"\n[bold]{text}[/]")


def build_base(path: Path) -> int:
    """A raw disk with the standard library's sources on it, a folder every 8 MiB. Returns the bytes of data."""
    library = Path(sysconfig.get_path("stdlib"))
    folders = [library, *sorted(entry for entry in library.iterdir() if entry.is_dir())]
    data = 0
    with path.open("wb") as disk:
        disk.truncate(DISK)
        for place, folder in zip(range(MIB, DISK - 8 * MIB, 8 * MIB), folders, strict=False):
            content = b"".join(source.read_bytes() for source in sorted(folder.glob("*.py")))[: 7 * MIB]
            disk.seek(place)
            disk.write(content)
            data += len(content)
    return data


class Traffic:
    """Workers on one backend. Each owns a slice of the disk and knows what must be in it."""

    def __init__(self, blk: blockio.BlockBackend, base: Path) -> None:
        self.blk = blk
        self.reads = self.writes = self.nbytes = 0
        self.half_way = asyncio.Event()
        self.slice = DISK // WORKERS
        content = base.read_bytes()
        self.expected = [bytearray(content[n * self.slice : (n + 1) * self.slice]) for n in range(WORKERS)]

    async def worker(self, number: int, rounds: int) -> None:
        """Read and write at random places and of random lengths in slice *number*; compare what is read."""
        dice = random.Random(number * 1000 + rounds)
        expected = self.expected[number]
        for _ in range(rounds):
            length = dice.choice((512, 4096, 4096, 65536, 200_000))
            at = dice.randrange(0, BUSY - length)
            offset = number * self.slice + at
            if dice.random() < 0.5:
                data = dice.randbytes(length)
                await self.blk.co_pwritev(offset, data)
                expected[at : at + length] = data
                self.writes += 1
            else:
                memory = bytearray(length)
                await self.blk.co_preadv(offset, memory)
                if memory != expected[at : at + length]:
                    raise SystemExit(f"worker {number} read something else than it wrote at {offset}")
                self.reads += 1
            self.nbytes += length
            if self.reads + self.writes == WORKERS * ROUNDS // 2:
                self.half_way.set()


async def run_traffic(blk: blockio.BlockBackend, base: Path) -> None:
    """All workers at once; in the middle the backend is drained and everybody waits."""
    traffic = Traffic(blk, base)
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(WORKERS):
            group.create_task(traffic.worker(number, ROUNDS))
        await traffic.half_way.wait()
        before = blk.in_flight
        async with blk.drained():
            done = traffic.reads + traffic.writes
            for _ in range(100):
                await asyncio.sleep(0)
            stood_still = traffic.reads + traffic.writes == done
            say(f"drained in the middle: {before} requests in flight before it, {blk.in_flight} in it")
            if not stood_still:
                raise SystemExit("a request slipped through a drained section")
    seconds = time.perf_counter() - started
    say(
        f"{traffic.writes} writes, {traffic.reads} reads, every byte read was the right one "
        f"({traffic.nbytes / MIB / seconds:.0f} MiB/s)"
    )


async def convert_with_bar(source: img.Image, target: Path) -> None:
    """Convert *source* to a raw image while a bar shows how far it is."""
    columns = (TextColumn("   {task.description}"), BarColumn(40), DownloadColumn(binary_units=True))
    with Progress(*columns, TransferSpeedColumn(), console=console) as bars:
        bar = bars.add_task("overlay.qcow2 → whole.raw", total=GROWN)
        await img.convert(
            source, str(target), "raw", observer=lambda p: bars.update(bar, completed=p.done, total=p.total)
        )


async def qemu_img(*words: str) -> None:
    """The same question to QEMU's own tool, where it is installed."""
    if shutil.which("qemu-img") is None:
        say("qemu-img: not installed, not asked")
        return
    process = await asyncio.create_subprocess_exec(
        "qemu-img", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    say(f"qemu-img {words[0]}: {out.decode().splitlines()[0] if out else 'nothing to say'}")
    if process.returncode:
        raise SystemExit(f"qemu-img {words[0]} found fault: {out.decode()}")


async def demo(folder: Path) -> None:
    """The whole of it, in *folder*."""
    base, overlay, whole = folder / "base.raw", folder / "overlay.qcow2", folder / "whole.raw"

    step("A raw base")
    data = await asyncio.to_thread(build_base, base)
    say(f"base.raw: {DISK // MIB} MiB, {data / MIB:.1f} MiB of it Python's standard library")

    step("A qcow2 overlay on it")
    await img.create(str(overlay), "qcow2", backing_file="base.raw", backing_format="raw", gate=blockio.AllowAll())
    image = img.Image(filename=str(overlay), format="qcow2", gate=blockio.AllowAll())
    info = await img.info(image)
    say(
        f"overlay.qcow2: {info.virtual_size // MIB} MiB in clusters of {(info.cluster_size or 0) >> 10} KiB, "
        f"{(info.actual_size or 0) >> 10} KiB on disk so far"
    )

    step(f"{WORKERS} readers and writers at once, through one BlockBackend")
    async with blockio.open(str(overlay), format="qcow2", gate=blockio.AllowAll(), resize=True) as blk:
        await run_traffic(blk, base)

        step("Growing while it is open")
        await blk.co_truncate(GROWN)
        memory = bytearray(MIB)
        await blk.co_preadv(DISK, memory)
        await blk.co_pwritev(GROWN - MIB, b"the end".ljust(4096, b"."))
        zeroes = "zeroes" if blockio.is_zero(memory) else "NOT ZEROES"
        say(f"{DISK // MIB} MiB → {blk.getlength() // MIB} MiB, the new part reads as {zeroes}")

    step("Converting to raw")
    await convert_with_bar(image, whole)

    step("Comparing and checking")
    same = await img.compare(image, img.Image(filename=str(whole), format="raw"))
    report = await img.check(image)
    say(f"compare: {'identical' if same.identical else 'DIFFERENT'}")
    say(
        f"check:   {'no errors, no leaks' if report.clean else 'NOT CLEAN'}, "
        f"{report.result.allocated_clusters} of {report.result.total_clusters} clusters in use"
    )
    if not (same.identical and report.clean):
        raise SystemExit(1)
    await qemu_img("check", "-f", "qcow2", str(overlay))
    await qemu_img("compare", "-f", "qcow2", "-F", "raw", str(overlay), str(whole))

    step("Where the data lies")
    entries = [entry async for entry in img.map(image)]
    for line in img.picture(entries, width=64, rows=10).splitlines():
        say(line)
    say(f"[dim]{LEGEND}[/]")


def main() -> None:
    """Run the demo in a temporary folder and say how long it took."""
    started = time.perf_counter()
    # Not into a file system in memory: holes and discards shall be real.
    with tempfile.TemporaryDirectory(prefix="blockio-demo.", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        asyncio.run(demo(Path(folder)))
    console.print(f"\nDone in {time.perf_counter() - started:.1f} s.")


if __name__ == "__main__":
    main()
