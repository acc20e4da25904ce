"""What a check needs of snapshot tables: which clusters they take.

Stands on the *Snapshots* section of QEMU's ``docs/interop/qcow2.txt``. Offsets and sizes are bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.errors import CorruptImage, LimitExceeded

if TYPE_CHECKING:
    from blockio.types import Limits

__all__ = ["Area", "SnapshotEntry", "parse_snapshots"]

_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")
_MAX_EXTRA: Final = 1024
_MAX_SNAPSHOT_TABLE: Final = 1024 * 65536

Reader = Callable[[int, int], Awaitable[bytearray]]


class Area(NamedTuple):
    """*nbytes* from *offset*."""

    offset: int
    nbytes: int


class SnapshotEntry(NamedTuple):
    """As much of a snapshot table entry as says where things are, and whose."""

    id: str
    name: str
    l1_table_offset: int
    l1_size: int
    extra_data_size: int


async def parse_snapshots(
    read: Reader, offset: int, count: int, cluster_size: int, trust: Limits
) -> tuple[list[SnapshotEntry], int]:
    """The *count* entries of the snapshot table at *offset*, and the table's size.

    Raises CorruptImage or LimitExceeded with QEMU's words where it is no table.
    """
    if count > trust.max_snapshots:
        raise LimitExceeded("snapshot table too large")
    if offset % cluster_size or offset >= 1 << 63:
        raise CorruptImage("snapshot table offset invalid", errno.EINVAL)
    entries = []
    at = offset
    for index in range(count):
        # L1 offset and size, lengths of ID and name, date, VM clock, VM state size, size of the extra data; then the
        # extra data, the ID, the name and padding to a multiple of 8.
        fields = _SNAPSHOT.unpack(await read(at, _SNAPSHOT.size))
        l1_offset, l1_size, id_size, name_size, extra = fields[0], fields[1], fields[2], fields[3], fields[8]
        if extra > _MAX_EXTRA:
            raise CorruptImage(f"Too much extra metadata in snapshot table entry {index}", errno.EINVAL)
        at += _SNAPSHOT.size + extra
        names = (await read(at, id_size + name_size)).decode("utf-8", "surrogateescape")
        raw = names.encode("utf-8", "surrogateescape")
        entries.append(SnapshotEntry(_text(raw[:id_size]), _text(raw[id_size:]), l1_offset, l1_size, extra))
        at += id_size + name_size
        if at - offset > _MAX_SNAPSHOT_TABLE:
            raise LimitExceeded("snapshot table too large")
        end = at
        at = -(-at // 8) * 8
    return entries, (end - offset if count else 0)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
