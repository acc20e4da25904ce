"""A picture of where the data of a disk lies, in characters, as SVG or as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import aclosing
from itertools import chain, groupby
from typing import TYPE_CHECKING, Final

from blockio.img.results import MapEntry

if TYPE_CHECKING:
    from blockio.img.opening import ImageLike

__all__ = ["LEGEND", "Picture", "draw", "picture"]

LEGEND = "█ data here   ▓ data in a backing file   ░ partly   · zeroes   ' ' never written"

_COLOURS: Final = {"█": "#1f5fa8", "▓": "#8a5fb0", "░": "#8fb8de", "·": "#d9d9d9", " ": "#f7f7f7"}
_WORDS: Final = {
    "█": "data here",
    "▓": "data in a backing file",
    "░": "partly data",
    "·": "zeroes",
    " ": "never written",
}
_SIDE: Final = 10
_GAP: Final = 2
_PAPER: Final = "#ffffff"
_LABEL: Final = 70


class Picture:
    """What a disk, or a part of it, holds, in equal shares (cells). Runs may be added in any order, each once.

    A cell shows ``█`` where all of it is data of the image itself, ``▓`` of a backing file, ``░`` where some of it is
    data, ``·`` where it is zeroes that some layer wrote down, a space where no layer says anything.
    """

    def __init__(self, begin: int, size: int, *, width: int = 64, rows: int = 8) -> None:
        """*size* bytes from *begin* on, in up to *rows* lines of *width* cells; a cell is at least one byte."""
        self._begin = begin
        self._size = size
        self._width = width
        self._cells = min(width * rows, size)
        self._data = [0] * self._cells
        self._own = [0] * self._cells
        self._zero = [0] * self._cells

    def _low(self, cell: int) -> int:
        return self._begin + cell * self._size // self._cells

    def add(self, entry: MapEntry) -> None:
        """Take in one run; what lies outside is not looked at."""
        at, end = max(entry.start, self._begin), min(entry.start + entry.length, self._begin + self._size)
        is_data = entry.data and not entry.zero
        if at >= end or not (is_data or entry.present):
            return
        cell = (at - self._begin) * self._cells // self._size
        while at < end:
            high = self._low(cell + 1)
            if high > at:
                share = min(end, high) - at
                if is_data:
                    self._data[cell] += share
                    self._own[cell] += share if entry.depth == 0 else 0
                else:
                    self._zero[cell] += share
                at += share
            cell += 1

    def _drawn(self) -> str:
        return "".join(
            _glyph(self._low(cell + 1) - self._low(cell), self._data[cell], self._own[cell], self._zero[cell])
            for cell in range(self._cells)
        )

    def _rows(self) -> Iterator[tuple[str, str]]:
        drawn = self._drawn()
        for start in range(0, self._cells, self._width):
            yield _short(self._low(start)), drawn[start : start + self._width]

    def text(self, *, labels: bool = True) -> str:
        """Lines of characters; *labels* puts each line's first byte in front. Empty for an empty disk."""
        width = self._width if self._cells > self._width else 0
        return "\n".join(
            f"{label:>8} │{bar:<{width}}│" if labels else f"│{bar:<{width}}│" for label, bar in self._rows()
        )

    def svg(self) -> str:
        """The same as a drawing of its own, with a legend."""
        rows = list(self._rows())
        width, height = _LABEL + self._width * _SIDE + _SIDE, (len(rows) + 3) * (_SIDE + _GAP)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="monospace" '
            f'font-size="{_SIDE}">\n'
        ]
        for row, (label, bar) in enumerate(rows):
            top = row * (_SIDE + _GAP) + _GAP
            parts.append(f'<text x="{_LABEL - 6}" y="{top + _SIDE - 1}" text-anchor="end">{label}</text>\n')
            x = _LABEL
            for glyph, run in groupby(bar):
                length = len(list(run)) * _SIDE
                parts.append(_rect(x, top, length, glyph))
                x += length
        top = (len(rows) + 1) * (_SIDE + _GAP)
        x = _LABEL
        for glyph, words in _WORDS.items():
            parts.append(_rect(x, top, _SIDE, glyph))
            parts.append(f'<text x="{x + _SIDE + 4}" y="{top + _SIDE - 1}">{words}</text>\n')
            x += _SIDE + 18 + len(words) * 6
        return "".join((*parts, "</svg>\n"))

    def png(self) -> bytes:
        """The cells alone, in the colours of the SVG, as the bytes of a PNG file."""
        # of all pictures only this one needs it
        from blockio.img.png import encode

        indexes = {glyph: bytes([index]) * _SIDE for index, glyph in enumerate(_COLOURS, 1)}
        width = max(1, self._width * _SIDE)
        gap = [bytes(width)] * _GAP
        lines = list(gap)
        for _, bar in self._rows():
            line = b"".join(indexes[glyph] for glyph in bar)
            lines += [line.ljust(width, b"\0")] * _SIDE + gap
        return encode(lines, [_PAPER, *_COLOURS.values()])


def _rect(x: int, y: int, width: int, glyph: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{_SIDE}" fill="{_COLOURS[glyph]}"/>\n'


def picture(entries: Iterable[MapEntry], *, width: int = 64, rows: int = 8, labels: bool = True) -> str:
    """Draw the runs of a disk, from its beginning on, as ``Picture.text`` does. An empty disk gives an empty string."""
    runs = [entry for entry in entries if entry.length]
    if not runs:
        return ""
    drawn = Picture(runs[0].start, runs[-1].start + runs[-1].length - runs[0].start, width=width, rows=rows)
    for run in runs:
        drawn.add(run)
    return drawn.text(labels=labels)


async def draw(
    image: ImageLike, *, start: int = 0, length: int | None = None, width: int = 64, rows: int = 8
) -> Picture:
    """The picture of *image* from *start* on, *length* bytes or all; memory does not grow with the number of runs.

    Raises BlockError. Cancelling leaves nothing open.
    """
    # whoever only draws runs opens nothing
    from blockio.img.mapping import node_batches
    from blockio.img.opening import opened, sectors_up
    from blockio.types import OpenFlags

    async with opened(image, OpenFlags(read_only=True)) as blk:
        node = blk.bs
        assert node is not None
        end = sectors_up(node.length)
        end = end if length is None else min(end, start + length)
        drawn = Picture(start, max(0, end - start), width=width, rows=rows)
        async with aclosing(node_batches(node, start, length)) as batches:
            async for batch in batches:
                for entry in chain.from_iterable(runs.entries() for runs in batch):
                    drawn.add(entry)
        return drawn


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
