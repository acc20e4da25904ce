"""Recording what reaches the disks below a driver, as a crash sees it.

A change is durable once a flush of its disk that began after the change had ended has ended well itself. Until then
any part of it may have reached the disk, whatever the order the changes were sent in. ``Journal.moments`` are the
moments just before something becomes durable, and the end: what a crash at any other moment may leave, it may leave at
the next of these as well.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from blockio.testing.wrapping import PassingChild
from blockio.types import PreallocMode, RequestFlags

if TYPE_CHECKING:
    from blockio.buffers import IoVector
    from blockio.driver.child import Child

__all__ = ["Change", "ChangeKind", "Flush", "Journal", "Moment", "RecordingChild"]


class ChangeKind(Enum):
    """What a change does to its disk."""

    WRITE = "write"
    ZERO = "zero"
    DISCARD = "discard"
    """Afterwards the range holds anything, until it is written again."""
    TRUNCATE = "truncate"
    """The disk becomes ``offset`` bytes long."""


@dataclass(frozen=True, slots=True)
class Change:
    """One request that changes a disk. ``payload`` is what was written; empty unless it is a WRITE.

    ``length`` is the disk's when the request was sent: only what is written past it makes the disk longer. What is
    written inside, when the change that gave the disk this length is lost, is lost as well.
    """

    number: int
    tick: int
    disk: str
    kind: ChangeKind
    offset: int
    nbytes: int
    length: int
    payload: bytes = field(default=b"", repr=False)

    @property
    def grows(self) -> bool:
        """Whether it makes the disk longer by writing past its end."""
        return self.offset + self.nbytes > self.length

    def __str__(self) -> str:
        where = f"to {self.offset}" if self.kind is ChangeKind.TRUNCATE else f"{self.offset}+{self.nbytes}"
        return f"#{self.number} {self.kind.value} {self.disk} {where}"


@dataclass(frozen=True, slots=True)
class Flush:
    """A flush of *disk*, or a write with FUA, has ended well: the changes with these numbers are durable.

    Those in ``failed`` had failed before it: from now on they have not happened.
    """

    tick: int
    disk: str
    covers: frozenset[int]
    failed: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Moment:
    """Just before event number ``at``: what is ``durable`` on each disk, and what may or may not have happened."""

    at: int
    tick: int
    durable: Mapping[str, bytes]
    pending: tuple[Change, ...]


class Journal:
    """What happened to the disks whose children came from ``over``. ``tick`` is the clock of everything noted.

    ``starts`` are the disks' contents when they were wrapped: durable. With the workload the journal repeats itself, so
    the number of a change means the same in each run.
    """

    def __init__(self) -> None:
        self.starts: dict[str, bytes] = {}
        self.events: list[Change | Flush] = []
        self._ended: dict[str, set[int]] = {}
        self._failed: dict[str, set[int]] = {}
        self._numbers = itertools.count(1)
        self.tick = itertools.count(1).__next__

    def add(self, name: str, content: bytes | bytearray) -> None:
        """A disk called *name* that holds *content* now."""
        self.starts[name] = bytes(content)
        self._ended[name] = set()
        self._failed[name] = set()

    def over(self, name: str, child: Child) -> Child:
        """A child of the disk that was added as *name*, recording what passes (a ``Wrap``)."""
        return RecordingChild(child, self, name) if name in self.starts else child

    @contextmanager
    def changing(
        self,
        disk: str,
        kind: ChangeKind,
        offset: int,
        nbytes: int,
        length: int,
        *,
        payload: bytes = b"",
        flags: RequestFlags | int = 0,
    ) -> Iterator[None]:
        """Around a change of *disk*, now *length* bytes long. One that fails, or is cancelled, may have happened, until
        a flush: whoever hears of its end knows that nothing of it is under way any more."""
        change = Change(next(self._numbers), self.tick(), disk, kind, offset, nbytes, length, payload)
        self.events.append(change)
        try:
            yield
        except (OSError, asyncio.CancelledError):
            self._failed[disk].add(change.number)
            raise
        if flags & RequestFlags.FUA:
            self.events.append(Flush(self.tick(), disk, frozenset({change.number})))
        else:
            self._ended[disk].add(change.number)

    @contextmanager
    def flushing(self, disk: str) -> Iterator[None]:
        """Around a flush of *disk*."""
        covers, failed = frozenset(self._ended[disk]), frozenset(self._failed[disk])
        yield
        self._ended[disk] -= covers
        self._failed[disk] -= failed
        self.events.append(Flush(self.tick(), disk, covers, failed))

    def changes(self) -> list[Change]:
        """All changes, in the order they were sent in."""
        return [event for event in self.events if isinstance(event, Change)]

    def moments(self) -> Iterator[Moment]:
        """The moments a crash can come at: before each flush that made something durable, and at the end."""
        durable = {name: bytearray(content) for name, content in self.starts.items()}
        pending: list[Change] = []
        for at, event in enumerate(self.events):
            if isinstance(event, Change):
                pending.append(event)
            elif event.covers or event.failed:
                yield self._moment(at, event.tick - 1, durable, pending)
                for change in pending:
                    if change.number in event.covers:
                        apply_change(durable[change.disk], change, durable=True)
                settled = event.covers | event.failed
                pending = [change for change in pending if change.number not in settled]
        yield self._moment(len(self.events), self.tick(), durable, pending)

    @staticmethod
    def _moment(at: int, tick: int, durable: Mapping[str, bytearray], pending: list[Change]) -> Moment:
        return Moment(at, tick, {name: bytes(data) for name, data in durable.items()}, tuple(pending))


DISCARDED = b"\xdd"
"""What the bytes of a discarded range become, unless they become zeroes: nobody may rely on them."""


def apply_change(data: bytearray, change: Change, *, durable: bool = False) -> None:
    """Carry out the whole of *change*.

    A *durable* write is there to its last byte, although the file was longer only by a write that has not ended yet.
    """
    if change.kind is ChangeKind.TRUNCATE:
        resize(data, change.offset)
    elif change.kind is ChangeKind.WRITE:
        put(data, change.offset, change.payload, grows=change.grows or durable)
    else:
        filler = DISCARDED if change.kind is ChangeKind.DISCARD else b"\0"
        put(data, change.offset, filler * change.nbytes, grows=change.grows and change.kind is ChangeKind.ZERO)


def put(data: bytearray, offset: int, payload: bytes, *, grows: bool) -> None:
    """Write *payload*; what is past the end is lost unless it *grows*."""
    end = offset + len(payload)
    if end > len(data):
        if not grows:
            payload = payload[: max(len(data) - offset, 0)]
            end = offset + len(payload)
        else:
            data.extend(bytes(end - len(data)))
    data[offset:end] = payload


def resize(data: bytearray, length: int) -> None:
    """Cut *data*, or grow it with zeroes."""
    if length < len(data):
        del data[length:]
    else:
        data.extend(bytes(length - len(data)))


class RecordingChild(PassingChild):
    """A ``Child`` whose changes and flushes are noted in a journal as those of disk *disk*."""

    def __init__(self, child: Child, journal: Journal, disk: str) -> None:
        super().__init__(child)
        self.journal = journal
        self.disk = disk

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Noted."""
        with self.journal.changing(
            self.disk, ChangeKind.WRITE, offset, iov.nbytes, self.length, payload=iov.tobytes(), flags=flags
        ):
            await super().co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """Noted."""
        with self.journal.changing(self.disk, ChangeKind.ZERO, offset, nbytes, self.length, flags=flags):
            await super().co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """Noted."""
        with self.journal.changing(self.disk, ChangeKind.DISCARD, offset, nbytes, self.length):
            await super().co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        """Noted when it has ended well."""
        with self.journal.flushing(self.disk):
            await super().co_flush()

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """Noted."""
        with self.journal.changing(self.disk, ChangeKind.TRUNCATE, length, 0, self.length):
            await super().co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)
