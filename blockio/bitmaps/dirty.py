"""One dirty bitmap (QEMU's BdrvDirtyBitmap over its HBitmap)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import IntFlag
from typing import Final

import msgspec

from blockio.bitmaps.bits import SparseBits
from blockio.errors import BlockError

__all__ = ["MAX_NAME", "MIN_GRANULARITY", "BitmapUse", "DirtyBitmap", "DirtyBitmapInfo"]

MAX_NAME: Final = 1023
"""The longest name, in bytes of UTF-8."""
MIN_GRANULARITY: Final = 512
_ALIGN_BITS: Final = 64
"""Serialised bitmaps are cut at multiples of so many bits, so that no two parts share a word."""


class BitmapUse(IntFlag):
    """What speaks against using a bitmap (QEMU's BDRV_BITMAP bits); see ``DirtyBitmap.check``."""

    BUSY = 1
    READONLY = 2
    INCONSISTENT = 4
    DEFAULT = 7
    ALLOW_RO = 5


class DirtyBitmapInfo(msgspec.Struct, frozen=True):
    """What ``query_dirty_bitmaps`` tells of one bitmap (QEMU's BlockDirtyInfo)."""

    name: str | None
    """None for one that nobody named."""
    count: int
    """How many bytes are dirty, in whole granules."""
    granularity: int
    recording: bool
    """Writes are recorded in it, or in its successor."""
    busy: bool
    persistent: bool
    inconsistent: bool


class DirtyBitmap:
    """Which granules of a disk of ``size`` bytes are dirty.

    Offsets and lengths are bytes. ``granularity`` is a power of two of at least 512; a granule is dirty as a whole.
    Marking is conservative: ``set`` dirties every granule it touches, and ``reset`` takes whole ones only.
    Made by ``DirtyBitmaps.create``, or alone for a bitmap that no node marks.
    """

    __slots__ = (
        "_bits",
        "_shift",
        "busy",
        "changes",
        "disabled",
        "inconsistent",
        "name",
        "persistent",
        "readonly",
        "size",
        "skip_store",
        "successor",
    )

    def __init__(self, size: int, granularity: int, name: str | None = None) -> None:
        if granularity < MIN_GRANULARITY or granularity & (granularity - 1):
            raise ValueError(f"a granularity of {granularity} bytes")
        self.size = size
        self.name = name
        self._shift = granularity.bit_length() - 1
        self._bits = SparseBits(-(-size >> self._shift))
        self.changes = 0
        """Grows with every change of the bits that somebody asked for, whether or not it made a difference."""
        self.disabled = False
        """Writes of its node are not recorded."""
        self.busy = False
        """An operation (a backup, say) has it; nobody else may change or remove it."""
        self.readonly = False
        """What is stored of it in the image may not become untrue: neither writes nor users change it."""
        self.inconsistent = False
        """The image says that what it stored is not to be believed: it can only be removed."""
        self.persistent = False
        """The image shall hold it when it is closed."""
        self.skip_store = False
        """It is not stored with the others: it went elsewhere (migration)."""
        self.successor: DirtyBitmap | None = None
        """Records writes in its stead while an operation has it; see ``DirtyBitmaps.create_successor``."""

    def __repr__(self) -> str:
        return f"<DirtyBitmap {self.name!r} {self.size} bytes by {self.granularity}, {self.count} dirty>"

    # -- facts

    @property
    def granularity(self) -> int:
        """Bytes that one bit stands for."""
        return 1 << self._shift

    @property
    def count(self) -> int:
        """How many bytes are dirty, in whole granules (``bdrv_get_dirty_count``)."""
        return self._bits.count << self._shift

    @property
    def enabled(self) -> bool:
        """Whether writes of its node are recorded in it."""
        return not self.disabled

    @property
    def recording(self) -> bool:
        """Whether writes are recorded in it or its successor."""
        return not self.disabled or (self.successor is not None and not self.successor.disabled)

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return self._bits.nbytes

    def info(self) -> DirtyBitmapInfo:
        """A snapshot of what there is to tell."""
        return DirtyBitmapInfo(
            self.name, self.count, self.granularity, self.recording, self.busy, self.persistent, self.inconsistent
        )

    def check(self, refuse: BitmapUse = BitmapUse.DEFAULT) -> None:
        """Raise BlockError (EPERM) where one of *refuse* holds (``bdrv_dirty_bitmap_check``)."""
        if refuse & BitmapUse.BUSY and self.busy:
            raise BlockError(
                f"Bitmap '{self.name}' is currently in use by another operation and cannot be used", errno.EPERM
            )
        if refuse & BitmapUse.READONLY and self.readonly:
            raise BlockError(f"Bitmap '{self.name}' is readonly and cannot be modified", errno.EPERM)
        if refuse & BitmapUse.INCONSISTENT and self.inconsistent:
            raise BlockError(
                f"Bitmap '{self.name}' is inconsistent and cannot be used",
                errno.EPERM,
                hint="Try block-dirty-bitmap-remove to delete this bitmap from disk",
            )

    # -- marking

    def _granules(self, offset: int, nbytes: int) -> tuple[int, int]:
        """The granules that *nbytes* from *offset* touch. ValueError where they do not lie on the disk."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise ValueError(f"{nbytes} bytes at {offset} of {self.size}")
        return offset >> self._shift, -(-(offset + nbytes) >> self._shift) if nbytes else offset >> self._shift

    def set(self, offset: int, nbytes: int) -> None:
        """Every granule that *nbytes* from *offset* touch is dirty now. ValueError outside the disk."""
        self.changes += 1
        self._bits.set(*self._granules(offset, nbytes))

    def reset(self, offset: int, nbytes: int) -> None:
        """The granules are clean now. ValueError for a part of a granule: its rest may be dirty."""
        end = offset + nbytes
        if offset & (self.granularity - 1) or (end & (self.granularity - 1) and end != self.size):
            raise ValueError(f"{nbytes} bytes at {offset} are not whole granules of {self.granularity}")
        self.changes += 1
        self._bits.reset(*self._granules(offset, nbytes))

    def truncate(self, size: int) -> None:
        """The disk is *size* bytes long now; what it grows by is clean."""
        self.changes += 1
        self._bits.resize(-(-size >> self._shift))
        self.size = size

    # -- looking

    def get(self, offset: int) -> bool:
        """Whether the granule that *offset* lies in is dirty."""
        return 0 <= offset < self.size and self._bits[offset >> self._shift]

    def next_dirty(self, offset: int, nbytes: int) -> int | None:
        """The first dirty byte of *nbytes* from *offset* on, or None."""
        return self._next(self._bits.next_set(*self._clipped(offset, nbytes)), offset)

    def next_zero(self, offset: int, nbytes: int) -> int | None:
        """The first clean byte of *nbytes* from *offset* on, or None."""
        return self._next(self._bits.next_clear(*self._clipped(offset, nbytes)), offset)

    def _clipped(self, offset: int, nbytes: int) -> tuple[int, int]:
        if offset < 0 or nbytes < 0:
            raise ValueError(f"{nbytes} bytes at {offset}")
        return offset >> self._shift, -(-min(offset + nbytes, self.size) >> self._shift)

    def _next(self, found: int | None, offset: int) -> int | None:
        return None if found is None else max(found << self._shift, offset)

    def next_dirty_area(self, start: int, end: int, max_dirty_count: int | None = None) -> tuple[int, int] | None:
        """(offset, length) of the first dirty area in *start* .. *end*, at most *max_dirty_count* long, or None."""
        if max_dirty_count is not None and max_dirty_count < 1:
            raise ValueError(f"an area of at most {max_dirty_count} bytes")
        end = min(end, self.size)
        first = self.next_dirty(start, max(end - start, 0))
        if first is None:
            return None
        if max_dirty_count is not None:
            end = min(end, first + max_dirty_count)
        stop = self.next_zero(first, end - first)
        return first, (end if stop is None else stop) - first

    def status(self, offset: int, nbytes: int) -> tuple[bool, int]:
        """(dirty, length): what the first *length* of *nbytes* from *offset* on are. ValueError outside the disk."""
        if nbytes < 1 or offset < 0 or offset + nbytes > self.size:
            raise ValueError(f"{nbytes} bytes at {offset} of {self.size}")
        dirty = self.get(offset)
        other = self.next_zero(offset, nbytes) if dirty else self.next_dirty(offset, nbytes)
        return dirty, nbytes if other is None else other - offset

    def areas(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of each dirty area, in order. Changes made meanwhile ahead of the last one are seen."""
        for start, stop in self._bits.runs():
            offset = start << self._shift
            yield offset, min(stop << self._shift, self.size) - offset

    def __iter__(self) -> Iterator[int]:
        """The offset of each dirty granule, in order (``bdrv_dirty_iter_next``)."""
        for start, stop in self._bits.runs():
            yield from range(start << self._shift, stop << self._shift, self.granularity)

    # -- enabling

    def enable(self) -> None:
        """Record writes from now on."""
        self.disabled = False

    def disable(self) -> None:
        """Record no writes."""
        self.disabled = True

    # -- whole bitmaps

    def clear(self) -> SparseBits:
        """All is clean; the answer is what was dirty, for ``restore``. Raises as ``check``."""
        self.check()
        self.changes += 1
        backup, self._bits = self._bits, SparseBits(self._bits.size)
        return backup

    def restore(self, backup: SparseBits) -> None:
        """What is dirty is what ``clear`` or ``merge`` gave out. Raises as ``check``; ValueError for another size."""
        self.check()
        if backup.size != self._bits.size:
            raise ValueError(f"{backup.size} bits for a bitmap of {self._bits.size}")
        self.changes += 1
        self._bits = backup

    def merge(self, source: DirtyBitmap) -> SparseBits:
        """What *source* has dirty is dirty here too; the answer is what was dirty before, for ``restore``.

        The granularities may differ; the sizes may not: BlockError (EINVAL), and as ``check`` for either of them.
        """
        self.check()
        source.check(BitmapUse.ALLOW_RO)
        if source.size != self.size:
            raise BlockError(
                f"Bitmaps are of different sizes (destination size is {self.size}, source size is {source.size}) and "
                "can't be merged",
                errno.EINVAL,
            )
        return self._merge(source)

    def _merge(self, source: DirtyBitmap) -> SparseBits:
        backup = self._bits.copy()
        self.changes += 1
        if source._shift == self._shift:
            self._bits.update(source._bits)
        else:
            for offset, nbytes in source.areas():
                self._bits.set(*self._granules(offset, nbytes))
        return backup

    # -- as bytes

    def serialization_align(self) -> int:
        """Parts begin and end at multiples of so many bytes of the disk, or at its end."""
        return _ALIGN_BITS << self._shift

    def serialization_coverage(self, nbytes: int) -> int:
        """How many bytes of the disk *nbytes* of a serialised bitmap speak of."""
        return (nbytes * 8) << self._shift

    def serialization_size(self, offset: int, nbytes: int) -> int:
        """How long the part for *nbytes* from *offset* on is: whole 64-bit words."""
        start, stop = self._part(offset, nbytes)
        return -(-(stop - start) // _ALIGN_BITS) * (_ALIGN_BITS // 8)

    def _part(self, offset: int, nbytes: int) -> tuple[int, int]:
        align = self.serialization_align()
        if offset % align or (nbytes % align and offset + nbytes != self.size):
            raise ValueError(f"{nbytes} bytes at {offset} are not aligned to {align}")
        return self._granules(offset, nbytes)

    def serialize_part(self, offset: int, nbytes: int) -> bytes:
        """The bits for *nbytes* from *offset* on: the lowest bit of a byte comes first. ValueError: not aligned.

        Whole 64-bit words, as QEMU's migration and image formats have them on little-endian machines.
        """
        start, stop = self._part(offset, nbytes)
        return self._bits.to_bytes(start, stop).ljust(self.serialization_size(offset, nbytes), b"\0")

    def deserialize_part(self, data: bytes | bytearray | memoryview, offset: int, nbytes: int) -> None:
        """Make the part what *data*, from ``serialize_part``, says. ValueError where it is too short."""
        start, stop = self._part(offset, nbytes)
        if len(data) * 8 < stop - start:
            raise ValueError(f"{len(data)} bytes are too few for {stop - start} bits")
        self.changes += 1
        self._bits.from_bytes(start, data[: (stop - start + 7) >> 3])

    def deserialize_zeroes(self, offset: int, nbytes: int) -> None:
        """Make the part clean."""
        self.changes += 1
        self._bits.reset(*self._part(offset, nbytes))

    def deserialize_ones(self, offset: int, nbytes: int) -> None:
        """Make the part dirty."""
        self.changes += 1
        self._bits.set(*self._part(offset, nbytes))
