"""Accounting: every form of a request is counted once, when it ends, as what it was."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from pathlib import Path

import pytest

from blockio.backend import BlockBackend
from blockio.backend.accounting import Accounting, Kind
from blockio.backend.averages import TimedAverage
from blockio.backend.histogram import LatencyHistogram
from blockio.backend.statistics import OperationStatistics, Statistics, table
from blockio.errors import BlockError, NoMedium, OutOfRange
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm, RequestFlags
from tests.backend.conftest import LENGTH

SECOND = 1_000_000_000


class Hand:
    """A clock turned by hand, in nanoseconds."""

    def __init__(self) -> None:
        self.now = SECOND

    def __call__(self) -> int:
        return self.now


def counts(statistics: Statistics) -> dict[Kind, tuple[int, int, int, int]]:
    """Operations, bytes, failed and invalid ones of the kinds that have any."""
    out: dict[Kind, tuple[int, int, int, int]] = {}
    kinds: tuple[Kind, ...] = ("read", "write", "flush", "unmap")
    for kind in kinds:
        counted: OperationStatistics = getattr(statistics, kind)
        figures = (counted.operations, counted.bytes, counted.failed, counted.invalid)
        if any(figures):
            out[kind] = figures
    return out


@pytest.mark.parametrize("fast", [True, False])
async def test_every_form_counts_once(blk: BlockBackend, disk: MemoryDisk, fast: bool) -> None:
    disk.fast = fast
    memory = bytearray(100)
    await blk.co_preadv(0, memory)
    await blk.aio_preadv(0, memory)
    await asyncio.to_thread(blk.pread, 0, 100)
    await blk.co_pwritev(0, b"x" * 10)
    await blk.aio_pwritev(0, b"x" * 10)
    await asyncio.to_thread(blk.pwrite, 0, b"x" * 10)
    await blk.co_pwrite_zeroes(0, 7)
    await blk.aio_pwrite_zeroes(0, 7)
    await blk.co_pdiscard(0, 512)
    await blk.aio_pdiscard(0, 512)
    await blk.co_flush()
    await blk.aio_flush()
    assert counts(blk.stats.snapshot()) == {
        "read": (3, 300, 0, 0),
        "write": (5, 44, 0, 0),
        "flush": (2, 0, 0, 0),
        "unmap": (2, 1024, 0, 0),
    }


async def test_both_lanes_tell_the_same(blk: BlockBackend, disk: MemoryDisk) -> None:
    seen = []
    for disk.fast in (True, False):
        blk.stats.set_timing(disk.fast)
        before = blk.stats.snapshot()
        for number in range(10):
            await blk.co_pwritev(number, b"abc")
            await blk.co_preadv(number, bytearray(number))
        after = blk.stats.snapshot()
        seen.append(
            [
                getattr(getattr(after, kind), name) - getattr(getattr(before, kind), name)
                for kind in ("read", "write")
                for name in ("operations", "bytes")
            ]
        )
    assert seen == [[10, 45, 10, 30]] * 2


async def test_failed_invalid_and_cancelled(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.fail = BlockError(errno=errno.EIO)
    with pytest.raises(BlockError):
        await blk.co_preadv(0, bytearray(1))
    with pytest.raises(BlockError):
        await blk.aio_pwritev(0, b"x")
    with pytest.raises(BlockError):
        await blk.co_flush()
    disk.fail = None
    with pytest.raises(OutOfRange):
        await blk.co_preadv(LENGTH, bytearray(1))
    with pytest.raises(OutOfRange):
        await blk.aio_pdiscard(LENGTH, 1)
    disk.stall()
    request = blk.aio_preadv(0, bytearray(1))
    await asyncio.sleep(0)
    await request.cancel()
    task = asyncio.create_task(blk.co_pwritev(0, b"x"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counts(blk.stats.snapshot()) == {
        "read": (0, 0, 1, 1),
        "write": (0, 0, 1, 0),
        "flush": (0, 0, 1, 0),
        "unmap": (0, 0, 0, 1),
    }


async def test_without_a_medium() -> None:
    async with BlockBackend(Perm.ALL) as empty:
        with pytest.raises(NoMedium):
            await empty.co_preadv(0, bytearray(1))
        empty.stats.invalid("write")
        empty.stats.merge_done("read", 3)
        assert counts(empty.stats.snapshot()) == {"read": (0, 0, 1, 0), "write": (0, 0, 0, 1)}
        assert empty.stats.snapshot().read.merged == 3
        with pytest.raises(ValueError, match="merged"):
            empty.stats.merge_done("read", -1)
        with pytest.raises(ValueError, match="kind"):
            empty.stats.invalid("erase")  # type: ignore[arg-type]  # on purpose


async def test_time_is_taken_when_asked_for(blk: BlockBackend, disk: MemoryDisk) -> None:
    clock = Hand()
    blk.stats.clock = clock
    await blk.co_pwritev(0, b"x")
    assert blk.stats.snapshot().write.mean_latency_ns is None
    assert blk.stats.snapshot().idle_time_ns is None
    blk.stats.set_timing(True)
    assert blk.stats.snapshot().idle_time_ns is None  # nothing has happened since
    disk.stall()
    request = blk.aio_pwritev(0, b"x")
    await asyncio.sleep(0)
    clock.now += 5000
    disk.go()
    await request
    disk.fast = True
    assert blk.try_pwritev(0, b"x")
    clock.now += 700
    seen = blk.stats.snapshot()
    assert (seen.write.time_ns, seen.write.timed, seen.write.operations) == (5000, 2, 3)
    assert seen.write.mean_latency_ns == 2500
    assert seen.idle_time_ns == 700
    blk.stats.set_timing(False)
    assert blk.try_pwritev(0, b"x")
    assert blk.stats.snapshot().write.timed == 2


async def test_parked_time_counts(blk: BlockBackend) -> None:
    """Who waits for a drained section to end waits as well."""
    clock = Hand()
    blk.stats.clock = clock
    blk.stats.set_timing(True)
    async with blk.drained():
        parked = asyncio.create_task(blk.co_preadv(0, bytearray(1)))
        await asyncio.sleep(0)
        clock.now += 900
    await parked
    assert blk.stats.snapshot().read.time_ns == 900


async def test_intervals(blk: BlockBackend, disk: MemoryDisk) -> None:
    clock = Hand()
    blk.stats.clock = clock
    blk.stats.add_interval(10)
    for latency in (1000, 3000):
        disk.stall()
        request = blk.aio_preadv(0, bytearray(1))
        await asyncio.sleep(0)
        clock.now += latency
        disk.go()
        await request
    clock.now += 16_000
    (interval,) = blk.stats.snapshot().intervals
    assert interval.seconds == 10
    assert (interval.read.minimum_ns, interval.read.maximum_ns, interval.read.mean_ns) == (1000, 3000, 2000)
    assert interval.read.queue_depth == pytest.approx(4000 / 20_000)
    assert interval.write.maximum_ns == 0
    clock.now += 20 * SECOND
    (interval,) = blk.stats.snapshot().intervals
    assert interval.read.maximum_ns == 0
    for seconds in (10, 0, -1):
        with pytest.raises(ValueError, match="interval length"):
            blk.stats.add_interval(seconds)


def test_an_average_covers_half_a_period_at_least() -> None:
    clock = Hand()
    average = TimedAverage(100, clock)
    average.add(7)
    clock.now += 99
    assert average.minimum() == 7
    average.add(9)
    clock.now += 1  # the first window ends; the other, begun with it, still knows the 7
    assert (average.minimum(), average.maximum(), average.mean()) == (7, 9, 8)
    clock.now += 50
    assert average.minimum() == 0


def test_histograms_count_between_boundaries() -> None:
    histogram = LatencyHistogram([10, 50, 100])
    for latency in (0, 9, 10, 49, 50, 99, 100, 10_000):
        histogram.add(latency)
    assert histogram.bins == [2, 2, 2, 2]


@pytest.mark.parametrize("boundaries", [[], [0], [-5], [10, 10], [10, 5]])
def test_boundaries_that_are_none(boundaries: list[int]) -> None:
    accounting = Accounting()
    accounting.set_histogram([1000])
    with pytest.raises(ValueError, match="boundar"):
        accounting.set_histogram(boundaries, "read")
    assert accounting.snapshot().read.histogram is not None
    accounting.set_histogram(None, "read")
    assert accounting.snapshot().read.histogram is None
    assert accounting.snapshot().write.histogram is not None


async def test_json_has_the_names_of_query_blockstats(blk: BlockBackend) -> None:
    blk.stats.set_histogram([1000, 2000], "read")
    blk.stats.add_interval(1)
    await blk.co_preadv(0, bytearray(512))
    seen = json.loads(blk.stats.snapshot("disk0").to_json())
    assert seen["rd_bytes"] == 512
    assert seen["rd_operations"] == 1
    assert seen["rd_total_time_ns"] > 0
    assert sum(seen["rd_latency_histogram"]["bins"]) == 1
    assert seen["timed_stats"][0]["interval_length"] == 1
    names = {"failed_wr_operations", "invalid_unmap_operations", "flush_operations", "wr_merged", "idle_time_ns"}
    assert names <= seen.keys()


async def test_a_snapshot_stays_what_it_is(blk: BlockBackend) -> None:
    before = blk.stats.snapshot()
    await blk.co_preadv(0, bytearray(512))
    assert before.read.operations == 0
    with pytest.raises(AttributeError):
        before.read.operations = 5  # type: ignore[misc]  # on purpose


async def test_as_a_table(blk: BlockBackend) -> None:
    from rich.console import Console  # heavy, and one test needs it

    blk.stats.set_timing(True)
    await blk.co_pwritev(0, b"x" * 5000)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table([blk.stats.snapshot("disk0")]))
    text = console.export_text()
    assert "disk0" in text
    assert "5,000" in text
    assert "read" not in text


@pytest.mark.parametrize("fast", [True, False])
async def test_node_by_node(tmp_path: Path, fast: bool) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(LENGTH))
    options = {"driver": "raw", "node-name": "top", "file": {"driver": "file", "filename": str(path)}}
    async with await BlockBackend.new_open(options=options) as blk:
        assert blk.node_stats() == []
        blk.account_nodes()
        blk.account_nodes()
        memory = bytearray(4096)
        for _ in range(3):
            await blk.co_preadv(0, memory, 0 if fast else RequestFlags.SERIALISING)
        await blk.co_pwritev(0, memory)
        await blk.co_pwrite_zeroes(0, 512)
        await blk.co_pdiscard(0, 512)
        await blk.co_flush()
        top, file = blk.node_stats()
        assert top.name == "top"
        assert counts(top)["read"] == counts(file)["read"] == (3, 3 * 4096, 0, 0)
        assert counts(top)["write"] == (2, 4096 + 512, 0, 0)
        assert top.read.time_ns >= file.read.time_ns > 0
        blk.account_nodes(False)
        assert blk.node_stats() == []
        await blk.co_preadv(0, memory)
        assert blk.stats.snapshot().read.operations == 4


async def test_what_is_timed_while_time_is_taken_now_and_then(blk: BlockBackend, disk: MemoryDisk) -> None:
    """Each request is timed or not by what held when it began, in both lanes, whenever it ends."""
    reads = blk.stats.read
    memory = bytearray(512)
    await blk.co_preadv(0, memory)
    assert (reads.operations, reads.timed) == (1, 0)
    disk.stall()
    before = blk.aio_preadv(0, memory)
    await asyncio.sleep(0)
    blk.stats.set_timing(True)
    during = blk.aio_preadv(0, memory)
    await asyncio.sleep(0)
    disk.go()
    await before
    await during
    assert (reads.operations, reads.timed) == (3, 1)
    disk.fast = True
    assert blk.try_preadv(0, memory)
    assert (reads.operations, reads.timed) == (4, 2)
    disk.fast = False
    disk.stall()
    late = blk.aio_preadv(0, memory)
    await asyncio.sleep(0)
    blk.stats.set_timing(False)
    blk.stats.set_timing(False)
    assert reads.timed == 2
    disk.go()
    await late
    disk.fast = True
    assert blk.try_preadv(0, memory)
    assert (reads.operations, reads.timed, reads.bytes) == (6, 3, 6 * 512)
    blk.stats.set_timing(True)
    assert reads.timed == 3
    disk.fast = False
    disk.fail = BlockError(errno=5)
    with pytest.raises(BlockError):
        await blk.co_preadv(0, memory)
    assert (reads.operations, reads.failed, reads.timed) == (6, 1, 4)
