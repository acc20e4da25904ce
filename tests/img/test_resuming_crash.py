"""Crashes and faults of a conversion that can be resumed: image and journal are two disks, recorded together."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from blockio.backend import BlockBackend
from blockio.driver.base import CheckFix
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError
from blockio.img import copying, resuming
from blockio.img.copying import Copier, Source
from blockio.img.journal import line_of, lines_in
from blockio.img.progress import Meter
from blockio.img.resuming import Checkpoints, Done, Rewriting, mended, remaining
from blockio.testing.crash import CrashState, explore_crashes
from blockio.testing.driver import MemoryDisk
from blockio.testing.faults import FaultPlan, FaultyChild, for_every_fault
from blockio.testing.journal import Journal
from blockio.testing.wrapping import PausingChild, Wrap, wrapped
from blockio.types import OpenFlags
from tests.qcow2.engine import check_image, new_image, qemu_reads
from tests.support.interrupting import Steps

CLUSTER = 4096
CHUNK = 4 * CLUSTER


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "CHUNK", CHUNK)
    monkeypatch.setattr(resuming, "EVERY", 0)


def content(seed: int = 1) -> bytearray:
    """Clusters with data of which some gets smaller, zeroes, and clusters that hold a little of both."""
    rnd = random.Random(seed)
    clusters = [
        rnd.choice(
            [bytes(CLUSTER), rnd.randbytes(CLUSTER), rnd.randbytes(64) * 64, rnd.randbytes(512).ljust(CLUSTER, b"\0")]
        )
        for _ in range(28)
    ]
    return bytearray(b"".join(clusters) + b"end!" * 128)


@dataclass
class Conversion:
    """``convert(resume=True)`` without its files: from a disk in memory to two others."""

    source: bytearray
    compress: bool = False
    steps: Steps | None = None
    """Lets the journal keep up."""

    @asynccontextmanager
    async def disks(
        self, disks: Mapping[str, bytearray], wrap: Wrap | None = None
    ) -> AsyncIterator[list[BlockBackend]]:
        """The source, the image and the journal, opened."""
        async with AsyncExitStack() as stack:
            opened = []
            for name, data in (("source", self.source), *disks.items()):
                options: Mapping[str, Any] = stack.enter_context(MemoryDisk(data)).options()
                if wrap is not None and name != "source":
                    options = stack.enter_context(wrapped(wrap, name, options))
                driver = "qcow2" if name == "file" else "raw"
                blk = await BlockBackend.new_open(
                    options={"driver": driver, "file": options},
                    flags=OpenFlags(unmap=True),
                    gate=AllowAll(),
                    resize=True,
                )
                blk.set_allow_write_beyond_eof(True)  # as a file lets its journal grow
                opened.append(await stack.enter_async_context(blk))
            yield opened

    async def run(self, disks: Mapping[str, bytearray], wrap: Wrap | None = None, *, again: bool = False) -> int:
        """Convert to the end; *again*: go on with what *disks* hold. The answer is from where."""
        async with self.disks(disks, wrap) as (source, image, log):
            lines, end = lines_in(bytes(disks["log"]))
            since = max((msgspec.json.decode(line, type=Done).done for line in lines), default=0)
            node = image.bs
            assert node is not None
            if again:
                assert await mended(node)

            async def note(done: int) -> None:
                nonlocal end
                line = line_of(Done(done))
                await log.co_pwritev(end, line)
                await log.co_flush()
                end += len(line)
                if self.steps is not None:
                    self.steps.note()

            checkpoints = Checkpoints(image.co_flush, note, since=since)
            await checkpoints.during(
                Copier(
                    remaining([Source(source, 0)], since),
                    Rewriting(image) if self.compress else image,
                    Meter(None, len(self.source)),
                    workers=3,
                    cluster_size=CLUSTER,
                    zero_init=True,
                    compress=self.compress,
                    limit=self.steps,
                    landed=checkpoints.landed,
                ).run()
            )
            if self.compress:
                await image.co_pwrite_compressed(0, b"")
            if again:
                assert await mended(node)
            await image.co_flush()
            return since

    async def check(self, disks: Mapping[str, bytearray]) -> None:
        """What came of it is whole."""
        async with self.disks(disks) as (_, image, _log):
            found = bytearray(len(self.source))
            await image.co_preadv(0, found)
            assert found == self.source
            node = image.bs
            assert node is not None
            assert node.driver is not None
            result = await node.driver.co_check(CheckFix.NONE)
            assert result.corruptions == result.leaks == result.check_errors == 0, result


async def empty(size: int) -> dict[str, bytearray]:
    """A new image, and a journal that says nothing."""
    return {"file": (await new_image(size, cluster_size=CLUSTER)).data, "log": bytearray()}


def inline(_executor: object, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """``run_in_executor`` without threads, so that each run is the same."""
    done = asyncio.get_running_loop().create_future()
    done.set_result(function(*args))
    return done


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
async def test_what_a_crash_leaves_becomes_the_whole_image(compress: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", inline)
    conversion = Conversion(content(), compress, Steps())
    disks = await empty(len(conversion.source))
    journal = Journal()
    for name, data in disks.items():
        journal.add(name, data)
    rnd = random.Random(5)
    await conversion.run(
        disks,
        lambda name, child: journal.over(name, PausingChild(child, turns=4, rnd=rnd) if name == "file" else child),
    )
    conversion.steps = None
    await conversion.check(disks)
    went_on: set[int] = set()
    last: dict[str, bytearray] = {}

    async def judge(state: CrashState) -> None:
        went_on.add(await conversion.run(state.disks, again=True))
        await conversion.check(state.disks)
        last.update(state.disks)

    report = await explore_crashes(journal, judge, states=40, seed=3)
    assert report.ok, str(report)
    assert len(went_on) > 2
    check_image(last["file"])
    assert qemu_reads(last["file"]) == conversion.source


async def test_what_a_fault_leaves_becomes_the_whole_image() -> None:
    conversion = Conversion(content(2))
    plan = FaultPlan(error=errno.ENOSPC)

    async def scenario() -> None:
        nth, plan.nth = plan.nth, 0
        disks = await empty(len(conversion.source))
        plan.arm(nth)
        with suppress(BlockError):
            await conversion.run(disks, lambda _name, child: FaultyChild(child, plan))
        fired, plan.nth = plan.fired, 0
        await conversion.run(disks, again=True)
        await conversion.check(disks)
        plan.fired = fired

    assert await for_every_fault(plan, scenario) > 20


async def test_a_failing_flush_ends_the_copying_and_a_failing_copy_the_checkpoints() -> None:
    async def failing() -> None:
        raise BlockError(errno=errno.EIO)

    async def endless() -> None:
        await asyncio.get_running_loop().create_future()

    async def note(_done: int) -> None:
        raise AssertionError("nothing was flushed")

    checkpoints = Checkpoints(failing, note)
    checkpoints.landed(1, 2 * CHUNK, CHUNK)  # out of turn: nothing is known yet
    checkpoints.landed(0, CHUNK, CHUNK)
    with pytest.raises(BlockError, match="error while flushing the new image: Input/output error"):
        await checkpoints.during(endless())
    with pytest.raises(BlockError, match=r"^Input/output error$"):
        await Checkpoints(endless, note).during(failing())
