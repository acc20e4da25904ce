"""The bounded cache of metadata slices: L2 tables and refcount blocks.

A *slice* is the part of a table that is read at once: all of it where clusters are small, 64 KiB of it (or what
``l2-cache-entry-size`` says) where they are large, so that memory stays bounded with 2 MiB clusters too.

Invariants:

* ``slices`` holds every slice in memory; the fast lane reads it directly. A slice leaves it only by eviction or by
  ``clean``, and only while it is clean, not being written and not pinned. Whoever needs one across an await pins it.
* Dirty marks (a bit for each *page* of a slice) are taken away by ``take_dirty`` and come back with ``written``
  when the write-back failed. Between the two the slice counts as *in writing* and stays reachable.
* A table that is being read is read once, whoever asks; a reader that is cancelled leaves the others to read on.
* More slices than ``capacity`` are held only while that many are pinned: at most one for each request under way.

The order in which dirty slices may be written is not known here; see ``writeback``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

__all__ = ["CacheStatistics", "DirtyPages", "MetadataCache", "Slice"]

T = TypeVar("T")

_MAX_PAGE: Final = 4096
"""The unit of dirtiness, in bytes: what a page cache holds at once, so that a write need not read first."""


class Slice(Generic[T]):
    """A part of a table in memory. ``table`` is changed in place, and then ``MetadataCache.mark`` is called."""

    __slots__ = ("dirty", "hot", "key", "pins", "table", "writing")

    def __init__(self, key: int, table: T) -> None:
        self.key = key
        self.table = table
        self.dirty = 0
        """One bit for each page that differs from the disk."""
        self.writing = 0
        """How many write-backs have taken pages of this slice and not finished."""
        self.pins = 0
        """How many requests rely on finding the slice here."""
        self.hot = True
        """Used since the clock hand last passed."""


class DirtyPages(NamedTuple):
    """Neighbouring dirty pages of one slice: bytes ``start`` to ``stop`` of it."""

    start: int
    stop: int


class CacheStatistics(msgspec.Struct, frozen=True):
    """A snapshot of one cache; sizes are numbers of slices of ``slice_bytes`` each."""

    capacity: int
    cached: int
    dirty: int
    pinned: int
    slice_bytes: int
    loads: int
    evictions: int


class MetadataCache(Generic[T]):
    """Slices by number, at most ``capacity`` of them; see the module's docstring for what is kept true.

    *load* reads slice *key* and may raise; *write_back* makes dirty slices clean (or raises), and is awaited
    when nothing else can be evicted.
    """

    def __init__(
        self,
        slice_bytes: int,
        capacity: int,
        load: Callable[[int], Awaitable[T]],
        write_back: Callable[[], Awaitable[None]],
    ) -> None:
        self.slice_bytes = slice_bytes
        self.capacity = max(capacity, 2)
        self.page_bytes = min(slice_bytes, _MAX_PAGE)
        self.slices: dict[int, Slice[T]] = {}
        self._load = load
        self._write_back = write_back
        self._loading: dict[int, asyncio.Future[None]] = {}
        self._dirty: dict[int, Slice[T]] = {}
        self._loads = 0
        self._evictions = 0

    async def get(self, key: int) -> Slice[T]:
        """Slice *key*, read if need be. Raises what the read or a needed write-back raises; the cache works on."""
        while True:
            found = self.slices.get(key)
            if found is not None:
                found.hot = True
                return found
            under_way = self._loading.get(key)
            if under_way is None:
                return await self._fetch(key)
            # Whoever reads may fail or be cancelled: then the next one here reads for itself.
            await asyncio.shield(under_way)

    async def _fetch(self, key: int) -> Slice[T]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loading[key] = done
        try:
            await self._make_room()
            table = await self._load(key)
            self._loads += 1
            found = self.slices[key] = Slice(key, table)
            return found
        finally:
            del self._loading[key]
            done.set_result(None)

    async def _make_room(self) -> None:
        while len(self.slices) >= self.capacity:
            if self._evict():
                continue
            if not self._dirty:
                return  # all that is left is pinned or being written
            await self._write_back()
            if not self._evict():
                return

    def _evict(self) -> bool:
        """Drop the first clean slice the clock hand finds unused; two rounds find one wherever there is one."""
        for _ in range(2 * len(self.slices)):
            key, found = next(iter(self.slices.items()))
            if not (found.hot or found.dirty or found.pins or found.writing):
                del self.slices[key]
                self._evictions += 1
                return True
            found.hot = False
            self.slices[key] = self.slices.pop(key)
        return False

    def clean(self) -> None:
        """Drop what was not used since the clock hand, or ``clean``, last came by, and may be dropped."""
        for key, found in list(self.slices.items()):
            if found.hot:
                found.hot = False
            elif not (found.dirty or found.pins or found.writing):
                del self.slices[key]
                self._evictions += 1

    def mark(self, found: Slice[T], start: int, stop: int) -> None:
        """Bytes *start* to *stop* of *found* were changed."""
        first = start // self.page_bytes
        last = (stop - 1) // self.page_bytes
        if not found.dirty:
            self._dirty[found.key] = found
        found.dirty |= ((2 << (last - first)) - 1) << first

    @property
    def dirty(self) -> bool:
        """Whether anything here differs from the disk and is not being written."""
        return bool(self._dirty)

    def take_dirty(self) -> list[tuple[Slice[T], int]]:
        """Every dirty slice with its dirty pages, which are now in writing: end it with ``written``."""
        taken = [(found, found.dirty) for found in self._dirty.values()]
        for found, _ in taken:
            found.dirty = 0
            found.writing += 1
        self._dirty.clear()
        return taken

    def written(self, found: Slice[T], pages: int, *, succeeded: bool) -> None:
        """*pages* that ``take_dirty`` handed out are on disk; if not *succeeded*, they are dirty again."""
        found.writing -= 1
        if not succeeded and self.slices.get(found.key) is found:  # else forgotten meanwhile: there is nothing to write
            if not found.dirty:
                self._dirty[found.key] = found
            found.dirty |= pages

    def runs(self, pages: int) -> Iterator[DirtyPages]:
        """The byte ranges of *pages*, neighbours as one."""
        first = 0
        while pages:
            skip = (pages & -pages).bit_length() - 1
            pages >>= skip
            first += skip
            count = (~pages & (pages + 1)).bit_length() - 1
            yield DirtyPages(first * self.page_bytes, (first + count) * self.page_bytes)
            pages >>= count
            first += count

    def drop(self) -> None:
        """Forget everything, dirty or not: the tables on disk were changed by somebody else, or are gone."""
        self.slices.clear()
        self._dirty.clear()

    def forget(self, key: int) -> None:
        """Forget one slice, whose table is no longer the image's."""
        self.slices.pop(key, None)
        self._dirty.pop(key, None)

    def statistics(self) -> CacheStatistics:
        """What is held now."""
        pinned = sum(1 for found in self.slices.values() if found.pins)
        return CacheStatistics(
            self.capacity,
            len(self.slices),
            len(self._dirty),
            pinned,
            self.slice_bytes,
            self._loads,
            self._evictions,
        )
