"""What was measured, as one HTML page: tables and plots, with nothing to be fetched from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from blockio.bench import svg
from blockio.bench.figures import Spread, spread
from blockio.bench.latency import PERCENTS
from blockio.bench.layers import LayerCost
from blockio.bench.report import Change, Measured, Report
from blockio.bench.table import figure, time_text

__all__ = ["page"]

_COLOURS: Final = ("#2a6fdb", "#d9730d", "#16946b", "#8b5cd6", "#cf3f5b", "#0e90a8", "#a07a12", "#6b7280")
_STYLE: Final = (
    """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #64707d; --rule: #e3e7eb; --page: #fff; --mark: #1f2933 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa5b1; --rule: #323f4b; --page: #14191f; --mark: #e4e7eb }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem }
h3 { font-size: .95rem; font-weight: 600; margin: 0 0 .3rem }
p, .soft { color: var(--soft); margin: .2rem 0 } .alarm { color: #cf3f5b; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--soft) }
th, td { padding: .25rem .7rem .25rem 0; vertical-align: middle } td { border-bottom: 1px solid var(--rule) }
.right { text-align: right; white-space: nowrap } td svg { width: 220px; display: block }
.grid2 { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 1.6rem }
.scroll + .grid2, .grid2 + .scroll { margin-top: 1.6rem }
figure { margin: 0 } figure svg { width: 100%; height: auto }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .82rem; color: var(--soft) }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) }
.name { text-anchor: end } .tick { text-anchor: middle }
.grid { stroke: var(--rule) } .one { stroke: var(--soft) } .mark { stroke: var(--mark); stroke-dasharray: 3 2 }
.line { fill: none; stroke-width: 2 } .spread { stroke-width: 1.5; opacity: .55 }
.holds { color: #16946b; fill: #16946b; stroke: #16946b } .misses { color: #cf3f5b; fill: #cf3f5b; stroke: #cf3f5b }
.plain { fill: var(--soft); stroke: var(--soft) } td.holds, td.misses { stroke: none }
"""
    + "".join(
        f".s{number} {{ stroke: {colour}; fill: {colour}; background: {colour} }} .bar.s{number} {{ stroke: none }}\n"
        for number, colour in enumerate(_COLOURS)
    )
    + ".line { fill: none !important }\n"
)


def page(report: Report, changes: Sequence[Change] = ()) -> str:
    """The page of *report*; *changes* against an earlier one have a table of their own."""
    sections = [
        _ratios(report),
        _depths(report),
        _latencies(report),
        _layers(report.layers),
        _changes(changes),
        _notes(report),
    ]
    alarms = [f"Failed: {report.failure}"] if report.failure else []
    alarms += ["Interrupted: rounds are missing, the figures are partial."] if report.interrupted else []
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>blockio bench, {escape(report.made)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>blockio bench</h1><p>{escape(report.made)} · {escape(' · '.join(report.machine))}</p>\n"
        + "".join(f'<p class="alarm">{escape(alarm)}</p>\n' for alarm in alarms)
        + "".join(sections)
        + "</body></html>\n"
    )


# -- ratios


def _ratios(report: Report) -> str:
    rows = [row for workload in report.workloads for row in workload.rows]
    alone = [workload for workload in report.workloads if not workload.rows]
    text = ""
    if rows:
        low = min(0.5, *(row.ratio.low for row in rows))
        high = max(2.0, *(max(row.ratio.high, row.target or 0) for row in rows))
        cells = []
        title = ""
        for row in rows:
            cells.append(
                f"<td>{escape('' if row.workload == title else row.workload)}</td><td>{escape(row.rival)}</td>"
                f'<td class="right">{figure(row.ours)} {escape(row.unit)}</td>'
                f'<td class="right">{figure(row.theirs)}</td>'
                f'<td>{svg.whisker(row.ratio, row.target, low, high)}</td><td class="right">{row.ratio.middle:.2f}</td>'
                f'<td class="right soft">{row.ratio.low:.2f} to {row.ratio.high:.2f}</td>'
                + (
                    "<td></td>"
                    if row.target is None
                    else f'<td class="right {row.verdict}">{row.verdict} {row.target:.2f}</td>'
                )
            )
            title = row.workload
        head = ("workload", "against", ">blockio", ">rival", "ratio", ">", ">low to high", ">at least")
        text = _section(
            "Ratios",
            "blockio's rate by each rival's, round by round: the middle of the rounds, and the lowest and the highest. "
            "Right of the line, which is 1, blockio is faster; dashed is what it is to reach.",
            _table(head, cells),
        )
    if alone:
        cells = [
            f'<td>{escape(workload.title)}</td><td class="right">{figure(found.middle)} {escape(workload.unit)}</td>'
            f'<td class="right soft">{figure(found.low)} to {figure(found.high)}</td>'
            for workload in alone
            for found in [spread(workload.rates[workload.ours])]
        ]
        text += _section("Rates", "Without a rival.", _table(("workload", ">rate", ">low to high"), cells))
    return text


# -- queue depths


def _depths(report: Report) -> str:
    plots = []
    for name, workloads in _series(report.workloads).items():
        if len({workload.depth for workload in workloads}) < 2:
            continue
        points: dict[str, list[tuple[float, Spread]]] = {}
        for workload in sorted(workloads, key=lambda each: each.depth):
            for who, rates in workload.rates.items():
                points.setdefault(who, []).append((workload.depth, spread(rates)))
        found = [svg.Line(who, each) for who, each in points.items()]
        unit = workloads[0].unit
        plot = svg.lines(found, x_name="queue depth", y_name=unit, x_text=lambda x: f"{x:g}", y_text=_short)
        plots.append(_figure(f"{name}, {unit}", plot, [line.name for line in found]))
    return _section("Throughput against queue depth", "", _grid(plots)) if plots else ""


def _series(workloads: Iterable[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for workload in workloads:
        if workload.series:
            found.setdefault(workload.series, []).append(workload)
    return found


def _short(value: float) -> str:
    """``240 k``."""
    if value < 10_000:
        return f"{value:,.0f}"
    return f"{value / 1e3:,.4g} k" if value < 1e6 else f"{value / 1e6:.3g} M"


# -- latencies


def _latencies(report: Report) -> str:
    plots, cells = [], []
    for name, workloads in _series(report.workloads).items():
        lines = []
        for workload in workloads:
            if workload.latency is not None:
                found = workload.latency.percentiles
                points = [
                    (number, Spread(value, value, value))
                    for number, percent in enumerate(PERCENTS)
                    if (value := found.get(f"{percent:g}")) is not None
                ]
                lines.append(svg.Line(f"QD {workload.depth}", points))
        if lines:
            plot = svg.lines(
                lines,
                x_name="percentile",
                y_name="latency",
                x_text=lambda x: f"{PERCENTS[round(x)]:g}",
                y_text=time_text,
                log=True,
            )
            plots.append(_figure(f"{name}: percentiles", plot, [line.name for line in lines]))
    for title, latency in [(each.title, each.latency) for each in report.workloads if each.latency is not None]:
        marks = [latency.percentiles[name] for name in ("50", "99") if name in latency.percentiles]
        plot = svg.bins(latency.bounds, latency.bins, x_name="latency", x_text=time_text, marks=marks)
        plots.append(_figure(f"{title}: histogram, p50 and p99 dashed", plot, []))
        shown = (latency.least, *latency.percentiles.values(), latency.most)
        cells.append(f"<td>{escape(title)}</td>" + "".join(_right(time_text(value)) for value in shown))
    if not plots:
        return ""
    head = ("workload", ">least", *(f">p{percent:g}" for percent in PERCENTS), ">most")
    said = "Of blockio's requests, each timed by itself, in a pass of its own: taking times costs some."
    return _section("Latencies", said, _table(head, cells) + _grid(plots))


# -- layers


def _layers(costs: Sequence[LayerCost]) -> str:
    groups: dict[tuple[str, str], list[LayerCost]] = {}
    for cost in costs:
        if cost.layers:
            groups.setdefault((cost.stack, cost.request), []).append(cost)
    plots = []
    cells = []
    for (stack, request), members in groups.items():
        names = [layer.name for layer in members[0].layers]
        bars = [
            (
                f"{cost.lane} lane",
                [(number, layer.name, layer.own.middle) for number, layer in enumerate(cost.layers)],
            )
            for cost in members
        ]
        plot = svg.stacked(bars, x_name="processor time a request", x_text=time_text)
        plots.append(_figure(f"{stack}: {request}", plot, names))
        for cost in members:
            for number, layer in enumerate(cost.layers):
                first = f"{stack}: {request}, {cost.way}" if not number else ""
                cells.append(
                    f"<td>{escape(first)}</td><td>{escape(layer.name)}</td>{_right(format(layer.own.middle, ',.0f'))}"
                    f'<td class="right soft">{layer.own.low:,.0f} to {layer.own.high:,.0f}</td>'
                    f'<td class="right">{layer.total.middle:,.0f}</td>'
                )
    if not plots:
        return ""
    said = (
        "The same requests sent into the stack at each layer, in turn. A layer's own is the difference to the layer "
        "below; it comes from pairs of passes, so it may be a little less than nothing."
    )
    head = ("requests", "layer", ">own, ns", ">low to high", ">from here down, ns")
    return _section("Where a request's time goes", said, _grid(plots) + _table(head, cells))


# -- the rest


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return ""
    low = min(0.5, *(change.ratio for change in changes))
    high = max(2.0, *(change.ratio for change in changes))
    cells = [
        f"<td>{escape(change.workload)}</td><td>{escape(change.name)}</td>"
        f'<td class="right">{figure(change.before.middle)}</td><td class="right">{figure(change.now.middle)}</td>'
        f"<td>{svg.whisker(Spread(change.ratio, change.ratio, change.ratio), None, low, high)}</td>"
        f'<td class="right">{change.ratio:.2f}</td><td class="soft">{"" if change.clear else "within the spread"}</td>'
        for change in changes
    ]
    said = "Now by then. Where a rival changed as much, it was the machine."
    return _section(
        "Against the earlier result", said, _table(("workload", "who", ">before", ">now", "ratio", ">", ""), cells)
    )


def _notes(report: Report) -> str:
    notes = [f"{workload.title}: {note}" for workload in report.workloads for note in workload.notes]
    notes += [f"left out: {reason}" for workload in report.workloads for reason in workload.left_out]
    notes += [
        f"left out: {cost.stack}: {cost.request}, {cost.way}: {cost.left_out}"
        for cost in report.layers
        if cost.left_out
    ]
    if not notes:
        return ""
    return _section("Notes", "", "".join(f"<p>{escape(note)}</p>" for note in dict.fromkeys(notes)))


def _section(title: str, said: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>" + (f"<p>{escape(said)}</p>" if said else "") + body + "</section>\n"


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    """*head*'s names, to the right where they begin with ``>``; *rows* are cells already."""
    names = "".join(
        f'<th class="right">{escape(name[1:])}</th>' if name.startswith(">") else f"<th>{escape(name)}</th>"
        for name in head
    )
    body = "".join(f"<tr>{cells}</tr>\n" for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _right(text: str) -> str:
    return f'<td class="right">{escape(text)}</td>'


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="grid2">{"".join(figures)}</div>'


def _figure(title: str, plot: str, names: Sequence[str]) -> str:
    legend = "".join(
        f'<span><i class="s{number % svg.SERIES}"></i>{escape(name)}</span>' for number, name in enumerate(names)
    )
    return f'<figure><h3>{escape(title)}</h3>{plot}<div class="legend">{legend}</div></figure>'
