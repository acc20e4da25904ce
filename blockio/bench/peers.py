"""Those who do the same work beside blockio: a job in the words of each of them.

Each is a ``Contender``; whoever is not installed, or cannot do what the job asks, is named with the reason instead.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from blockio.bench.job import Job, places
from blockio.bench.load import fill, run_loop
from blockio.bench.programs import bench_seconds, have, said
from blockio.bench.workload import Contender
from blockio.buffers import aligned_buffer

__all__ = ["PEERS", "Shared", "bare_loop", "peers", "with_aiofiles"]

PEERS: Final = ("qemu-img", "fio", "aiofiles", "preadv")

_SLOWER: Final = 25
"""How much less of the work those are given who take so much longer."""
_FIRST: Final = 2000
"""Requests of the first run where a job has only a time and the program knows only counts."""


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What the peers are given: the disk in their words."""

    length: int
    cache: str = "writeback"
    image: tuple[str, ...] | None = None
    """The words after which ``qemu-img bench`` opens the image; None: it cannot."""
    raw: str | None = None
    """A file with the disk's bytes as they are, for those who know no formats."""
    raw_length: int = 0
    writable: bool = True
    """Whether ``raw`` may be written: a container of another format must not."""
    targets: Mapping[str, float] = {}
    """What ours by each must reach, by the peer's name."""

    @property
    def direct(self) -> bool:
        """O_DIRECT."""
        return self.cache in {"none", "off", "directsync"}


def peers(job: Job, disk: Shared, wanted: Collection[str] = PEERS) -> tuple[list[Contender], list[str]]:
    """Who can do *job*, and who cannot and why."""
    makers: dict[str, Callable[[Job, Shared], list[Contender] | str]] = {
        "qemu-img": _qemu_img,
        "fio": _fio,
        "aiofiles": _aiofiles,
        "preadv": _bare,
    }
    found: list[Contender] = []
    left_out: list[str] = []
    for name in PEERS:
        if name in wanted:
            made = makers[name](job, disk)
            if isinstance(made, str):
                left_out.append(f"{name}: {made}")
            else:
                found += made
    return found, left_out


# -- qemu-img


def _qemu_img(job: Job, disk: Shared) -> list[Contender] | str:
    if not have("qemu-img"):
        return "not installed"
    if disk.image is None:
        return "cannot be given this stack"
    if job.pattern not in {"sequential", "strided"}:
        return f"its bench has no {job.pattern} requests"
    if job.read_percent not in {0, 100}:
        return "its bench does not mix reads and writes"
    room = job.blocks(disk.length) * job.block_size
    if job.offset or room != disk.length or job.stride % job.block_size:
        return "its bench would run past the end: the disk must be whole blocks, and used from its beginning"
    if job.flush_interval and job.flush_interval < job.depth:
        return "its flushes cannot be less than a queue depth apart"
    modes = ["io_uring", "threads", *(["native"] if disk.direct else [])]
    group, target = "qemu-img bench", disk.targets.get("qemu-img")
    return [Contender(f"qemu-img bench, aio {mode}", _QemuImg(job, disk, mode), group, target) for mode in modes]


class _QemuImg:
    """One mode. It knows no times, only counts: of a job with a time it does as many as the last run lets expect."""

    def __init__(self, job: Job, disk: Shared, mode: str) -> None:
        self._count = _FIRST if job.count is None else job.count
        self._seconds = job.seconds if job.count is None else None
        words = ["qemu-img", "bench", "-t", disk.cache, "-i", mode, "-d", str(job.depth), "-s", str(job.block_size)]
        words += ["-S", str(job.stride)]
        if job.writes:
            words.append("-w")
            if job.flush_interval:
                words.append(f"--flush-interval={job.flush_interval}")
                words.append("--no-drain")
        self._before = words
        self._after = disk.image or ()

    def __call__(self) -> float:
        rate = self._count / max(bench_seconds([*self._before, "-c", str(self._count), *self._after]), 1e-3)
        if self._seconds is not None:
            self._count = max(int(rate * self._seconds), 1)
        return rate


# -- fio


def _fio(job: Job, disk: Shared) -> list[Contender] | str:
    if not have("fio"):
        return "not installed"
    reason = _raw_only(job, disk)
    if reason:
        return reason
    target = disk.targets.get("fio")
    words = fio_words(job, disk)
    found = [Contender("fio, io_uring", lambda: _fio_rate([*words, "--ioengine=io_uring"]), "fio", target)]
    if job.depth == 1:
        found.append(Contender("fio, psync", lambda: _fio_rate([*words, "--ioengine=psync"]), "fio", target))
    return found


def fio_words(job: Job, disk: Shared) -> list[str]:
    """The job in fio's words, but for its engine."""
    kind = {100: "read", 0: "write"}.get(job.read_percent, "rw")
    if job.pattern in {"random", "zipf"}:
        kind = f"rand{kind}"
    elif job.pattern == "strided":
        # fio counts from the end of a request to the beginning of the next
        kind = f"{kind}:{max(job.stride - job.block_size, 0)}"
    words = [
        "fio",
        "--name=job",
        "--output-format=json",
        "--allow_file_create=0",
        f"--filename={(disk.raw or '').replace(':', chr(92) + ':')}",
        f"--rw={kind}",
        f"--bs={job.block_size}",
        f"--iodepth={job.depth}",
        f"--direct={int(disk.direct)}",
        "--invalidate=0",
        f"--offset={job.offset}",
        f"--size={job.blocks(disk.raw_length) * job.block_size}",
        f"--randseed={job.seed}",
        "--norandommap",
    ]
    if not job.writes:
        words.append("--readonly")
    elif job.read_percent:
        words.append(f"--rwmixread={job.read_percent}")
    if job.pattern == "zipf":
        words.append(f"--random_distribution=zipf:{job.theta:g}")
    if job.flush_interval:
        words.append(f"--fdatasync={job.flush_interval}")
    if job.count is not None:
        words.append(f"--io_size={job.count * job.block_size}")
    if job.seconds is not None:
        words.append(f"--runtime={max(job.seconds, 0.01) * 1000:.0f}ms")
        if job.count is None:
            words.append("--time_based")
    return words


def _fio_rate(words: list[str]) -> float:
    report = said(words)
    try:
        # Warnings may stand before the JSON.
        (job,) = msgspec.json.decode(report[report.index("{") :], type=dict[str, Any])["jobs"]
        if job["error"]:
            raise RuntimeError(f"fio: {os.strerror(job['error'])}")
        done = int(job["read"]["total_ios"]) + int(job["write"]["total_ios"])
        took = int(max(job["read"]["runtime"], job["write"]["runtime"]))  # milliseconds
    except (ValueError, KeyError, msgspec.DecodeError) as error:
        raise RuntimeError(f"fio: its report is not understood: {error}") from error
    return done / max(took / 1000, 1e-3)


# -- Python


def _aiofiles(job: Job, disk: Shared) -> list[Contender] | str:
    try:
        import aiofiles  # noqa: F401  # only whether it is there
    except ImportError:
        return "not installed"
    reason = _raw_only(job, disk)
    if reason:
        return reason
    if disk.direct:
        return "knows no O_DIRECT"
    less = job if job.count is None else msgspec.structs.replace(job, count=max(job.count // _SLOWER, job.depth))
    path = disk.raw or ""
    run = lambda: run_loop(with_aiofiles(path, less, disk.raw_length))  # noqa: E731  # a name for a line's sake
    return [Contender("aiofiles", run, target=disk.targets.get("aiofiles"))]


def _bare(job: Job, disk: Shared) -> list[Contender] | str:
    reason = _raw_only(job, disk)
    if reason:
        return reason
    if job.depth > 1:
        return "a loop has one request at a time"
    if job.flush_interval:
        return "a loop that flushes is no limit"
    path = disk.raw or ""
    run = lambda: bare_loop(path, job, disk.raw_length, direct=disk.direct)  # noqa: E731  # as above
    return [Contender("bare preadv loop (the limit)", run, target=disk.targets.get("preadv"))]


def _raw_only(job: Job, disk: Shared) -> str:
    if disk.raw is None:
        return "knows no formats, and there is no raw file of this disk"
    if job.writes and not disk.writable:
        return "knows no formats: it would overwrite the image's metadata"
    return ""


async def with_aiofiles(path: str, job: Job, length: int, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """*job* on the file *path*, each of its workers with a file of its own: requests a second."""
    import aiofiles  # the others do not pay for it

    done = 0
    plan = _until(places(job, length), job.seconds, clock)
    ending = object()

    async def work() -> None:
        nonlocal done
        data = bytes(fill(aligned_buffer(job.block_size)))
        async with aiofiles.open(path, "r+b" if job.writes else "rb", buffering=0) as file:
            while (place := next(plan, ending)) is not ending:
                assert isinstance(place, int)
                await file.seek(place if place >= 0 else ~place)
                await (file.read(job.block_size) if place >= 0 else file.write(data))
                done += 1

    began = clock()
    async with asyncio.TaskGroup() as group:
        for _ in range(job.depth):
            group.create_task(work())
    return done / (clock() - began)


def bare_loop(
    path: str, job: Job, length: int, *, direct: bool = False, clock: Callable[[], float] = time.perf_counter
) -> float:
    """What the system calls themselves cost from Python: requests a second."""
    memory = fill(aligned_buffer(job.block_size))
    bufs = [memory]
    flags = (os.O_RDWR if job.writes else os.O_RDONLY) | (os.O_DIRECT if direct else 0) | os.O_CLOEXEC
    nowait = 0 if direct else os.RWF_NOWAIT
    preadv, pwritev = os.preadv, os.pwritev
    done = 0
    fd = os.open(path, flags)
    try:
        plan = _until(places(job, length), job.seconds, clock)
        began = clock()
        for place in plan:
            if place < 0:
                pwritev(fd, bufs, ~place)
            else:
                try:
                    preadv(fd, bufs, place, nowait)
                except BlockingIOError:  # the kernel took the page back meanwhile
                    preadv(fd, bufs, place)
            done += 1
        return done / (clock() - began)
    finally:
        os.close(fd)


def _until(plan: Iterator[int], seconds: float | None, clock: Callable[[], float]) -> Iterator[int]:
    """*plan*, or what of it fits into *seconds*; the clock is looked at every 64th time."""
    if seconds is None:
        return plan

    def some() -> Iterator[int]:
        until = clock() + seconds
        for number, place in enumerate(plan):
            yield place
            if number % 64 == 63 and clock() >= until:
                return

    return some()
