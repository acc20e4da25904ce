"""Host clusters: which are free, and the refcount structures that say so.

Stands on the *Host cluster management* section of QEMU's ``docs/interop/qcow2.txt``.

Invariants:

* The refcount of a cluster in memory is raised before anybody is told of the cluster, and lowered only when nothing
  on stable storage names it and no reader can still be in it. So **a refcount block in memory may be written at any
  time**: whatever it says is safe.
* A refcount table entry in memory leads to a block that has been zeroed in the file and counts itself in memory.
  ``_dirty_entries`` are those not written; they may be written once the blocks are stable.
* ``_lock`` is held by whoever changes refcounts across an await, ``_writing`` by whoever writes refcount structures;
  taken in this order. Nothing is looked up in the L2 cache under either.
* ``packed_end`` is where the next compressed cluster may be put, behind the last one in a cluster whose refcount is not
  0; 0: nowhere. It is forgotten before that cluster's last reference goes.
* ``_touched`` is past every byte that was ever handed out: beyond it and the file's end there are only zeroes.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.buffers import is_zero
from blockio.errors import BlockError
from blockio_drivers.qcow2.cache import MetadataCache, Slice
from blockio_drivers.qcow2.image import Corruption, Freed, finish, hexadecimal
from blockio_drivers.qcow2.overlap import SortedOffsets
from blockio_drivers.qcow2.refcounts import RefcountCodec
from blockio_drivers.qcow2.runs import FreeRuns
from blockio_drivers.qcow2.tables import (
    REFCOUNT_TABLE_OFFSET_MASK,
    table_from_bytes,
    table_to_bytes,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from blockio_drivers.qcow2.image import Image

__all__ = ["Allocator", "Room"]

_MAX_OFFSET: Final = 1 << 56
"""L1 and L2 entries have no room for a larger host offset."""
_MAX_SLICE: Final = 64 << 10
_SECTOR_ENTRIES: Final = 64


class Room(NamedTuple):
    """Clusters handed out: they start at ``offset``; ``fresh``: they read as zeroes."""

    offset: int
    fresh: bool


class Allocator:
    """Hands out host clusters and takes them back; see the module's docstring for what is kept true."""

    def __init__(self, image: Image, cache_bytes: int) -> None:
        geometry = image.geometry
        self._image = image
        self._bits = geometry.cluster_bits
        self._block_bits = geometry.refcount_block_bits
        self._codec = RefcountCodec.of(geometry.refcount_order)
        self._runs = FreeRuns(geometry.refcount_order)
        self.table: array[int] = table_from_bytes(b"")
        self.use_cache(cache_bytes)
        self._dirty_entries: set[int] = set()
        self._blocks_end = 0
        self._hint = 0
        self._unused: deque[Freed] = deque()
        self._touched = 0
        self.packed_end = 0
        self._lock = asyncio.Lock()
        self._writing = asyncio.Lock()

    def use_cache(self, cache_bytes: int) -> None:
        """An empty cache of that size. One that was there must be clean, and no request under way."""
        slice_bytes = min(self._image.geometry.cluster_size, _MAX_SLICE)
        self._slice_bits = self._codec.entries(slice_bytes).bit_length() - 1
        self.cache: MetadataCache[bytearray] = MetadataCache(
            slice_bytes, cache_bytes // slice_bytes, self._load, self.write_blocks
        )

    def change_loop(self) -> None:
        """A lock stays with the loop that first waited for it: new ones for a new loop. Nobody holds one now."""
        self._lock = asyncio.Lock()
        self._writing = asyncio.Lock()

    # -- life

    async def open(self) -> None:
        """Read the refcount table."""
        header = self._image.header
        self.cache.drop()
        self._dirty_entries.clear()
        self._unused.clear()
        self._hint = 0
        self.packed_end = 0
        nbytes = header.refcount_table_clusters << self._bits
        await self._image.event("reftable_load")
        self.table = table_from_bytes(await self._image.read(header.refcount_table_offset, nbytes))
        self._find_blocks_end()

    def succeed(self, other: Allocator, table: array[int] | None) -> None:
        """Go on where *other* ends, whose refcounts are all written; *table*, if given, has them in another width."""
        self.table = other.table if table is None else table
        self._unused = other._unused
        self._touched = other._touched
        self._find_blocks_end()
        self.protect()

    def protect(self) -> None:
        """Tell the image's guard of all refcount blocks, before the first write."""
        self._image.guard.refcount_blocks = SortedOffsets(self.table[: self._blocks_end], REFCOUNT_TABLE_OFFSET_MASK)

    def _find_blocks_end(self) -> None:
        # A table has thousands of entries, of which a small image uses one.
        used = len(self.table.tobytes().rstrip(b"\0"))
        self._blocks_end = -(-used // self.table.itemsize)

    @property
    def dirty(self) -> bool:
        """Whether refcounts in memory differ from the disk's."""
        return bool(self.cache.dirty or self._dirty_entries or self._unused)

    # -- refcount blocks

    def _block_offset(self, key: int) -> int:
        """Where slice *key* of the refcounts stands in the file; 0 where its block does not exist."""
        shift = self._block_bits - self._slice_bits
        index = key >> shift
        if index >= len(self.table) or not self.table[index]:
            return 0
        block = self.table[index] & REFCOUNT_TABLE_OFFSET_MASK
        if block & self._image.geometry.cluster_mask:
            raise Corruption(
                f"Refblock offset {block:#x} unaligned (reftable index: {hexadecimal(index)})",
                offset=block,
                size=self._image.geometry.cluster_size,
            )
        return block + (key & ((1 << shift) - 1)) * self.cache.slice_bytes

    async def _load(self, key: int) -> bytearray:
        await self._image.event("refblock_load")
        # "0: the refcount block is not allocated; all refcounts it would describe are 0"
        at = self._block_offset(key)
        return await self._image.read(at, self.cache.slice_bytes) if at else bytearray(self.cache.slice_bytes)

    async def refcount(self, host_offset: int) -> int:
        """The refcount of one cluster, as memory has it."""
        cluster = host_offset >> self._bits
        found = await self.cache.get(cluster >> self._slice_bits)
        return self._codec.get(found.table, cluster & ((1 << self._slice_bits) - 1))

    async def belongs(self, host_offset: int, what: str) -> None:
        """Corruption where *host_offset*, about to be written, is past the end of the file and its cluster not counted.

        No sound image has such a cluster: room is counted, or written to before anything points at it. To write there
        because some entry says so would make the file as long as that entry likes.
        """
        if host_offset >= self._image.file.length and not await self.refcount(host_offset):
            raise Corruption(f"{what} offset {host_offset:#x} is outside of the image", offset=host_offset)

    async def write_blocks(self) -> None:
        """Write every dirty part of a refcount block. Raises on the first failure: the rest stays dirty."""
        async with self._writing:
            await self._write_blocks()

    async def _write_blocks(self) -> None:
        cache = self.cache
        taken = cache.take_dirty()
        done = 0
        try:
            for found, pages in taken:
                at = self._block_offset(found.key)
                for start, stop in cache.runs(pages):
                    self._image.guard.check(at + start, stop - start, "refcount block")
                    await self._image.event("refblock_update_part")
                    await self._image.write(at + start, found.table[start:stop])
                done += 1
        finally:
            for position, (found, pages) in enumerate(taken):
                cache.written(found, pages, succeeded=position < done)

    async def write(self) -> None:
        """Write all refcounts raised by now: blocks, then, behind a barrier, the table entries that name new ones.

        They are stable after the next barrier. The entries are taken first: a block that comes meanwhile has perhaps
        not written what it says, so its entry must wait for the next time.
        """
        header = self._image.header
        taken, self._dirty_entries = self._dirty_entries, set()
        sectors = sorted({index // _SECTOR_ENTRIES for index in taken})
        writes = [
            (
                header.refcount_table_offset + first * 8,
                table_to_bytes(self.table, first, first + _SECTOR_ENTRIES),
            )
            for first in (sector * _SECTOR_ENTRIES for sector in sectors)
        ]
        try:
            await self.write_blocks()
            if not writes:
                return
            await self._image.barrier()
            async with self._writing:
                if self._image.header.refcount_table_offset != header.refcount_table_offset:
                    return  # the table moved, and took all entries along
                for offset, payload in writes:
                    self._image.guard.check(offset, len(payload), "refcount table")
                    await self._image.event("refblock_alloc_hookup")
                    await self._image.write(offset, payload)
        except BaseException:
            self._dirty_entries |= taken
            raise

    # -- handing out

    async def allocate(self, count: int, what: str) -> Room:
        """*count* neighbouring clusters with a refcount of 1, for *what* (a word for messages).

        Raises BlockError EFBIG where the file would outgrow the format, Corruption where a cluster that counts as
        free is metadata, and any I/O error; then, and when cancelled, nothing was handed out.
        """
        await self._image.event("cluster_alloc")
        async with self._lock:
            return await self.allocate_locked(count, what)

    async def allocate_locked(self, count: int, what: str) -> Room:
        """``allocate`` for who is in ``exclusive``."""
        await self._settle()
        while True:
            first, blocks = await self._plan(count)
            needed = ((first + count + len(blocks) - 1) >> self._block_bits) + 1
            if needed <= len(self.table):
                break
            await self._grow_table(needed)
        offset = first << self._bits
        if first == 0:
            raise Corruption(f"Preventing invalid allocation of {what} at offset 0")
        end = (first + count + len(blocks)) << self._bits
        self._image.guard.check(offset, end - offset)
        file = self._image.file
        fresh = offset >= max(self._touched, file.length) and file.has_zero_init()
        self._touched = max(self._touched, end)
        await self._take(first, count, blocks)
        return Room(offset, fresh)

    def exclusive(self) -> asyncio.Lock:
        """Held, nobody else changes a refcount."""
        return self._lock

    async def share(self, host_offset: int) -> bool:
        """One more reference to the cluster of ``packed_end``, for who is in ``exclusive``.

        False where its refcount has no room, or its last reference goes meanwhile.
        """
        cluster = host_offset >> self._bits
        found = await self.cache.get(cluster >> self._slice_bits)
        index = cluster & ((1 << self._slice_bits) - 1)
        value = self._codec.get(found.table, index)
        if value == self._codec.maximum or self.packed_end != host_offset:
            return False
        self._codec.put(found.table, index, value + 1)
        self._mark(found, index, index + 1)
        return True

    async def refer(self, host_offset: int, count: int) -> None:
        """*count* more references to a cluster that was handed out. BlockError EINVAL where that is too many."""
        cluster = host_offset >> self._bits
        async with self._lock:
            found = await self.cache.get(cluster >> self._slice_bits)
            index = cluster & ((1 << self._slice_bits) - 1)
            value = self._codec.get(found.table, index) + count
            if value > self._codec.maximum:
                raise BlockError(errno=errno.EINVAL)
            self._codec.put(found.table, index, value)
            self._mark(found, index, index + 1)

    def stop_packing(self, cluster: int) -> None:
        """Put no more compressed data into *cluster*: its last reference goes."""
        if self.packed_end >> self._bits == cluster:
            self.packed_end = 0

    async def _take(self, first: int, count: int, blocks: list[int]) -> None:
        """Raise the refcounts of *count* clusters and of the new *blocks* that follow them."""
        await self._image.event("refblock_alloc")
        total = count + len(blocks)
        pinned: list[Slice[bytearray]] = []
        try:
            for key in range(first >> self._slice_bits, ((first + total - 1) >> self._slice_bits) + 1):
                found = await self.cache.get(key)
                found.pins += 1
                pinned.append(found)
            if blocks:
                await self._image.event("refblock_alloc_write")
                await self._image.write_zeroes((first + count) << self._bits, len(blocks) << self._bits)
            # No await from here on: all or nothing.
            for place, index in enumerate(blocks):
                block = (first + count + place) << self._bits
                self.table[index] = block
                self._dirty_entries.add(index)
                self._image.guard.refcount_blocks.add(block)
            if blocks:
                self._blocks_end = max(self._blocks_end, blocks[-1] + 1)
            self._fill(pinned, first, total)
            self._hint = first + total
        finally:
            for found in pinned:
                found.pins -= 1

    def _fill(self, slices: list[Slice[bytearray]], first: int, total: int) -> None:
        """A refcount of 1 for *total* clusters from *first* on, which *slices* cover."""
        per = 1 << self._slice_bits
        end = first + total
        for found in slices:
            base = found.key << self._slice_bits
            start, stop = max(first - base, 0), min(end - base, per)
            if self._codec.order >= 3:
                width = self._codec.bits >> 3
                found.table[start * width : stop * width] = (1).to_bytes(width, "big") * (stop - start)
            else:
                for index in range(start, stop):
                    self._codec.put(found.table, index, 1)
            self._mark(found, start, stop)

    def _mark(self, found: Slice[bytearray], start: int, stop: int) -> None:
        bits = self._codec.bits
        self.cache.mark(found, start * bits // 8, (stop * bits + 7) // 8)

    async def _plan(self, count: int) -> tuple[int, list[int]]:
        """The first cluster of a free run, and the table indexes of the blocks to be placed right behind it.

        The run must have room for the blocks that count it, and for those that count these.
        """
        wanted = count
        while True:
            first = await self._find(wanted)
            blocks: list[int] = []
            while True:
                last = (first + count + len(blocks) - 1) >> self._block_bits
                missing = [
                    index
                    for index in range(first >> self._block_bits, last + 1)
                    if index >= len(self.table) or not self.table[index]
                ]
                if len(missing) == len(blocks):
                    break
                blocks = missing
            if count + len(blocks) <= wanted:
                return first, blocks
            wanted = count + len(blocks)

    async def _find(self, count: int) -> int:
        """The first of *count* neighbouring clusters whose refcount is 0, at or after the hint."""
        position = found = self._hint
        end = self._blocks_end << self._block_bits
        per = 1 << self._slice_bits
        while position < end and position - found < count:
            block = position >> self._block_bits
            if not self.table[block]:
                position = (block + 1) << self._block_bits
                continue
            part = await self.cache.get(position >> self._slice_bits)
            index = position & (per - 1)
            free = self._runs.free_at(part.table, index, min(per, index + count - (position - found)))
            position += free
            if position - found >= count or index + free == per:
                continue
            position += self._runs.used_at(part.table, index + free, per)
            found = position
        if (found + count) << self._bits > _MAX_OFFSET:
            raise BlockError(errno=errno.EFBIG)
        return found

    async def _grow_table(self, needed: int) -> None:
        """A larger refcount table, in a place that nothing counted before, together with the blocks that count it.

        All of it is built and made stable first; the header's one sector then switches over. Until then nothing
        in memory or on disk has changed but bytes that belong to nobody.
        """
        image = self._image
        await image.event("reftable_grow")
        bits, block_bits = self._bits, self._block_bits
        first = len(self.table) << block_bits
        per_cluster = image.geometry.cluster_size // 8
        blocks, clusters = 1, 1
        while True:
            # Half as much again as needed, so that growing stays rare; the blocks that count table and blocks
            # themselves have their entries in it too.
            entries = max(needed + needed // 2, len(self.table) + blocks + 1)
            table_clusters = -(-entries // per_cluster)
            count_blocks = -(-(clusters + blocks) >> block_bits)
            if (count_blocks, table_clusters) == (blocks, clusters):
                break
            blocks, clusters = max(count_blocks, blocks), max(table_clusters, clusters)
        if clusters << bits > image.host.trust.max_refcount_table_bytes or (first + clusters) << bits > _MAX_OFFSET:
            raise BlockError(errno=errno.EFBIG)
        total = blocks + clusters
        table = self.table[:]
        table.extend(((first + index) << bits) for index in range(blocks))
        table.extend(0 for _ in range(clusters * per_cluster - len(table)))
        counts = bytearray(blocks << bits)
        for index in range(total):
            self._codec.put(counts, index, 1)
        offset = first << bits
        image.guard.check(offset, total << bits)
        self._touched = max(self._touched, (first + total) << bits)
        async with self._writing:
            # The new table names blocks that the old one on disk may not name yet: they must be stable as well.
            await self._write_blocks()
            await image.event("refblock_alloc_write_blocks")
            await image.write(offset, counts)
            await image.event("refblock_alloc_write_table")
            await image.write(offset + len(counts), table_to_bytes(table))
            await image.barrier()
            await image.event("refblock_alloc_switch_table")
            # Cancelled in between, the header would name a table that memory does not have.
            await finish(self._switch_table(table, offset + len(counts), clusters, range(first, first + blocks)))

    async def _switch_table(self, table: array[int], offset: int, clusters: int, blocks: range) -> None:
        """Turn the header to *table*, complete and stable at *offset*; its new *blocks* (host clusters) count it."""
        image = self._image
        old = image.header
        try:
            await image.set_refcount_table(offset, clusters)
        finally:
            # Where only the flush failed the new table is the image's, but the old one must stay what it is.
            if image.header.refcount_table_offset == offset:
                self.table = table
                self._dirty_entries.clear()
                for cluster in blocks:
                    image.guard.refcount_blocks.add(cluster << self._bits)
                counted = blocks.start + (len(blocks) << self._block_bits)
                for key in range(blocks.start >> self._slice_bits, counted >> self._slice_bits):
                    self.cache.forget(key)  # remembered as "no such block"
                self._find_blocks_end()
        self.replaced(old.refcount_table_offset >> self._bits, old.refcount_table_clusters)

    # -- all at once

    async def block(self, index: int) -> bytearray:
        """The whole refcount block of table entry *index*, as memory has it. Corruption where there can be none."""
        shift = self._block_bits - self._slice_bits
        content = bytearray()
        for key in range(index << shift, (index + 1) << shift):
            content += (await self.cache.get(key)).table
        return content

    def adopt(self, table: array[int], blocks: Iterable[int]) -> None:
        """The header leads to *table* now, in which those of the indexes *blocks* are other blocks than before.

        Whatever the old ones said is in the new ones. Their clusters are the caller's to give back.
        """
        self.table = table
        self._dirty_entries.clear()
        shift = self._block_bits - self._slice_bits
        for index in blocks:
            for key in range(index << shift, (index + 1) << shift):
                self.cache.forget(key)
        self._hint = 0
        self.packed_end = 0
        self.protect()

    # -- taking back

    def give_back(self, first: int, count: int) -> None:
        """Clusters that were handed out and that nothing ever named: they are free again with the next allocation."""
        if count:
            self._unused.append(Freed(first, count, discard=False))

    def spare(self, first: int, count: int) -> None:
        """As ``give_back``, for clusters that nothing was written to: where they were fresh, they are again."""
        if (first + count) << self._bits == self._touched:
            self._touched = first << self._bits
        self.give_back(first, count)

    def replaced(self, first: int, count: int) -> None:
        """Clusters of metadata that others took the place of; nothing on stable storage names them any more."""
        if self._image.pass_discard_other:
            self._image.retire(first, count, discard=True)
        else:
            self.give_back(first, count)

    async def _settle(self) -> None:
        """Free what was given back. What cannot be freed now is freed later; nobody's request fails for it."""
        try:
            await self._lower(self._unused)
        except OSError:
            return

    async def settle(self) -> None:
        """As before an allocation, but failures are raised."""
        async with self._lock:
            await self._lower(self._unused)

    async def lower(self, freed: deque[Freed]) -> None:
        """Take one reference from each cluster in *freed*, and each item out of it when it is done.

        Only for clusters that nothing on stable storage names and no reader is in.
        """
        async with self._lock:
            await self._lower(freed)

    async def _lower(self, freed: deque[Freed]) -> None:
        per = 1 << self._slice_bits
        if freed:
            await self._image.event("cluster_free")
        while freed:
            first, count, discard = freed[0]
            found = await self.cache.get(first >> self._slice_bits)
            index = first & (per - 1)
            now = min(count, per - index)
            changed = self._lower_ones(found, index, now) or self._lower_each(found, index, now)
            if changed:  # where nothing was counted there need not even be a block to write
                self._mark(found, index, index + now)
            if now == count:
                freed.popleft()
            else:
                freed[0] = Freed(first + now, count - now, discard)

    def _lower_ones(self, found: Slice[bytearray], index: int, count: int) -> int:
        """Lower *count* refcounts from *index* on if all are 1, as most are: *count*. Else do nothing: 0."""
        width = self._codec.bits >> 3
        start, stop = index * width, (index + count) * width
        if not width or found.table[start:stop] != (1).to_bytes(width, "big") * count:
            return 0
        found.table[start:stop] = bytes(stop - start)
        first = (found.key << self._slice_bits) + index
        if first <= self.packed_end >> self._bits < first + count:
            self.packed_end = 0
        self._hint = min(self._hint, first)
        return count

    def _lower_each(self, found: Slice[bytearray], index: int, count: int) -> int:
        """Lower *count* refcounts from *index* on one by one; answers how many there were to lower."""
        base = found.key << self._slice_bits
        changed = 0
        for at in range(index, index + count):
            value = self._codec.get(found.table, at)
            if value == 0:
                # The image is inconsistent; QEMU goes on too, since what is free cannot be freed more.
                self._image.host.report("qcow2_free_clusters failed: Invalid argument")
                continue
            self._codec.put(found.table, at, value - 1)
            changed += 1
            if value == 1:
                self.stop_packing(base + at)
                self._hint = min(self._hint, base + at)
        return changed

    async def used(self) -> int:
        """How many clusters have a refcount. Costs a look through all refcount blocks."""
        total = 0
        async with self._lock:
            for key in range(self._blocks_end << (self._block_bits - self._slice_bits)):
                if self._block_offset(key):
                    low = self._codec.low_bytes((await self.cache.get(key)).table)
                    total += len(low) - low.count(0)
        return total

    # -- the end of the file

    async def cut(self) -> None:
        """Let go of refcount blocks that count nothing any more, and of the file behind the last cluster in use.

        No ``write`` may run meanwhile. Nobody is given a cluster until the file is cut: it would be cut off with it.
        Raises the first failure; what was done by then stays done.
        """
        async with self._lock:
            await self._lower(self._unused)
            await self._drop_blocks(await self._empty_blocks())
            await self._lower(self._unused)
            end = (await self._last_used() + 1) << self._bits
            if 0 < end < self._image.file.length:
                await self._image.file.co_truncate(end, exact=False)

    async def _empty_blocks(self) -> dict[int, int]:
        """Table index and host cluster of the blocks that count nothing but themselves and each other."""
        found: dict[int, int] = {}
        # From behind: a block is counted by itself or by one before it, seldom by a later one.
        for index in reversed(range(self._blocks_end)):
            own = self.table[index] >> self._bits
            if own and await self._is_empty(index, {own, *found.values()}):
                found[index] = own
        return found

    async def _is_empty(self, index: int, but: set[int]) -> bool:
        """Whether block *index* counts no cluster but those in *but*."""
        shift = self._block_bits - self._slice_bits
        for key in range(index << shift, (index + 1) << shift):
            part = (await self.cache.get(key)).table
            if is_zero(part):
                continue
            counts = part[:]
            for cluster in but:
                if cluster >> self._slice_bits == key:
                    self._codec.put(counts, cluster & ((1 << self._slice_bits) - 1), 0)
            if not is_zero(counts):
                return False
        return True

    async def _drop_blocks(self, blocks: dict[int, int]) -> None:
        """Take *blocks*, which count nothing, out of the refcount table; when that is stable, free them."""
        if not blocks:
            return
        image = self._image
        table = self.table[:]
        for index in blocks:
            table[index] = 0
        try:
            async with self._writing:
                for sector in sorted({index // _SECTOR_ENTRIES for index in blocks}):
                    first = sector * _SECTOR_ENTRIES
                    payload = table_to_bytes(table, first, first + _SECTOR_ENTRIES)
                    await image.write(image.header.refcount_table_offset + first * 8, payload)
                await image.barrier()
        except BaseException:
            self._dirty_entries.update(blocks)  # some may be gone on disk, but are needed when they count again
            raise
        self.table = table
        self._dirty_entries.difference_update(blocks)
        shift = self._block_bits - self._slice_bits
        for index, own in blocks.items():
            image.guard.refcount_blocks.remove(own << self._bits)
            for key in range(index << shift, (index + 1) << shift):
                self.cache.forget(key)
            if own >> self._block_bits not in blocks:  # else its count went with the block
                self.give_back(own, 1)
        self._find_blocks_end()

    async def _last_used(self) -> int:
        """The number of the last cluster whose refcount is not 0; -1 where there is none."""
        for key in reversed(range(self._blocks_end << (self._block_bits - self._slice_bits))):
            if not self._block_offset(key):
                continue
            last = self._codec.last_used((await self.cache.get(key)).table)
            if last >= 0:
                return (key << self._slice_bits) + last
        return -1
