"""Changing the bitmaps extension of a header in steps that no crash can tear.

A header takes more than one 512-byte sector, and only a write inside a sector is certain to be done whole or not at
all. So the steps here, each behind a barrier, prepare what nobody looks at yet, and the last one is a write inside a
sector that shows it. Pure: from the bytes of the header's cluster to writes.
"""

from __future__ import annotations

import errno
import struct
from typing import Final, NamedTuple

from blockio.errors import BlockError
from blockio_drivers.qcow2.extensions import BITMAPS, END, BitmapsExtension

__all__ = ["HeaderLayout", "HeaderWrite", "crosses", "header_layout", "plan_bitmaps"]

_SECTOR: Final = 512
_V2_LENGTH: Final = 72
_HEADER_LENGTH: Final = 100
_BACKING_FIELDS: Final = 8
_PAYLOAD: Final = 24
_EXTENSION: Final = 8 + _PAYLOAD
_VOID: Final = 0x766F6964
"""An extension of nobody's, which readers pass over: what is left where one is removed in front of others."""


class HeaderWrite(NamedTuple):
    """One step: *data* at *offset*."""

    offset: int
    data: bytes


class HeaderLayout(NamedTuple):
    """Where the parts of a header are, in bytes from the file's beginning."""

    start: int
    """The first extension."""
    end: int
    """The mark that ends the extensions."""
    bitmaps: int | None
    """The bitmaps extension."""
    name: int
    """The backing file's name; 0 for none."""
    name_bytes: int


def plan_bitmaps(area: bytes, extension: BitmapsExtension | None) -> list[HeaderWrite]:
    """The steps after which *extension* is what the header in *area* (its whole cluster) has; none where it is already.

    Each is stable before the next begins. All but the last change nothing for a reader; the last lies in one sector,
    with one exception: where an extension that is there already crosses a sector's end, its payload is the only step,
    and the autoclear bit must be off meanwhile (``len(steps) == 1`` and the write crosses). Raises BlockError ENOSPC
    where the cluster has no room.
    """
    _start, end, found, backing, nbytes = header_layout(area)
    if extension is None:
        if found is None:
            return []
        last = found + _EXTENSION == end
        return [HeaderWrite(found, struct.pack(">II", END if last else _VOID, 0 if last else _PAYLOAD))]
    payload = struct.pack(">IIQQ", extension.nb_bitmaps, 0, extension.directory_size, extension.directory_offset)
    if found is not None:
        return [HeaderWrite(found + 8, payload)]
    steps = []
    stop = end + _EXTENSION + 8
    shown = struct.pack(">II", BITMAPS, _PAYLOAD)
    if nbytes and backing < stop and stop + nbytes <= _SECTOR:
        # All of it lies in one sector: one write moves the name and shows the extension.
        middle = area[_BACKING_FIELDS + 12 : end] + shown + payload + bytes(8)
        name = area[backing : backing + nbytes]
        return [HeaderWrite(_BACKING_FIELDS, struct.pack(">QI", stop, nbytes) + middle + name)]
    if nbytes and backing < stop:
        if area[end : end + 8] != bytes(8) or backing < end + 8:
            raise BlockError("No space left in the file header", errno.ENOSPC)
        # The name moves out of the way first: a copy behind both old and new, then the fields that lead to it.
        place = max(stop, backing + nbytes)
        if place + nbytes > len(area):
            raise BlockError("No space left in the file header", errno.ENOSPC)
        steps.append(HeaderWrite(place, bytes(area[backing : backing + nbytes])))
        steps.append(HeaderWrite(_BACKING_FIELDS, struct.pack(">QI", place, nbytes)))
    elif stop > len(area):
        raise BlockError("No space left in the file header", errno.ENOSPC)
    # Behind the end mark nobody reads; it becomes the beginning of the extension last.
    steps.append(HeaderWrite(end + 8, payload + bytes(8)))
    steps.append(HeaderWrite(end, shown))
    return steps


def crosses(step: HeaderWrite) -> bool:
    """Whether *step* lies in more than one sector."""
    return step.offset // _SECTOR != (step.offset + len(step.data) - 1) // _SECTOR


def header_layout(area: bytes) -> HeaderLayout:
    """The parts of the header in *area*, its whole cluster."""
    version = int.from_bytes(area[4:8], "big")
    backing, nbytes = struct.unpack_from(">QI", area, _BACKING_FIELDS)
    start = at = int.from_bytes(area[_HEADER_LENGTH : _HEADER_LENGTH + 4], "big") if version > 2 else _V2_LENGTH
    stop = backing or len(area)
    found = None
    while at + 8 <= stop:
        magic, length = struct.unpack_from(">II", area, at)
        if magic == END:
            break
        if magic == BITMAPS:
            found = at  # a later one counts, as for every reader
        at += 8 + -(-length // 8) * 8
    return HeaderLayout(start, at, found, backing, nbytes if backing else 0)
