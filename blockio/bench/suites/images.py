"""Whole images, as processes: convert, compressed convert, compare."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

from blockio.bench.load import run_loop
from blockio.bench.programs import BLOCKIO, have, measured, warm
from blockio.bench.scratch import MIB, make_disk
from blockio.bench.suites.scale import Scale
from blockio.bench.workload import Contender, Workload

__all__ = ["compare", "compressed", "convert", "make_mixed_disk"]

RSS_LIMIT: Final = 128 * MIB


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
                theirs = run("qemu-img", ["qemu-img"], source, words)
                rivals.append(Contender("qemu-img convert", theirs, target=wanted))
            workload = Workload(
                f"convert {title} compressed qcow2, {kind}, {scale.convert_disk // MIB} MiB",
                "MiB/s",
                Contender("blockio", run("blockio", [BLOCKIO, "img"], source, words)),
                rivals,
            )
            yield workload
            if source is raw and len(sizes) > 1:
                more = (sizes["blockio"] / sizes["qemu-img"] - 1) * 100
                workload.notes.append(f"size: blockio {sizes['blockio'] // MIB} MiB, {more:+.1f} % of qemu-img's")
        packed.unlink()
    target.unlink(missing_ok=True)
    raw.unlink()


def convert(folder: Path, scale: Scale) -> Iterator[Workload]:
    """A whole image from raw to qcow2, on to qcow2 and back, as processes, with their peak memory."""
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

    for source, formats in ((raw, ("raw", "qcow2")), (disk, ("qcow2", "raw")), (disk, ("qcow2", "qcow2"))):
        peaks.clear()
        if source is disk and raw.exists():
            measured([BLOCKIO, "img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)])
            raw.unlink()
        rivals = []
        if have("qemu-img"):
            for name, words, least in (
                ("qemu-img convert -W -m 16", ["-W", "-m", "16"], 1.0),
                ("qemu-img convert", [], None),
            ):
                theirs = run(name, ["qemu-img", "convert", *words], source, formats)
                rivals.append(Contender(name, theirs, target=least))
        rivals.append(_aiofiles(_copied, source, target, scale))
        ours = run("blockio", [BLOCKIO, "img", "convert"], source, formats)
        workload = Workload(
            f"convert {formats[0]} to {formats[1]}, {scale.convert_disk // MIB} MiB",
            "MiB/s",
            Contender("blockio", ours),
            rivals,
        )
        yield workload
        said = ", ".join(f"{name} {peak / MIB:.0f} MiB" for name, peak in peaks.items())
        verdict = "holds" if peaks.get("blockio", 0) < RSS_LIMIT else "misses"
        workload.notes.append(f"peak memory, at most: {said}; blockio under {RSS_LIMIT // MIB} MiB: {verdict}")
    target.unlink(missing_ok=True)
    disk.unlink()


def compare(folder: Path, scale: Scale) -> Iterator[Workload]:
    """Two equal images of different formats, read and compared to the end."""
    raw, disk = folder / "compare.raw", folder / "compare.qcow2"
    make_disk(raw, scale.convert_disk, 0.65)
    measured([BLOCKIO, "img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk)])
    os.sync()

    def run(program: list[str]) -> Callable[[], float]:
        def once() -> float:
            warm(raw)
            warm(disk)
            words = [*program, "compare", "-f", "raw", "-F", "qcow2", str(raw), str(disk)]
            return scale.convert_disk / MIB / measured(words).seconds

        return once

    rivals = [Contender("qemu-img compare", run(["qemu-img"]), target=1.0)] if have("qemu-img") else []
    rivals.append(_aiofiles(_compared, raw, raw, scale))
    ours = Contender("blockio", run([BLOCKIO, "img"]))
    yield Workload(f"compare equal raw and qcow2, {scale.convert_disk // MIB} MiB", "MiB/s", ours, rivals)
    raw.unlink()
    disk.unlink()


def _aiofiles(
    work: Callable[[Path, Path], Coroutine[Any, Any, object]], source: Path, target: Path, scale: Scale
) -> Contender:
    """The nearest that aiofiles can do, which knows no formats: *work* on the files as they are, in this process."""

    def once() -> float:
        target.touch()
        os.sync()
        warm(source)
        began = time.perf_counter()
        run_loop(work(source, target))
        return scale.convert_disk / MIB / (time.perf_counter() - began)

    return Contender("aiofiles, the files as they are", once, target=10.0)


async def _copied(source: Path, target: Path) -> None:
    import aiofiles  # the others do not pay for it

    async with (
        aiofiles.open(source, "rb", buffering=0) as from_there,
        aiofiles.open(target, "wb", buffering=0) as to_here,
    ):
        while data := await from_there.read(MIB):
            await to_here.write(data)


async def _compared(first: Path, second: Path) -> None:
    import aiofiles

    async with aiofiles.open(first, "rb", buffering=0) as one, aiofiles.open(second, "rb", buffering=0) as other:
        while data := await one.read(MIB):
            assert data == await other.read(MIB)
