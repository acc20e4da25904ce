"""Plots as SVG, for a page that needs nothing but itself. Pure functions from values to text.

Colours and fonts are the page's: an element says which of its series it belongs to (``s0``, ``s1`` …), not how that
looks. Whatever is drawn says its figures when it is pointed at (``<title>``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from blockio.bench.figures import Spread

__all__ = ["SERIES", "Line", "bins", "linear", "lines", "logarithmic", "stacked", "whisker"]

SERIES: Final = 8
"""How many series can be told apart; further ones begin again."""

_WIDTH: Final = 560
_HEIGHT: Final = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 12, 40

Text = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places. *ticks* are the values that are named."""

    place: Callable[[float], float]
    ticks: Sequence[float]


def linear(low: float, high: float, start: float, end: float) -> Scale:
    """Round steps, some five of them; from *low* to at least *high*."""
    step = _round_step((high - low) / 5 if high > low else 1.0)
    top = low + math.ceil(round((high - low) / step, 9)) * step if high > low else low + step
    count = round((top - low) / step)
    return Scale(
        lambda value: start + (value - low) / (top - low) * (end - start),
        [low + step * number for number in range(count + 1)],
    )


def logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    """Whole decades from *low* or below to *high* or above; both more than 0."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    steps = (1, 2, 5) if last - first == 1 else (1,)
    ticks = [step * 10.0**power for power in range(first, last) for step in steps] + [10.0**last]
    return Scale(
        lambda value: start + (math.log10(max(value, 10.0**first)) - first) / (last - first) * (end - start), ticks
    )


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 of its decade."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


@dataclass(frozen=True, slots=True)
class Line:
    """One series: at each x the low, the middle and the high."""

    name: str
    points: Sequence[tuple[float, Spread]]


def lines(series: Sequence[Line], *, x_name: str, y_name: str, x_text: Text, y_text: Text, log: bool = False) -> str:
    """Series over the same few x, each as far from the next (as queue depths are); *log* is about y.

    The spread is a thin bar through the point. y begins at 0, or where *log* lets it.
    """
    values = [value for line in series for _, spread in line.points for value in (spread.low, spread.high)]
    xs = sorted({x for line in series for x, _ in line.points})
    bottom, top = _HEIGHT - _BOTTOM, _TOP
    if log:
        y = logarithmic(max(min(values), 1e-9), max(*values, 1e-9), bottom, top)
    else:
        y = linear(0, max(values), bottom, top)
    room = _WIDTH - _LEFT - _RIGHT
    where = {x: _LEFT + room * (number + 0.5) / len(xs) for number, x in enumerate(xs)}
    parts = [*_y_axis(y, y_text), *_x_names([(where[x], x_text(x)) for x in xs], x_name)]
    for number, line in enumerate(series):
        kind = f"s{number % SERIES}"
        places = [(where[x], y.place(spread.middle)) for x, spread in line.points]
        if len(places) > 1:
            parts.append(f'<polyline class="line {kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>')
        for (x, spread), (a, b) in zip(line.points, places, strict=True):
            said = f"{line.name}, {x_name} {x_text(x)}: {y_text(spread.middle)}"
            if spread.high > spread.low:
                said += f" ({y_text(spread.low)} to {y_text(spread.high)})"
                parts.append(
                    f'<line class="spread {kind}" x1="{a:.1f}" x2="{a:.1f}" '
                    f'y1="{y.place(spread.low):.1f}" y2="{y.place(spread.high):.1f}"/>'
                )
            parts.append(f'<circle class="point {kind}" cx="{a:.1f}" cy="{b:.1f}" r="4">{_title(said)}</circle>')
    return _drawing(parts, _WIDTH, _HEIGHT, f"{y_name} over {x_name}")


def bins(bounds: Sequence[float], counts: Sequence[int], *, x_name: str, x_text: Text, marks: Iterable[float]) -> str:
    """A histogram over a logarithmic x, with one count more than bounds; *marks* are lines at some x.

    Empty bins at the ends are left out.
    """
    used = [number for number, count in enumerate(counts) if count]
    if not used:
        return ""
    edges = [bounds[0] / (bounds[1] / bounds[0]), *bounds, bounds[-1] * (bounds[-1] / bounds[-2])]
    x = logarithmic(edges[used[0]], edges[used[-1] + 1], _LEFT, _WIDTH - _RIGHT)
    whole = sum(counts)
    y = linear(0, max(counts) / whole * 100, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        *_y_axis(y, lambda value: f"{value:g} %"),
        *_x_names([(x.place(tick), x_text(tick)) for tick in x.ticks], x_name),
    ]
    for number in used:
        left, right = x.place(edges[number]), x.place(edges[number + 1])
        share = counts[number] / whole * 100
        top = y.place(share)
        said = f"{x_text(edges[number])} to {x_text(edges[number + 1])}: {share:.3g} % ({counts[number]:,})"
        parts.append(
            f'<rect class="bar s0" x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 1, 1):.1f}" '
            f'height="{max(_HEIGHT - _BOTTOM - top, 1):.1f}">{_title(said)}</rect>'
        )
    parts += [
        f'<line class="mark" x1="{x.place(mark):.1f}" x2="{x.place(mark):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        for mark in marks
    ]
    return _drawing(parts, _WIDTH, _HEIGHT, f"how many requests took how long, by {x_name}")


def stacked(bars: Sequence[tuple[str, Sequence[tuple[int, str, float]]]], *, x_name: str, x_text: Text) -> str:
    """Horizontal bars on one scale, each of pieces (series, name, value); what is below 0 counts as nothing."""
    left, thick, gap = 96, 26, 14
    height = _TOP + len(bars) * (thick + gap) + _BOTTOM
    most = max((sum(max(value, 0.0) for _, _, value in pieces) for _, pieces in bars), default=0.0)
    x = linear(0, most, left, _WIDTH - _RIGHT)
    bottom = height - _BOTTOM
    parts = [
        f'<line class="grid" x1="{x.place(tick):.1f}" x2="{x.place(tick):.1f}" y1="{_TOP}" y2="{bottom}"/>'
        for tick in x.ticks
    ]
    parts += _x_names([(x.place(tick), x_text(tick)) for tick in x.ticks], x_name, bottom=bottom)
    for number, (name, pieces) in enumerate(bars):
        top = _TOP + gap / 2 + number * (thick + gap)
        parts.append(f'<text class="name" x="{left - 8}" y="{top + thick / 2 + 4:.1f}">{escape(name)}</text>')
        at = 0.0
        for kind, piece, value in pieces:
            width = x.place(at + max(value, 0.0)) - x.place(at)
            said = f"{name}: {piece} {x_text(value)}"
            parts.append(
                f'<rect class="bar s{kind % SERIES}" x="{x.place(at):.1f}" y="{top:.1f}" '
                f'width="{max(width - 1, 0.5):.1f}" height="{thick}">{_title(said)}</rect>'
            )
            at += max(value, 0.0)
    return _drawing(parts, _WIDTH, height, f"{x_name} by layer")


def whisker(ratio: Spread, target: float | None, low: float, high: float) -> str:
    """One ratio as a point with its spread on a logarithmic line from *low* to *high*, with 1 and the target marked."""
    width, height = 220, 22
    x = logarithmic(low, high, 6, width - 6)
    one, middle = x.place(1.0), height / 2
    kind = "plain" if target is None else "holds" if ratio.middle >= target else "misses"
    parts = [
        f'<line class="one" x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{height}"/>',
        f'<line class="spread {kind}" x1="{x.place(ratio.low):.1f}" x2="{x.place(ratio.high):.1f}" '
        f'y1="{middle}" y2="{middle}"/>',
        f'<circle class="point {kind}" cx="{x.place(ratio.middle):.1f}" cy="{middle}" r="4.5"/>',
    ]
    said = f"{ratio.middle:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    if target is not None:
        at = x.place(target)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="3" y2="{height - 3}"/>')
        said += f", at least {target:.2f}"
    return _drawing(parts, width, height, said)


# -- pieces


def _y_axis(y: Scale, text: Text) -> list[str]:
    parts = []
    for tick in y.ticks:
        at = y.place(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="name" x="{_LEFT - 8}" y="{at + 4:.1f}">{escape(text(tick))}</text>')
    return parts


def _x_names(names: Iterable[tuple[float, str]], name: str, bottom: float = _HEIGHT - _BOTTOM) -> list[str]:
    parts = [f'<text class="tick" x="{at:.1f}" y="{bottom + 17:.1f}">{escape(text)}</text>' for at, text in names]
    return [
        *parts,
        f'<text class="tick axis" x="{(_LEFT + _WIDTH) / 2:.1f}" y="{bottom + 34:.1f}">{escape(name)}</text>',
    ]


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _drawing(parts: Iterable[str], width: float, height: float, said: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(said)}">{body}</svg>'
