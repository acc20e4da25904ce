"""Disks as strings: a test draws one, works on it and reads one back.

Each character stands for one unit of the disk (64 KiB unless told):

====== ==================================================================================
``A``  data: every byte of the unit is that letter (or a digit from 1 to 9)
``0``  zeroes that the image knows to be zeroes
``-``  unallocated: this layer says nothing (what is below shows through, or zeroes)
``.``  data that happens to be all zeroes
``?``  anything else: mixed bytes, or a status that changes inside the unit
====== ==================================================================================

>>> await draw(overlay, "A0--")
>>> await picture(overlay)
'A0--'
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Final, Protocol

from blockio.buffers import IoVector, is_zero
from blockio.types import RequestFlags, StatusFlags

if TYPE_CHECKING:
    from blockio.types import BlockStatus

__all__ = ["UNIT", "Disk", "content", "draw", "picture"]

UNIT: Final = 64 << 10
"""Bytes per character: the cluster size of a qcow2 image unless told otherwise."""

_LETTERS: Final = frozenset(string.ascii_letters + "123456789")


class Disk(Protocol):
    """What can be drawn on: a BlockBackend, or a driver's Child."""

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0, /) -> None: ...
    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0, /) -> None: ...
    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0, /) -> None: ...
    async def co_getlength(self) -> int: ...
    async def co_block_status(self, offset: int, nbytes: int, /) -> BlockStatus: ...


async def draw(disk: Disk, drawing: str, *, unit: int = UNIT, offset: int = 0, unmap: bool = False) -> None:
    """Write *drawing* onto *disk* from *offset* on: runs of one letter as one write, ``0`` as zero writes.

    ``-`` is left as it is. With *unmap* zero writes may give space back. ValueError for other characters.
    """
    at = 0
    while at < len(drawing):
        letter = drawing[at]
        end = at
        while end < len(drawing) and drawing[end] == letter:
            end += 1
        where, nbytes = offset + at * unit, (end - at) * unit
        if letter == "0":
            await disk.co_pwrite_zeroes(where, nbytes, RequestFlags.MAY_UNMAP if unmap else 0)
        elif letter in _LETTERS:
            await disk.co_pwritev(where, IoVector.of(letter.encode() * nbytes))
        elif letter != "-":
            raise ValueError(f"{letter!r} means nothing in a picture")
        at = end


async def picture(disk: Disk, *, unit: int = UNIT, offset: int = 0, length: int | None = None) -> str:
    """The picture of *disk* from *offset* on. A last part of a unit counts as a whole one."""
    end = await disk.co_getlength() if length is None else offset + length
    return "".join([await _symbol(disk, at, min(unit, end - at)) for at in range(offset, end, unit)])


async def _symbol(disk: Disk, offset: int, nbytes: int) -> str:
    status = await disk.co_block_status(offset, nbytes)
    if status.length < nbytes:
        return "?"
    if not status.flags & StatusFlags.ALLOCATED:
        return "-"
    memory = bytearray(nbytes)
    await disk.co_preadv(offset, IoVector.of(memory))
    if status.flags & StatusFlags.ZERO:
        return "0" if is_zero(memory) else "?"
    if is_zero(memory):
        return "."
    letter = chr(memory[0])
    return letter if letter in _LETTERS and memory.count(memory[0]) == nbytes else "?"


def content(drawing: str, *, unit: int = UNIT, below: str = "") -> bytes:
    """The bytes that a disk with this picture reads as, over a backing disk drawn as *below*."""
    parts = []
    for at, letter in enumerate(drawing):
        seen = (below[at] if at < len(below) else "0") if letter == "-" else letter
        parts.append(bytes(unit) if seen in "0-." else seen.encode() * unit)
    return b"".join(parts)
