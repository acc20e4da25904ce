"""Recording what reaches a file, and the files a crash could leave of it.

A write is durable once a flush that began after it has ended. Until then any part of it may have reached the disk, in
units of 512-byte sectors, whatever the order it was sent in.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hypothesis import Phase, settings

from blockio.buffers import IoVector
from blockio.testing.memory import MemoryChild
from blockio.types import PreallocMode, RequestFlags

__all__ = ["CrashImage", "Promise", "RecordingChild", "crash_images", "exploring", "runs"]

SECTOR = 512


def exploring() -> bool:
    """Whether this is ``make explore``, which has time."""
    return settings().max_examples > 100


def runs(usual: int) -> settings:
    """So many seeds in a test run; a hundred times as many in ``make explore``, whose seed chooses them."""
    return settings(max_examples=usual * 100 if exploring() else usual, phases=[Phase.explicit, Phase.generate])


@dataclass(frozen=True)
class Change:
    """*payload* was written at *offset*; with payload None the file was cut or grown to *offset*."""

    offset: int
    payload: bytes | None


@dataclass(frozen=True)
class Promise:
    """From event number ``at`` on the disk holds ``content``.

    The sectors in ``loose`` were written later: they may also hold one of the contents noted there.
    """

    at: int
    content: bytes
    loose: dict[int, set[bytes]] = field(default_factory=dict)

    def allows(self, sector: int, found: bytes) -> bool:
        """Whether *sector* may read as *found*."""
        wanted = self.content[sector * SECTOR : (sector + 1) * SECTOR]
        return found == wanted[: len(found)] or found in self.loose.get(sector, ())


@dataclass(frozen=True)
class Flush:
    """The changes with these event numbers had ended when it began: they are durable."""

    covers: frozenset[int]


class RecordingChild(MemoryChild):
    """A file in memory that remembers what happened to it since ``start``.

    With *turns* every operation takes up to that many turns of the loop before and after, so that requests overlap.
    """

    def __init__(self, data: bytes | bytearray = b"", *, turns: int = 0) -> None:
        super().__init__(data)
        self.fast = False
        self.start = bytes(data)
        self.events: list[Change | Flush] = []
        self._ended: set[int] = set()
        self._turns = turns
        self._rnd = random.Random(11)

    async def _pause(self) -> None:
        for _ in range(self._rnd.randint(0, self._turns)):
            await asyncio.sleep(0)

    @asynccontextmanager
    async def _change(self, offset: int, payload: bytes | None) -> AsyncIterator[None]:
        number = len(self.events)
        self.events.append(Change(offset, payload))
        await self._pause()
        yield
        await self._pause()
        self._ended.add(number)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        await self._pause()
        await super().co_preadv(offset, iov, flags)
        await self._pause()

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        async with self._change(offset, iov.tobytes()):
            await super().co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        async with self._change(offset, bytes(nbytes)):
            await super().co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        async with self._change(offset, b"\xdd" * nbytes):
            await super().co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        covers = frozenset(self._ended)
        await self._pause()
        await super().co_flush()
        self.events.append(Flush(covers))

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        async with self._change(length, None):
            await super().co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)


@dataclass(frozen=True)
class CrashImage:
    """The file after a crash that came when ``at`` events had happened."""

    at: int
    data: bytearray


def crash_images(
    child: RecordingChild, rnd: random.Random, tries: int, *, moments: set[int] | None = None, at_most: int = 150
) -> Iterator[CrashImage]:
    """For *at_most* moments (or those in *moments*), *tries* files that a crash then could leave."""
    count = len(child.events)
    chosen = moments or set(rnd.sample(range(1, count + 1), min(count, at_most)))
    durable = bytearray(child.start)
    pending: list[tuple[int, Change]] = []
    for at, event in enumerate(child.events, 1):
        if isinstance(event, Flush):
            for number, change in pending:
                if number in event.covers:
                    _apply(durable, change)
            pending = [entry for entry in pending if entry[0] not in event.covers]
            if at in chosen:
                yield CrashImage(at, _some_of(durable, pending, rnd))
            continue
        pending.append((at - 1, event))
        for _ in range(tries if at in chosen else 0):
            yield CrashImage(at, _some_of(durable, pending, rnd))


def _apply(data: bytearray, change: Change) -> None:
    if change.payload is None:
        if change.offset < len(data):
            del data[change.offset :]
        else:
            data.extend(bytes(change.offset - len(data)))
        return
    end = change.offset + len(change.payload)
    if end > len(data):
        data.extend(bytes(end - len(data)))
    data[change.offset : end] = change.payload


def _some_of(durable: bytearray, pending: list[tuple[int, Change]], rnd: random.Random) -> bytearray:
    data = bytearray(durable)
    likely = rnd.choice((0.1, 0.5, 0.9))
    for _, change in pending:
        if change.payload is None:
            if rnd.random() < likely:
                _apply(data, change)
            continue
        torn = rnd.random() < 0.5
        whole = rnd.random() < likely
        at = change.offset
        end = at + len(change.payload)
        while at < end:
            stop = min(end, (at // SECTOR + 1) * SECTOR)
            if (rnd.random() < likely) if torn else whole:
                part = change.payload[at - change.offset : stop - change.offset]
                _apply(data, Change(at, part))
            at = stop
    return data
