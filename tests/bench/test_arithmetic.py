"""The harness's own arithmetic: medians, spread, pairing, and who is compared with whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blockio.bench.figures import Spread, best_rival, median, paired_ratios, spread
from blockio.bench.programs import measured
from blockio.bench.report import Measured, Report, compare, read_report
from blockio.bench.scratch import make_disk
from blockio.bench.table import render
from blockio.bench.workload import Contender, Workload, rows, run_rounds


@pytest.mark.parametrize(
    ("values", "middle"), [([3.0], 3.0), ([1.0, 9.0], 5.0), ([9.0, 1.0, 5.0], 5.0), ([4.0, 1.0, 2.0, 3.0], 2.5)]
)
def test_medians(values: list[float], middle: float) -> None:
    assert median(values) == middle


def test_nothing_has_no_median() -> None:
    with pytest.raises(ValueError, match="no median"):
        median([])
    with pytest.raises(ValueError, match="nobody"):
        best_rival({})


def test_spread_is_least_middle_most() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, 3.0)


def test_ratios_are_paired_by_round_and_ignore_unfinished_rounds() -> None:
    assert paired_ratios([10.0, 20.0, 30.0], [5.0, 5.0]) == [2.0, 4.0]
    with pytest.raises(ValueError, match="no rate"):
        paired_ratios([1.0], [0.0])


def test_the_best_rival_has_the_best_median_not_the_best_run() -> None:
    assert best_rival({"steady": [5.0, 5.0, 5.0], "lucky": [1.0, 1.0, 99.0]}) == "steady"


def _scripted(rates: list[float], log: list[str], name: str) -> Callable[[], float]:
    numbers = iter(rates)

    def run() -> float:
        log.append(name)
        return next(numbers)

    return run


def test_rounds_run_in_turn_and_the_best_of_a_group_is_compared_with() -> None:
    log: list[str] = []
    workload = Workload(
        "reads",
        "reads/s",
        Contender("us", _scripted([0.0, 100.0, 300.0], log, "us")),
        [
            Contender("tool slow", _scripted([0.0, 10.0, 20.0], log, "slow"), "tool", 2.5),
            Contender("tool fast", _scripted([0.0, 50.0, 100.0], log, "fast"), "tool"),
            Contender("other", _scripted([0.0, 1.0, 1.0], log, "other")),
        ],
    )
    run_rounds(workload, 2, lambda _: None)
    assert log == ["us", "slow", "fast", "other"] * 3, "one warm-up, then A B C D, A B C D"
    first, second = rows(workload)
    assert first.rival == "tool fast (best; slow 15)"
    assert first.ratio == Spread(2.0, 2.5, 3.0)
    assert (first.ours, first.theirs, first.rounds, first.verdict) == (200.0, 75.0, 2, "holds")
    assert (second.rival, second.target, second.verdict) == ("other", None, "")


def test_an_interrupted_workload_gives_the_rounds_it_has() -> None:
    def interrupt() -> float:
        raise KeyboardInterrupt

    workload = Workload(
        "x", "u", Contender("us", lambda: 4.0), [Contender("a", lambda: 2.0, target=3.0), Contender("b", interrupt)]
    )
    with pytest.raises(KeyboardInterrupt):
        run_rounds(workload, 3, lambda _: None, warm_up=False)
    (row,) = rows(workload)
    assert (row.rival, row.ratio.middle, row.rounds, row.verdict) == ("a", 2.0, 1, "misses")


def test_a_workload_nobody_began_has_no_rows() -> None:
    assert rows(Workload("x", "u", Contender("us", lambda: 1.0), [Contender("a", lambda: 1.0)])) == []


def test_the_table_is_aligned() -> None:
    workload = Workload("x", "reads/s", Contender("us", lambda: 2000.0), [Contender("a", lambda: 1.5, target=1.0)])
    run_rounds(workload, 1, lambda _: None)
    head, rule, line = render(rows(workload)).splitlines()
    assert head.split()[:2] == ["workload", "against"]
    assert set(rule) <= {"─", " "}
    assert " ".join(line.split()) == "x a 2,000 reads/s 1.5 1333.33 1333.33 to 1333.33 1 1.00 holds"
    assert render([]).splitlines()[0].startswith("workload")


def _report(rates: dict[str, dict[str, list[float]]]) -> Report:
    workloads = [Measured(title=title, unit="u", ours="us", rates=each, rows=[]) for title, each in rates.items()]
    return Report(made="", machine=[], workloads=workloads)


def test_only_what_was_measured_both_times_is_compared_and_only_spreads_apart_are_clear() -> None:
    before = _report({"reads": {"us": [10.0, 12.0, 11.0], "them": [5.0, 5.0, 6.0]}, "gone": {"us": [1.0]}})
    now = _report({"new": {"us": [1.0]}, "reads": {"us": [22.0, 30.0, 13.0], "them": [4.0, 5.0, 5.0], "more": [1.0]}})
    ours, theirs = compare(before, now)
    assert (ours.workload, ours.name, ours.ratio, ours.clear) == ("reads", "us", 2.0, True)
    assert (ours.before, ours.now) == (Spread(10.0, 11.0, 12.0), Spread(13.0, 22.0, 30.0))
    assert (theirs.name, theirs.ratio, theirs.clear) == ("them", 1.0, False)
    assert read_report(now.encoded(), "now") == now


def test_a_disk_has_its_share_of_data(tmp_path: Path) -> None:
    make_disk(tmp_path / "d", 16 << 20, 1.0)
    make_disk(tmp_path / "e", 16 << 20, 0.5)
    assert (tmp_path / "d").read_bytes().count(bytes(4096)) == 0
    assert 0 < (tmp_path / "e").stat().st_blocks < (tmp_path / "d").stat().st_blocks


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"exit 3: oh no"):
        measured(["sh", "-c", "echo oh no >&2; exit 3"])
    assert measured(["true"]).peak > 0
