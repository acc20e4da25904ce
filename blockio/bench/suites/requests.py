"""Requests to one disk: cached and direct, small and large, reads and writes, through a chain."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from blockio.bench.job import Job
from blockio.bench.measuring import workload_of
from blockio.bench.scratch import MIB, Scratch, make_scratch
from blockio.bench.suites.scale import Scale
from blockio.bench.workload import Workload

__all__ = ["chain", "direct", "large", "reads", "writes"]

_SLOW: Final = {"aiofiles": 10.0}
"""Whatever it is, aiofiles is left far behind."""


def reads(folder: Path, scale: Scale) -> Iterator[Workload]:
    """4 KiB from the page cache: through qcow2 beside QEMU's, through raw beside the limit."""
    strided = Job(pattern="strided", count=scale.requests)
    fast = {1: 1.5, 32: 1.1}
    for depth, target in fast.items():
        job = msgspec.structs.replace(strided, depth=depth)
        yield from _on(folder, Scratch(size=scale.disk), "cached", job, {"qemu-img": target}, ("qemu-img", "aiofiles"))
    yield from _on(
        folder,
        Scratch(format="raw", size=scale.disk),
        "cached",
        strided,
        {"preadv": 0.65},
        ("aiofiles", "preadv", "fio"),
    )


def writes(folder: Path, scale: Scale) -> Iterator[Workload]:
    """4 KiB into the page cache, over clusters that are there already."""
    for depth, target in {1: 1.0, 32: 0.7}.items():
        job = Job(pattern="strided", count=scale.requests, depth=depth, read_percent=0)
        yield from _on(folder, Scratch(size=scale.disk), "cached", job, {"qemu-img": target}, ("qemu-img", "aiofiles"))


def direct(folder: Path, scale: Scale) -> Iterator[Workload]:
    """4 KiB past the page cache."""
    for share in (100, 0):
        for depth in (1, 32):
            job = Job(pattern="strided", count=scale.direct_requests, depth=depth, read_percent=share)
            disk = Scratch(size=scale.disk, cache="none")
            yield from _on(folder, disk, "O_DIRECT", job, {"qemu-img": 0.9}, ("qemu-img", "fio"))


def large(folder: Path, scale: Scale) -> Iterator[Workload]:
    """1 MiB after 1 MiB, into and past the page cache."""
    for how, cache in (("cached", "writeback"), ("O_DIRECT", "none")):
        for share in (100, 0):
            job = Job(block_size=MIB, count=scale.large_requests, depth=8, read_percent=share)
            disk = Scratch(size=scale.disk, cache=cache)
            yield from _on(folder, disk, how, job, {"qemu-img": 1.0}, ("qemu-img", "fio", "aiofiles"))


def chain(folder: Path, scale: Scale) -> Iterator[Workload]:
    """The cached read through eight overlays that have nothing of their own."""
    job = Job(pattern="strided", count=scale.requests)
    disk = Scratch(size=scale.disk, overlays=8)
    yield from _on(folder, disk, "cached", job, {"qemu-img": 1.2}, ("qemu-img", "aiofiles"))


def _on(
    folder: Path, wanted: Scratch, how: str, job: Job, targets: Mapping[str, float], who: Collection[str]
) -> Iterator[Workload]:
    """*job* on a disk of its own, which is gone again when the next workload is asked for."""
    stack, disk = make_scratch(folder, wanted)
    disk = msgspec.structs.replace(disk, targets={**_SLOW, **targets})
    name = msgspec.structs.replace(wanted, cache="writeback").title
    series = msgspec.structs.replace(job, depth=1).title.removesuffix(", QD 1")
    try:
        yield workload_of(
            job, stack, disk, wanted=who, title=f"{name}, {how}: {job.title}", series=f"{name}, {how}: {series}"
        )
    finally:
        for file in folder.iterdir():
            file.unlink()
