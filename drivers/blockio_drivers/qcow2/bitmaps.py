"""Persistent dirty bitmaps: loaded when the image is opened, stored when it is closed.

Between the two an image on disk says of each of its bitmaps that it is *in use*: not to be believed. Invariants:

* **No bitmap on disk claims to be right while a write may make it wrong.** ``begin`` marks all of them in use, stable,
  before the first change of the guest's data; ``store`` runs when no request is under way, and after it ``begin`` must
  run again before the next change. So a crash leaves a bitmap in use, or right.
* A bitmap in memory that is persistent may be changed only after ``begin``: until then, and after ``store``, it is
  ``readonly``.
* ``entries`` is the directory as it stands in the image. It is changed by writing a new one, complete and stable,
  before the header turns to it (``bitmap_header``); only then are the clusters of the old one given back. Only the
  in-use flags are written in place: each lies in one sector.
* ``_doubtful`` are directories that the header may lead to although the write that turned it there failed: ``begin``
  marks them as well, and nothing of them is given back.
"""

from __future__ import annotations

import asyncio
import errno
import os
from array import array
from typing import TYPE_CHECKING, Any, Final

from blockio.errors import BlockError, CorruptImage, LimitExceeded, ReadOnly, UnsupportedFeature, message_of
from blockio.types import HostOffset
from blockio_drivers.qcow2.areas import Area
from blockio_drivers.qcow2.bitmap_directory import (
    ALL_ONES,
    BitmapFlag,
    DirectoryEntry,
    check_constraints,
    check_directory_size,
    data_clusters,
    decode_directory,
    encode_directory,
    table_is_sound,
)
from blockio_drivers.qcow2.extensions import BitmapsExtension
from blockio_drivers.qcow2.header import Autoclear
from blockio_drivers.qcow2.image import Corruption, finish
from blockio_drivers.qcow2.tables import BITMAP_TABLE_OFFSET_MASK, table_from_bytes, table_to_bytes

if TYPE_CHECKING:
    from blockio.bitmaps.dirty import DirtyBitmap
    from blockio.bitmaps.owner import DirtyBitmaps
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image

__all__ = ["PersistentBitmaps"]

_STEP: Final = 1 << 20
"""How much of a bitmap's data is read or written at once."""
_STALE: Final = "a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent"
_STALE_V2: Final = (
    "This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap "
    "support; so now they must all be considered inconsistent"
)
_FLAG_NAMES: Final = ((BitmapFlag.IN_USE, "in-use"), (BitmapFlag.AUTO, "auto"))


class PersistentBitmaps:
    """The bitmaps of one open image; see the module's docstring for what is kept true."""

    def __init__(self, image: Image, allocator: Allocator) -> None:
        self._image = image
        self._allocator = allocator
        self.entries: list[DirectoryEntry] = []
        self._place = Area(0, 0)
        """Where the directory of ``entries`` lies."""
        self._doubtful: list[tuple[int, list[DirectoryEntry]]] = []
        self.unsaved = False
        """``begin`` has run, and no ``store`` since has gone well: the image has nothing that is to be believed."""
        self._lock = asyncio.Lock()

    def change_loop(self) -> None:
        """A lock stays with the loop that first waited for it: a new one for a new loop. Nobody holds it now."""
        self._lock = asyncio.Lock()

    @property
    def _bitmaps(self) -> DirtyBitmaps:
        return self._image.host.dirty_bitmaps

    def info(self) -> list[dict[str, Any]]:
        """``bitmaps`` of ``info``: as the image has them, in the words of qemu-img."""
        return [
            {
                "flags": [name for flag, name in _FLAG_NAMES if entry.flags & flag],
                "name": entry.name,
                "granularity": 1 << entry.granularity_bits,
            }
            for entry in self.entries
        ]

    # -- loading

    async def load(self) -> None:
        """Make the node's bitmaps what the image has; they are read-only until ``begin``.

        Raises CorruptImage for a directory or table that is none, LimitExceeded where the bits would take more than
        ``Limits.max_bitmap_memory``, and any read error. Persistent bitmaps that were there before are gone in any
        case, but for those that an operation has.
        """
        for bitmap in self._bitmaps:
            if bitmap.persistent and not bitmap.busy:
                self._bitmaps.release(bitmap)
        found = self._image.header.bitmaps
        if self._image.header.stale_bitmaps:
            old = self._image.header.version < 3
            self._image.host.warn(
                _STALE_V2 if old else _STALE,
                "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.",
            )
        if found is None:
            return
        data = await self._image.read(found.directory_offset, found.directory_size)
        geometry = self._image.geometry
        self._place = Area(found.directory_offset, found.directory_size)
        self.entries = decode_directory(bytes(data), found.nb_bitmaps, geometry.cluster_size, self._image.length)
        memory = 0
        for entry in self.entries:
            if entry.in_use and self._bitmaps.find(entry.name) is not None:
                continue  # busy all the time: it is still the better one
            bitmap = self._bitmaps.create(self._image.length, 1 << entry.granularity_bits, entry.name)
            bitmap.persistent = bitmap.readonly = True
            bitmap.disabled = not entry.flags & BitmapFlag.AUTO
            if entry.in_use:
                bitmap.inconsistent = True
            else:
                memory += await self._load_bits(entry, bitmap, memory)

    async def _load_bits(self, entry: DirectoryEntry, bitmap: DirtyBitmap, memory: int) -> int:
        """Fill *bitmap*; the answer is how much memory it took, *memory* how much others took before."""
        geometry = self._image.geometry
        allowed = self._image.host.trust.max_bitmap_memory - memory
        spent = entry.table_size * 8
        if spent > allowed:
            raise LimitExceeded(f"Bitmap '{entry.name}' takes too much memory")
        table = await self._read_table(entry)
        if len(table) != data_clusters(bitmap.size, entry.granularity_bits, geometry.cluster_size):
            raise CorruptImage(
                f"Could not read bitmap '{entry.name}' from image: {os.strerror(errno.EINVAL)}", errno.EINVAL
            )
        file_length = self._image.file.length
        if entry.table_offset + len(table) * 8 > file_length or any(
            (place & BITMAP_TABLE_OFFSET_MASK) >= file_length for place in table
        ):
            # The file was cut off: what is missing must not pass for clean.
            bitmap.inconsistent = True
            return spent
        coverage = bitmap.serialization_coverage(geometry.cluster_size)
        index = 0
        while index < len(table):
            place = table[index]
            count = _run(table, index, geometry.cluster_size, _STEP >> geometry.cluster_bits)
            offset = index * coverage
            nbytes = min(count * coverage, bitmap.size - offset)
            if place & BITMAP_TABLE_OFFSET_MASK:
                data = await self._image.read(place, count << geometry.cluster_bits)
                bitmap.deserialize_part(data, offset, nbytes)
                if spent + bitmap.nbytes > allowed:
                    raise LimitExceeded(f"Bitmap '{entry.name}' takes too much memory")
            elif place & ALL_ONES:
                bitmap.deserialize_ones(offset, nbytes)
            index += count
        return spent + bitmap.nbytes

    async def _read_table(self, entry: DirectoryEntry) -> array[int]:
        table = table_from_bytes(await self._image.read(entry.table_offset, entry.table_size * 8))
        if not table_is_sound(table, self._image.geometry.cluster_mask):
            raise CorruptImage(
                f"Could not read bitmap_table table from image for bitmap '{entry.name}': {os.strerror(errno.EINVAL)}",
                errno.EINVAL,
            )
        return table

    # -- between loading and storing

    async def begin(self) -> None:
        """Before the first change of the image: nobody else shall believe its bitmaps from now on, until ``store``.

        Raises any I/O error: then nothing may be changed yet.
        """
        async with self._lock:
            if self._image.header.stale_bitmaps:
                await finish(self._turn_header(None))
            for offset, entries in self._doubtful:
                await self._mark(offset, entries)
            if not all(entry.in_use for entry in self.entries):
                await self._mark(self._place.offset, self.entries)
            await self._image.barrier()
            self._doubtful.clear()
            self.entries = [entry.marked() for entry in self.entries]
        self.unsaved = True
        for bitmap in self._bitmaps:
            if bitmap.persistent:
                bitmap.readonly = False

    async def _mark(self, offset: int, entries: list[DirectoryEntry]) -> None:
        payload = encode_directory([entry.marked() for entry in entries])
        self._image.guard.check(offset, len(payload), "bitmap directory")
        await self._image.write(offset, payload)

    def can_store(self, name: str, granularity: int) -> None:
        """Raise what speaks against one more persistent bitmap: UnsupportedFeature, BlockError EINVAL or EFBIG."""
        try:
            if self._image.header.version < 3:
                raise UnsupportedFeature("Cannot store dirty bitmaps in qcow2 v2 files")
            if not self._image.writable:
                raise ReadOnly("No write access")
            check_constraints(name, granularity, self._image.length, self._image.geometry.cluster_size)
            stored = {entry.name for entry in self.entries}
            stored.update(bitmap.name for bitmap in self._bitmaps if bitmap.persistent and bitmap.name is not None)
            check_directory_size([*stored, name])
        except BlockError as error:
            raise error.prefixed(
                f"Can't make bitmap '{name}' persistent in '{self._image.host.node_name}': "
            ) from error

    def refuse_resize(self, length: int) -> None:
        """Raise BlockError where a bitmap stands against *length* bytes: it could not follow, or not be stored."""
        for bitmap in self._bitmaps:
            if bitmap.persistent:
                bitmap.check()
                if bitmap.name is not None:
                    check_constraints(bitmap.name, bitmap.granularity, length, self._image.geometry.cluster_size)

    # -- storing

    async def store(self) -> None:
        """Write every persistent bitmap that is consistent into the image, and let the image believe them.

        No request is under way. From the call on they are read-only, and ``begin`` must run before the next change,
        also where this fails or is cancelled: the image then has its old bitmaps, in use, or the new ones. Raises
        BlockError for a bitmap that the image cannot hold, and any I/O error.
        """
        async with self._lock:
            stored: dict[str, DirtyBitmap] = {}
            for bitmap in self._bitmaps:
                if bitmap.persistent and bitmap.name is not None:
                    if not (bitmap.inconsistent or bitmap.readonly or bitmap.skip_store):
                        stored[bitmap.name] = bitmap
                    bitmap.readonly = True
            if stored:
                await self._store(stored)
            self.unsaved = False

    async def _store(self, stored: dict[str, DirtyBitmap]) -> None:
        cluster_size = self._image.geometry.cluster_size
        self._bitmaps.truncate(self._image.length)
        for name, bitmap in stored.items():
            try:
                check_constraints(name, bitmap.granularity, self._image.length, cluster_size)
            except BlockError as error:
                raise error.prefixed(f"Bitmap '{name}' doesn't satisfy the constraints: ") from error
        entries = {entry.name: entry for entry in self.entries}
        check_directory_size({*entries, *stored})
        replaced = [entries[name] for name in stored if name in entries]
        room = _Clusters(self._image, self._allocator)
        try:
            for name, bitmap in stored.items():
                entries[name] = await self._write_bitmap(name, bitmap, room)
            extension = await self._write_directory(list(entries.values()), room)
        except BaseException:
            room.give_back()
            raise
        await finish(self._turn(extension, list(entries.values()), replaced))

    async def _write_bitmap(self, name: str, bitmap: DirtyBitmap, room: _Clusters) -> DirectoryEntry:
        """The data and the table of *bitmap*, in new clusters."""
        geometry = self._image.geometry
        bits = bitmap.granularity.bit_length() - 1
        table = array("Q", bytes(8 * data_clusters(bitmap.size, bits, geometry.cluster_size)))
        coverage = bitmap.serialization_coverage(geometry.cluster_size)
        index = 0
        while True:
            at = bitmap.next_dirty(index * coverage, max(bitmap.size - index * coverage, 0))
            if at is None:
                break
            index = at // coverage
            parts: list[bytes] = []
            first = index
            while index < len(table) and len(parts) << geometry.cluster_bits < _STEP:
                offset = index * coverage
                dirty, length = bitmap.status(offset, min(coverage, bitmap.size - offset))
                if length == min(coverage, bitmap.size - offset):
                    if parts or not dirty:
                        break
                    table[index] = ALL_ONES
                    first = index + 1
                else:
                    part = bitmap.serialize_part(offset, min(coverage, bitmap.size - offset))
                    parts.append(part.ljust(geometry.cluster_size, b"\0"))
                index += 1
            if parts:
                place = await room.take(len(parts), "bitmap")
                await self._image.write(place, b"".join(parts))
                for number in range(len(parts)):
                    table[first + number] = place + (number << geometry.cluster_bits)
        place = await room.take(geometry.clusters(len(table) * 8), "bitmap table")
        await self._image.write(place, room.padded(table_to_bytes(table)))
        flags = 0 if bitmap.disabled else int(BitmapFlag.AUTO)
        return DirectoryEntry(name, bits, flags, place, len(table))

    async def _write_directory(self, entries: list[DirectoryEntry], room: _Clusters) -> BitmapsExtension:
        """A directory of *entries* in new clusters, stable with all that it names; nothing leads to it yet."""
        payload = encode_directory(entries)
        place = await room.take(self._image.geometry.clusters(len(payload)), "bitmap directory")
        await self._image.write(place, room.padded(payload))
        await self._stable()
        return BitmapsExtension(len(entries), len(payload), HostOffset(place))

    async def _stable(self) -> None:
        """Refcounts that were raised, and what was written, are on stable storage."""
        if self._image.lazy:
            await self._image.mark_dirty()
        await self._allocator.write()
        await self._image.barrier()

    async def _turn(
        self, extension: BitmapsExtension | None, entries: list[DirectoryEntry], freed: list[DirectoryEntry]
    ) -> None:
        """Turn the header to a directory of *entries*, and give back the old one and the clusters of *freed*."""
        try:
            await self._turn_header(extension)
        except BaseException:
            # Whatever the file shows now, neither directory is given back.
            if extension is not None:
                self._doubtful.append((extension.directory_offset, entries))
            raise
        old, self.entries, self._place = self._place, entries, Area(0, 0)
        if extension is not None:
            self._place = Area(extension.directory_offset, extension.directory_size)
        room = _Clusters(self._image, self._allocator)
        if old.nbytes:
            room.note(old.offset, self._image.geometry.clusters(old.nbytes))
        for entry in freed:
            await self._note_clusters(entry, room)
        await room.free()

    async def _note_clusters(self, entry: DirectoryEntry, room: _Clusters) -> None:
        """The clusters of a bitmap that nothing names any more. What cannot be read stays allocated: a leak."""
        try:
            table = await self._read_table(entry)
        except OSError as error:
            self._image.host.report(f"Clusters of bitmap '{entry.name}' may be leaked: {message_of(error)}")
            return
        for place in table:
            if place & BITMAP_TABLE_OFFSET_MASK:
                room.note(place, 1)
        room.note(entry.table_offset, self._image.geometry.clusters(len(table) * 8))

    async def _turn_header(self, extension: BitmapsExtension | None) -> None:
        """Make *extension* the header's, in an order that shows the old one, the new one, or (rarely) none."""
        # Most images have none.
        from blockio_drivers.qcow2.bitmap_header import crosses, plan_bitmaps

        image = self._image
        others = image.header.autoclear & ~int(Autoclear.BITMAPS)
        if extension is not None and not image.header.autoclear & Autoclear.BITMAPS:
            await image.set_autoclear(others | Autoclear.BITMAPS)
        steps = plan_bitmaps(bytes(await image.read(0, image.geometry.cluster_size)), extension)
        for step in steps[:-1]:
            await image.write(step.offset, step.data)
            await image.barrier()
        if steps and crosses(steps[-1]):
            await image.set_autoclear(others)
            await image.set_bitmaps(*steps[-1], extension)
            await image.set_autoclear(others | Autoclear.BITMAPS)
            return
        if steps:
            await image.set_bitmaps(*steps[-1], extension)
        if extension is None and image.header.autoclear & Autoclear.BITMAPS:
            await image.set_autoclear(others)

    # -- removing

    def use(self, allocator: Allocator) -> None:
        """Clusters come from *allocator* from now on."""
        self._allocator = allocator

    async def remove_all(self) -> None:
        """Take every bitmap out of the image; those in memory stay, as such that are not stored."""
        for entry in self.entries:
            await self.remove(entry.name)
        for bitmap in self._bitmaps:
            if bitmap.persistent:
                bitmap.persistent = False

    async def remove(self, name: str) -> None:
        """Take the bitmap of that name out of the image; the others stay as they are. Nothing where there is none.

        Cancelled, it is there or not. Raises any I/O error.
        """
        async with self._lock:
            gone = [entry for entry in self.entries if entry.name == name]
            if not gone:
                return
            left = [entry for entry in self.entries if entry.name != name]
            extension = None
            if left:
                room = _Clusters(self._image, self._allocator)
                try:
                    extension = await self._write_directory(left, room)
                except BaseException:
                    room.give_back()
                    raise
            await finish(self._turn(extension, left, gone))


def _run(table: array[int], index: int, cluster_size: int, longest: int) -> int:
    """How many entries from *index* on are alike: all clear, all set, or clusters side by side."""
    first = table[index]
    step = cluster_size if first & BITMAP_TABLE_OFFSET_MASK else 0
    if not step:
        longest = len(table)
    stop = min(len(table), index + max(longest, 1))
    at = index + 1
    while at < stop and table[at] == first + (at - index) * step:
        at += 1
    return at - index


class _Clusters:
    """Host clusters of bitmaps: those taken for new ones, or those of old ones on their way out."""

    def __init__(self, image: Image, allocator: Allocator) -> None:
        self._image = image
        self._allocator = allocator
        self._runs: list[tuple[int, int]] = []

    async def take(self, count: int, what: str) -> int:
        """*count* new clusters side by side; the answer is the offset of the first."""
        room = await self._allocator.allocate(count, what)
        self._runs.append((room.offset, count))
        return room.offset

    def padded(self, payload: bytes) -> bytes:
        """*payload* filled up with zeroes to whole clusters."""
        geometry = self._image.geometry
        return payload.ljust(geometry.clusters(len(payload)) << geometry.cluster_bits, b"\0")

    def note(self, offset: int, count: int) -> None:
        """*count* clusters from *offset* on have lost what named them."""
        if self._runs:
            last, length = self._runs[-1]
            if offset == last + (length << self._image.geometry.cluster_bits):
                self._runs[-1] = (last, length + count)
                return
        self._runs.append((offset, count))

    def give_back(self) -> None:
        """Nothing ever named these."""
        for offset, count in self._runs:
            self._allocator.give_back(offset >> self._image.geometry.cluster_bits, count)

    async def free(self) -> None:
        """Nothing names these any more, and that is stable. A run that overlaps metadata was never theirs: it stays."""
        for offset, count in self._runs:
            try:
                self._image.guard.check(offset, count << self._image.geometry.cluster_bits)
            except Corruption as error:
                self._image.host.report(f"Clusters of a bitmap at {offset:#x} are not freed: {error.message}")
                continue
            self._allocator.replaced(offset >> self._image.geometry.cluster_bits, count)
