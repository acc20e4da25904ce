"""Persistent bitmaps as they stand in the image: the directory, the tables, and where the header names them.

Stands on the *Bitmaps* section of QEMU's ``docs/interop/qcow2.txt``. Pure: bytes to frozen values and back; any input
decodes or raises CorruptImage with QEMU's words. Offsets and sizes are bytes.
"""

from __future__ import annotations

import errno
import struct
from array import array
from collections.abc import Iterable, Sequence
from enum import IntFlag
from typing import Final

import msgspec

from blockio.errors import BlockError, CorruptImage
from blockio_drivers.qcow2.tables import BITMAP_TABLE_OFFSET_MASK

__all__ = [
    "ALL_ONES",
    "MAX_BITMAPS",
    "BitmapFlag",
    "DirectoryEntry",
    "check_constraints",
    "check_directory_size",
    "data_clusters",
    "decode_directory",
    "encode_directory",
    "persistent_size",
    "table_is_sound",
]

ALL_ONES: Final = 1
"""A table entry without a cluster: 0 stands for bits that are all clear, this for bits that are all set."""
MAX_BITMAPS: Final = 65535
_MAX_NAME: Final = 1023
_MIN_GRANULARITY_BITS: Final = 9
_MAX_GRANULARITY_BITS: Final = 31
_MAX_TABLE_ENTRIES: Final = 0x8000000
_MAX_PHYSICAL: Final = 0x20000000
"""The most bytes that the data of one bitmap takes."""
_KNOWN_FLAGS: Final = 3
_DIRTY_TRACKING: Final = 1
_ENTRY: Final = struct.Struct(">QIIBBHI")
_MAX_DIRECTORY: Final = MAX_BITMAPS * (_ENTRY.size + _MAX_NAME)


class BitmapFlag(IntFlag):
    """The flags of a directory entry that QEMU knows; it refuses others."""

    IN_USE = 1
    """The data is not to be believed: a writer has the bitmap in memory, or did not come to save it."""
    AUTO = 2
    """Writes are to be recorded whenever the image is open for writing."""


class DirectoryEntry(msgspec.Struct, frozen=True):
    """One bitmap of the directory."""

    name: str
    """UTF-8, undecodable bytes as surrogates."""
    granularity_bits: int
    flags: int
    table_offset: int
    table_size: int
    """Entries of the table: one for each cluster of bits."""

    @property
    def in_use(self) -> bool:
        """Whether the data is not to be believed."""
        return bool(self.flags & BitmapFlag.IN_USE)

    def marked(self) -> DirectoryEntry:
        """The same, in use."""
        return msgspec.structs.replace(self, flags=self.flags | BitmapFlag.IN_USE)


def data_clusters(disk_size: int, granularity_bits: int, cluster_size: int) -> int:
    """How many clusters the bits of a disk of *disk_size* bytes fill."""
    return -(-_bitmap_bytes(disk_size, granularity_bits) // cluster_size)


def _bitmap_bytes(disk_size: int, granularity_bits: int) -> int:
    granules = (disk_size + (1 << granularity_bits) - 1) >> granularity_bits
    return (granules + 7) >> 3


def _raw_name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _entry_bytes(name: str) -> int:
    return -(-(_ENTRY.size + len(_raw_name(name))) // 8) * 8


def check_constraints(name: str, granularity: int, disk_size: int, cluster_size: int) -> None:
    """Raise BlockError (EINVAL) where an image cannot hold such a bitmap."""
    bits = granularity.bit_length() - 1
    if bits > _MAX_GRANULARITY_BITS:
        problem = f"Granularity exceeds maximum ({1 << _MAX_GRANULARITY_BITS} bytes)"
    elif bits < _MIN_GRANULARITY_BITS:
        problem = f"Granularity is under minimum ({1 << _MIN_GRANULARITY_BITS} bytes)"
    elif len(_raw_name(name)) > _MAX_NAME:
        problem = f"Name length exceeds maximum ({_MAX_NAME} characters)"
    else:
        nbytes = _bitmap_bytes(disk_size, bits)
        if nbytes <= _MAX_PHYSICAL and nbytes <= _MAX_TABLE_ENTRIES * cluster_size:
            return
        problem = "Too much space will be occupied by the bitmap. Use larger granularity"
    raise BlockError(problem, errno.EINVAL)


def check_directory_size(names: Iterable[str]) -> None:
    """Raise BlockError (EFBIG) where a directory cannot hold bitmaps of all these *names*."""
    count = nbytes = 0
    for name in names:
        count += 1
        nbytes += _entry_bytes(name)
    if count > MAX_BITMAPS:
        raise BlockError("Maximum number of persistent bitmaps is already reached", errno.EFBIG)
    if nbytes > _MAX_DIRECTORY:
        raise BlockError("Not enough space in the bitmap directory", errno.EFBIG)


def decode_directory(data: bytes, count: int, cluster_size: int, disk_size: int) -> list[DirectoryEntry]:
    """The *count* bitmaps of a directory. CorruptImage (EINVAL) where it is none, or holds what QEMU does not take."""
    if not data:
        raise _corrupt("Requested bitmap directory size is zero")
    entries: list[DirectoryEntry] = []
    at = 0
    while at < len(data):
        if len(data) - at < _ENTRY.size:
            raise _corrupt("Broken bitmap directory")
        if len(entries) == count:
            raise _corrupt("More bitmaps found than specified in header extension")
        offset, size, flags, kind, granularity_bits, name_size, extra = _ENTRY.unpack_from(data, at)
        name_at = at + _ENTRY.size + extra
        at = -(-(name_at + name_size) // 8) * 8
        if at > len(data):
            raise _corrupt("Broken bitmap directory")
        if extra:
            raise _corrupt("Bitmap extra data is not supported")
        name = data[name_at : name_at + name_size].decode("utf-8", "surrogateescape")
        entry = DirectoryEntry(name, granularity_bits, flags, offset, size)
        if kind != _DIRTY_TRACKING or not _satisfies_constraints(entry, name_size, cluster_size, disk_size):
            raise _corrupt(f"Bitmap '{name}' doesn't satisfy the constraints")
        entries.append(entry)
    if len(entries) != count:
        raise _corrupt("Less bitmaps found than specified in header extension")
    return entries


def _corrupt(message: str) -> CorruptImage:
    return CorruptImage(message, errno.EINVAL)


def _satisfies_constraints(entry: DirectoryEntry, name_size: int, cluster_size: int, disk_size: int) -> bool:
    if not (
        0 < entry.table_size <= _MAX_TABLE_ENTRIES
        and entry.table_size * cluster_size <= _MAX_PHYSICAL
        and entry.table_offset
        and entry.table_offset % cluster_size == 0
        and entry.table_offset < 1 << 63
        and _MIN_GRANULARITY_BITS <= entry.granularity_bits <= _MAX_GRANULARITY_BITS
        and not entry.flags & ~_KNOWN_FLAGS
        and name_size <= _MAX_NAME
    ):
        return False
    # A writer that changed the disk's length may not have come to write the table that goes with it.
    return entry.in_use or entry.table_size >= data_clusters(disk_size, entry.granularity_bits, cluster_size)


def encode_directory(entries: Sequence[DirectoryEntry]) -> bytes:
    """The directory of *entries*. An entry lies at a multiple of 8, so that its flags never cross a sector's end."""
    parts = []
    for entry in entries:
        raw = _raw_name(entry.name)
        fields = _ENTRY.pack(
            entry.table_offset, entry.table_size, entry.flags, _DIRTY_TRACKING, entry.granularity_bits, len(raw), 0
        )
        parts.append((fields + raw).ljust(_entry_bytes(entry.name), b"\0"))
    return b"".join(parts)


def table_is_sound(table: array[int], cluster_mask: int) -> bool:
    """Whether a bitmap *table* has no reserved bits set, and names clusters only."""
    for entry in table:
        place = entry & BITMAP_TABLE_OFFSET_MASK
        if entry & ~BITMAP_TABLE_OFFSET_MASK & ~(0 if place else ALL_ONES) or place & cluster_mask:
            return False
    return True


def persistent_size(bitmaps: Iterable[tuple[str, int]], disk_size: int, cluster_size: int) -> int:
    """How many bytes (name, granularity) *bitmaps* take at most in an image, as ``qemu-img measure`` counts them."""
    total = directory = 0
    for name, granularity in bitmaps:
        clusters = data_clusters(disk_size, granularity.bit_length() - 1, cluster_size)
        total += (clusters + -(-clusters * 8 // cluster_size)) * cluster_size
        directory += _entry_bytes(name)
    return total + -(-directory // cluster_size) * cluster_size
