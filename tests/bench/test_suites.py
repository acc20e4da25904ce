"""Each suite runs to its end, small and alone: what it measures is not what is looked at here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

import benchmarks
from benchmarks import start_up
from benchmarks.promises import PROMISES, promises_text
from blockio.bench import peers, suites
from blockio.bench.figures import Spread
from blockio.bench.programs import BLOCKIO, Finished, measured
from blockio.bench.report import Measured, Report
from blockio.bench.scratch import MIB
from blockio.bench.suites import images, metadata, suites_of
from blockio.bench.suites.scale import Scale
from blockio.bench.workload import Row, run_rounds
from blockio.cli.main import main

TINY = Scale(
    rounds=1,
    disk=MIB,
    requests=100,
    direct_requests=50,
    large_requests=4,
    convert_disk=2 * MIB,
    start_rounds=1,
    clusters=64,
    passes=1,
)


def _in_place(argv: Sequence[str]) -> Finished:
    """Blockio's own tools without a process for each."""
    if argv[0] != BLOCKIO:
        return measured(argv)
    assert main(argv) == 0
    return Finished(1.0, 0)


def test_the_suites_have_names() -> None:
    assert list(suites_of(["all"])) == list(suites.SUITES)
    assert list(suites_of(["start-up", "reads"], benchmarks.SUITES)) == ["start-up", "reads"]
    assert set(suites.SUITES) < set(benchmarks.SUITES)


def test_every_suite_runs_and_every_promise_is_about_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (peers, images, metadata, start_up):
        monkeypatch.setattr(module, "have", lambda program: False)
    for module in (images, metadata, start_up):
        monkeypatch.setattr(module, "measured", _in_place)
    titles: list[str] = []
    for name, suite in suites_of(["all"], benchmarks.SUITES).items():
        folder = tmp_path / name
        folder.mkdir()
        for workload in suite(folder, TINY):
            run_rounds(workload, 1, lambda _: None, warm_up=False)
            assert workload.rates[workload.ours.name][0] > 0
            titles.append(workload.title)
        assert list(folder.iterdir()) == []
    assert len(set(titles)) == len(titles)
    for promise in PROMISES:
        assert any(re.fullmatch(promise.workload, title) for title in titles), promise


def _row(workload: str, rival: str, target: float) -> Row:
    return Row(workload, "u", rival, 2.0, 1.0, Spread(1.0, 2.0, 3.0), 3, target)


def test_a_line_a_promise() -> None:
    first = PROMISES[0]
    rows = [
        _row(first.workload, "fio", 1.0),
        _row(first.workload, f"{first.rival} (best; other 1)", 1.5),
        _row("convert raw to qcow2, 9 MiB", "aiofiles, so", 10.0),
    ]
    report = Report(
        made="", machine=[], workloads=[Measured(title="x", unit="u", ours="us", rates={"us": [1.0]}, rows=rows)]
    )
    head, _, line, *others, last = promises_text(report).splitlines()
    assert head == "| workload | against | at least | ratio | low to high | |"
    assert line == f"| {first.text} | qemu-img | 1.5 | 2.00 | 1.00 to 3.00 | holds |"
    assert others == [f"| {promise.text} | not measured | | | | |" for promise in PROMISES[1:]]
    assert last == (
        "| any of these; least is convert raw to qcow2, 9 MiB | aiofiles, so | 10 | 2.00 | 1.00 to 3.00 | misses |"
    )
