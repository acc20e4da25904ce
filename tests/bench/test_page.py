"""The page and its plots: well-formed, complete, of one piece, and safe whatever names say."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
import pytest

from blockio.bench import svg
from blockio.bench.figures import Spread
from blockio.bench.latency import summed_up
from blockio.bench.layers import Layer, LayerCost
from blockio.bench.page import page
from blockio.bench.report import Change, Measured, Report
from blockio.bench.workload import Row


def _flat(value: float) -> Spread:
    return Spread(value, value, value)


def _workload(depth: int, name: str = "disk & <co>") -> Measured:
    return Measured(
        title=f"{name}: reads, QD {depth}",
        unit="requests/s",
        ours="blockio",
        rates={"blockio": [100.0 * depth, 120.0 * depth], "qemu": [50.0, 60.0]},
        rows=[Row(f"{name}: reads", "requests/s", "qemu <i>", 110.0 * depth, 55.0, Spread(1.5, 2.0, 3.0), 2, 1.5)],
        left_out=["fio: not installed"],
        notes=["a note"],
        latency=summed_up([1000, 2000, 2000, 50_000]),
        series=f"{name}: reads",
        depth=depth,
    )


REPORT = Report(
    made="2026-01-01T00:00:00+00:00",
    machine=["Python", "2 cores"],
    workloads=[_workload(1), _workload(32)],
    layers=[
        LayerCost(
            stack="disk",
            request="4 KiB reads",
            lane="fast",
            layers=[Layer("system call", _flat(900.0), _flat(900.0)), Layer("node", _flat(850.0), _flat(-50.0))],
        ),
        LayerCost(stack="disk", request="4 KiB reads", lane="started", left_out="the file driver declines"),
    ],
)


def _parsed(report: Report, *changes: Change) -> ElementTree.Element:
    text = page(report, changes)
    assert "http" not in text.replace("width=device-width", "")
    assert "src=" not in text
    assert "href=" not in text
    head, _, body = text.partition("\n")
    assert head == "<!DOCTYPE html>"
    return ElementTree.fromstring(body)


def _headings(root: ElementTree.Element) -> list[str]:
    return [heading.text or "" for heading in root.iter("h2")]


def test_all_that_was_measured_is_on_it() -> None:
    root = _parsed(REPORT, Change("reads", "blockio", _flat(1.0), _flat(2.0), 2.0))
    assert _headings(root) == [
        "Ratios",
        "Throughput against queue depth",
        "Latencies",
        "Where a request's time goes",
        "Against the earlier result",
        "Notes",
    ]
    titles = [figure.findtext("h3") for figure in root.iter("figure")]
    assert titles == [
        "disk & <co>: reads, requests/s",
        "disk & <co>: reads: percentiles",
        "disk & <co>: reads, QD 1: histogram, p50 and p99 dashed",
        "disk & <co>: reads, QD 32: histogram, p50 and p99 dashed",
        "disk: 4 KiB reads",
    ]
    depths = next(root.iter("figure"))
    said = [title.text for title in depths.iter("title")]
    assert "blockio, queue depth 32: 3,520 (3,200 to 3,840)" in said
    assert len(list(depths.iter("polyline"))) == 2
    assert [span[-1].tail or span[0].tail for span in depths.iter("span") if len(span)] == ["blockio", "qemu"]
    text = " ".join(root.itertext())
    for words in ("qemu <i>", "holds 1.50", "left out: fio: not installed", "a note", "the file driver declines"):
        assert words in text


def test_what_there_is_not_has_no_section() -> None:
    one = msgspec.structs.replace(_workload(1), latency=None, left_out=[], notes=[])
    root = _parsed(msgspec.structs.replace(REPORT, workloads=[one], layers=[]))
    assert _headings(root) == ["Ratios"]
    alone = msgspec.structs.replace(one, rows=[], rates={"blockio": [3.0, 5.0]})
    root = _parsed(
        msgspec.structs.replace(REPORT, workloads=[alone], layers=[], interrupted=True, failure="disk <full>")
    )
    assert _headings(root) == ["Rates"]
    alarms = [paragraph.text for paragraph in root.iter("p") if paragraph.get("class") == "alarm"]
    assert alarms == ["Failed: disk <full>", "Interrupted: rounds are missing, the figures are partial."]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 7, [0, 2, 4, 6, 8]),
        (0, 0.9, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0, [0, 1]),
        (0, 123_456, [0, 25_000, 50_000, 75_000, 100_000, 125_000]),
    ],
)
def test_linear_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    scale = svg.linear(low, high, 100, 200)
    assert list(scale.ticks) == pytest.approx(ticks)
    assert scale.place(ticks[0]) == pytest.approx(100)
    assert scale.place(ticks[-1]) == pytest.approx(200)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(3, 80, [1, 10, 100]), (10, 10, [10, 20, 50, 100]), (0.5, 2, [0.1, 1, 10]), (1, 10, [1, 2, 5, 10])],
)
def test_logarithmic_ticks_are_decades(low: float, high: float, ticks: list[float]) -> None:
    scale = svg.logarithmic(low, high, 0, 10)
    assert list(scale.ticks) == pytest.approx(ticks)
    assert scale.place(ticks[0]) == pytest.approx(0)
    assert scale.place(ticks[-1]) == pytest.approx(10)
    assert scale.place(0) == pytest.approx(0), "less than there is room for stays on the edge"


def test_a_histogram_leaves_out_its_empty_ends() -> None:
    bounds = [100, 200, 400, 800]
    plot = ElementTree.fromstring(svg.bins(bounds, [0, 1, 0, 3, 0], x_name="x", x_text=lambda x: f"{x:g}", marks=[150]))
    said = [rect.findtext("title") for rect in plot.iter("rect")]
    assert said == ["100 to 200: 25 % (1)", "400 to 800: 75 % (3)"]
    ends = ElementTree.fromstring(svg.bins(bounds, [1, 0, 0, 0, 1], x_name="x", x_text=lambda x: f"{x:g}", marks=[]))
    assert [rect.findtext("title") for rect in ends.iter("rect")] == ["50 to 100: 50 % (1)", "800 to 1600: 50 % (1)"]
    assert svg.bins(bounds, [0] * 5, x_name="x", x_text=str, marks=[]) == ""


def test_pieces_below_nothing_take_no_room() -> None:
    bars = [("fast", [(0, "call", 10.0), (1, "node", -5.0), (2, "backend", 10.0)])]
    plot = ElementTree.fromstring(svg.stacked(bars, x_name="ns", x_text=lambda x: f"{x:g}"))
    call, node, backend = ((float(rect.get("x", "")), float(rect.get("width", ""))) for rect in plot.iter("rect"))
    assert node[1] == 0.5
    assert backend[0] == pytest.approx(call[0] + call[1] + 1, abs=0.2)


def test_a_line_of_one_point_is_a_point() -> None:
    line = svg.Line("us", [(1, _flat(5.0))])
    plot = ElementTree.fromstring(svg.lines([line], x_name="depth", y_name="rate", x_text=str, y_text=str, log=True))
    assert not list(plot.iter("polyline"))
    assert len(list(plot.iter("circle"))) == 1
