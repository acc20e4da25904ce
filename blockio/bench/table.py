"""What was measured, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from blockio.bench.figures import median
from blockio.bench.latency import Latency
from blockio.bench.layers import LayerCost
from blockio.bench.report import Change, Report
from blockio.bench.workload import Row

__all__ = ["changes_text", "figure", "render", "report_text", "time_text"]

_HEAD: Final = ("workload", "against", "blockio", "rival", "ratio", "low to high", "rounds", "target")


def report_text(report: Report) -> str:
    """All of it: the table of ratios, what stands beside it, latencies, what layers cost."""
    lines = [" · ".join(report.machine), ""]
    rows = [row for workload in report.workloads for row in workload.rows]
    if rows:
        lines += [render(rows), ""]
        verdicts = [row.verdict for row in rows if row.verdict]
        lines += [f"targets: {verdicts.count('holds')} hold, {verdicts.count('misses')} miss"] if verdicts else []
    alone = [workload for workload in report.workloads if not workload.rows]
    lines += [
        f"{workload.title}: {figure(median(workload.rates[workload.ours]))} "
        f"{workload.unit}, rounds: {len(workload.rates[workload.ours])}"
        for workload in alone
    ]
    for workload in report.workloads:
        lines += [f"{workload.title}: {note}" for note in workload.notes]
    lines += _once(f"left out: {reason}" for workload in report.workloads for reason in workload.left_out)
    timed = [(workload.title, workload.latency) for workload in report.workloads if workload.latency is not None]
    if timed:
        lines += ["", latency_text(timed)]
    if report.layers:
        lines += ["", layers_text(report.layers)]
    if report.failure:
        lines += ["", f"FAILED: {report.failure}"]
    if report.interrupted:
        lines += ["", "INTERRUPTED: rounds are missing, the figures are partial"]
    return "\n".join(lines)


def _once(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def render(rows: Sequence[Row]) -> str:
    """The table of ratios, one line a row. More is better."""
    return _aligned([_HEAD, *(_cells(row) for row in rows)], 2)


def latency_text(latencies: Sequence[tuple[str, Latency]]) -> str:
    """Percentiles, one line a workload."""
    names = list(latencies[0][1].percentiles)
    head = ("latency", "least", *(f"p{name}" for name in names), "most")
    lines = [
        (title, *(time_text(value) for value in (found.least, *found.percentiles.values(), found.most)))
        for title, found in latencies
    ]
    return _aligned([head, *lines], 1)


def layers_text(costs: Sequence[LayerCost]) -> str:
    """Nanoseconds of processor time a request: each layer's own, and what it is from there down."""
    head = ("where a request's time goes", "own ns", "low to high", "from here down")
    lines: list[tuple[str, ...]] = []
    left_out = []
    for cost in costs:
        if cost.left_out:
            left_out.append(f"left out: {cost.stack}: {cost.request}, {cost.way}: {cost.left_out}")
            continue
        lines.append((f"{cost.stack}: {cost.request}, {cost.way}", "", "", ""))
        lines += [
            (
                f"  {layer.name}",
                f"{layer.own.middle:,.0f}",
                f"{layer.own.low:,.0f} to {layer.own.high:,.0f}",
                f"{layer.total.middle:,.0f}",
            )
            for layer in cost.layers
        ]
    return "\n".join([*([_aligned([head, *lines], 1)] if lines else []), *left_out])


def changes_text(changes: Sequence[Change]) -> str:
    """Then and now, one line a contender."""
    if not changes:
        return "nothing was measured both times"
    head = ("workload", "who", "before", "now", "ratio", "")
    lines = [
        (
            change.workload,
            change.name,
            figure(change.before.middle),
            figure(change.now.middle),
            f"{change.ratio:.2f}",
            "" if change.clear else "within the spread",
        )
        for change in changes
    ]
    return _aligned([head, *lines], 2)


def time_text(nanoseconds: float) -> str:
    """``850 ns``, ``12.3 us``, ``4.56 ms``: three digits."""
    for limit, unit in ((1e3, "ns"), (1e6, "us"), (1e9, "ms")):
        if nanoseconds < limit:
            return f"{nanoseconds / limit * 1e3:.3g} {unit}"
    return f"{nanoseconds / 1e9:.3g} s"


def _aligned(cells: Sequence[tuple[str, ...]], left: int) -> str:
    """Columns; the first *left* of them to the left, figures to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if column < left else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _between(low: float, high: float) -> str:
    return f"{figure(low)} to {figure(high)}"


def _cells(row: Row) -> tuple[str, ...]:
    target = "" if row.target is None else f"{row.target:.2f} {row.verdict}"
    return (
        row.workload,
        row.rival,
        f"{figure(row.ours)} {row.unit}",
        figure(row.theirs),
        f"{row.ratio.middle:.2f}",
        f"{row.ratio.low:.2f} to {row.ratio.high:.2f}",
        str(row.rounds),
        target,
    )
