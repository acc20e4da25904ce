"""What L2 entries say, in both layouts: one word for a cluster, or a word and a bitmap for its 32 subclusters.

Stands on *Standard Cluster Descriptor* and *Extended L2 Entries* of QEMU's ``docs/interop/qcow2.txt``.

Everybody outside counts in **subclusters**; in the standard layout a cluster has one. A table is an ``array('Q')``
of whole entries, and an index *at* is a subcluster's within it. Pure: tables are looked at and changed in memory only,
and a method that raises has changed nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from enum import Enum
from operator import sub
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from blockio.errors import UnsupportedFeature
from blockio.types import ExtentKind
from blockio_drivers.qcow2.strides import any_shown, run_length, run_starts, shifted
from blockio_drivers.qcow2.tables import ALL_ALLOCATED, ALL_ZERO, COMPRESSED, COPIED, L2_OFFSET_MASK, ZERO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockio_drivers.qcow2.tables import Geometry

__all__ = ["Entries", "InvalidEntry", "Loss", "Place", "Plan", "Run", "entries_of"]

_DATA: Final = ExtentKind.DATA
_ZERO: Final = ExtentKind.ZERO
_UNALLOCATED: Final = ExtentKind.UNALLOCATED
_COMPRESSED: Final = ExtentKind.COMPRESSED
_ALL: Final = (1 << 64) - 1
_SAME: Final = L2_OFFSET_MASK | COMPRESSED | ZERO


class Run(NamedTuple):
    """*reach* subclusters of one kind; the first lies at ``host`` (for compressed ones the descriptor; -1: nowhere)."""

    kind: ExtentKind
    reach: int
    host: int


class Place(NamedTuple):
    """*reach* subclusters side by side from ``host`` on that may be written in place; a reach of 0: none."""

    reach: int
    host: int


class Plan(msgspec.Struct, frozen=True):
    """How a write that cannot go in place can: ``reach`` subclusters of it at once.

    ``room`` is the host cluster it goes to, 0 where new ones are needed. When it is done the subclusters from ``start``
    to ``end`` hold data: what of them is not written must be copied.
    """

    room: int
    reach: int
    start: int
    end: int


class Loss(Enum):
    """How guest bytes are lost."""

    RESERVE = "zeroes that keep their clusters"
    ZERO = "zeroes that give clusters back"
    DISCARD = "as ZERO, but where nothing was and nothing lies below, nothing is"
    CROP = "nothing at all: the disk ends before"


class InvalidEntry(ValueError):
    """The entry of subcluster ``at`` cannot be true."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.at = at


class Entries(ABC):
    """The layout of one image's L2 tables. Immutable.

    A host offset of 0 means no cluster: the header is there. Only a data file has one of the guest's at 0, and there
    the COPIED flag tells it from none.
    """

    words: int
    """64-bit words of one entry."""
    shift: int
    """``at >> shift`` is the number of the entry that subcluster *at* belongs to."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._bits = geometry.cluster_bits
        self._step = geometry.cluster_size
        self._mask = geometry.cluster_mask
        self._placed = L2_OFFSET_MASK | (COPIED if geometry.data_file else 0)
        """What is not 0 in the entry of a cluster that has a place."""
        self._some = _SAME | self._placed
        """What is 0 in the entry of a cluster that has neither a place nor zeroes."""

    @abstractmethod
    def run(self, table: array[int], at: int, stop: int) -> Run:
        """What there is from *at* on, as far as it is the same, up to *stop*."""

    def runs(self, table: array[int], at: int, stop: int) -> Iterator[tuple[ExtentKind, int, int]]:
        """One ``run`` after another from *at* to *stop*, or to an entry that cannot be true."""
        while at < stop:
            try:
                kind, reach, host = self.run(table, at, stop)
            except InvalidEntry:
                return  # whoever asks for this one will be told
            yield kind, reach, host
            at += reach

    def columns(self, table: array[int], at: int, stop: int) -> Iterator[tuple[ExtentKind, list[int], list[int]]]:
        """``runs``, those of one kind together: their reaches and their hosts, which are there for all or for none."""
        reaches: list[int] = []
        hosts: list[int] = []
        last: tuple[ExtentKind, bool] | None = None
        for kind, reach, host in self.runs(table, at, stop):
            if last is None or last[0] is not kind or last[1] != (host >= 0):
                if last is not None:
                    yield last[0], reaches, hosts
                last, reaches, hosts = (kind, host >= 0), [], []
            reaches.append(reach)
            hosts.append(host)
        if last is not None:
            yield last[0], reaches, hosts

    @abstractmethod
    def in_place(self, table: array[int], at: int, stop: int) -> Place:
        """The data of our own from *at* on, up to *stop*."""

    @abstractmethod
    def plan(self, table: array[int], at: int, stop: int) -> Plan:
        """For a write of subclusters *at* to *stop* whose first one cannot be written in place."""

    @abstractmethod
    def enter(self, table: array[int], plan: Plan, room: int, *, data: bool = True) -> list[int]:
        """*plan* was carried out with host clusters from *room* on; answers the entries they took the place of.

        *data* False: they are in reserve, for subclusters that stay what they are, as far as the layout can say so.
        """

    @abstractmethod
    def lose(self, table: array[int], at: int, stop: int, how: Loss, *, below: bool) -> list[int] | None:
        """Let go of subclusters *at* to *stop*; *below*: without an entry something would show.

        None where nothing changes, else the entries whose clusters are free of it. UnsupportedFeature for a part of
        a compressed cluster.
        """

    def replaced(self, entry: int) -> bool:
        """Whether a write to *entry*'s cluster needs a new one."""
        if self.geometry.data_file:  # nobody shares a cluster of it
            return bool(entry & COMPRESSED) or not entry & self._placed
        return not entry & COPIED or bool(entry & COMPRESSED) or not entry & L2_OFFSET_MASK

    def places(self, table: array[int], at: int, stop: int) -> list[int]:
        """The positions of the clusters from *at* to *stop* that have a place, with data in it or in reserve."""
        first, last = at >> self.shift, ((stop - 1) >> self.shift) + 1
        words = table[first * self.words : last * self.words : self.words]
        return [
            index << self.shift
            for index, entry in enumerate(words, first)
            if entry & L2_OFFSET_MASK or (entry & self._placed and not entry & (ZERO | COMPRESSED))
        ]

    def _refuse_compressed(self, at: int) -> None:
        """Raise InvalidEntry where an image cannot have compressed clusters; *at* is one."""
        if self.geometry.data_file:
            raise InvalidEntry("Compressed cluster entry found in image with external data file", at)


def entries_of(geometry: Geometry) -> Entries:
    """The layout of the image's L2 tables."""
    return ExtendedEntries(geometry) if geometry.extended_l2 else StandardEntries(geometry)


class StandardEntries(Entries):
    """One word for each cluster, which is its only subcluster."""

    words = 1
    shift = 0

    def _check(self, entry: int, at: int) -> None:
        """Raise InvalidEntry where *entry*, which is not a compressed one, cannot be true."""
        host = entry & L2_OFFSET_MASK
        if host & self._mask:
            what = "Preallocated zero cluster offset" if entry & ZERO else "Cluster allocation offset"
            raise InvalidEntry(f"{what} {host:#x} unaligned", at)
        if entry & ZERO and not self.geometry.zero_bit:
            raise InvalidEntry("Zero cluster entry found in pre-v3 image", at)

    def run(self, table: array[int], at: int, stop: int) -> Run:
        entry = table[at]
        if not entry & self._some:
            return Run(_UNALLOCATED, run_length(table, at, stop, self._some, 0), -1)
        if entry & COMPRESSED:
            self._refuse_compressed(at)
            return Run(_COMPRESSED, 1, entry & ~(COPIED | COMPRESSED))
        host = entry & L2_OFFSET_MASK
        self._check(entry, at)
        count = run_length(table, at, stop, _SAME, self._step if host or not entry & ZERO else 0)
        return Run(_ZERO, count, host or -1) if entry & ZERO else Run(_DATA, count, host)

    def runs(self, table: array[int], at: int, stop: int) -> Iterator[tuple[ExtentKind, int, int]]:
        odd = COMPRESSED | ZERO | self._mask
        step = self._step
        while at < stop:
            entry = table[at] & _SAME
            if entry & COMPRESSED and not self.geometry.data_file:
                yield _COMPRESSED, 1, table[at] & ~(COPIED | COMPRESSED)
                at += 1
                continue
            if not entry or entry & odd:
                try:
                    kind, reach, host = self.run(table, at, stop)
                except InvalidEntry:
                    return
                yield kind, reach, host
                at += reach
                continue
            # A plain cluster: most are, and in a fragmented disk each is alone.
            count = 1
            if at + 1 < stop and table[at + 1] & _SAME == entry + step:
                count = run_length(table, at, stop, _SAME, step)
            yield _DATA, count, entry
            at += count

    def columns(self, table: array[int], at: int, stop: int) -> Iterator[tuple[ExtentKind, list[int], list[int]]]:
        starts = run_starts(table, at, stop, _SAME, self._step)
        words = shifted(table[at:stop], _SAME, 0)
        # Where a run goes on nothing is odd that is not where it starts.
        if not any_shown(words, COMPRESSED | ZERO | self._mask) and all(words):
            hosts = words.tolist()
            if len(starts) < len(hosts):
                hosts = [hosts[start - at] for start in starts]
            # Plain clusters and nothing else: so are most tables, and in a fragmented disk each cluster is alone.
            yield _DATA, list(map(sub, [*starts[1:], stop], starts)), hosts
        else:
            yield from super().columns(table, at, stop)

    def in_place(self, table: array[int], at: int, stop: int) -> Place:
        entry = table[at]
        if entry & ZERO or self.replaced(entry):
            return Place(0, 0)
        self._check(entry, at)
        return Place(self._neighbours(table, at, stop), entry & L2_OFFSET_MASK)

    def _neighbours(self, table: array[int], at: int, stop: int) -> int:
        """How many entries from *at* on say the same of clusters side by side."""
        expected = table[at]
        after = at + 1
        while after < stop:
            expected += self._step
            if table[after] != expected:
                break
            after += 1
        return after - at

    def plan(self, table: array[int], at: int, stop: int) -> Plan:
        entry = table[at]
        if not self.replaced(entry):  # an allocated zero cluster of our own
            self._check(entry, at)
            count = self._neighbours(table, at, stop)
            return Plan(entry & L2_OFFSET_MASK, count, at, at + count)
        after = at if entry else at + run_length(table, at, stop, _ALL, 0)
        while after < stop and self.replaced(entry := table[after]):
            if entry & COMPRESSED:
                self._refuse_compressed(after)
            else:
                self._check(entry, after)
            after += 1
        return Plan(0, after - at, at, after)

    def enter(self, table: array[int], plan: Plan, room: int, *, data: bool = True) -> list[int]:
        old = table[plan.start : plan.end]
        first = room | COPIED
        table[plan.start : plan.end] = array("Q", range(first, first + len(old) * self._step, self._step))
        return [] if plan.room or not any(old) else old.tolist()

    def lose(self, table: array[int], at: int, stop: int, how: Loss, *, below: bool) -> list[int] | None:
        for index in range(at, stop):  # all of them before any is changed
            if not table[index] & COMPRESSED:
                self._check(table[index], index)
        changed = False
        freed = []
        for index in range(at, stop):
            old = table[index]
            new = self._lost(old, how, below=below)
            if new != old:
                changed = True
                table[index] = new
                if not new & L2_OFFSET_MASK:
                    freed.append(old)
        return freed if changed else None

    def _lost(self, entry: int, how: Loss, *, below: bool) -> int:
        if how is Loss.CROP:
            return 0
        if how is Loss.RESERVE:
            return ZERO if entry & COMPRESSED else entry | ZERO
        if entry & ZERO and not entry & (L2_OFFSET_MASK | COMPRESSED):
            return entry
        if not entry & (self._placed | COMPRESSED | ZERO) and how is Loss.DISCARD and not below:
            return entry
        # Freed data must not come back from below or from a reused cluster: version 3 says zero.
        return self.geometry.zero_bit


class ExtendedEntries(Entries):
    """A word and a bitmap for each cluster of 32 subclusters.

    "Bit 0-31: allocation status, one bit per subcluster; bit 32-63: subcluster reads as zeroes." Where neither is set a
    subcluster is unallocated, whether or not the cluster has a place in the file.
    """

    words = 2
    shift = 5

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        self._sub_bits = geometry.subcluster_bits

    def _check(self, entry: int, bitmap: int, at: int) -> None:
        """Raise InvalidEntry where the two, which are not of a compressed cluster, cannot be true."""
        if fault := self.fault(entry, bitmap):
            raise InvalidEntry(fault, at)

    def fault(self, entry: int, bitmap: int) -> str:
        """What cannot be true of an entry that is not of a compressed cluster; empty: nothing."""
        host = entry & L2_OFFSET_MASK
        if bitmap & (bitmap >> 32) if entry & self._placed else bitmap & ALL_ALLOCATED:
            return "Invalid cluster entry found"
        return f"Cluster allocation offset {host:#x} unaligned" if host & self._mask else ""

    @staticmethod
    def _of_kind(kind: ExtentKind, bitmap: int) -> int:
        """A bit for each subcluster of *kind*."""
        if kind is _DATA:
            return bitmap & ALL_ALLOCATED
        if kind is _ZERO:
            return bitmap >> 32
        return ~(bitmap | bitmap >> 32) & ALL_ALLOCATED

    def _reach(self, table: array[int], at: int, stop: int, kind: ExtentKind, flags: int) -> int:
        """How many subclusters from *at* on are of *kind*, in clusters side by side that agree in *flags*."""
        entry, bitmap = table[at >> 5 << 1], table[(at >> 5 << 1) + 1]
        step = self._step if entry & self._placed else 0
        mask = L2_OFFSET_MASK | COMPRESSED | flags
        expected = entry & mask
        after = at + _ones(self._of_kind(kind, bitmap) >> (at & 31))
        while after < stop and not after & 31:
            expected += step
            word = after >> 5 << 1
            bitmap = table[word + 1]
            if table[word] & mask != expected or self.fault(table[word], bitmap):
                break
            more = _ones(self._of_kind(kind, bitmap))
            if not more:
                break
            after += more
        return min(after, stop) - at

    def run(self, table: array[int], at: int, stop: int) -> Run:
        entry, bitmap = table[at >> 5 << 1], table[(at >> 5 << 1) + 1]
        sub = at & 31
        if entry & COMPRESSED:
            self._refuse_compressed(at)
            return Run(_COMPRESSED, min(stop, at - sub + 32) - at, entry & ~(COPIED | COMPRESSED))
        self._check(entry, bitmap, at)
        kind = _ZERO if bitmap >> (32 + sub) & 1 else _DATA if bitmap >> sub & 1 else _UNALLOCATED
        count = self._reach(table, at, stop, kind, 0)
        return Run(kind, count, (entry & L2_OFFSET_MASK) + (sub << self._sub_bits) if entry & self._placed else -1)

    def in_place(self, table: array[int], at: int, stop: int) -> Place:
        entry, bitmap = table[at >> 5 << 1], table[(at >> 5 << 1) + 1]
        sub = at & 31
        if self.replaced(entry) or not bitmap >> sub & 1:
            return Place(0, 0)
        self._check(entry, bitmap, at)
        count = self._reach(table, at, stop, _DATA, COPIED)
        return Place(count, (entry & L2_OFFSET_MASK) + (sub << self._sub_bits))

    def plan(self, table: array[int], at: int, stop: int) -> Plan:
        entry = table[at >> 5 << 1]
        return self._plan_new(table, at, stop) if self.replaced(entry) else self._plan_kept(table, at, stop)

    def _plan_kept(self, table: array[int], at: int, stop: int) -> Plan:
        """The cluster is ours, and these subclusters of it hold no data yet: nothing else need be copied."""
        entry = table[at >> 5 << 1]
        expected = entry
        after = at
        while after < stop:
            word = after >> 5 << 1
            if table[word] != expected:
                break
            self._check(table[word], table[word + 1], after)
            empty = ~table[word + 1] & ALL_ALLOCATED
            after += _ones(empty >> (after & 31))
            if after & 31:
                break
            expected += self._step
        after = min(after, stop)
        return Plan(entry & L2_OFFSET_MASK, after - at, at, after)

    def _plan_new(self, table: array[int], at: int, stop: int) -> Plan:
        """New clusters: all that the old ones hold moves along."""
        after = at
        while after < stop and self.replaced(entry := table[after >> 5 << 1]):
            if entry & COMPRESSED:
                self._refuse_compressed(after)
            else:
                self._check(entry, table[(after >> 5 << 1) + 1], after)
            after = (after | 31) + 1
        after = min(after, stop)
        start, end = at, after
        held = self._held(table, at)
        if held:
            start = min(at, (at & -32) + (held & -held).bit_length() - 1)
        if held := self._held(table, after - 1):
            end = max(after, ((after - 1) & -32) + held.bit_length())
        return Plan(0, after - at, start, end)

    def _held(self, table: array[int], at: int) -> int:
        """A bit for each subcluster that has data, in the cluster of *at*."""
        word = at >> 5 << 1
        return ALL_ALLOCATED if table[word] & COMPRESSED else table[word + 1] & ALL_ALLOCATED

    def enter(self, table: array[int], plan: Plan, room: int, *, data: bool = True) -> list[int]:
        old = []
        for word, mask in _clusters(plan.start, plan.end):
            entry, bitmap = table[word], table[word + 1]
            if not plan.room:
                old.append(entry)
            table[word] = room | COPIED
            if data:
                table[word + 1] = (0 if entry & COMPRESSED else bitmap & ~(mask << 32)) | mask
            room += self._step
        return old

    def lose(self, table: array[int], at: int, stop: int, how: Loss, *, below: bool) -> list[int] | None:
        for word, mask in _clusters(at, stop):  # all of them before any is changed
            entry = table[word]
            if not entry & COMPRESSED:
                self._check(entry, table[word + 1], word >> 1 << 5)
            elif mask != ALL_ALLOCATED:
                raise UnsupportedFeature
        changed = False
        freed = []
        for word, mask in _clusters(at, stop):
            old = table[word], table[word + 1]
            entry, bitmap = table[word], table[word + 1] = self._lost(*old, mask, how, below=below)
            changed = changed or old != (entry, bitmap)
            if not entry and old[0]:
                freed.append(old[0])
        return freed if changed else None

    def _lost(self, entry: int, bitmap: int, mask: int, how: Loss, *, below: bool) -> tuple[int, int]:
        if how is Loss.CROP:
            return 0, 0
        if how is Loss.DISCARD and not below and not entry:
            return entry, bitmap
        if entry & COMPRESSED:
            return 0, ALL_ZERO
        bitmap = (bitmap | mask << 32) & ~mask
        if how is not Loss.RESERVE and not bitmap & ALL_ALLOCATED:
            entry = 0
        return entry, bitmap


def _ones(bits: int) -> int:
    """How many bits of *bits* are set below the first that is not."""
    return (~bits & (bits + 1)).bit_length() - 1


def _clusters(at: int, stop: int) -> list[tuple[int, int]]:
    """Where the entry of each cluster of subclusters *at* to *stop* stands, and a bit for each of its subclusters."""
    found = []
    while at < stop:
        base = at & -32
        after = min(stop, base + 32)
        found.append((base >> 4, (1 << (after - base)) - (1 << (at - base))))
        at = after
    return found
