"""One run of ``blockio bench``: what is to be measured, measuring it, and saying what came of it.

Exit status: 0; 1 after an error; 130 after an interruption, whose partial results are printed and marked so.
"""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.bench.layers import LANES, LayerCost, measure_layers
from blockio.bench.load import run_loop
from blockio.bench.measuring import measure_latency, workload_of
from blockio.bench.peers import PEERS
from blockio.bench.programs import versions
from blockio.bench.report import Report, compare, read_report, report_of
from blockio.bench.stack import refuse_strangers
from blockio.bench.suites import SUITES, suites_of
from blockio.bench.suites.scale import Scale
from blockio.bench.table import changes_text, report_text
from blockio.bench.workload import Workload, run_rounds
from blockio.cli.bench.arguments import UsageError, given_work, parse
from blockio.cli.bench.plan import Plan, Task
from blockio.cli.img.tool import Failure, printed
from blockio.cli.objects import define_object
from blockio.cli.output import Output

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
        plan = Plan(given, self._scale)
        interrupted = False
        failure = ""
        with tempfile.TemporaryDirectory(prefix="blockio-bench.", dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
            try:
                self._run_suites(Path(folder))
                if given.layers or not self._suites:
                    self._measure(plan, Path(folder))
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

    def _measure(self, plan: Plan, folder: Path) -> None:
        given = self._given
        tasks = list(plan.tasks(folder, self._output))
        for task in tasks:
            task.job.blocks(task.disk.length)
            if task.job.writes:
                refuse_strangers(task.stack, [*given.overwrite, str(folder)])
        for task in tasks:
            if given.layers:
                self._measure_layers(task)
            else:
                self._measure_rates(task, plan.peers)

    def _measure_rates(self, task: Task, peers: Collection[str]) -> None:
        given, job = self._given, task.job
        if task.stack.limits is not None:
            peers = ()  # nobody else is held back
        series = msgspec.structs.replace(job, depth=1).title.removesuffix(", QD 1")
        workload = workload_of(
            job,
            task.stack,
            task.disk,
            wanted=peers,
            title=f"{task.name}: {job.title}",
            series=f"{task.name}: {series}",
        )
        workload.notes += task.notes
        self._done.append(workload)
        run_rounds(workload, self._rounds(self._scale.rounds), self._tell, warm_up=not given.no_warm_up)
        if not given.no_latency:
            self._tell(f"{workload.title}: latencies")
            workload.latency = measure_latency(job, task.stack)

    def _measure_layers(self, task: Task) -> None:
        self._tell(f"{task.name}: {task.job.title}: layers")
        lanes = LANES if task.stack.lane == "auto" else (task.stack.lane,)
        passes = self._rounds(self._scale.passes)
        measuring = measure_layers(task.stack, task.job, name=task.name, passes=passes, lanes=lanes)
        self._layers += run_loop(measuring)

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
            from blockio.bench.page import page  # most runs draw nothing

            Path(given.html).write_text(page(report, changes), encoding="utf-8")

    def _tell(self, text: str) -> None:
        """Say on a terminal what is going on; the next word overwrites it."""
        if not self._output.quiet and sys.stderr.isatty():
            self._output.report(f"\r\x1b[K{text}")
