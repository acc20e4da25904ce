"""Workloads whose work is metadata: check, map and info of an image of very many clusters, and their peak memory."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from blockio.bench.programs import BLOCKIO, have, measured
from blockio.bench.scratch import MIB
from blockio.bench.suites.scale import Scale
from blockio.bench.workload import Contender, Workload

__all__ = ["metadata"]

CLUSTER: Final = 64 << 10
RSS_LIMIT: Final = 256 * MIB
ADDRESS: Final = 0x00FF_FFFF_FFFF_FE00


def shuffle_clusters(path: Path) -> None:
    """Let the guest clusters of a preallocated image trade their places: then each is a run of its own."""
    with path.open("r+b") as image:
        head = image.read(104)
        (entries,) = struct.unpack_from(">I", head, 36)
        (l1_offset,) = struct.unpack_from(">Q", head, 40)
        image.seek(l1_offset)
        tables = [entry & ADDRESS for (entry,) in struct.iter_unpack(">Q", image.read(entries * 8))]
        words = array("Q")
        for table in tables:
            image.seek(table)
            words.frombytes(image.read(CLUSTER))
        shuffled = [word for word in words if word]
        random.Random(len(words)).shuffle(shuffled)
        words[: len(shuffled)] = array("Q", shuffled)
        for index, table in enumerate(tables):
            image.seek(table)
            image.write(words[index * (CLUSTER // 8) : (index + 1) * (CLUSTER // 8)].tobytes())


def metadata(folder: Path, scale: Scale) -> Iterator[Workload]:
    """Side by side in the file, and each somewhere else: the two ends of what a disk can become."""
    for shape in ("in order", "fragmented"):
        disk = folder / "many.qcow2"
        words = ["-q", "-f", "qcow2", "-o", f"preallocation=metadata,cluster_size={CLUSTER}", str(disk)]
        measured([BLOCKIO, "img", "create", *words, str(scale.clusters * CLUSTER)])
        if shape == "fragmented":
            shuffle_clusters(disk)
        for command in (["check"], ["map", "--output=json"], ["info"]):
            yield from _command(disk, command, f"{command[0]}, {scale.clusters:,} clusters {shape}")
        disk.unlink()


def _command(disk: Path, command: list[str], title: str) -> Iterator[Workload]:
    peaks: dict[str, int] = {}

    def run(name: str, program: list[str]) -> Callable[[], float]:
        def once() -> float:
            done = measured([*program, *command, str(disk)])
            peaks[name] = max(peaks.get(name, 0), done.peak)
            return 1 / done.seconds

        return once

    rivals = []
    if have("qemu-img"):
        target = 1.0 if command[0] == "map" else 0.5
        rivals.append(Contender(f"qemu-img {command[0]}", run("qemu-img", ["qemu-img"]), target=target))
    workload = Workload(
        title,
        "runs/s",
        Contender("blockio", run("blockio", [BLOCKIO, "img"])),
        rivals,
    )
    yield workload
    said = ", ".join(f"{name} {peak / MIB:.0f} MiB" for name, peak in peaks.items())
    verdict = "holds" if peaks.get("blockio", 0) < RSS_LIMIT else "misses"
    workload.notes.append(f"peak memory, at most: {said}; blockio under {RSS_LIMIT // MIB} MiB: {verdict}")
