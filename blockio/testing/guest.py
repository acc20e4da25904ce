"""A guest that remembers what it was promised.

``Guest`` sends requests to a disk and notes them in ``Promises``, which answers, for any moment, which contents each
sector may have: now (``Guest.verify``), or after a crash at that moment (``Promises.after_crash``).

The rule is that of a register with many writers. A write may be seen until another one is *sure*: begun after the first
had ended, and ended well. For a reader now, what ended well is sure. After a crash, only what ended well before a flush
began that has ended well too. So each sector has a set of allowed contents, mostly of one. A failed or cancelled write
may have happened, or not, or in part; it is never sure.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, NoReturn, Protocol, TypeAlias, TypeVar

from blockio.types import PreallocMode, RequestFlags

if TYPE_CHECKING:
    from blockio.backend.backend import BlockBackend
    from blockio.driver.base import CheckResult

__all__ = ["SECTOR", "Allowed", "BackendDisk", "Clock", "Guest", "GuestDisk", "Promises", "Workload"]

SECTOR: Final = 512
"""The unit in which a guest's writes are atomic: the smallest that disks have."""

_ANYTHING: Final = None

Clock: TypeAlias = Callable[[], int]
"""Answers with a larger number each time: what is noted earlier has the smaller one."""


class GuestDisk(Protocol):
    """An open disk as a guest uses it. Offsets and lengths are bytes; failures are OSError."""

    @property
    def length(self) -> int:
        """How many bytes there are."""

    async def read(self, offset: int, nbytes: int) -> bytes:
        """Those bytes."""

    async def write(self, offset: int, data: bytes) -> None:
        """Write *data*."""

    async def zero(self, offset: int, nbytes: int, flags: int = 0) -> None:
        """Write zeroes; *flags* as ``co_pwrite_zeroes`` has them."""

    async def discard(self, offset: int, nbytes: int) -> None:
        """The range is not needed any more."""

    async def flush(self) -> None:
        """What ended before is durable afterwards."""

    async def truncate(self, length: int, prealloc: PreallocMode = PreallocMode.OFF) -> None:
        """Change the length."""

    async def check(self) -> CheckResult | None:
        """What the format's own check finds; None where it has none."""

    def at_rest(self) -> None:
        """Nobody uses the disk: AssertionError where a count, a lock or a table says otherwise."""


Workload: TypeAlias = "Callable[[Guest], Awaitable[None]]"
"""What a guest does. It must do the same each time it is called: seed what is random in it."""


class BackendDisk:
    """A ``GuestDisk`` that is a backend and the graph below it."""

    def __init__(self, blk: BlockBackend) -> None:
        self.blk = blk

    @property
    def length(self) -> int:
        """As of the root node."""
        assert self.blk.bs is not None
        return self.blk.bs.length

    async def read(self, offset: int, nbytes: int) -> bytes:
        data = bytearray(nbytes)
        if nbytes:
            await self.blk.co_preadv(offset, data)
        return bytes(data)

    async def write(self, offset: int, data: bytes) -> None:
        await self.blk.co_pwritev(offset, data)

    async def zero(self, offset: int, nbytes: int, flags: int = 0) -> None:
        await self.blk.co_pwrite_zeroes(offset, nbytes, RequestFlags(flags))

    async def discard(self, offset: int, nbytes: int) -> None:
        await self.blk.co_pdiscard(offset, nbytes)

    async def flush(self) -> None:
        await self.blk.co_flush()

    async def truncate(self, length: int, prealloc: PreallocMode = PreallocMode.OFF) -> None:
        await self.blk.co_truncate(length, exact=True, prealloc=prealloc)

    async def check(self) -> CheckResult | None:
        from blockio.driver.base import CheckFix  # not everybody checks
        from blockio.errors import UnsupportedFeature

        node = self.blk.bs
        assert node is not None
        assert node.driver is not None
        try:
            return await node.driver.co_check(CheckFix.NONE)
        except UnsupportedFeature:
            return None

    def at_rest(self) -> None:
        assert self.blk.in_flight == 0, f"{self.blk.in_flight} requests are still in flight"


T = TypeVar("T")
_Content: TypeAlias = "bytes | None"


@dataclass(slots=True)
class _Noted(Generic[T]):
    """``content`` was asked for from ``begun`` on; the request ended at ``ended``, and ``well`` or not."""

    content: T
    begun: int
    ended: int | None = None
    well: bool = False


def _allowed(history: Iterable[_Noted[T]], tick: int | None, durable: int | None) -> frozenset[T]:
    """Which contents may be found: at *tick* (None: now), when what ended well by *durable* (None: now) is sure."""
    sure = [
        one.begun for one in history if one.well and one.ended is not None and (durable is None or one.ended <= durable)
    ]
    since = max(sure)  # the content there was before anything is sure
    return frozenset(
        one.content
        for one in history
        if (tick is None or one.begun <= tick) and (one.ended is None or one.ended > since)
    )


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a disk may hold: ``content``, but each sector in ``loose`` one of the contents there (None: anything)."""

    content: bytes
    loose: dict[int, frozenset[bytes | None]]
    lengths: frozenset[int]

    def judge(self, found: bytes) -> None:
        """AssertionError, naming the first sector, where *found* is none of what is allowed."""
        assert len(found) in self.lengths, f"the disk has {len(found)} bytes, not {sorted(self.lengths)}"
        shared = min(len(found), len(self.content))
        wanted = bytearray(self.content[:shared])
        for sector, contents in self.loose.items():
            at = sector * SECTOR
            got = found[at : min(at + SECTOR, shared)]
            if _ANYTHING not in contents and not any(c is not None and c[: len(got)] == got for c in contents):
                self._complain(sector, got, "one of " + ", ".join(sorted(map(_brief, contents))))
            wanted[at : at + len(got)] = got
        if wanted != found[:shared]:
            sector = next(s for s in itertools.count() if _sector(wanted, s) != _sector(found[:shared], s))
            self._complain(sector, _sector(found, sector), _brief(_sector(wanted, sector)))

    @staticmethod
    def _complain(sector: int, found: bytes, wanted: str) -> NoReturn:
        raise AssertionError(f"sector {sector} (offset {sector * SECTOR}) holds {_brief(found)}, not {wanted}")


def _sector(content: bytes | bytearray, sector: int) -> bytes:
    return bytes(content[sector * SECTOR : (sector + 1) * SECTOR])


def _brief(content: bytes | None) -> str:
    if content is None:
        return "anything"
    return f"{content[:4].hex()}…{content[-2:].hex()}" if any(content) else "zeroes"


class Promises:
    """What a guest did to a disk of *content*, and so what may be found there. *clock* is shared with a journal."""

    def __init__(self, content: bytes, clock: Clock | None = None) -> None:
        self._first = bytes(content)
        self._clock = clock or itertools.count(1).__next__
        self._sectors: dict[int, list[_Noted[_Content]]] = {}
        self._lengths: list[_Noted[int]] = [_Noted(len(content), -1, 0, True)]
        self._flushes: list[_Noted[None]] = []

    @property
    def length(self) -> int:
        """The length of the disk; the least of those it may have after a failure."""
        return min(_allowed(self._lengths, None, None))

    def now(self) -> Allowed:
        """What a reader may find now."""
        return self._all(None, None)

    def after_crash(self, tick: int | None = None) -> Allowed:
        """What may be found after a crash at *tick* of the clock, or now."""
        flushes = [f.begun for f in self._flushes if f.ended is not None and (tick is None or f.ended <= tick)]
        return self._all(tick, max(flushes, default=0))

    def _all(self, tick: int | None, durable: int | None) -> Allowed:
        lengths = _allowed(self._lengths, tick, durable)
        most = max(lengths)
        content = bytearray(self._first[:most].ljust(most, b"\0"))
        loose: dict[int, frozenset[bytes | None]] = {}
        for sector, history in self._sectors.items():
            at = sector * SECTOR
            if at >= most:
                continue
            contents = _allowed(history, tick, durable)
            only = next(iter(contents))
            if len(contents) == 1 and only is not None:
                content[at : at + SECTOR] = only
            else:
                loose[sector] = contents
        return Allowed(bytes(content[:most]), loose, lengths)

    # -- noting what is done

    @contextmanager
    def writing(self, offset: int, data: bytes) -> Iterator[None]:
        """Around a request that writes *data*."""
        with self._changing(self._written(offset, data)):
            yield

    @contextmanager
    def forgetting(self, offset: int, nbytes: int) -> Iterator[None]:
        """Around a request after which the range may hold anything."""
        sectors = range(offset // SECTOR, -(-(offset + nbytes) // SECTOR))
        with self._changing((sector, _ANYTHING) for sector in sectors):
            yield

    @contextmanager
    def resizing(self, length: int) -> Iterator[None]:
        """Around a request that makes the disk *length* long; what is beyond the shorter length becomes zeroes."""
        lengths = {length, *_allowed(self._lengths, None, None)}
        between = bytes(max(lengths) - min(lengths))
        noted = _Noted(length, self._clock())
        self._lengths.append(noted)
        with self._changing(self._written(min(lengths), between), noted):
            yield

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Around a flush."""
        noted = _Noted(None, self._clock())
        yield
        noted.ended, noted.well = self._clock(), True
        self._flushes.append(noted)

    @contextmanager
    def _changing(self, changes: Iterable[tuple[int, _Content]], *more: _Noted[int]) -> Iterator[None]:
        begun = self._clock()
        noted: dict[_Content, _Noted[_Content]] = {}  # sectors that become the same share it: most are zeroes
        for sector, content in list(changes):
            if content not in noted:
                noted[content] = _Noted(content, begun)
            self._history(sector).append(noted[content])
        well = False
        try:
            yield
            well = True
        finally:
            ended = self._clock()
            for one in noted.values():
                one.ended, one.well = ended, well
            for other in more:
                other.ended, other.well = ended, well

    def _history(self, sector: int) -> list[_Noted[_Content]]:
        history = self._sectors.get(sector)
        if history is None:
            first = self._first[sector * SECTOR : (sector + 1) * SECTOR].ljust(SECTOR, b"\0")
            history = self._sectors[sector] = [_Noted(first, -1, 0, True)]
        return history

    def _written(self, offset: int, data: bytes) -> Iterator[tuple[int, _Content]]:
        """What sectors become when *data* is written. One written in part keeps the rest, whichever that is."""
        sector, start = divmod(offset, SECTOR)
        for at in range(-start if data else 0, len(data), SECTOR):
            part = data[max(at, 0) : at + SECTOR]
            if len(part) == SECTOR:
                yield sector, part
            else:
                before = max(-at, 0)
                for old in _allowed(self._history(sector), None, None):
                    yield sector, old if old is None else old[:before] + part + old[before + len(part) :]
            sector += 1


class Guest:
    """Sends requests to *disk* and notes them in *promises*.

    With *forgiving* a failed request (OSError) is counted in ``failures`` and swallowed; the guest goes on, not
    knowing whether it happened. ``discard_zeroes`` says that what was discarded reads as zeroes, as the formats with
    zero clusters have it; without it, it may hold anything.
    """

    def __init__(
        self, disk: GuestDisk, promises: Promises, *, forgiving: bool = False, discard_zeroes: bool = False
    ) -> None:
        self.disk = disk
        self.promises = promises
        self.forgiving = forgiving
        self.discard_zeroes = discard_zeroes
        self.failures = 0

    @property
    def length(self) -> int:
        """The disk's length, as far as it is sure."""
        return self.promises.length

    async def write(self, offset: int, data: bytes) -> None:
        """Write *data*."""
        with self._forgiving(), self.promises.writing(offset, data):
            await self.disk.write(offset, data)

    async def zero(self, offset: int, nbytes: int, flags: int = 0) -> None:
        """Write zeroes."""
        with self._forgiving(), self.promises.writing(offset, bytes(nbytes)):
            await self.disk.zero(offset, nbytes, flags)

    async def discard(self, offset: int, nbytes: int) -> None:
        """Discard."""
        noting = (
            self.promises.writing(offset, bytes(nbytes))
            if self.discard_zeroes
            else self.promises.forgetting(offset, nbytes)
        )
        with self._forgiving(), noting:
            await self.disk.discard(offset, nbytes)

    async def truncate(self, length: int, prealloc: PreallocMode = PreallocMode.OFF) -> None:
        """Change the length."""
        with self._forgiving(), self.promises.resizing(length):
            await self.disk.truncate(length, prealloc)

    async def flush(self) -> None:
        """Make durable what was done before."""
        with self._forgiving(), self.promises.flushing():
            await self.disk.flush()

    async def read(self, offset: int, nbytes: int) -> bytes:
        """Those bytes; a forgiving guest gets zeroes where it gets nothing."""
        try:
            return await self.disk.read(offset, nbytes)
        except OSError:
            if not self.forgiving:
                raise
            self.failures += 1
            return bytes(nbytes)

    async def do(self, work: Awaitable[object]) -> None:
        """Await something that changes nothing a guest can see (a snapshot is taken, an option is amended)."""
        with self._forgiving():
            await work

    async def replace(self, content: bytes, work: Awaitable[object]) -> None:
        """Await something that makes the whole disk *content* (a snapshot is applied)."""
        with self._forgiving(), self.promises.writing(0, content):
            await work

    async def verify(self) -> None:
        """Read everything: AssertionError where it is not what it must be."""
        length = self.disk.length
        self.promises.now().judge(await self.disk.read(0, length))

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if not self.forgiving:
                raise
            self.failures += 1
