"""Options that become others while the image is open, and caches that let go of what nobody uses."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import blockio
from blockio.aio.clock import ManualClock
from blockio.aio.context import IOThread
from blockio.buffers import IoVector
from blockio.cli.io import main
from blockio.driver.base import ReopenState
from blockio.errors import BlockError, OptionError
from blockio.graph.reopen import reopen
from blockio.testing.memory import MemoryChild, MemoryHost, MemoryOpener
from blockio.types import OpenFlags, RequestFlags
from blockio_drivers.qcow2.driver import Qcow2Driver
from blockio_drivers.qcow2.options import OverlapChecks, Qcow2Options
from tests.qcow2.engine import Disk, check_image, new_image, open_disk
from tests.support.qemu import assert_clean, qemu_img, qemu_io, without_timing

CLUSTER = 4096
SIZE = 4 << 20
SPAN = 512 * CLUSTER
"""What one L2 table speaks of."""


@asynccontextmanager
async def clocked(child: MemoryChild, **options: Any) -> AsyncIterator[tuple[Disk, ManualClock]]:
    host, clock = MemoryHost(), ManualClock()
    driver = Qcow2Driver(host)
    driver.clock = clock
    await driver.open(Qcow2Options(**options), MemoryOpener(file=child))
    try:
        yield Disk(driver, host, child), clock
    finally:
        await driver.close()


async def change(disk: Disk, *, fails: bool = False, **options: Any) -> None:
    """What a reopen asks of the driver."""
    state = ReopenState(disk.host.flags, Qcow2Options(**options))
    await disk.driver.reopen_prepare(state)
    if fails:
        disk.driver.reopen_abort(state)
    else:
        disk.driver.reopen_commit(state)
    await disk.driver.reopen_done()


def held(disk: Disk) -> tuple[int, int]:
    found = disk.driver.statistics()
    return found["l2"].cached, found["refcount"].cached


# -- the clock


@pytest.mark.peer("qemu-img")
async def test_unused_metadata_leaves_memory() -> None:
    child = await new_image(SIZE, cluster_size=CLUSTER)
    async with clocked(child, cache_clean_interval=10) as (disk, clock):
        for at in (0, SPAN):
            await disk.write(at, b"a" * CLUSTER)
        assert held(disk)[0] == 2
        clock.advance(30)
        assert held(disk)[0] == 2, "what is dirty stays"
        await disk.flush()
        await disk.read(0, 512)
        clock.advance(10)
        assert held(disk) == (1, 0), "what was read meanwhile stays, even if through the fast lane"
        assert disk.driver.try_preadv(0, [memoryview(bytearray(512))], 512)
        clock.advance(10)
        assert held(disk)[0] == 1
        clock.advance(10)
        assert held(disk) == (0, 0)
        assert await disk.read(SPAN, CLUSTER) == b"a" * CLUSTER
        await disk.write(SPAN, b"b" * CLUSTER)
        clock.advance(1000)
    assert not [timer for _, _, timer in clock._timers if timer.fn is not None], "no timer outlives the image"
    check_image(child.data)


async def test_what_a_request_relies_on_stays() -> None:
    child = await new_image(SIZE, cluster_size=CLUSTER)
    async with clocked(child, cache_clean_interval=1) as (disk, clock):
        await disk.write(0, b"a")
        await disk.flush()
        room = await disk.driver.co_allocate(CLUSTER, CLUSTER)
        clock.advance(100)
        assert disk.driver.statistics()["l2"].pinned == held(disk)[0] == 1
        await room.abandon()
        await disk.driver._settle_tables()
        clock.advance(100)
        assert held(disk) == (0, 0)


async def test_never_where_the_interval_is_none_and_another_one_after_a_reopen() -> None:
    child = await new_image(SIZE, cluster_size=CLUSTER)
    async with clocked(child, cache_clean_interval=0) as (disk, clock):
        assert not clock._timers
        await disk.write(0, b"a")
        await disk.flush()
        clock.advance(10000)
        assert held(disk)[0] == 1
        await change(disk, cache_clean_interval=5)
        await disk.read(0, 512)
        clock.advance(10)
        assert held(disk) == (0, 0)
        await change(disk, cache_clean_interval=0)
        await disk.read(0, 512)
        clock.advance(10000)
        assert held(disk)[0] == 1


async def test_the_timer_moves_with_the_node(tmp_path: Path) -> None:
    path = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    async with blockio.open(str(path), format="qcow2") as blk:
        assert blk.bs is not None
        driver = blk.bs.driver
        assert isinstance(driver, Qcow2Driver)
        home = blk.context
        timers: list[Any] = [driver._cleaner._timer]  # the loops' own, which can be asked
        async with IOThread() as thread:
            await blk.set_aio_context(thread.context)
            timers.append(driver._cleaner._timer)
            assert [timer.cancelled() for timer in timers] == [True, False]
            await blk.set_aio_context(home)
            timers.append(driver._cleaner._timer)
            assert [timer.cancelled() for timer in timers] == [True, True, False]
    assert all(timer.cancelled() for timer in timers)


# -- reopening


TUNED: list[dict[str, Any]] = [
    {"lazy_refcounts": True},
    {"lazy_refcounts": False},
    {"l2_cache_entry_size": 512, "l2_cache_size": 2048},
    {"refcount_cache_size": CLUSTER},
    {"overlap_check": "all"},
    {"overlap_check": OverlapChecks(template="none", active_l1=True)},
    {"pass_discard_request": False, "pass_discard_snapshot": False, "pass_discard_other": True},
    {},
]


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("extended", [False, True])
async def test_every_option_in_turn_while_data_comes_and_goes(extended: bool) -> None:
    size = 16384 if extended else CLUSTER
    child = await new_image(SIZE, cluster_size=size, extended_l2=extended)
    wanted = bytearray(SIZE)
    async with open_disk(child) as disk:
        for turn, options in enumerate(TUNED * 2):
            for at in range(turn * 512, SIZE - 3000, SIZE // 5):
                wanted[at : at + 3000] = bytes([turn + 1]) * 3000
                await disk.write(at, wanted[at : at + 3000])
            hole = size * 3 * turn
            await disk.discard(hole, size)
            wanted[hole : hole + size] = bytes(size)
            await change(disk, **options)
            check_image(child.data)
            assert await disk.read(0, SIZE) == wanted
    check_image(child.data)


@pytest.mark.peer("qemu-img")
async def test_lazy_refcounts_go_off_with_true_refcounts() -> None:
    child = await new_image(SIZE, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await change(disk, lazy_refcounts=True)
        await disk.write(0, b"a" * CLUSTER)
        await disk.flush()
        assert child.data[79] & 1
        await change(disk)
        assert not child.data[79] & 1
        await disk.write(CLUSTER, b"a" * CLUSTER)
        await disk.flush()
        assert not child.data[79] & 1
        check_image(child.data)


@pytest.mark.peer("qemu-img")
async def test_inactive_tables_are_known_once_they_are_protected(tmp_path: Path) -> None:
    path = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write 0 64k")
    qemu_img("snapshot", "-c", "s", path)
    qemu_io(path, "write 0 64k")
    child = MemoryChild(path.read_bytes())
    async with open_disk(child) as disk:
        guard = disk.driver._image.guard
        assert not guard.inactive_l2.offsets
        await change(disk, overlap_check="all")
        (table,) = guard.inactive_l2.offsets
        assert guard.hit(table, 512) == "inactive L2 table"
        await change(disk, overlap_check="none")
        assert guard.hit(0, 512) is None
    check_image(child.data)


@pytest.mark.peer("qemu-img")
async def test_refused_aborted_or_failed_it_is_as_it_was() -> None:
    child = await new_image(SIZE, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * CLUSTER)
        before = disk.driver._tuning
        for wrong in ({"l2_cache_entry_size": 3000}, {"cache_clean_interval": -1}, {"overlap_check": "x"}):
            with pytest.raises(OptionError):
                await change(disk, **wrong)
        await change(disk, fails=True, l2_cache_entry_size=512, lazy_refcounts=True)
        assert disk.driver._tuning is before
        for at in range(2, 8):
            await disk.write(at * CLUSTER, b"b" * CLUSTER)
            await disk.write(SPAN + at * CLUSTER, b"b" * CLUSTER)
            real, left = child.co_pwritev, at - 2

            async def failing(offset: int, iov: IoVector, flags: RequestFlags | int = 0, real: Any = real) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    raise BlockError(errno=5)
                await real(offset, iov, flags)

            child.co_pwritev = failing  # type: ignore[method-assign]  # a disk that breaks for a while
            refused = False
            try:
                await change(disk, l2_cache_entry_size=512 << (at & 1))
            except BlockError:
                refused = True
            child.co_pwritev = real  # type: ignore[method-assign]  # and is whole again
            if refused:
                await change(disk, l2_cache_entry_size=1024 << (at & 1))  # must not forget what is not written yet
            for other in range(2, at + 1):
                assert await disk.read(other * CLUSTER, CLUSTER) == b"b" * CLUSTER
                assert await disk.read(SPAN + other * CLUSTER, CLUSTER) == b"b" * CLUSTER
    check_image(child.data)


@pytest.mark.peer("qemu-img")
async def test_cancelled_at_every_await() -> None:
    for steps in range(60):
        child = await new_image(SIZE, cluster_size=CLUSTER)
        async with open_disk(child) as disk:
            await disk.write(0, b"a" * CLUSTER)
            await disk.write(SPAN, b"b" * CLUSTER)
            task = asyncio.ensure_future(change(disk, l2_cache_entry_size=512, lazy_refcounts=True))
            for _ in range(steps):
                await asyncio.sleep(0)
            whole = task.done()
            task.cancel()
            await asyncio.wait([task])
            await disk.write(CLUSTER, b"c" * CLUSTER)
            assert await disk.read(0, 2 * CLUSTER) == b"a" * CLUSTER + b"c" * CLUSTER
            assert await disk.read(SPAN, CLUSTER) == b"b" * CLUSTER
            disk.at_rest()
        check_image(child.data)
        if whole:
            return
    raise AssertionError("the reopen never ended")


@pytest.mark.peer("qemu-img")
async def test_through_the_graph_with_a_persistent_bitmap(tmp_path: Path) -> None:
    path = tmp_path / "d.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("bitmap", "--add", path, "b")
    async with blockio.open(str(path), format="qcow2") as blk:
        await blk.co_pwritev(0, b"x" * 512)
        assert blk.bs is not None
        await reopen(blk.bs, options={"cache-size": "1M", "overlap-check": "all"})
        await blk.co_pwritev(1 << 19, b"y" * 512)
        await reopen(blk.bs, options={"lazy-refcounts": "on"}, read_only=False)
    assert_clean(path)
    child = MemoryChild(path.read_bytes())
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        (bitmap,) = disk.host.dirty_bitmaps
        assert bitmap.count == 2 * 65536


# -- in the tool's words


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize(
    "option",
    [
        "lazy-refcounts=on",
        "l2-cache-entry-size=3000",
        "l2-cache-entry-size=4096",
        "cache-clean-interval=5",
        "cache-clean-interval=99999999999",
        "cache-clean-interval=-1",
        "cache-clean-interval=x",
        "overlap-check=none",
        "overlap-check=x",
        "cache-size=1M,l2-cache-size=1M,refcount-cache-size=1M",
        "cache-size=1M,l2-cache-size=2M",
        "refcount-cache-size=9223372036854775807",
        "pass-discard-request=off",
        "pass-discard-snapshot=on",
        "pass-discard-other=on",
        "pass-discard-other=x",
        "overlap-check=none,overlap-check.template=all",
        "overlap-check.template=none,overlap-check=all",
        "overlap-check=all,overlap-check.template=all",
        "overlap-check=,overlap-check.template=all",
        "overlap-check.template=",
        "overlap-check=all,overlap-check.main-header=off",
        "overlap-check=x,overlap-check.main-header=off",
        "overlap-check.main-header=x",
    ],
)
@pytest.mark.parametrize("how", ["reopen", "open"])
def test_as_qemu_io_says(
    how: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d", "1M")
    monkeypatch.chdir(tmp_path)
    image = "driver=qcow2,file.driver=file,file.filename=d"
    if how == "reopen":
        words = ["--image-opts", image, "-c", f"reopen -o {option}", "-c", "write 0 64k", "-c", "read 0 512"]
    else:
        words = ["--image-opts", f"{image},{option}", "-c", "read 0 512"]
    capfd.readouterr()
    status = main(words, "qemu-io")
    ours = capfd.readouterr()
    done = subprocess.run(["qemu-io", *words], capture_output=True, text=True, check=False, timeout=60)
    assert (status, without_timing(ours.out), ours.err) == (done.returncode, without_timing(done.stdout), done.stderr)
    assert_clean(tmp_path / "d")


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("overlap-check=all", "overlap-check.template=none"),
        ("overlap-check.template=all,overlap-check.main-header=off", "overlap-check=none"),
        ("overlap-check=all", "overlap-check.main-header=off"),
        ("cache-size=2M", "l2-cache-size=4M"),
        ("cache-size=2M", "l2-cache-size=4M,refcount-cache-size=4M"),
        ("l2-cache-size=1M,refcount-cache-size=1M", "cache-size=4M"),
        ("l2-cache-size=1M,refcount-cache-size=1M", "cache-size=4M,l2-cache-size=2M,refcount-cache-size=2M"),
        ("cache-size=2M,l2-cache-size=1M", "refcount-cache-size=8M"),
    ],
)
def test_new_options_beside_old_ones(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "d", "1M")
    monkeypatch.chdir(tmp_path)
    image = f"driver=qcow2,file.driver=file,file.filename=d,{before}"
    words = ["--image-opts", image, "-c", f"reopen -o {after}", "-c", "length"]
    capfd.readouterr()
    status = main(words, "qemu-io")
    ours = capfd.readouterr()
    done = subprocess.run(["qemu-io", *words], capture_output=True, text=True, check=False, timeout=60)
    assert (status, ours.out, ours.err) == (done.returncode, done.stdout, done.stderr)
