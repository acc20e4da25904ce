"""The snapshot table: which internal snapshots an image has, as frozen values and back.

Stands on the *Snapshots* section of QEMU's ``docs/interop/qcow2.txt``. All numbers are big-endian. Offsets and sizes
are bytes. A pure codec over a reader of bytes: any input is read or refused with QEMU's words.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.driver.snapshots import SnapshotInfo
from blockio.errors import BlockError, CorruptImage, LimitExceeded

if TYPE_CHECKING:
    from blockio.types import Limits

__all__ = ["MAX_EXTRA", "MAX_TABLE_BYTES", "NO_ICOUNT", "SnapshotEntry", "encode_snapshots", "parse_snapshots"]

Reader = Callable[[int, int], Awaitable[bytearray]]

_FIXED: Final = struct.Struct(">QIHHIIQII")
_EXTRA: Final = struct.Struct(">QQQ")
MAX_EXTRA: Final = 1024
"""How much extra data an entry may have; QEMU's own bound, as is the next."""
MAX_TABLE_BYTES: Final = 1024 * 65536
_MAX_NAME: Final = 0xFFFF
NO_ICOUNT: Final = (1 << 64) - 1
_INT64_MAX: Final = (1 << 63) - 1


class SnapshotEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the table. Strings are UTF-8 with undecodable bytes as surrogates, as file names are.

    They end before their first NUL byte.
    """

    id: str
    name: str
    l1_table_offset: int
    l1_size: int
    """Entries of the snapshot's L1 table."""
    date_sec: int = 0
    date_nsec: int = 0
    vm_clock_nsec: int = 0
    vm_state_size: int = 0
    disk_size: int = 0
    """As the entry says, or, where it does not, as long as the disk is."""
    icount: int = NO_ICOUNT
    extra_data_size: int = _EXTRA.size
    """How much extra data the entry has in the file; what is written has at least 24 bytes."""
    unknown_extra: bytes = b""
    """Extra data past what is known here, kept as it is."""

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"snapshot {self.id} ({self.name})"

    def info(self) -> SnapshotInfo:
        """What everybody may know of it."""
        return SnapshotInfo(
            id=self.id,
            name=self.name,
            vm_state_size=self.vm_state_size,
            date_sec=self.date_sec,
            date_nsec=self.date_nsec,
            vm_clock_nsec=self.vm_clock_nsec,
            icount=None if self.icount == NO_ICOUNT else self.icount,
            disk_size=self.disk_size,
        )


async def parse_snapshots(
    read: Reader,
    offset: int,
    count: int,
    cluster_size: int,
    trust: Limits,
    *,
    disk_size: int = 0,
    mend: Callable[[str, int], object] | None = None,
) -> tuple[list[SnapshotEntry], int]:
    """The *count* entries of the snapshot table at *offset*, and the table's size.

    *disk_size* is what entries without one get. With *mend*, as a repair reads, too much extra data is cut and too many
    entries are left out; *mend* is told of each such thing, and how many mistakes it is. Else CorruptImage or
    LimitExceeded with QEMU's words; ``hint`` says how to get rid of them.
    """
    if count > trust.max_snapshots:
        more = count - trust.max_snapshots
        if mend is None:
            raise LimitExceeded("snapshot table too large", hint=_force(f"all {more} overhanging snapshots"))
        mend(f"Discarding {more} overhanging snapshots", more)
        count = trust.max_snapshots
    if offset % cluster_size or offset > _INT64_MAX:
        raise CorruptImage("snapshot table offset invalid", errno.EINVAL)
    entries: list[SnapshotEntry] = []
    at = end = offset
    for index in range(count):
        # L1 offset and size, lengths of ID and name, date, VM clock, VM state size, size of the extra data; then the
        # extra data, the ID, the name and padding to a multiple of 8.
        start = at
        fixed = _FIXED.unpack(await read(at, _FIXED.size))
        l1_offset, l1_size, id_size, name_size, date_sec, date_nsec, clock, state_size, extra_size = fixed
        kept = min(extra_size, MAX_EXTRA)
        if extra_size > MAX_EXTRA:
            if mend is None:
                message = f"Too much extra metadata in snapshot table entry {index}"
                raise LimitExceeded(message, hint=_force("this extra metadata"))
            found = f"too much extra metadata in snapshot table entry {index} ({extra_size} > {MAX_EXTRA})"
            mend(f"Discarding {found}", 1)
        at += _FIXED.size
        extra = bytes(await read(at, kept))
        at += extra_size
        if at + id_size + name_size - offset > MAX_TABLE_BYTES:
            if mend is None:
                left = f"all {count - index} overhanging snapshots"
                raise LimitExceeded("snapshot table too large", hint=_force(left))
            mend(f"Discarding {count - index} overhanging snapshots (snapshot table is too big)", count - index)
            end = start
            break
        names = bytes(await read(at, id_size + name_size))
        at += id_size + name_size
        known = extra.ljust(_EXTRA.size, b"\0")
        large, size, icount = _EXTRA.unpack_from(known)
        entries.append(
            SnapshotEntry(
                id=_text(names[:id_size]),
                name=_text(names[id_size:]),
                l1_table_offset=l1_offset,
                l1_size=l1_size,
                date_sec=date_sec,
                date_nsec=date_nsec,
                vm_clock_nsec=clock,
                vm_state_size=large if len(extra) >= 8 else state_size,
                disk_size=size if len(extra) >= 16 else disk_size,
                icount=icount if len(extra) >= 24 else NO_ICOUNT,
                extra_data_size=extra_size,
                unknown_extra=extra[_EXTRA.size :],
            )
        )
        end = at
        at = -(-at // 8) * 8
    return entries, end - offset


def _force(what: str) -> str:
    return f"You can force-remove {what} with qemu-img check -r all"


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")  # where C's strings end


def encode_snapshots(entries: Sequence[SnapshotEntry]) -> bytes:
    """The table as it is written. BlockError EINVAL for a name that has no room, EFBIG for too large a table."""
    table = bytearray()
    for entry in entries:
        table.extend(bytes(-len(table) % 8))
        names = [text.encode("utf-8", "surrogateescape") for text in (entry.id, entry.name)]
        if max(map(len, names)) > _MAX_NAME:
            raise BlockError("The snapshot's name is too long", errno.EINVAL)
        extra = _EXTRA.pack(entry.vm_state_size, entry.disk_size, entry.icount) + entry.unknown_extra
        table += _FIXED.pack(
            entry.l1_table_offset,
            entry.l1_size,
            len(names[0]),
            len(names[1]),
            entry.date_sec,
            entry.date_nsec,
            entry.vm_clock_nsec,
            entry.vm_state_size & 0xFFFFFFFF,
            len(extra),
        )
        table += extra + names[0] + names[1]
    if len(table) > MAX_TABLE_BYTES:
        raise BlockError(errno=errno.EFBIG)
    return bytes(table)
