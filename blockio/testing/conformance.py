"""The driver conformance suite: does a driver keep the promises of ``blockio.driver.base``?

For drivers here and for everybody's own; it needs no test framework. A driver is done when it passes::

    async def make(length: int) -> dict[str, object]:
        path = tempfile.mktemp(dir=workdir)
        await create_my_image(path, length)
        return {"driver": "mine", "file": {"driver": "file", "filename": path}}

    report = await check_driver(make)
    assert report.ok, report

``make`` provides a new disk of *length* bytes and answers with the nested options that open it. ``Traits`` say what
the driver never promised (a null disk keeps nothing; a filter over a fixed device does not resize). Every check runs on
disks of its own, in both lanes where that makes a difference, and ends by looking for what it left behind: requests in
flight, nodes. A check that fails does not stop the others. What can be a fault of the driver alone is an
``Outcome``; a mistake in the call of the suite (``make`` raises) is raised.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from blockio.backend.backend import BlockBackend
from blockio.driver.gate import AllowAll
from blockio.driver.registry import register, unregister
from blockio.errors import BlockError, OutOfRange, ReadOnly, UnsupportedFeature
from blockio.testing.faults import FaultFilter, FaultPlan, for_every_fault
from blockio.types import INT_MAX, OpenFlags, RequestFlags, StatusFlags

if TYPE_CHECKING:
    from blockio.driver.gate import OpenGate

__all__ = ["Bench", "ConformanceReport", "MakeDisk", "Outcome", "Skip", "Traits", "Verdict", "check_driver", "checks"]

MakeDisk: TypeAlias = Callable[[int], Awaitable[Mapping[str, Any]]]
"""A new disk of so many bytes; the options that open it."""

_LENGTH: Final = 1 << 20
_UNITS: Final = 16
_UNIT: Final = _LENGTH // _UNITS


@dataclass(frozen=True, slots=True)
class Traits:
    """What the driver under test promises."""

    writable: bool = True
    read_only: bool = True
    """It also opens read-only."""
    keeps_data: bool = True
    """What was written is read back, also after closing and opening again."""
    reads_zero: bool = True
    """A new disk reads as zeroes."""
    resizable: bool = True
    grows_zero: bool = True
    """What growing adds reads as zeroes; on an encrypted disk it is noise, as with QEMU."""
    fast_reads: bool = False
    """Reading back what was just written never needs the slow lane."""
    faults: bool = True
    """The driver has a ``file`` child, below which faults can be placed."""


class Verdict(Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: its name, what it shows, how it ended and, where it failed or was skipped, why."""

    name: str
    shows: str
    verdict: Verdict
    reason: str = ""
    error: BaseException | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """All outcomes, in the order of the checks."""

    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return all(outcome.verdict is not Verdict.FAILED for outcome in self.outcomes)

    def failures(self) -> tuple[Outcome, ...]:
        """Those that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is Verdict.FAILED)

    def __str__(self) -> str:
        lines = []
        for outcome in self.outcomes:
            reason = f": {outcome.reason}" if outcome.reason else ""
            lines.append(f"{outcome.verdict.value:8}{outcome.name}{reason}")
        return "\n".join(lines)


class Skip(Exception):  # not an error: the check does not apply
    """Raised by a check that does not apply to the driver."""


class Bench:
    """What a check works with: new disks, and ways to open them."""

    def __init__(self, make: MakeDisk, traits: Traits, gate: OpenGate) -> None:
        self.make = make
        self.traits = traits
        self.gate = gate

    async def options(self, length: int = _LENGTH) -> Mapping[str, Any]:
        """A new disk."""
        return await self.make(length)

    @asynccontextmanager
    async def open(self, options: Mapping[str, Any], **flags: bool) -> AsyncIterator[BlockBackend]:
        """Open a disk; afterwards nothing of it may be left in flight."""
        blk = await BlockBackend.new_open(options=options, flags=OpenFlags(**flags), gate=self.gate, resize=True)
        try:
            yield blk
            _expect(blk.in_flight == 0, f"{blk.in_flight} requests are still in flight")
        finally:
            await blk.close()

    @asynccontextmanager
    async def disk(self, length: int = _LENGTH, **flags: bool) -> AsyncIterator[BlockBackend]:
        """A new disk, opened."""
        async with self.open(await self.options(length), **flags) as blk:
            yield blk


_Check: TypeAlias = Callable[[Bench], Awaitable[None]]
_checks: Final[dict[str, _Check]] = {}


def _check(function: _Check) -> _Check:
    _checks[function.__name__.lstrip("_")] = function
    return function


def checks() -> dict[str, str]:
    """The names of all checks and what each shows."""
    return {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in _checks.items()}


async def check_driver(
    make: MakeDisk,
    traits: Traits = Traits(),  # frozen
    *,
    gate: OpenGate | None = None,
    only: str | None = None,
) -> ConformanceReport:
    """Run every check (or those whose name contains *only*) on disks that *make* provides.

    *gate* decides over what the images refer to; everything is allowed unless told. To be awaited in a running loop;
    when cancelled, the disk of the current check is closed.
    """
    bench = Bench(make, traits, gate or AllowAll())
    outcomes = []
    for name, shows in checks().items():
        if only is None or only in name:
            outcomes.append(await _run(name, shows, bench))
    return ConformanceReport(tuple(outcomes))


async def _run(name: str, shows: str, bench: Bench) -> Outcome:
    before = set(asyncio.all_tasks())
    try:
        await _checks[name](bench)
        left = {task for task in set(asyncio.all_tasks()) - before if not task.done()}
        _expect(not left, f"tasks left behind: {left}")
    except Skip as skip:
        return Outcome(name, shows, Verdict.SKIPPED, str(skip))
    except Exception as error:  # whatever a driver raises is its failure, and the other checks go on
        return Outcome(name, shows, Verdict.FAILED, f"{type(error).__name__}: {error}", error)
    return Outcome(name, shows, Verdict.PASSED)


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


async def _expect_error(awaitable: Awaitable[object], kind: type[BaseException], what: str) -> None:
    try:
        await awaitable
    except kind:
        return
    raise AssertionError(f"{what} did not raise {kind.__name__}")


def _needs(promise: bool, what: str) -> None:
    if not promise:
        raise Skip(what)


def _pattern(seed: int, nbytes: int) -> bytes:
    return random.Random(seed).randbytes(nbytes)


async def _read(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    memory = bytearray(b"\xa5" * nbytes)
    await blk.co_preadv(offset, memory)
    return bytes(memory)


async def _slow_read(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    """Without the fast lane: a request that parks and goes on takes the slow one all the way."""
    memory = bytearray(b"\x5a" * nbytes)
    async with blk.drained():
        request = blk.aio_preadv(offset, memory)
    await request
    return bytes(memory)


# -- life


@_check
async def _opens_and_closes(bench: Bench) -> None:
    """A disk opens with the length it was made with, closes, and opens again."""
    options = await bench.options()
    for _ in range(2):
        async with bench.open(options) as blk:
            _expect(blk.getlength() >= _LENGTH, f"a disk of {_LENGTH} bytes is {blk.getlength()} long")
            _expect(await blk.co_getlength() == blk.getlength(), "co_getlength disagrees with getlength")


@_check
async def _closes_without_a_request(bench: Bench) -> None:
    """Opening for nothing and closing leaves the disk as it was."""
    _needs(bench.traits.reads_zero, "a new disk has no defined content")
    options = await bench.options()
    async with bench.open(options):
        pass
    async with bench.open(options, read_only=bench.traits.read_only) as blk:
        _expect(await _read(blk, 0, _UNIT) == bytes(_UNIT), "the disk changed")


@_check
async def _refuses_unknown_options(bench: Bench) -> None:
    """An option that the driver does not know is an error, not ignored."""
    options = {**await bench.options(), "no-such-option": "1"}
    try:
        async with bench.open(options):
            raise AssertionError("an unknown option was ignored")
    except BlockError as error:
        _expect("no-such-option" in str(error), f"the error does not name the option: {error}")


@_check
async def _lives_twice(bench: Bench) -> None:
    """What one life wrote the next one reads."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    options = await bench.options()
    async with bench.open(options) as blk:
        await blk.co_pwritev(_UNIT, _pattern(1, _UNIT))
    async with bench.open(options) as blk:
        _expect(await _read(blk, _UNIT, _UNIT) == _pattern(1, _UNIT), "the data is gone")
        await blk.co_pwritev(0, _pattern(2, _UNIT))
    async with bench.open(options, read_only=bench.traits.read_only) as blk:
        _expect(await _read(blk, 0, 2 * _UNIT) == _pattern(2, _UNIT) + _pattern(1, _UNIT), "the data is gone")


@_check
async def _read_only_refuses_writes(bench: Bench) -> None:
    """Opened read-only, every kind of write is EPERM or EACCES, reads work."""
    _needs(bench.traits.read_only, "does not open read-only")
    async with bench.disk(read_only=True) as blk:
        await _read(blk, 0, 512)
        await _expect_error(blk.co_pwritev(0, bytes(512)), ReadOnly, "a write")
        await _expect_error(blk.co_pwrite_zeroes(0, 512), ReadOnly, "a zero write")
        await _expect_error(blk.co_truncate(_LENGTH // 2), BlockError, "a truncate")
        await _read(blk, 0, 512)


# -- reading and writing


@_check
async def _new_disk_reads_zero(bench: Bench) -> None:
    """A new disk reads as zeroes to its last byte."""
    _needs(bench.traits.reads_zero, "a new disk has no defined content")
    async with bench.disk() as blk:
        _expect(not any(await _read(blk, 0, _LENGTH)), "there is something on a new disk")


@_check
async def _reads_what_was_written(bench: Bench) -> None:
    """Writes of every size and alignment are read back, alone and among their neighbours."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        model = bytearray(await _read(blk, 0, _LENGTH))
        dice = random.Random(3)
        for turn in range(60):
            nbytes = dice.choice((1, 511, 512, 513, 4096, 65536, 100_000))
            offset = dice.randrange(_LENGTH - nbytes + 1)
            if turn % 2:
                offset = min(offset & ~511, _LENGTH - nbytes)
            data = _pattern(turn, nbytes)
            await blk.co_pwritev(offset, data)
            model[offset : offset + nbytes] = data
            _expect(await _read(blk, offset, nbytes) == data, f"{nbytes} bytes at {offset} came back changed")
        _expect(await _read(blk, 0, _LENGTH) == bytes(model), "a write changed its neighbours")


@_check
async def _takes_vectors(bench: Bench) -> None:
    """A request of many buffers, odd ones and empty ones among them, is one request."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    data = _pattern(4, 10_000)
    cuts = [0, 1, 1, 17, 512, 4096, 4097, 9000, 10_000]
    async with bench.disk() as blk:
        await blk.co_pwritev(777, [data[a:b] for a, b in pairwise(cuts)])
        parts = [bytearray(n) for n in (3000, 0, 1, 6999)]
        await blk.co_preadv(777, parts)
        _expect(b"".join(parts) == data, "a vector came back changed")


@_check
async def _zeroes(bench: Bench) -> None:
    """A zero write of any alignment reads back as zeroes and leaves its neighbours alone; unmapping or not."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk(unmap=True) as blk:
        for flags in (0, RequestFlags.MAY_UNMAP):
            data = _pattern(5, _LENGTH)
            await blk.co_pwritev(0, data)
            model = bytearray(data)
            for offset, nbytes in ((0, _UNIT), (_UNIT + 100, 3 * _UNIT), (_LENGTH - 300, 300), (8 * _UNIT + 5, 10)):
                await blk.co_pwrite_zeroes(offset, nbytes, flags)
                model[offset : offset + nbytes] = bytes(nbytes)
            _expect(await _read(blk, 0, _LENGTH) == bytes(model), f"zero writes with flags {int(flags):#x} went wrong")


@_check
async def _discards(bench: Bench) -> None:
    """A discard leaves the rest alone, and the range can be written again."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk(unmap=True) as blk:
        data = _pattern(6, _LENGTH)
        await blk.co_pwritev(0, data)
        await blk.co_pdiscard(4 * _UNIT, 4 * _UNIT)
        await _read(blk, 4 * _UNIT, 4 * _UNIT)
        _expect(await _read(blk, 0, 4 * _UNIT) == data[: 4 * _UNIT], "the bytes before a discard changed")
        _expect(await _read(blk, 8 * _UNIT, 8 * _UNIT) == data[8 * _UNIT :], "the bytes behind a discard changed")
        await blk.co_pwritev(5 * _UNIT, data[:_UNIT])
        _expect(await _read(blk, 5 * _UNIT, _UNIT) == data[:_UNIT], "a discarded range does not take a write")


@_check
async def _ignores_discards_unless_asked(bench: Bench) -> None:
    """Without discard=unmap a discard changes nothing."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        data = _pattern(7, _UNIT)
        await blk.co_pwritev(0, data)
        await blk.co_pdiscard(0, _UNIT)
        _expect(await _read(blk, 0, _UNIT) == data, "a discard took data away")


@_check
async def _flushes(bench: Bench) -> None:
    """A flush with and without writes before it succeeds, and what was flushed is there in the next life."""
    options = await bench.options()
    async with bench.open(options) as blk:
        await blk.co_flush()
        if bench.traits.writable:
            await blk.co_pwritev(0, _pattern(8, 4096))
            await blk.co_flush()
            await blk.co_pwritev(4096, _pattern(9, 4096), RequestFlags.FUA)
        await blk.co_flush()


@_check
async def _resizes(bench: Bench) -> None:
    """Growing adds zeroes and keeps the data; shrinking, where supported, cuts."""
    _needs(bench.traits.writable and bench.traits.resizable, "is not resizable")
    options = await bench.options()
    data = _pattern(10, _UNIT)
    async with bench.open(options) as blk:
        await blk.co_pwritev(_LENGTH - _UNIT, data)
        await blk.co_truncate(2 * _LENGTH, exact=True)
        _expect(blk.getlength() == 2 * _LENGTH, f"grown to {2 * _LENGTH}, it is {blk.getlength()} bytes long")
        if bench.traits.keeps_data:
            _expect(await _read(blk, _LENGTH - _UNIT, _UNIT) == data, "growing lost data")
            zero = not bench.traits.grows_zero or not any(await _read(blk, _LENGTH, _LENGTH))
            _expect(zero, "what growing added is not zero")
            await blk.co_pwritev(2 * _LENGTH - _UNIT, data)
    async with bench.open(options) as blk:
        if bench.traits.keeps_data:
            _expect(blk.getlength() == 2 * _LENGTH, "the new length did not last")
            _expect(await _read(blk, 2 * _LENGTH - _UNIT, _UNIT) == data, "data in the grown part did not last")
        try:
            await blk.co_truncate(_LENGTH, exact=True)
        except UnsupportedFeature:
            return
        _expect(blk.getlength() == _LENGTH, "shrinking did not change the length")
        await _expect_error(_read(blk, _LENGTH, 1), OutOfRange, "a read past the new end")


# -- bad requests


@_check
async def _refuses_bad_requests(bench: Bench) -> None:
    """Past the end, negative, too large, not memory: refused with the right error, and the disk works on."""
    async with bench.disk() as blk:
        end = blk.getlength()
        await _read(blk, end, 0)
        for offset, nbytes in ((end, 1), (end - 1, 2), (-1, 1), (1 << 62, 512), (-512, 512)):
            await _expect_error(_read(blk, offset, nbytes), OutOfRange, f"a read of {nbytes} at {offset}")
            await _expect_error(blk.co_pwrite_zeroes(offset, nbytes), OutOfRange, f"zeroes of {nbytes} at {offset}")
            await _expect_error(blk.co_pdiscard(offset, nbytes), OutOfRange, f"a discard of {nbytes} at {offset}")
        await _expect_error(blk.co_pwritev(end, b"x"), OutOfRange, "a write at the end")
        await _expect_error(blk.co_pwrite_zeroes(0, INT_MAX + 1), OutOfRange, "2 GiB of zeroes")
        await _expect_error(blk.co_preadv(0, b"read-only"), TypeError, "a read into bytes")
        await _expect_error(blk.co_pwritev(0, 17), TypeError, "a write of a number")  # type: ignore[arg-type]  # on purpose
        await _read(blk, 0, 512)


@_check
async def _limits_make_sense(bench: Bench) -> None:
    """Alignments are powers of two, maxima are multiples of them."""
    async with bench.disk() as blk:
        limits = blk.limits
        align = limits.request_alignment
        _expect(align > 0 and align & (align - 1) == 0, f"request_alignment {align} is no power of two")
        for name in ("max_transfer", "max_pwrite_zeroes", "max_pdiscard"):
            value = getattr(limits, name)
            _expect(value >= 0 and value % align == 0, f"{name} {value} is no multiple of {align}")
        _expect(limits.max_iov >= 0, f"max_iov is {limits.max_iov}")


# -- block status


@_check
async def _status_covers_the_disk(bench: Bench) -> None:
    """A walk over the block status reaches the end, by steps of at least one byte, and what is ZERO reads as zeroes."""
    async with bench.disk() as blk:
        if bench.traits.writable:
            await blk.co_pwritev(2 * _UNIT, _pattern(11, _UNIT))
            await blk.co_pwrite_zeroes(4 * _UNIT, _UNIT)
            await blk.co_pwritev(_LENGTH - 512, _pattern(12, 512))
        offset, end = 0, blk.getlength()
        while offset < end:
            status = await blk.co_block_status(offset, end - offset)
            _expect(0 < status.length <= end - offset, f"a status of {status.length} bytes at {offset}")
            nbytes = min(status.length, _LENGTH)
            if status.flags & StatusFlags.ZERO and bench.traits.keeps_data:
                _expect(not any(await _read(blk, offset, nbytes)), f"ZERO at {offset} does not read as zeroes")
            offset += status.length
        _expect(offset == end, "the status goes past the end")


@_check
async def _status_knows_data(bench: Bench) -> None:
    """What was written is ALLOCATED and not ZERO."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        await blk.co_pwritev(3 * _UNIT, _pattern(13, _UNIT))
        status = await blk.co_block_status(3 * _UNIT, _UNIT)
        _expect(bool(status.flags & StatusFlags.ALLOCATED), "written data is not ALLOCATED")
        _expect(not status.flags & StatusFlags.ZERO, "written data is ZERO")


# -- lanes, order, many at once


@_check
async def _lanes_agree(bench: Bench) -> None:
    """The fast lane and the slow one read the same bytes, and what one writes the other reads."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        dice = random.Random(14)
        for turn in range(40):
            nbytes = dice.choice((512, 1000, 4096, 70_000))
            offset = dice.randrange(_LENGTH - nbytes)
            data = _pattern(turn, nbytes)
            if not blk.try_pwritev(offset, data):
                async with blk.drained():
                    request = blk.aio_pwritev(offset, data)
                await request
            slow = await _slow_read(blk, offset, nbytes)
            memory = bytearray(nbytes)
            if blk.try_preadv(offset, memory):
                _expect(bytes(memory) == slow, f"the lanes disagree over {nbytes} bytes at {offset}")
            else:
                _expect(not any(memory), "the fast lane declined, but had filled the memory")
                _expect(not bench.traits.fast_reads or nbytes % 512 > 0, "the fast lane declined")
            _expect(slow == data, "what was written is not what is read")


@_check
async def _many_at_once(bench: Bench) -> None:
    """Sixty-four requests at once on neighbouring ranges, a drain among them: each gets its own data."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        nbytes = _LENGTH // 64

        async def one(number: int) -> None:
            data = _pattern(number, nbytes)
            await blk.co_pwritev(number * nbytes, data)
            _expect(await _read(blk, number * nbytes, nbytes) == data, f"request {number} got another's data")

        tasks = [asyncio.create_task(one(number)) for number in range(64)]
        await asyncio.sleep(0)
        await blk.drain()
        await asyncio.gather(*tasks)


@_check
async def _last_of_overlapping_writes_wins(bench: Bench) -> None:
    """Overlapping writes one after the other keep their order; at once, each byte is one of them."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        one, two = b"1" * 5000, b"2" * 5000
        await blk.co_pwritev(100, one)
        await blk.co_pwritev(2600, two)
        _expect(await _read(blk, 100, 7500) == one[:2500] + two, "a later write lost")
        await asyncio.gather(blk.co_pwritev(100, one), blk.co_pwritev(100, two))
        _expect(set(await _read(blk, 100, 5000)) <= {ord("1"), ord("2")}, "a byte that nobody wrote")


# -- cancellation and faults


@_check
async def _survives_cancellation(bench: Bench) -> None:
    """Requests cancelled after one turn of the loop, two … : nothing stays in flight, the disk works, data is whole."""
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    options = await bench.options()
    data = _pattern(15, 3 * _UNIT)
    async with bench.open(options, unmap=True) as blk:

        def requests() -> list[Callable[[], Awaitable[object]]]:
            return [
                lambda: blk.co_pwritev(_UNIT + 300, data),
                lambda: _slow_read(blk, 300, 2 * _UNIT),
                lambda: blk.co_pwrite_zeroes(5 * _UNIT + 100, 2 * _UNIT),
                lambda: blk.co_pdiscard(9 * _UNIT, 2 * _UNIT),
                blk.co_flush,
            ]

        await blk.co_pwritev(12 * _UNIT, data)
        for make in requests():
            for turns in range(12):
                task = asyncio.create_task(_called(make))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                _expect(blk.in_flight == 0, "a cancelled request is still in flight")
        _expect(await _read(blk, 12 * _UNIT, len(data)) == data, "a cancellation changed other data")
        await blk.co_pwritev(_UNIT + 300, data)
        _expect(await _read(blk, _UNIT + 300, len(data)) == data, "the disk does not work after cancellations")
    async with bench.open(options) as blk:
        _expect(await _read(blk, _UNIT + 300, len(data)) == data, "the data did not last")


async def _called(make: Callable[[], Awaitable[object]]) -> object:
    return await make()


@_check
async def _survives_faults_below(bench: Bench) -> None:
    """Each operation below fails once: the error is an OSError, other data is whole, the disk works and opens again."""
    _needs(bench.traits.faults, "has no child to put faults below")
    _needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    keep = _pattern(16, _UNIT)

    with FaultPlan() as plan, _registered():

        async def scenario() -> None:
            nth = plan.nth
            plan.arm(0)
            options = await bench.options()
            async with bench.open(options) as blk:
                await blk.co_pwritev(0, keep)
            async with bench.open(_above_faults(options, plan), unmap=True) as blk:
                plan.arm(nth)
                for request in (
                    lambda: blk.co_pwritev(2 * _UNIT + 300, keep),
                    lambda: blk.co_pwrite_zeroes(4 * _UNIT + 100, _UNIT),
                    lambda: blk.co_pdiscard(0, 0),
                    lambda: _read(blk, _UNIT, 4 * _UNIT),
                    blk.co_flush,
                ):
                    try:
                        await request()
                    except OSError:
                        continue
                fired, plan.nth = plan.fired, 0
                await blk.co_pwritev(6 * _UNIT, keep)
                _expect(await _read(blk, 6 * _UNIT, _UNIT) == keep, "the disk does not work after a fault")
                _expect(await _read(blk, 0, _UNIT) == keep, "a fault changed other data")
            async with bench.open(options) as blk:
                _expect(await _read(blk, 0, _UNIT) == keep, "a fault below lost data")
                _expect(await _read(blk, 6 * _UNIT, _UNIT) == keep, "data written after a fault did not last")
            plan.fired = fired

        await for_every_fault(plan, scenario, at_most=200)


class _registered:  # noqa: N801  # reads as the statement it is used in
    """The fault filter is a known driver inside."""

    def __enter__(self) -> None:
        register(FaultFilter)

    def __exit__(self, *_exc: object) -> None:
        unregister(FaultFilter)


def _above_faults(options: Mapping[str, Any], plan: FaultPlan) -> dict[str, Any]:
    below = options.get("file")
    if below is None:
        raise Skip("its options name no 'file' child")
    return {**options, "file": {"driver": FaultFilter.name, "plan": plan.name, "file": below}}
