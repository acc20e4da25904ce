"""The table of ratios, as text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.workload import Row

__all__ = ["render"]

_HEAD = ("workload", "against", "blockio", "rival", "ratio", "low to high", "rounds", "target")


def render(rows: Sequence[Row]) -> str:
    """One line a row, columns aligned: names to the left, figures to the right. Ratios: more is better."""
    cells = [_HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    target = "" if row.target is None else f"{row.target:.2f} {row.verdict}"
    return (
        row.workload,
        row.rival,
        f"{row.ours:,.0f} {row.unit}" if row.ours >= 100 else f"{row.ours:.1f} {row.unit}",
        f"{row.theirs:,.0f}" if row.theirs >= 100 else f"{row.theirs:.1f}",
        f"{row.ratio.middle:.2f}",
        f"{row.ratio.low:.2f} to {row.ratio.high:.2f}",
        str(row.rounds),
        target,
    )
