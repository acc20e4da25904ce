"""Where guest bytes are: L1 and L2 look-ups, in memory where they can be, from disk where they must.

Stands on the *Cluster mapping* section of QEMU's ``docs/interop/qcow2.txt``.

Invariants:

* ``image.l1`` is the whole active L1 table; ``_dirty_l1`` are its 512-byte sectors that differ from the disk. An
  entry in memory leads to an L2 table that is complete in the file (zeroed, or copied), if not yet stable.
* L2 slices are numbered by the guest: slice *k* speaks of the *k*-th run of ``slice_subclusters``. Where it stands
  in the file follows from the L1 entry at the moment it is read or written.
* What an entry says is asked of ``entries``, which knows the layout; positions in a slice count subclusters.
* Only slices of tables whose L1 entry is COPIED are changed; ``make_writable`` allocates or copies the table first.
"""

from __future__ import annotations

import asyncio
from array import array
from itertools import repeat
from operator import mul
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.types import Extent, ExtentKind, Extents
from blockio_drivers.qcow2.cache import MetadataCache, Slice
from blockio_drivers.qcow2.entries import InvalidEntry, Run, entries_of
from blockio_drivers.qcow2.image import Corruption, hexadecimal
from blockio_drivers.qcow2.overlap import SortedOffsets
from blockio_drivers.qcow2.tables import (
    COPIED,
    L1_OFFSET_MASK,
    L2_OFFSET_MASK,
    table_from_bytes,
    table_to_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image

__all__ = ["Mapping", "PendingWrite"]

_SECTOR_ENTRIES: Final = 64
_DATA: Final = ExtentKind.DATA
_UNALLOCATED: Final = ExtentKind.UNALLOCATED
_COMPRESSED: Final = ExtentKind.COMPRESSED


class PendingWrite(NamedTuple):
    """Bytes of a table as they shall stand at ``offset``."""

    offset: int
    payload: bytes


class _Piece(NamedTuple):
    kind: ExtentKind
    length: int
    host: int


class Mapping:
    """The active mapping of one image; see the module's docstring for what is kept true."""

    def __init__(
        self,
        image: Image,
        allocator: Allocator,
        *,
        slice_bytes: int,
        cache_bytes: int,
        write_back: Callable[[], Awaitable[None]],
    ) -> None:
        geometry = image.geometry
        self._image = image
        self._allocator = allocator
        self._bits = geometry.cluster_bits
        self._cluster = geometry.cluster_size
        self._mask = geometry.cluster_mask
        self._sub_bits = geometry.subcluster_bits
        self._sub_mask = geometry.subcluster_mask
        self.entries = entries_of(geometry)
        self._odd = (~L2_OFFSET_MASK & (COPIED - 1)) | self._mask
        self._l1_shift = geometry.l1_shift
        self._write_back = write_back
        self.use_cache(slice_bytes, cache_bytes)
        self._dirty_l1: set[int] = set()
        self._tables = asyncio.Lock()

    def use_cache(self, slice_bytes: int, cache_bytes: int) -> None:
        """An empty cache of that size. One that was there must be clean, and no request under way."""
        geometry = self._image.geometry
        self.slice_subclusters = (slice_bytes // geometry.l2_entry_bytes) << self.entries.shift
        self.slice_shift = geometry.subcluster_bits + self.slice_subclusters.bit_length() - 1
        """``guest_offset >> slice_shift`` is the number of the slice that speaks of it."""
        self._table_shift = geometry.l1_shift - self.slice_shift
        self.cache: MetadataCache[array[int]] = MetadataCache(
            slice_bytes, cache_bytes // slice_bytes, self._load, self._write_back
        )
        self.standard_slices = {} if geometry.extended_l2 or geometry.data_file else self.cache.slices
        """Those that the fast lanes read without asking anybody: of one word for each cluster, which lies anywhere."""

    def change_loop(self) -> None:
        """A lock stays with the loop that first waited for it: new ones for a new loop. Nobody holds one now."""
        self._tables = asyncio.Lock()

    async def open(self) -> None:
        """Read the L1 table."""
        header = self._image.header
        self.cache.drop()
        self._dirty_l1.clear()
        self._image.l1 = table_from_bytes(await self._image.read(header.l1_table_offset, header.l1_size * 8))

    def protect(self) -> None:
        """Tell the image's guard of all L2 tables, before the first write."""
        self._image.guard.l2_tables = SortedOffsets(self._image.l1, L1_OFFSET_MASK)

    # -- L2 slices

    def table_offset(self, l1_index: int) -> int:
        """Where the L2 table of *l1_index* is, 0 where there is none. Corruption where it cannot be there."""
        offset = self._image.l1[l1_index] & L1_OFFSET_MASK
        if offset & self._mask:
            raise Corruption(f"L2 table offset {offset:#x} unaligned (L1 index: {hexadecimal(l1_index)})")
        return offset

    def _slice_offset(self, key: int) -> int:
        table = self.table_offset(key >> self._table_shift)
        return table + (key & ((1 << self._table_shift) - 1)) * self.cache.slice_bytes

    async def _load(self, key: int) -> array[int]:
        await self._image.event("l2_load")
        # The table may be copied elsewhere meanwhile; this one's clusters stay until we have read it.
        token = self._image.retired.enter()
        try:
            if not self.table_offset(key >> self._table_shift):
                return table_from_bytes(bytes(self.cache.slice_bytes))  # dropped while we waited for room
            return table_from_bytes(await self._image.read(self._slice_offset(key), self.cache.slice_bytes))
        finally:
            self._image.retired.exit(token)

    def writable(self, key: int) -> Slice[array[int]] | None:
        """Slice *key* if it is in memory and may be changed; None: ``make_writable`` first."""
        found = self.cache.slices.get(key)
        if found is None or not self._image.l1[key >> self._table_shift] & COPIED:
            return None
        found.hot = True
        return found

    async def make_writable(self, key: int) -> None:
        """Do what ``writable`` lacks: allocate the L2 table, copy a shared one, read the slice.

        A table that is not COPIED is shared with a snapshot: a copy takes its place. Failing or cancelled, it
        leaves the mapping as it was.
        """
        index = key >> self._table_shift
        if not self._image.l1[index] & COPIED:
            async with self._tables:
                if not self._image.l1[index] & COPIED:
                    await self._new_table(index)
        else:
            await self._allocator.belongs(self.table_offset(index), "L2 table")
        await self.cache.get(key)

    async def _new_table(self, index: int) -> None:
        image = self._image
        old = self.table_offset(index)
        room = await self._allocator.allocate(1, "L2 table")
        try:
            if old:
                await image.event("l2_alloc_cow_read")
                await image.write(room.offset, await image.read(old, self._cluster))
            else:
                await image.write_zeroes(room.offset, self._cluster)
            await image.event("l2_alloc_write")
        except BaseException:
            self._allocator.give_back(room.offset >> self._bits, 1)
            raise
        self._set_l1(index, room.offset | COPIED)
        image.guard.l2_tables.add(room.offset)
        if old:
            image.guard.l2_tables.remove(old)
            image.retire(old >> self._bits, 1, discard=image.pass_discard_other)

    def _set_l1(self, index: int, entry: int) -> None:
        self._image.l1[index] = entry
        self._dirty_l1.add(index // _SECTOR_ENTRIES)

    def drop_table(self, index: int) -> None:
        """The part of the disk that *index* speaks of is no more: let go of its (empty) L2 table."""
        offset = self._image.l1[index] & L1_OFFSET_MASK
        if not offset:
            return
        self._set_l1(index, 0)
        self._image.guard.l2_tables.remove(offset)
        for key in range(index << self._table_shift, (index + 1) << self._table_shift):
            self.cache.forget(key)
        self._image.retire(offset >> self._bits, 1, discard=self._image.pass_discard_other)

    # -- looking up

    async def map(self, offset: int, nbytes: int) -> Extent:
        """The extent at *offset*, over as many clusters and slices as it reaches, up to *nbytes*."""
        key = offset >> self.slice_shift
        piece = self._piece(offset, nbytes, self._cached(key))
        if piece is None:
            piece = self._piece(offset, nbytes, (await self.cache.get(key)).table)
        assert piece is not None
        kind, length, host = piece
        while length < nbytes and kind is not _COMPRESSED:
            key = (offset + length) >> self.slice_shift
            more = self._piece(offset + length, nbytes - length, self._cached(key))
            if more is None:
                more = self._piece(offset + length, nbytes - length, (await self.cache.get(key)).table)
                assert more is not None
            if more.kind is not kind or more.host != (host + length if host >= 0 else -1):
                break
            length += more.length
        return Extent(kind, length, host, self._image.data if host >= 0 else None)

    def try_map(self, offset: int, nbytes: int) -> Extent | None:
        """As ``map``, as far as slices in memory tell; None where the first one is not, or something is wrong."""
        found = self.standard_slices.get(offset >> self.slice_shift)
        if found is not None:
            # Most requests lie in one plain cluster: answered without a detour.
            entry = found.table[(offset >> self._bits) & (self.slice_subclusters - 1)] & ~COPIED
            inside = offset & self._mask
            if inside + nbytes <= self._cluster and entry and not entry & self._odd:
                found.hot = True
                return Extent(_DATA, nbytes, entry + inside, self._image.data)
        try:
            piece = self._piece(offset, nbytes, self._cached(offset >> self.slice_shift))
            if piece is None:
                return None
            kind, length, host = piece
            while length < nbytes and kind is not _COMPRESSED:
                key = (offset + length) >> self.slice_shift
                more = self._piece(offset + length, nbytes - length, self._cached(key))
                if more is None or more.kind is not kind or more.host != (host + length if host >= 0 else -1):
                    break
                length += more.length
        except Corruption:
            return None  # the slow lane will meet it, and can tell
        return Extent(kind, length, host, self._image.data if host >= 0 else None)

    def try_map_many(self, offset: int, nbytes: int) -> list[Extents]:
        """All runs that one slice in memory tells of from *offset* on; those before an entry that is wrong."""
        table = self._cached(offset >> self.slice_shift)
        found: list[Extents] = []
        if table is None:
            return found
        at, stop = self.span(offset, nbytes)
        left = nbytes
        inside = offset & self._sub_mask  # the first run may begin before what is asked for, and the last end behind
        for kind, reaches, hosts in self.entries.columns(table, at, stop):
            lengths = list(map(mul, reaches, repeat(1 << self._sub_bits)))
            if inside:
                lengths[0] -= inside
                if hosts[0] >= 0 and kind is not _COMPRESSED:
                    hosts[0] += inside
                inside = 0
            left -= sum(lengths)
            if left < 0:
                lengths[-1] += left
            found.append(Extents(kind, lengths, hosts, self._image.data if hosts[0] >= 0 else None))
        return self._sound(found, offset) if self._image.geometry.data_file else found

    def _sound(self, found: list[Extents], offset: int) -> list[Extents]:
        """Of what was *found* from guest *offset* on, all before an extent that cannot be where it is."""
        for index, (kind, lengths, hosts, child) in enumerate(found):
            for count, (length, host) in enumerate(zip(lengths, hosts, strict=True)):
                if self._elsewhere(host, offset):
                    some = [Extents(kind, lengths[:count], hosts[:count], child)] if count else []
                    return found[:index] + some
                offset += length
        return found

    def _cached(self, key: int) -> array[int] | None:
        found = self.cache.slices.get(key)
        if found is None:
            return None
        found.hot = True
        return found.table

    def _piece(self, offset: int, nbytes: int, table: array[int] | None) -> _Piece | None:
        """What one slice, or a stretch of L1 entries without tables, says. None: the slice is needed."""
        l1 = self._image.l1
        index = offset >> self._l1_shift
        if index >= len(l1):
            return _Piece(_UNALLOCATED, nbytes, -1)
        if not l1[index] & L1_OFFSET_MASK:
            end = offset + nbytes
            index += 1
            while index << self._l1_shift < end and index < len(l1) and not l1[index] & L1_OFFSET_MASK:
                index += 1
            return _Piece(_UNALLOCATED, min(end, index << self._l1_shift) - offset, -1)
        if table is None:
            return None
        inside = offset & self._sub_mask
        at, stop = self.span(offset, nbytes)
        kind, reach, host = self._run(table, at, stop, offset)
        if kind is not _COMPRESSED and host >= 0:
            self.must_be_there(host, offset - inside)
        return _Piece(
            kind,
            min(nbytes, (reach << self._sub_bits) - inside),
            host if host < 0 or kind is _COMPRESSED else host + inside,
        )

    def span(self, offset: int, nbytes: int) -> tuple[int, int]:
        """The subclusters of *nbytes* from *offset* on, as positions in their slice; cut off at its end."""
        at = (offset >> self._sub_bits) & (self.slice_subclusters - 1)
        count = ((offset & self._sub_mask) + nbytes + self._sub_mask) >> self._sub_bits
        return at, min(self.slice_subclusters, at + count)

    def _run(self, table: array[int], at: int, stop: int, offset: int) -> Run:
        try:
            return self.entries.run(table, at, stop)
        except InvalidEntry as error:
            raise self.corruption(error, offset, at) from None

    def _elsewhere(self, host: int, offset: int) -> bool:
        """Whether guest *offset* cannot be at *host*: a data file has each guest byte at its own offset."""
        return self._image.geometry.data_file and 0 <= host != offset

    def must_be_there(self, host: int, offset: int) -> None:
        """Raise Corruption where guest *offset* cannot be at *host*. Both are those of a subcluster."""
        if self._elsewhere(host, offset):
            index = (offset >> self._bits) & (self._image.geometry.l2_entries - 1)
            raise Corruption(
                f"External data file host cluster offset {hexadecimal(host & ~self._mask)} does not match guest "
                f"cluster offset: {hexadecimal(offset & ~self._mask)}, L2 index: {hexadecimal(index)})"
            )

    def corruption(self, error: InvalidEntry, offset: int, at: int) -> Corruption:
        """What to raise for *error* when *at* is the position of guest *offset*."""
        wrong = offset + ((error.at - at) << self._sub_bits)
        return Corruption(f"{error} ({self._where(wrong)})")

    def in_place(self, offset: int, nbytes: int) -> int:
        """Where plain data of our own lies in one piece, as far as a slice in memory tells; else -1."""
        found = self.cache.slices.get(offset >> self.slice_shift)
        if found is None:
            return -1
        inside = offset & self._sub_mask
        at, stop = self.span(offset, nbytes)
        try:
            reach, host = self.entries.in_place(found.table, at, stop)
        except InvalidEntry:
            return -1  # the slow lane will meet it, and can tell
        if (reach << self._sub_bits) < inside + nbytes or self._elsewhere(host, offset - inside):
            return -1
        found.hot = True
        return host + inside

    def _where(self, offset: int) -> str:
        table = self._image.l1[offset >> self._l1_shift] & L1_OFFSET_MASK
        index = (offset >> self._bits) & (self._image.geometry.l2_entries - 1)
        return f"L2 offset: {table:#x}, L2 index: {hexadecimal(index)}"

    # -- for the write-back

    @property
    def dirty(self) -> bool:
        """Whether L1 or L2 in memory differ from the disk's."""
        return bool(self.cache.dirty or self._dirty_l1)

    def mark(self, found: Slice[array[int]], at: int, stop: int) -> None:
        """The entries of subclusters *at* to *stop* of *found* were changed."""
        shift, nbytes = self.entries.shift, self.entries.words * 8
        self.cache.mark(found, (at >> shift) * nbytes, (((stop - 1) >> shift) + 1) * nbytes)

    def encode(self, found: Slice[array[int]], pages: int) -> list[PendingWrite]:
        """What must be written for *pages* of *found*, as they are now. Corruption where it would hit metadata."""
        at = self._slice_offset(found.key)
        writes = [
            PendingWrite(at + start, table_to_bytes(found.table, start // 8, stop // 8))
            for start, stop in self.cache.runs(pages)
        ]
        for offset, payload in writes:
            self._image.guard.check(offset, len(payload), "active L2 table")
        return writes

    def take_l1(self) -> tuple[set[int], list[PendingWrite]]:
        """The dirty sectors of the L1 table, which count as clean from now on, and their bytes."""
        taken, self._dirty_l1 = self._dirty_l1, set()
        base = self._image.header.l1_table_offset
        writes = []
        for sector in sorted(taken):
            first = sector * _SECTOR_ENTRIES
            writes.append(
                PendingWrite(
                    base + first * 8,
                    table_to_bytes(self._image.l1, first, first + _SECTOR_ENTRIES),
                )
            )
        return taken, writes

    def put_back_l1(self, sectors: set[int]) -> None:
        """*sectors* that ``take_l1`` handed out could not be written."""
        self._dirty_l1 |= sectors
