"""Each suite runs to its end, small and alone: what it measures is not what is looked at here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import benchmarks
from benchmarks import start_up
from blockio.bench import peers, suites
from blockio.bench.programs import BLOCKIO, Finished, measured
from blockio.bench.scratch import MIB
from blockio.bench.suites import images, metadata, suites_of
from blockio.bench.suites.scale import Scale
from blockio.bench.workload import run_rounds
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


@pytest.mark.parametrize("name", benchmarks.SUITES)
def test_every_suite_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (peers, images, metadata, start_up):
        monkeypatch.setattr(module, "have", lambda program: False)
    for module in (images, metadata, start_up):
        monkeypatch.setattr(module, "measured", _in_place)
    (suite,) = suites_of([name], benchmarks.SUITES).values()
    titles = set()
    for workload in suite(tmp_path, TINY):
        run_rounds(workload, 1, lambda _: None, warm_up=False)
        assert workload.rates[workload.ours.name][0] > 0
        assert workload.title not in titles
        titles.add(workload.title)
    assert titles
    assert list(tmp_path.iterdir()) == []
