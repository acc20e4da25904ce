"""What the words of ``blockio bench`` ask for: jobs, the disks they are for, and who else does them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from blockio.bench.fiojob import FioJob, read_fio
from blockio.bench.job import Job
from blockio.bench.load import run_loop
from blockio.bench.peers import PEERS, Shared
from blockio.bench.scratch import Scratch, make_scratch
from blockio.bench.stack import Stack
from blockio.cli.bench.arguments import given_work
from blockio.cli.img.tool import ImageChoice
from blockio.errors import OptionError
from blockio.img.options import split_options

if TYPE_CHECKING:
    import argparse

    from blockio.bench.suites.scale import Scale
    from blockio.cli.output import Output

__all__ = ["Plan", "Task"]

_BESIDE_FIO = frozenset(("--fio", "IMAGE", "--format", "--cache", "--lane", "--aio", "--throttle", "--peers"))
"""What may be said of disks that a job file names or wants made. All else it says itself."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One job on one disk."""

    job: Job
    stack: Stack
    disk: Shared
    name: str
    notes: tuple[str, ...] = ()


class Plan:
    """All that is asked for, checked as far as it can be before there is a disk. OptionError for what is wrong."""

    def __init__(self, given: argparse.Namespace, scale: Scale) -> None:
        self._given = given
        self._scale = scale
        self.peers = _peers(given.peers)
        self._limits = _limits(given.throttle)
        self._fio: list[FioJob] = []
        self._jobs: list[Job] = []
        if given.fio is None:
            self._jobs = _jobs(given, scale.requests)
        else:
            for word in given_work(given):
                if word not in _BESIDE_FIO:
                    raise OptionError(f"--fio brings its own jobs: {word} has no place beside it")
            self._fio = read_fio(Path(given.fio).read_text(encoding="utf-8", errors="surrogateescape"), given.fio)
        writes = any(job.writes for job in [*self._jobs, *(each.job for each in self._fio)])
        if given.layers and writes and (given.image is not None or any(each.filename for each in self._fio)):
            # Below a format they would go past what it knows of its clusters (snapshots share some).
            raise OptionError("--layers writes into disks of its own only")

    def tasks(self, folder: Path, output: Output) -> Iterator[Task]:
        """What is to be done, one after the other; disks that are wanted are made in *folder*."""
        given = self._given
        if given.fio is not None:
            for number, each in enumerate(self._fio):
                where = folder / f"fio{number}"
                where.mkdir()
                yield self._fio_task(each, where, output)
            return
        if given.image is not None:
            task = self._on_image(given.image, given.format, given.cache, output)
        else:
            wanted = Scratch(
                format=given.format or "qcow2",
                size=self._scale.disk if given.size is None else given.size,
                overlays=given.overlays or 0,
                compressed=given.compressed,
                encrypted=given.encrypted,
                cache=given.cache,
            )
            task = self._on_scratch(folder, wanted)
        for job in self._jobs:
            yield msgspec.structs.replace(task, job=job)

    def _fio_task(self, each: FioJob, folder: Path, output: Output) -> Task:
        given = self._given
        cache = "none" if each.direct else given.cache
        image = each.filename if given.image is None else given.image
        if image is not None:
            task = self._on_image(image, given.format or ("raw" if given.image is None else None), cache, output)
        elif each.size is None or each.percent:
            raise OptionError(f"fio job '{each.name}' names no file; for a disk that is made it must say its size")
        else:
            size = each.size + each.job.offset
            task = self._on_scratch(folder, Scratch(format=given.format or "raw", size=size, cache=cache))
        stack = task.stack if given.aio is not None else msgspec.structs.replace(task.stack, aio=each.aio)
        name = f"{each.name}, {task.name}"
        return msgspec.structs.replace(task, job=each.on(task.disk.length), stack=stack, name=name, notes=each.notes)

    def _stack(self, stack: Stack) -> Stack:
        given = self._given
        return msgspec.structs.replace(stack, lane=given.lane, aio=given.aio, limits=self._limits)

    def _on_scratch(self, folder: Path, wanted: Scratch) -> Task:
        stack, disk = make_scratch(folder, wanted)
        return Task(job=_NOTHING, stack=self._stack(stack), disk=disk, name=wanted.title)

    def _on_image(self, name: str, image_format: str | None, cache: str, output: Output) -> Task:
        given = self._given
        choice = ImageChoice(output)
        choice.image_opts = given.image_opts
        choice.cache = cache
        choice.force_share = given.force_share
        stack = self._stack(Stack(image=choice.image(name, image_format)))
        how = ["--image-opts"] if given.image_opts else ["-f", image_format] if image_format else []
        share = ["-U"] if given.force_share else []
        raw = None if given.image_opts or not os.path.exists(name) else name
        disk = Shared(
            length=run_loop(stack.length()),
            cache=cache,
            image=None if given.object else (*how, *share, name),  # qemu-img bench defines no objects
            raw=raw,
            raw_length=0 if raw is None else _file_length(raw),
            writable=image_format == "raw",
        )
        shown = name if given.image_opts else os.path.basename(name)
        return Task(job=_NOTHING, stack=stack, disk=disk, name=shown)


_NOTHING = Job(count=1)
"""Stands in a task until it is known what is to be done."""


def _jobs(given: argparse.Namespace, usual: int) -> list[Job]:
    count = usual if given.count is None and given.time is None else given.count
    jobs = []
    for word, size, share, depth in product(
        given.workload or ["sequential"], given.block_size or [4096], given.read or [100], given.depth or [1, 32]
    ):
        name, _, theta = word.partition(":")
        if theta and name != "zipf":
            raise OptionError(f"Unknown workload '{word}': only zipf takes a number")
        base = Job(
            pattern=name,
            block_size=size,
            read_percent=share,
            depth=depth,
            count=count,
            seconds=given.time,
            flush_interval=(given.flush_interval or 0) if share < 100 else 0,
            offset=given.offset or 0,
            size=given.length,
            step=given.step,
            seed=1 if given.seed is None else given.seed,
        )
        jobs.append(msgspec.structs.replace(base, theta=_number(theta)) if theta else base)
    return jobs


def _peers(wanted: list[str] | None) -> list[str]:
    if wanted is None or wanted == ["all"]:
        return list(PEERS)
    if wanted == ["none"]:
        return []
    for name in wanted:
        if name not in PEERS:
            raise OptionError(f"Unknown peer '{name}': there are {', '.join(PEERS)}")
    return wanted


def _limits(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    limits = {}
    for name, value in split_options(text):
        try:
            limits[name.removeprefix("x-")] = int(value)
        except ValueError:
            raise OptionError(f"Invalid limit '{name}={value}'") from None
    return limits


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"Invalid zipf exponent '{text}'") from None


def _file_length(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
