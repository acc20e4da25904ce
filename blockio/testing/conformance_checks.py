"""The checks of the conformance suite: one function for each promise of a driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from typing import Any, Final, TypeAlias

from blockio.driver.registry import register, unregister
from blockio.errors import BlockError, OutOfRange, ReadOnly, UnsupportedFeature
from blockio.testing.conformance_bench import (
    LENGTH,
    UNIT,
    Bench,
    Skip,
    expect,
    expect_error,
    needs,
    pattern,
    read,
    slow_read,
)
from blockio.testing.faults import FaultFilter, FaultPlan, for_every_fault
from blockio.types import INT_MAX, RequestFlags, StatusFlags

__all__ = ["CHECKS"]

_Check: TypeAlias = Callable[[Bench], Awaitable[None]]
CHECKS: Final[dict[str, _Check]] = {}
"""By name, in the order in which they run. The first line of each one's docstring is what it shows."""


def _check(function: _Check) -> _Check:
    CHECKS[function.__name__.lstrip("_")] = function
    return function


# -- life


@_check
async def _opens_and_closes(bench: Bench) -> None:
    """A disk opens with the length it was made with, closes, and opens again."""
    options = await bench.options()
    for _ in range(2):
        async with bench.open(options) as blk:
            expect(blk.getlength() >= LENGTH, f"a disk of {LENGTH} bytes is {blk.getlength()} long")
            expect(await blk.co_getlength() == blk.getlength(), "co_getlength disagrees with getlength")


@_check
async def _closes_without_a_request(bench: Bench) -> None:
    """Opening for nothing and closing leaves the disk as it was."""
    needs(bench.traits.reads_zero, "a new disk has no defined content")
    options = await bench.options()
    async with bench.open(options):
        pass
    async with bench.open(options, read_only=bench.traits.read_only) as blk:
        expect(await read(blk, 0, UNIT) == bytes(UNIT), "the disk changed")


@_check
async def _refuses_unknown_options(bench: Bench) -> None:
    """An option that the driver does not know is an error, not ignored."""
    options = {**await bench.options(), "no-such-option": "1"}
    try:
        async with bench.open(options):
            raise AssertionError("an unknown option was ignored")
    except BlockError as error:
        expect("no-such-option" in str(error), f"the error does not name the option: {error}")


@_check
async def _lives_twice(bench: Bench) -> None:
    """What one life wrote the next one reads."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    options = await bench.options()
    async with bench.open(options) as blk:
        await blk.co_pwritev(UNIT, pattern(1, UNIT))
    async with bench.open(options) as blk:
        expect(await read(blk, UNIT, UNIT) == pattern(1, UNIT), "the data is gone")
        await blk.co_pwritev(0, pattern(2, UNIT))
    async with bench.open(options, read_only=bench.traits.read_only) as blk:
        expect(await read(blk, 0, 2 * UNIT) == pattern(2, UNIT) + pattern(1, UNIT), "the data is gone")


@_check
async def _read_only_refuses_writes(bench: Bench) -> None:
    """Opened read-only, every kind of write is EPERM or EACCES, reads work."""
    needs(bench.traits.read_only, "does not open read-only")
    async with bench.disk(read_only=True) as blk:
        await read(blk, 0, 512)
        await expect_error(blk.co_pwritev(0, bytes(512)), ReadOnly, "a write")
        await expect_error(blk.co_pwrite_zeroes(0, 512), ReadOnly, "a zero write")
        await expect_error(blk.co_truncate(LENGTH // 2), BlockError, "a truncate")
        await read(blk, 0, 512)


# -- reading and writing


@_check
async def _new_disk_reads_zero(bench: Bench) -> None:
    """A new disk reads as zeroes to its last byte."""
    needs(bench.traits.reads_zero, "a new disk has no defined content")
    async with bench.disk() as blk:
        expect(not any(await read(blk, 0, LENGTH)), "there is something on a new disk")


@_check
async def _reads_what_was_written(bench: Bench) -> None:
    """Writes of every size and alignment are read back, alone and among their neighbours."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        model = bytearray(await read(blk, 0, LENGTH))
        dice = random.Random(3)
        for turn in range(60):
            nbytes = dice.choice((1, 511, 512, 513, 4096, 65536, 100_000))
            offset = dice.randrange(LENGTH - nbytes + 1)
            if turn % 2:
                offset = min(offset & ~511, LENGTH - nbytes)
            data = pattern(turn, nbytes)
            await blk.co_pwritev(offset, data)
            model[offset : offset + nbytes] = data
            expect(await read(blk, offset, nbytes) == data, f"{nbytes} bytes at {offset} came back changed")
        expect(await read(blk, 0, LENGTH) == bytes(model), "a write changed its neighbours")


@_check
async def _takes_vectors(bench: Bench) -> None:
    """A request of many buffers, odd ones and empty ones among them, is one request."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    data = pattern(4, 10_000)
    cuts = [0, 1, 1, 17, 512, 4096, 4097, 9000, 10_000]
    async with bench.disk() as blk:
        await blk.co_pwritev(777, [data[a:b] for a, b in pairwise(cuts)])
        parts = [bytearray(n) for n in (3000, 0, 1, 6999)]
        await blk.co_preadv(777, parts)
        expect(b"".join(parts) == data, "a vector came back changed")


@_check
async def _zeroes(bench: Bench) -> None:
    """A zero write of any alignment reads back as zeroes and leaves its neighbours alone; unmapping or not."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk(unmap=True) as blk:
        for flags in (0, RequestFlags.MAY_UNMAP):
            data = pattern(5, LENGTH)
            await blk.co_pwritev(0, data)
            model = bytearray(data)
            for offset, nbytes in ((0, UNIT), (UNIT + 100, 3 * UNIT), (LENGTH - 300, 300), (8 * UNIT + 5, 10)):
                await blk.co_pwrite_zeroes(offset, nbytes, flags)
                model[offset : offset + nbytes] = bytes(nbytes)
            expect(await read(blk, 0, LENGTH) == bytes(model), f"zero writes with flags {int(flags):#x} went wrong")


@_check
async def _discards(bench: Bench) -> None:
    """A discard leaves the rest alone, and the range can be written again."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk(unmap=True) as blk:
        data = pattern(6, LENGTH)
        await blk.co_pwritev(0, data)
        await blk.co_pdiscard(4 * UNIT, 4 * UNIT)
        await read(blk, 4 * UNIT, 4 * UNIT)
        expect(await read(blk, 0, 4 * UNIT) == data[: 4 * UNIT], "the bytes before a discard changed")
        expect(await read(blk, 8 * UNIT, 8 * UNIT) == data[8 * UNIT :], "the bytes behind a discard changed")
        await blk.co_pwritev(5 * UNIT, data[:UNIT])
        expect(await read(blk, 5 * UNIT, UNIT) == data[:UNIT], "a discarded range does not take a write")


@_check
async def _ignores_discards_unless_asked(bench: Bench) -> None:
    """Without discard=unmap a discard changes nothing."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        data = pattern(7, UNIT)
        await blk.co_pwritev(0, data)
        await blk.co_pdiscard(0, UNIT)
        expect(await read(blk, 0, UNIT) == data, "a discard took data away")


@_check
async def _flushes(bench: Bench) -> None:
    """A flush with and without writes before it succeeds, and what was flushed is there in the next life."""
    options = await bench.options()
    async with bench.open(options) as blk:
        await blk.co_flush()
        if bench.traits.writable:
            await blk.co_pwritev(0, pattern(8, 4096))
            await blk.co_flush()
            await blk.co_pwritev(4096, pattern(9, 4096), RequestFlags.FUA)
        await blk.co_flush()


@_check
async def _resizes(bench: Bench) -> None:
    """Growing adds zeroes and keeps the data; shrinking, where supported, cuts."""
    needs(bench.traits.writable and bench.traits.resizable, "is not resizable")
    options = await bench.options()
    data = pattern(10, UNIT)
    async with bench.open(options) as blk:
        await blk.co_pwritev(LENGTH - UNIT, data)
        await blk.co_truncate(2 * LENGTH, exact=True)
        expect(blk.getlength() == 2 * LENGTH, f"grown to {2 * LENGTH}, it is {blk.getlength()} bytes long")
        if bench.traits.keeps_data:
            expect(await read(blk, LENGTH - UNIT, UNIT) == data, "growing lost data")
            zero = not bench.traits.grows_zero or not any(await read(blk, LENGTH, LENGTH))
            expect(zero, "what growing added is not zero")
            await blk.co_pwritev(2 * LENGTH - UNIT, data)
    async with bench.open(options) as blk:
        if bench.traits.keeps_data:
            expect(blk.getlength() == 2 * LENGTH, "the new length did not last")
            expect(await read(blk, 2 * LENGTH - UNIT, UNIT) == data, "data in the grown part did not last")
        try:
            await blk.co_truncate(LENGTH, exact=True)
        except UnsupportedFeature:
            return
        expect(blk.getlength() == LENGTH, "shrinking did not change the length")
        await expect_error(read(blk, LENGTH, 1), OutOfRange, "a read past the new end")


# -- bad requests


@_check
async def _refuses_bad_requests(bench: Bench) -> None:
    """Past the end, negative, too large, not memory: refused with the right error, and the disk works on."""
    async with bench.disk() as blk:
        end = blk.getlength()
        await read(blk, end, 0)
        for offset, nbytes in ((end, 1), (end - 1, 2), (-1, 1), (1 << 62, 512), (-512, 512)):
            await expect_error(read(blk, offset, nbytes), OutOfRange, f"a read of {nbytes} at {offset}")
            await expect_error(blk.co_pwrite_zeroes(offset, nbytes), OutOfRange, f"zeroes of {nbytes} at {offset}")
            await expect_error(blk.co_pdiscard(offset, nbytes), OutOfRange, f"a discard of {nbytes} at {offset}")
        await expect_error(blk.co_pwritev(end, b"x"), OutOfRange, "a write at the end")
        await expect_error(blk.co_pwrite_zeroes(0, INT_MAX + 1), OutOfRange, "2 GiB of zeroes")
        await expect_error(blk.co_preadv(0, b"read-only"), TypeError, "a read into bytes")
        await expect_error(blk.co_pwritev(0, 17), TypeError, "a write of a number")  # type: ignore[arg-type]  # on purpose
        await read(blk, 0, 512)


@_check
async def _limits_make_sense(bench: Bench) -> None:
    """Alignments are powers of two, maxima are multiples of them."""
    async with bench.disk() as blk:
        limits = blk.limits
        align = limits.request_alignment
        expect(align > 0 and align & (align - 1) == 0, f"request_alignment {align} is no power of two")
        for name in ("max_transfer", "max_pwrite_zeroes", "max_pdiscard"):
            value = getattr(limits, name)
            expect(value >= 0 and value % align == 0, f"{name} {value} is no multiple of {align}")
        expect(limits.max_iov >= 0, f"max_iov is {limits.max_iov}")


# -- block status


@_check
async def _status_covers_the_disk(bench: Bench) -> None:
    """A walk over the block status reaches the end, by steps of at least one byte, and what is ZERO reads as zeroes."""
    async with bench.disk() as blk:
        if bench.traits.writable:
            await blk.co_pwritev(2 * UNIT, pattern(11, UNIT))
            await blk.co_pwrite_zeroes(4 * UNIT, UNIT)
            await blk.co_pwritev(LENGTH - 512, pattern(12, 512))
        offset, end = 0, blk.getlength()
        while offset < end:
            status = await blk.co_block_status(offset, end - offset)
            expect(0 < status.length <= end - offset, f"a status of {status.length} bytes at {offset}")
            nbytes = min(status.length, LENGTH)
            if status.flags & StatusFlags.ZERO and bench.traits.keeps_data:
                expect(not any(await read(blk, offset, nbytes)), f"ZERO at {offset} does not read as zeroes")
            offset += status.length
        expect(offset == end, "the status goes past the end")


@_check
async def _status_knows_data(bench: Bench) -> None:
    """What was written is ALLOCATED and not ZERO."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        await blk.co_pwritev(3 * UNIT, pattern(13, UNIT))
        status = await blk.co_block_status(3 * UNIT, UNIT)
        expect(bool(status.flags & StatusFlags.ALLOCATED), "written data is not ALLOCATED")
        expect(not status.flags & StatusFlags.ZERO, "written data is ZERO")


# -- lanes, order, many at once


@_check
async def _lanes_agree(bench: Bench) -> None:
    """The fast lane and the slow one read the same bytes, and what one writes the other reads."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        dice = random.Random(14)
        for turn in range(40):
            nbytes = dice.choice((512, 1000, 4096, 70_000))
            offset = dice.randrange(LENGTH - nbytes)
            data = pattern(turn, nbytes)
            if not blk.try_pwritev(offset, data):
                async with blk.drained():
                    request = blk.aio_pwritev(offset, data)
                await request
            slow = await slow_read(blk, offset, nbytes)
            memory = bytearray(nbytes)
            if blk.try_preadv(offset, memory):
                expect(bytes(memory) == slow, f"the lanes disagree over {nbytes} bytes at {offset}")
            else:
                expect(not any(memory), "the fast lane declined, but had filled the memory")
                expect(not bench.traits.fast_reads or nbytes % 512 > 0, "the fast lane declined")
            expect(slow == data, "what was written is not what is read")


@_check
async def _many_at_once(bench: Bench) -> None:
    """Sixty-four requests at once on neighbouring ranges, a drain among them: each gets its own data."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        nbytes = LENGTH // 64

        async def one(number: int) -> None:
            data = pattern(number, nbytes)
            await blk.co_pwritev(number * nbytes, data)
            expect(await read(blk, number * nbytes, nbytes) == data, f"request {number} got another's data")

        tasks = [asyncio.create_task(one(number)) for number in range(64)]
        await asyncio.sleep(0)
        await blk.drain()
        await asyncio.gather(*tasks)


@_check
async def _last_of_overlapping_writes_wins(bench: Bench) -> None:
    """Overlapping writes one after the other keep their order; at once, each byte is one of them."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    async with bench.disk() as blk:
        one, two = b"1" * 5000, b"2" * 5000
        await blk.co_pwritev(100, one)
        await blk.co_pwritev(2600, two)
        expect(await read(blk, 100, 7500) == one[:2500] + two, "a later write lost")
        await asyncio.gather(blk.co_pwritev(100, one), blk.co_pwritev(100, two))
        expect(set(await read(blk, 100, 5000)) <= {ord("1"), ord("2")}, "a byte that nobody wrote")


# -- cancellation and faults


@_check
async def _survives_cancellation(bench: Bench) -> None:
    """Requests cancelled after one turn of the loop, two … : nothing stays in flight, the disk works, data is whole."""
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    options = await bench.options()
    data = pattern(15, 3 * UNIT)
    async with bench.open(options, unmap=True) as blk:

        def requests() -> list[Callable[[], Awaitable[object]]]:
            return [
                lambda: blk.co_pwritev(UNIT + 300, data),
                lambda: slow_read(blk, 300, 2 * UNIT),
                lambda: blk.co_pwrite_zeroes(5 * UNIT + 100, 2 * UNIT),
                lambda: blk.co_pdiscard(9 * UNIT, 2 * UNIT),
                blk.co_flush,
            ]

        await blk.co_pwritev(12 * UNIT, data)
        for make in requests():
            for turns in range(12):
                task = asyncio.create_task(_called(make))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                expect(blk.in_flight == 0, "a cancelled request is still in flight")
        expect(await read(blk, 12 * UNIT, len(data)) == data, "a cancellation changed other data")
        await blk.co_pwritev(UNIT + 300, data)
        expect(await read(blk, UNIT + 300, len(data)) == data, "the disk does not work after cancellations")
    async with bench.open(options) as blk:
        expect(await read(blk, UNIT + 300, len(data)) == data, "the data did not last")


async def _called(make: Callable[[], Awaitable[object]]) -> object:
    return await make()


@_check
async def _survives_faults_below(bench: Bench) -> None:
    """Each operation below fails once: the error is an OSError, other data is whole, the disk works and opens again."""
    needs(bench.traits.faults, "has no child to put faults below")
    needs(bench.traits.writable and bench.traits.keeps_data, "keeps nothing")
    keep = pattern(16, UNIT)

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
                    lambda: blk.co_pwritev(2 * UNIT + 300, keep),
                    lambda: blk.co_pwrite_zeroes(4 * UNIT + 100, UNIT),
                    lambda: blk.co_pdiscard(0, 0),
                    lambda: read(blk, UNIT, 4 * UNIT),
                    blk.co_flush,
                ):
                    try:
                        await request()
                    except OSError:
                        continue
                fired, plan.nth = plan.fired, 0
                await blk.co_pwritev(6 * UNIT, keep)
                expect(await read(blk, 6 * UNIT, UNIT) == keep, "the disk does not work after a fault")
                expect(await read(blk, 0, UNIT) == keep, "a fault changed other data")
            async with bench.open(options) as blk:
                expect(await read(blk, 0, UNIT) == keep, "a fault below lost data")
                expect(await read(blk, 6 * UNIT, UNIT) == keep, "data written after a fault did not last")
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
