"""The workloads: cached 4 KiB reads, whole-image convert, start-up."""

from __future__ import annotations

import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.programs import BLOCKIO, bench_seconds, have, measured, warm
from benchmarks.readers import BLOCK, STEP
from benchmarks.workload import Contender, Workload

__all__ = ["MIB", "Scale", "compressed", "convert", "reads", "start_up"]

MIB: Final = 1 << 20
RSS_LIMIT: Final = 128 * MIB


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done. Quick answers are noisier ones."""

    rounds: int = 5
    read_disk: int = 256 * MIB
    reads: int = 100_000
    slow_reads: int = 4_000
    convert_disk: int = 2048 * MIB
    convert_rounds: int = 5
    start_rounds: int = 15
    clusters: int = 1 << 20

    @classmethod
    def quick(cls) -> Scale:
        """Seconds instead of minutes."""
        return cls(3, 64 * MIB, 30_000, 1_000, 512 * MIB, 3, 7, 1 << 17)


def make_disk(path: Path, size: int, share: float) -> None:
    """A raw disk with runs of random bytes and of nothing, about *share* of it data. The same for the same size."""
    dice = random.Random(size)
    block = dice.randbytes(MIB)
    with path.open("wb") as disk:
        disk.truncate(size)
        for offset in range(0, size, MIB):
            if dice.random() < share:
                disk.seek(offset)
                # Never twice the same: no layer may find that it has seen this before.
                disk.write(offset.to_bytes(8, "big") + block[8:])


def make_mixed_disk(path: Path, size: int, share: float) -> None:
    """A raw disk with about *share* of it data: logs, tables of records, and what is packed already."""
    dice = random.Random(size)
    words = [bytes(dice.choices(b"etaoinshrdlu", k=dice.randint(2, 9))) for _ in range(4000)]
    lines = (b" ".join(dice.choices(words, k=7)) for _ in range(20_000))
    log = b"".join(b"%08x %s\n" % (dice.getrandbits(32), line) for line in lines)
    records = b"".join(
        struct.pack("<IIHHq16s", n, dice.getrandbits(20), dice.randrange(50), 0, -n, dice.choice(words))
        for n in range(30_000)
    )
    kinds = [(log, 5), (records, 4), (dice.randbytes(MIB), 3)]
    with path.open("wb") as disk:
        disk.truncate(size)
        for offset in range(0, size, MIB):
            if dice.random() < share:
                source = dice.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
                start = dice.randrange(len(source))
                disk.seek(offset)
                disk.write((source[start:] + source + source)[:MIB])


def compressed(folder: Path, scale: Scale) -> Iterator[Workload]:
    """A whole image to compressed qcow2 and back, zlib and zstd, as processes; and how large it gets."""
    raw, target = folder / "mixed.raw", folder / "target"
    make_mixed_disk(raw, scale.convert_disk, 0.65)
    os.sync()
    sizes: dict[str, int] = {}

    def run(name: str, program: list[str], source: Path, words: list[str]) -> Callable[[], float]:
        def once() -> float:
            target.unlink(missing_ok=True)
            os.sync()
            warm(source)
            seconds = measured([*program, "convert", *words, str(source), str(target)]).seconds
            sizes[name] = target.stat().st_size
            return scale.convert_disk / MIB / seconds

        return once

    for kind, factor in (("zlib", 8.0), ("zstd", 1.0)):
        there = ["-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}"]
        back = ["-f", "qcow2", "-O", "raw"]
        packed = folder / f"mixed.{kind}"
        for title, words, source, wanted in (("to", there, raw, factor), ("from", back, packed, 1.0)):
            if source is packed:
                measured([BLOCKIO, "img", "convert", *there, str(raw), str(packed)])
            sizes.clear()
            rivals = []
            if have("qemu-img"):
                rivals.append(Contender("qemu-img convert", run("qemu-img", ["qemu-img"], source, words)))
            workload = Workload(
                f"convert {title} compressed qcow2, {kind}, {scale.convert_disk // MIB} MiB",
                "MiB/s",
                Contender("blockio", run("blockio", [BLOCKIO, "img"], source, words)),
                rivals,
                target=wanted if rivals else None,
            )
            yield workload
            if source is raw and len(sizes) > 1:
                more = (sizes["blockio"] / sizes["qemu-img"] - 1) * 100
                workload.notes.append(f"size: blockio {sizes['blockio'] // MIB} MiB, {more:+.1f} % of qemu-img's")
        packed.unlink()
    target.unlink(missing_ok=True)
    raw.unlink()


def reads(folder: Path, scale: Scale) -> Iterator[Workload]:
    """4 KiB reads of a qcow2 image in the page cache, at queue depth 1 and 32."""
    raw, disk = folder / "read.raw", folder / "read.qcow2"
    make_disk(raw, scale.read_disk, 1.0)
    measured([BLOCKIO, "img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)])
    os.sync()

    def cached(path: Path, count: int, argv: list[str]) -> Callable[[], float]:
        def once() -> float:
            warm(path)
            return count / bench_seconds(argv)

        return once

    def reader(who: str, path: Path, count: int, depth: int) -> Callable[[], float]:
        words = [who, str(path), str(count), str(depth), str(scale.read_disk)]
        return cached(path, count, [sys.executable, "-m", "benchmarks.readers", *words])

    def qemu(mode: str, depth: int) -> Callable[[], float]:
        words = ["-f", "qcow2", "-t", "writeback", "-i", mode, "-c", str(scale.reads), "-d", str(depth)]
        words += ["-s", str(BLOCK), "-S", str(STEP), str(disk)]
        return cached(disk, scale.reads, ["qemu-img", "bench", *words])

    for depth in (1, 32):
        rivals = []
        if have("qemu-img"):
            for mode in ("io_uring", "threads"):
                rivals.append(Contender(f"qemu-img bench, aio {mode}", qemu(mode, depth), "qemu-img bench"))
        rivals.append(Contender("aiofiles (the raw bytes)", reader("aiofiles", raw, scale.slow_reads, depth)))
        if depth == 1:
            rivals.append(Contender("bare preadv loop (the limit)", reader("preadv", raw, scale.reads, 1)))
        yield Workload(
            f"4 KiB cached reads, qcow2, QD {depth}",
            "reads/s",
            Contender("blockio", reader("blockio", disk, scale.reads, depth)),
            rivals,
            target=1.0 if have("qemu-img") else None,
        )
    raw.unlink()
    disk.unlink()


def convert(folder: Path, scale: Scale) -> Iterator[Workload]:
    """A whole image from raw to qcow2 and back, as processes, with their peak memory."""
    raw, disk = folder / "convert.raw", folder / "convert.qcow2"
    make_disk(raw, scale.convert_disk, 0.65)
    os.sync()
    target = folder / "target"
    peaks: dict[str, int] = {}

    def run(name: str, program: list[str], source: Path, formats: tuple[str, str]) -> Callable[[], float]:
        def once() -> float:
            target.unlink(missing_ok=True)
            os.sync()  # what the last one left to be written must not slow this one down
            warm(source)
            words = [*program, "-f", formats[0], "-O", formats[1], str(source), str(target)]
            done = measured(words)
            peaks[name] = max(peaks.get(name, 0), done.peak)
            return scale.convert_disk / MIB / done.seconds

        return once

    for source, formats in ((raw, ("raw", "qcow2")), (disk, ("qcow2", "raw"))):
        peaks.clear()
        if source is disk:
            measured([BLOCKIO, "img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)])
            raw.unlink()
        rivals = []
        if have("qemu-img"):
            for name, words in (("qemu-img convert", []), ("qemu-img convert -W -m 16", ["-W", "-m", "16"])):
                rivals.append(Contender(name, run(name, ["qemu-img", "convert", *words], source, formats)))
        ours = run("blockio", [BLOCKIO, "img", "convert"], source, formats)
        workload = Workload(
            f"convert {formats[0]} to {formats[1]}, {scale.convert_disk // MIB} MiB",
            "MiB/s",
            Contender("blockio", ours),
            rivals,
            target=1.0 if rivals else None,
        )
        yield workload
        said = ", ".join(f"{name} {peak / MIB:.0f} MiB" for name, peak in peaks.items())
        verdict = "holds" if peaks.get("blockio", 0) < RSS_LIMIT else "misses"
        workload.notes.append(f"peak memory: {said}; blockio under {RSS_LIMIT // MIB} MiB: {verdict}")
    target.unlink(missing_ok=True)
    disk.unlink()


def start_up(folder: Path, scale: Scale) -> Iterator[Workload]:
    """``blockio img info`` on a small image, from nothing to its last line."""
    disk = folder / "small.qcow2"
    measured([BLOCKIO, "img", "create", "-q", "-f", "qcow2", str(disk), "1G"])

    def runs(argv: list[str]) -> Callable[[], float]:
        return lambda: 1 / measured(argv).seconds

    rivals = [Contender("python -c 'import asyncio'", runs([sys.executable, "-c", "import asyncio"]))]
    if have("qemu-img"):
        rivals.append(Contender("qemu-img info", runs(["qemu-img", "info", str(disk)])))
    yield Workload(
        "start-up of blockio img info",
        "runs/s",
        Contender("blockio img info", runs([BLOCKIO, "img", "info", str(disk)])),
        rivals,
        target=1 / 3,
    )
    disk.unlink()
