"""Replacing the whole header of an image in steps that no crash can tear.

A header takes more than one 512-byte sector, and only a write inside a sector is certain to be done whole or not at
all. So the first sector alone decides which header the image has: what lies behind it is written where the header in
force does not look, and then the first sector leads there. Where both headers want the same place, the new one is shown
from further behind in its cluster first, and then moves into place. Pure: from the bytes of the cluster to writes.
"""

from __future__ import annotations

import struct
from typing import Final

from blockio_drivers.qcow2.bitmap_header import HeaderWrite, header_layout
from blockio_drivers.qcow2.extensions import FEATURE_NAMES

__all__ = ["plan_header"]

_SECTOR: Final = 512
_BACKING_FIELDS: Final = 8
_EXTENSION: Final = 8
_NO_NAME: Final = 8
"""A feature name table whose first name is empty ends there: so much of it must lie in the first sector."""


def plan_header(area: bytes, new: bytes) -> list[HeaderWrite]:
    """The steps after which *new* is the header in a cluster that holds *area* now; none where it is already.

    Each is stable before the next begins. A crash at any moment leaves an image that has the old header or the new one.
    Only where a cluster has no room for two such headers (below 4 KiB, with a long name) one step writes it all.
    """
    old_used, used = _used(area), _used(new.ljust(len(area), b"\0"))
    size = max(old_used, used, _SECTOR)
    old, new = area[:size], new.ljust(size, b"\0")
    if old == new:
        return []
    head, tail = HeaderWrite(0, new[:_SECTOR]), HeaderWrite(_SECTOR, new[_SECTOR:])
    if old[_SECTOR:] == tail.data:
        return [head]
    if old[_SECTOR:old_used] == new[_SECTOR:old_used]:
        return [tail, head]
    if used <= _SECTOR:
        return [head, tail]
    start = header_layout(new).start
    aside = -(-size // _SECTOR) * _SECTOR
    if aside + used - start > len(area) or start + _EXTENSION + _NO_NAME > _SECTOR:
        return [HeaderWrite(0, new)]
    return [
        HeaderWrite(aside, new[start:used]),
        HeaderWrite(0, _leading_aside(head.data, start, aside)),
        tail,
        head,
        HeaderWrite(aside, bytes(used - start)),
    ]


def _leading_aside(head: bytes, start: int, aside: int) -> bytes:
    """The first sector of a header whose extensions and name lie at *aside*, behind a name table that names nothing."""
    sector = bytearray(head)
    backing, nbytes = struct.unpack_from(">QI", head, _BACKING_FIELDS)
    if backing:
        struct.pack_into(">QI", sector, _BACKING_FIELDS, backing - start + aside, nbytes)
    struct.pack_into(">II", sector, start, FEATURE_NAMES, aside - start - _EXTENSION)
    sector[start + _EXTENSION :] = bytes(_SECTOR - start - _EXTENSION)
    return bytes(sector)


def _used(area: bytes) -> int:
    """How far readers of the header in *area* look."""
    layout = header_layout(area)
    return min(max(layout.end + _EXTENSION, layout.name + layout.name_bytes), len(area))
