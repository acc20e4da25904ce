"""Where the time of one request goes: the same requests, sent into a stack at each of its layers, in turn.

What a request costs from a layer down is the processor time of the whole process (worker threads, and the kernel's for
io_uring, are part of it) over the requests of a pass; what a layer itself costs is the difference to the layer below,
pass by pass, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec

from blockio.bench.figures import Spread, spread
from blockio.bench.job import places, size_text
from blockio.bench.load import at_once, fill
from blockio.buffers import IoVector, aligned_buffers
from blockio.driver.base import DriverKind, FilterDriver, FormatDriver
from blockio.errors import OptionError
from blockio.graph.edge import Edge
from blockio.types import ExtentKind, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Collection

    from blockio.aio.flight import Start
    from blockio.backend import BlockBackend
    from blockio.backend.lanes import Lanes
    from blockio.bench.job import Job
    from blockio.bench.stack import Stack
    from blockio.graph.node import BlockNode

__all__ = ["LANES", "Layer", "LayerCost", "Level", "costs", "measure_layers"]

LANES: Final[tuple[Lanes, ...]] = ("fast", "started", "slow")
REQUESTS: Final = 500
"""Of each pass: with the fewest nanoseconds there are, still some hundred times what the clock can tell apart."""


class Layer(msgspec.Struct, frozen=True):
    """What a request costs from this layer down, and the layer's own share of it. Nanoseconds."""

    name: str
    total: Spread
    own: Spread


class LayerCost(msgspec.Struct, frozen=True, kw_only=True):
    """One way of one kind of request through one stack, the lowest layer first."""

    stack: str
    request: str
    lane: str
    engine: str = ""
    """Below the lanes that do not end in the page cache."""
    layers: list[Layer] = []
    left_out: str = ""
    """Why this lane is not open for these requests; then there are no layers."""

    @property
    def way(self) -> str:
        """``started lane (io_uring)``."""
        return f"{self.lane} lane" + (f" ({self.engine})" if self.engine else "")


class Level(NamedTuple):
    """A place to send requests to. ``run`` sends all requests of a pass."""

    name: str
    run: Callable[[], Coroutine[Any, Any, object]]


class _Declined(Exception):
    """A layer does not serve these requests by this lane."""


async def measure_layers(
    stack: Stack, job: Job, *, name: str, passes: int, lanes: Collection[Lanes] = LANES
) -> list[LayerCost]:
    """What *job*'s requests cost in each layer of *stack*, called *name*, by each of *lanes*.

    Writes go where the disk's data lies already. Raises OptionError for jobs that mix reads and writes and for a disk
    that is too small; BlockError where the stack cannot be opened or a request fails.
    """
    if job.read_percent not in {0, 100}:
        raise OptionError("What layers cost is measured for reads or for writes, not for a mix of them")
    kinds = "writes" if job.writes else "reads"
    request = f"{size_text(job.block_size)} {job.pattern} {kinds}, QD {job.depth}"
    found = []
    async with stack.opened(write=job.writes) as blk:
        way = await _way_down(blk, job)
        for lane in lanes:
            cost = LayerCost(stack=name, request=request, lane=lane, engine=_engine(way) if lane != "fast" else "")
            try:
                layers = await costs(_levels(blk, way, job, lane), len(way[0].offsets), passes)
                found.append(msgspec.structs.replace(cost, layers=layers))
            except _Declined as where:
                found.append(msgspec.structs.replace(cost, left_out=str(where)))
    return found


async def costs(
    levels: Sequence[Level], requests: int, passes: int, clock: Callable[[], int] = time.process_time_ns
) -> list[Layer]:
    """Run all *levels*, the lowest first, *passes* times in turn, after one round to warm up."""
    taken: list[list[float]] = [[] for _ in levels]
    for number in range(passes + 1):
        for level, times in zip(levels, taken, strict=True):
            began = clock()
            await level.run()
            if number:
                times.append((clock() - began) / requests)
    below: list[float] = [0.0] * passes
    layers = []
    for level, times in zip(levels, taken, strict=True):
        own = [here - lower for here, lower in zip(times, below, strict=True)]
        layers.append(Layer(level.name, spread(times), spread(own)))
        below = times
    return layers


# -- the way down


class _Station(NamedTuple):
    """One node on the way down, and where in it the requests go."""

    edge: Edge
    offsets: list[int]


async def _way_down(blk: BlockBackend, job: Job) -> list[_Station]:
    """The nodes that the job's requests come through. Those that do not go the way of the first one are left out.

    It ends at the protocol, or above what does not store its bytes as they are (a compressed cluster).
    """
    edge = blk.root
    assert edge is not None
    endless = msgspec.structs.replace(job, count=None, seconds=1.0)
    offsets = [place if place >= 0 else ~place for place in islice(places(endless, await blk.co_getlength()), REQUESTS)]
    way = [_Station(edge, offsets)]
    while True:
        below = [await _below(way[-1].edge, offset, job) for offset in way[-1].offsets]
        first = below[0]
        if first is None:
            return way
        same = [number for number, found in enumerate(below) if found is not None and found[0] is first[0]]
        way = [_Station(station.edge, [station.offsets[number] for number in same]) for station in way]
        way.append(_Station(first[0], [found[1] for found in below if found is not None and found[0] is first[0]]))


def _engine(way: Sequence[_Station]) -> str:
    """What the protocol says of itself, if it has engines to choose from."""
    return str(getattr(way[-1].edge.node.driver, "aio", ""))


async def _below(edge: Edge, offset: int, job: Job) -> tuple[Edge, int] | None:
    """Where the bytes at *offset* lie in the layer below, which None says there is none of."""
    driver = edge.node.driver
    if isinstance(driver, FilterDriver):
        assert isinstance(driver.file, Edge)
        return driver.file, offset
    if not isinstance(driver, FormatDriver):
        return None
    if type(driver).co_preadv is not FormatDriver.co_preadv:
        return await _below_a_mover(edge, offset, job)
    extent = await driver.co_map(offset, job.block_size)
    if extent.length < job.block_size:
        return None
    if extent.kind is ExtentKind.DATA:
        assert isinstance(extent.child, Edge)
        return extent.child, extent.host_offset
    backing = edge.node.backing
    if extent.kind is ExtentKind.UNALLOCATED and backing is not None and not job.writes:
        return backing, offset
    return None


async def _below_a_mover(edge: Edge, offset: int, job: Job) -> tuple[Edge, int] | None:
    """The same below a format that moves its bytes itself: it may keep them otherwise than they read (encrypted).

    Then what lies at the same offset is as good to be read, but must not be written.
    """
    below = edge.node.primary
    status = await edge.node.path.co_block_status(offset, job.block_size, want_zero=False)
    if below is not None and status.flags & StatusFlags.OFFSET_VALID and status.length >= job.block_size:
        return below, status.host_offset
    return None if below is None or job.writes else (below, offset)


# -- the levels

_Worker: TypeAlias = "Callable[[Iterator[int], memoryview], Coroutine[Any, Any, None]]"
"""Sends requests to the offsets it is given, one after the other, from or into this memory."""


def _levels(blk: BlockBackend, way: Sequence[_Station], job: Job, lane: Lanes) -> list[Level]:
    """From an empty loop up to the backend that takes each request's time."""

    def level(name: str, offsets: Sequence[int], worker: _Worker) -> Level:
        return Level(name, lambda: _together(worker, offsets, job))

    bottom = way[-1]
    node = bottom.edge.node
    levels = [level("the asking loop", bottom.offsets, _nobody)]
    if node.driver_class.kind is DriverKind.PROTOCOL:
        if os.path.exists(node.filename):
            levels.append(Level("system call", lambda: _bare(node, bottom.offsets, job)))
        name = f"{node.driver_class.name} driver"
        levels.append(level(name, bottom.offsets, _worker(node.driver, name, job, lane)))
    for station in reversed(way):
        name = f"{station.edge.driver_name} node"
        levels.append(level(name, station.offsets, _worker(station.edge, name, job, lane)))
    for timing, name in ((False, "backend, counting"), (True, "backend, timing")):

        async def run(timing: bool = timing) -> None:
            blk.set_lanes(lane)
            blk.stats.set_timing(timing)
            await _together(_asking(blk.co_pwritev if job.writes else blk.co_preadv), way[0].offsets, job)

        levels.append(Level(name, run))
    return levels


def _worker(layer: Any, name: str, job: Job, lane: Lanes) -> _Worker:
    """Through *layer*, called *name*, an edge or a driver: both have all three forms of a request."""
    kind = "pwritev" if job.writes else "preadv"
    nbytes = job.block_size
    if lane == "slow":
        return _slowly(getattr(layer, f"co_{kind}"))
    call = getattr(layer, f"try_{kind}" if lane == "fast" else f"start_{kind}")
    return (_fast if lane == "fast" else _started)(call, nbytes, f"the {name} declines")


async def _together(worker: _Worker, offsets: Sequence[int], job: Job) -> None:
    plan = iter(offsets)
    await at_once([worker(plan, fill(memory)) for memory in aligned_buffers(job.depth, job.block_size)])


async def _nobody(plan: Iterator[int], memory: memoryview) -> None:
    for _ in plan:
        pass


def _asking(call: Callable[[int, memoryview], Coroutine[Any, Any, None]]) -> _Worker:
    async def work(plan: Iterator[int], memory: memoryview) -> None:
        for offset in plan:
            await call(offset, memory)

    return work


def _slowly(call: Callable[[int, IoVector, int], Coroutine[Any, Any, None]]) -> _Worker:
    async def work(plan: Iterator[int], memory: memoryview) -> None:
        iov = IoVector.of(memory)
        for offset in plan:
            await call(offset, iov, 0)

    return work


def _fast(call: Callable[[int, Sequence[memoryview], int], bool], nbytes: int, declined: str) -> _Worker:
    async def work(plan: Iterator[int], memory: memoryview) -> None:
        bufs = (memory,)
        for offset in plan:
            if not call(offset, bufs, nbytes):
                raise _Declined(declined)

    return work


def _started(call: Start, nbytes: int, declined: str) -> _Worker:
    async def work(plan: Iterator[int], memory: memoryview) -> None:
        bufs = (memory,)
        for offset in plan:
            flight = call(offset, bufs, nbytes)
            if flight is None:
                raise _Declined(declined)
            await flight.land()

    return work


async def _bare(node: BlockNode, offsets: Sequence[int], job: Job) -> None:
    """What the kernel takes for them, from Python."""
    call = os.pwritev if job.writes else os.preadv
    direct = os.O_DIRECT if node.flags.cache_direct else 0
    fd = os.open(node.filename, (os.O_RDWR if job.writes else os.O_RDONLY) | direct | os.O_CLOEXEC)

    async def ask_kernel(plan: Iterator[int], memory: memoryview) -> None:
        bufs = [memory]
        for offset in plan:
            call(fd, bufs, offset)

    try:
        await _together(ask_kernel, offsets, job)
    finally:
        os.close(fd)
