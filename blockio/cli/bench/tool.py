"""One run of ``blockio bench``: what is to be measured, measuring it, and saying what came of it.

Exit status: 0; 1 after an error; 130 after an interruption, whose partial results are printed and marked so.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.bench.job import Job
from blockio.bench.layers import LANES, LayerCost, measure_layers
from blockio.bench.load import run_loop
from blockio.bench.measuring import measure_latency, workload_of
from blockio.bench.peers import PEERS, Shared
from blockio.bench.programs import versions
from blockio.bench.report import Report, compare, read_report, report_of
from blockio.bench.scratch import Scratch, make_scratch
from blockio.bench.stack import Stack, refuse_strangers
from blockio.bench.suites import SUITES, suites_of
from blockio.bench.suites.scale import Scale
from blockio.bench.table import changes_text, report_text
from blockio.bench.workload import Workload, run_rounds
from blockio.cli.bench.arguments import UsageError, given_work, parse
from blockio.cli.img.tool import Failure, ImageChoice, printed
from blockio.cli.objects import define_object
from blockio.cli.output import Output
from blockio.errors import OptionError
from blockio.img.options import split_options

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]

INTERRUPTED: Final = 130


def run(words: Sequence[str], prog: str, suites: Mapping[str, str] | None = None) -> int:
    """The tool; *suites* as ``cli.bench.main`` takes them. Returns the exit status."""
    output = Output(prog)
    try:
        arguments = parse(words, prog)
        output.quiet = arguments.quiet
        return _Run(arguments, output, SUITES if suites is None else suites).all()
    except UsageError as error:
        output.error(f"{error}\nTry '{prog} --help' for more information")
        return 1
    except SystemExit as ending:  # argparse, after --help
        return int(ending.code or 0)
    except Failure as failure:
        return failure.status
    except OSError as error:
        output.error(printed(error))
        return 1
    finally:
        output.end()


class _Run:
    def __init__(self, arguments: argparse.Namespace, output: Output, known: Mapping[str, str]) -> None:
        self._given = arguments
        self._scale = Scale.quick() if arguments.quick else Scale()
        self._output = output
        self._done: list[Workload] = []
        self._layers: list[LayerCost] = []
        words = given_work(arguments)
        if arguments.suite and words:
            raise UsageError(f"--suite brings its own disks and jobs: {words[0]} has no place beside it")
        self._known = known
        self._suites = suites_of(arguments.suite or ([] if words or arguments.layers else ["all"]), known)

    def all(self) -> int:
        given = self._given
        earlier = None if given.compare is None else read_report(Path(given.compare).read_bytes(), given.compare)
        for definition in given.object:
            if not define_object(definition, self._output):
                return 0
        if given.list:
            self._output.out(f"suites: {', '.join(self._known)}\npeers: {', '.join(PEERS)}\n")
            return 0
        jobs = self._jobs()
        interrupted = False
        failure = ""
        with tempfile.TemporaryDirectory(prefix="blockio-bench.", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
            try:
                self._run_suites(Path(folder))
                if given.layers or not self._suites:
                    self._measure(jobs, Path(folder))
            except KeyboardInterrupt:
                interrupted = True
            except OSError as error:
                failure = printed(error)
        self._tell("")
        report = report_of(
            self._done,
            made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            machine=versions(),
            layers=self._layers,
            interrupted=interrupted,
            failure=failure,
        )
        if report.workloads or report.layers or not failure:
            self._show(report, earlier)
        if failure:
            self._output.error(failure)
        return INTERRUPTED if interrupted else int(bool(failure))

    # -- what is to be measured

    def _jobs(self) -> list[Job]:
        given = self._given
        count = given.count
        if count is None and given.time is None:
            count = self._scale.requests
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

    def _peers(self) -> list[str]:
        wanted = self._given.peers
        if wanted is None or wanted == ["all"]:
            return list(PEERS)
        if wanted == ["none"]:
            return []
        for name in wanted:
            if name not in PEERS:
                raise OptionError(f"Unknown peer '{name}': there are {', '.join(PEERS)}")
        return list(wanted)

    def _own_disk(self, folder: Path) -> tuple[Stack, Shared, str]:
        given = self._given
        wanted = Scratch(
            format=given.format or "qcow2",
            size=self._scale.disk if given.size is None else given.size,
            overlays=given.overlays or 0,
            compressed=given.compressed,
            encrypted=given.encrypted,
            cache=given.cache,
        )
        stack, disk = make_scratch(folder, wanted)
        return stack, disk, wanted.title

    def _given_disk(self) -> tuple[Stack, Shared, str]:
        given = self._given
        choice = ImageChoice(self._output)
        choice.image_opts = given.image_opts
        choice.cache = given.cache
        choice.force_share = given.force_share
        image = choice.image(given.image, given.format)
        stack = Stack(image=image)
        length = run_loop(stack.length())
        objects = [word for definition in given.object for word in ("--object", definition)]
        how = ["--image-opts"] if given.image_opts else ["-f", given.format] if given.format else []
        share = ["-U"] if given.force_share else []
        raw = None if given.image_opts or not os.path.exists(given.image) else given.image
        disk = Shared(
            length=length,
            cache=given.cache,
            image=(*objects, *how, *share, given.image),
            raw=raw,
            raw_length=0 if raw is None else _file_length(raw),
            writable=given.format == "raw",
        )
        return stack, disk, given.image if given.image_opts else os.path.basename(given.image)

    # -- measuring

    def _rounds(self, otherwise: int) -> int:
        return otherwise if self._given.rounds is None else int(self._given.rounds)

    def _run_suites(self, folder: Path) -> None:
        for name, suite in self._suites.items():
            where = folder / name
            where.mkdir()
            for workload in suite(where, self._scale):
                self._done.append(workload)
                rounds = self._rounds(workload.rounds or self._scale.rounds)
                run_rounds(workload, rounds, self._tell, warm_up=not self._given.no_warm_up)

    def _measure(self, jobs: list[Job], folder: Path) -> None:
        given = self._given
        if given.layers and given.image is not None and any(job.writes for job in jobs):
            # Below a format they would go past what it knows of its clusters (snapshots share some).
            raise OptionError("--layers writes into disks of its own only")
        stack, disk, name = self._own_disk(folder) if given.image is None else self._given_disk()
        stack = msgspec.structs.replace(stack, lane=given.lane, aio=given.aio, limits=_limits(given.throttle))
        for job in jobs:
            job.blocks(disk.length)
        if any(job.writes for job in jobs):
            refuse_strangers(stack, [*given.overwrite, str(folder)])
        for job in jobs:
            if given.layers:
                self._measure_layers(job, stack, name)
            else:
                self._measure_rates(job, stack, disk, name)

    def _measure_rates(self, job: Job, stack: Stack, disk: Shared, name: str) -> None:
        given = self._given
        peers = self._peers() if stack.limits is None else []  # nobody else is held back
        series = msgspec.structs.replace(job, depth=1).title.removesuffix(", QD 1")
        workload = workload_of(job, stack, disk, wanted=peers, title=f"{name}: {job.title}", series=f"{name}: {series}")
        self._done.append(workload)
        run_rounds(workload, self._rounds(self._scale.rounds), self._tell, warm_up=not given.no_warm_up)
        if not given.no_latency:
            self._tell(f"{workload.title}: latencies")
            workload.latency = measure_latency(job, stack)

    def _measure_layers(self, job: Job, stack: Stack, name: str) -> None:
        self._tell(f"{name}: {job.title}: layers")
        lanes = LANES if stack.lane == "auto" else (stack.lane,)
        passes = self._rounds(self._scale.passes)
        self._layers += run_loop(measure_layers(stack, job, name=name, passes=passes, lanes=lanes))

    # -- results

    def _show(self, report: Report, earlier: Report | None) -> None:
        given = self._given
        changes = [] if earlier is None else compare(earlier, report)
        if given.json == "-":
            self._output.out(report.encoded().decode())
        else:
            self._output.out(report_text(report) + "\n")
            if earlier is not None:
                self._output.out("\n" + changes_text(changes) + "\n")
        if given.json is not None and given.json != "-":
            Path(given.json).write_bytes(report.encoded())
        if given.html is not None:
            from blockio.bench.page import page  # noqa: PLC0415  # most runs draw nothing

            Path(given.html).write_text(page(report, changes), encoding="utf-8")

    def _tell(self, text: str) -> None:
        """Say on a terminal what is going on; the next word overwrites it."""
        if not self._output.quiet and sys.stderr.isatty():
            self._output.report(f"\r\x1b[K{text}")


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
