"""A picture of where the data of a disk lies, in characters."""

from __future__ import annotations

from collections.abc import Iterable

from blockio.img.results import MapEntry

__all__ = ["LEGEND", "picture"]

LEGEND = "█ data here   ▓ data in a backing file   ░ partly   · zeroes   ' ' never written"


def picture(entries: Iterable[MapEntry], *, width: int = 64, rows: int = 8, labels: bool = True) -> str:
    """Draw the runs of a disk, from its beginning on, as up to *rows* lines of *width* cells.

    A cell stands for an equal share of the disk (at least one byte): ``█`` all of it is data of the image itself, ``▓``
    of a backing file, ``░`` some of it is data, ``·`` it is zeroes that some layer wrote down, a space: no layer says
    anything. *labels* puts each line's first byte in front. An empty disk gives an empty string.
    """
    runs = [entry for entry in entries if entry.length]
    if not runs:
        return ""
    begin = runs[0].start
    size = runs[-1].start + runs[-1].length - begin
    cells = min(width * rows, size)
    lines: list[str] = []
    drawn = "".join(_cells(runs, begin, size, cells))
    for start in range(0, cells, width):
        bar = drawn[start : start + width]
        label = f"{_short(begin + start * size // cells):>8} " if labels else ""
        lines.append(f"{label}│{bar:<{width}}│" if cells > width else f"{label}│{bar}│")
    return "\n".join(lines)


def _cells(runs: list[MapEntry], begin: int, size: int, cells: int) -> Iterable[str]:
    index = 0
    for cell in range(cells):
        low, high = begin + cell * size // cells, begin + (cell + 1) * size // cells
        while runs[index].start + runs[index].length <= low:
            index += 1
        data = own = zero = 0
        at = index
        while at < len(runs) and runs[at].start < high:
            run = runs[at]
            share = min(run.start + run.length, high) - max(run.start, low)
            if run.data and not run.zero:
                data += share
                own += share if run.depth == 0 else 0
            elif run.present:
                zero += share
            at += 1
        yield _glyph(high - low, data, own, zero)


def _glyph(total: int, data: int, own: int, zero: int) -> str:
    if data * 10 >= total * 9:
        return "█" if own * 2 >= data else "▓"
    if data:
        return "░"
    return "·" if zero else " "


def _short(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("", "K", "M", "G", "T", "P"):
        if value < 1024 or unit == "P":
            return f"{value:.4g}{unit}"
        value /= 1024
    raise AssertionError("unreachable")
