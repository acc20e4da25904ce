"""Many requests at once, and clusters that are shared: with snapshots, or compressed."""

from __future__ import annotations

import asyncio
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blockio.errors import BlockError
from blockio.testing.memory import MemoryChild
from blockio.types import ExtentKind, OpenFlags
from blockio_drivers.qcow2.cache import MetadataCache
from tests.qcow2.engine import check_image, new_image, open_disk, qemu_reads, written_image
from tests.support.qemu import pattern, qemu_img, qemu_io

CLUSTER = 4096

EXTENDED = "cluster_size=16k,extended_l2=on"


class Slow(MemoryChild):
    """Every operation takes a few turns of the loop, not always the same number."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.fast = False
        self.rnd = random.Random(4)

    async def co_preadv(self, offset: int, iov: Any, flags: Any = 0) -> None:
        await self._turns()
        await super().co_preadv(offset, iov, flags)
        await self._turns()

    async def co_pwritev(self, offset: int, iov: Any, flags: Any = 0) -> None:
        await self._turns()
        await super().co_pwritev(offset, iov, flags)
        await self._turns()

    async def co_flush(self) -> None:
        await self._turns()
        await super().co_flush()

    async def _turns(self) -> None:
        for _ in range(self.rnd.randrange(4)):
            await asyncio.sleep(0)


# -- concurrency


@pytest.mark.peer("qemu-img")
async def test_32_writers_in_the_same_clusters() -> None:
    """Each owns every 32nd sector of the disk: their clusters are all the same, their bytes never."""
    sectors = 512
    child = Slow((await new_image(sectors * 512, cluster_size=CLUSTER)).data)
    async with open_disk(child) as disk:

        async def writer(number: int) -> None:
            rnd = random.Random(number)
            mine = list(range(number, sectors, 32))
            rnd.shuffle(mine)
            for sector in mine:
                await disk.write(sector * 512, bytes((number + 1,)) * 512)
                if rnd.random() < 0.1:
                    await disk.flush()

        await asyncio.gather(*map(writer, range(32)))
        wanted = b"".join(bytes((sector % 32 + 1,)) * 512 for sector in range(sectors))
        assert await disk.read(0, len(wanted)) == wanted
        used = {offset // CLUSTER for operation, offset, _ in child.log if operation == "write"}
        assert max(used) < sectors * 512 // CLUSTER + 8, "no cluster was allocated twice"
    check_image(child.data)
    assert qemu_reads(child.data) == wanted


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("seed", range(4))
async def test_readers_writers_and_discards_at_once(seed: int) -> None:
    """Tasks own parts of the disk that share clusters' neighbourhood, and free and reuse each other's clusters."""
    parts, part = 8, 16 * CLUSTER
    child = Slow((await new_image(parts * part, cluster_size=CLUSTER)).data)
    model = bytearray(parts * part)
    async with open_disk(child, l2_cache_size=1024) as disk:

        async def life(number: int) -> None:
            rnd = random.Random(seed * 100 + number)
            base = number * part
            for _ in range(40):
                offset = base + rnd.randrange(part)
                nbytes = min(rnd.randrange(1, 3 * CLUSTER), base + part - offset)
                aligned = offset // CLUSTER * CLUSTER
                action = rnd.randrange(6)
                if action < 3:
                    data = rnd.randbytes(nbytes)
                    await disk.write(offset, data)
                    model[offset : offset + nbytes] = data
                elif action == 3:
                    await disk.discard(aligned, CLUSTER)
                    model[aligned : aligned + CLUSTER] = bytes(CLUSTER)
                elif action == 4:
                    assert await disk.read(offset, nbytes) == model[offset : offset + nbytes]
                else:
                    await disk.flush()

        await asyncio.gather(*map(life, range(parts)))
        assert await disk.read(0, len(model)) == model
    check_image(child.data)
    assert qemu_reads(child.data) == model


async def test_two_that_wait_for_the_same_room_do_not_let_each_other_pass_forever() -> None:
    """Regression: whoever's turn came found the other queued behind it, and queued behind that one."""
    child = MemoryChild((await new_image(1 << 20, cluster_size=CLUSTER)).data)
    async with open_disk(child) as disk:
        first = await disk.driver.co_allocate(0, 512)
        waiting = [
            asyncio.ensure_future(disk.write(512, b"b" * 512)),
            asyncio.ensure_future(disk.discard(0, 2 * CLUSTER)),
            asyncio.ensure_future(disk.write(CLUSTER - 512, b"d" * 1024)),
        ]
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        await first.abandon()
        for _ in range(100):
            await asyncio.sleep(0)
        assert all(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        disk.at_rest()
        assert await disk.read(CLUSTER - 512, 1024) == b"d" * 1024


async def test_a_freed_cluster_waits_for_its_readers() -> None:
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * CLUSTER)
        token = disk.driver.map_begin()
        seen = await disk.driver.co_map(0, CLUSTER)
        await disk.discard(0, CLUSTER)
        await disk.flush()
        for index in range(1, 40):
            await disk.write(index * CLUSTER, b"b" * CLUSTER)
            await disk.flush()
        assert child.data[seen.host_offset : seen.host_offset + CLUSTER] == b"a" * CLUSTER
        disk.driver.map_end(token)
        await disk.flush()
        await disk.write(50 * CLUSTER, b"c" * CLUSTER)
        assert (await disk.driver.co_map(50 * CLUSTER, CLUSTER)).host_offset == seen.host_offset, "now it is reused"


async def test_a_write_in_place_keeps_its_cluster() -> None:
    """A discard meanwhile must not hand the cluster under a write to somebody else."""
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * CLUSTER)
        place = await disk.driver.co_allocate(0, CLUSTER)
        await disk.discard(0, CLUSTER)
        await disk.flush()
        await disk.write(CLUSTER, b"b" * CLUSTER)
        assert (await disk.driver.co_map(CLUSTER, CLUSTER)).host_offset != place.host_offset
        await place.link()


async def test_neighbouring_clusters_are_one_run_and_one_request() -> None:
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await disk.write(0, b"x")
        child.log.clear()
        await disk.write(CLUSTER + 100, b"y" * (7 * CLUSTER))
        assert [entry for entry in child.log if entry[0] == "write"] == [
            ("write", child.log[-1][1], 7 * CLUSTER + 100)
        ] or len(child.log) == 1
        extent = await disk.driver.co_map(CLUSTER, 8 * CLUSTER)
        assert (extent.kind, extent.length) == (ExtentKind.DATA, 8 * CLUSTER)


async def test_a_barrier_waits_for_the_flush_that_serves_it() -> None:
    """Regression: a second barrier that trusted a flush which had not ended, and then failed."""
    child = await written_image()
    async with open_disk(child) as disk:
        image = disk.driver._image
        go = asyncio.Event()
        flushes = 0

        async def flush() -> None:
            nonlocal flushes
            flushes += 1
            await go.wait()
            if flushes == 1:
                raise BlockError

        child.co_flush = flush  # type: ignore[method-assign]  # a file that takes its time
        image.unstable = True
        first, second = asyncio.create_task(image.barrier()), asyncio.create_task(image.barrier())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not second.done()
        go.set()
        with pytest.raises(BlockError):
            await first
        await second
        assert flushes == 2
        assert not image.unstable


# -- the cache


async def test_loads_are_shared_and_survive_a_cancelled_reader() -> None:
    loads = 0
    go = asyncio.Event()

    async def load(key: int) -> int:
        nonlocal loads
        loads += 1
        await go.wait()
        return key * 10

    async def nothing() -> None:
        raise AssertionError("nothing is dirty")

    cache: MetadataCache[int] = MetadataCache(512, 4, load, nothing)
    first = asyncio.create_task(cache.get(7))
    others = [asyncio.create_task(cache.get(7)) for _ in range(3)]
    await asyncio.sleep(0)
    assert loads == 1
    first.cancel()
    await asyncio.sleep(0)
    go.set()
    assert [found.table for found in await asyncio.gather(*others)] == [70, 70, 70]
    assert loads == 2
    assert first.cancelled()


async def test_a_slice_stays_dirty_and_reachable_until_it_is_written() -> None:
    """Regression: entries dropped, or marked clean, when their write-back failed."""
    fail = True

    async def load(key: int) -> bytearray:
        return bytearray(512)

    async def write_back() -> None:
        for found, pages in cache.take_dirty():
            cache.written(found, pages, succeeded=not fail)
        if fail:
            raise BlockError

    cache: MetadataCache[bytearray] = MetadataCache(512, 2, load, write_back)
    for key in (1, 2):
        found = await cache.get(key)
        found.table[0] = key
        cache.mark(found, 0, 1)
    with pytest.raises(BlockError):
        await cache.get(3)
    assert (await cache.get(1)).table[0] == 1
    assert cache.statistics().dirty == 2
    fail = False
    await cache.get(3)
    assert not cache.dirty


def test_dirty_pages_are_written_as_runs() -> None:
    cache: MetadataCache[bytearray] = MetadataCache(65536, 2, None, None)  # type: ignore[arg-type]  # neither is called
    assert [(a // 4096, b // 4096) for a, b in cache.runs(0b1101_1110)] == [(1, 5), (6, 8)]


# -- images of QEMU's: snapshots and compressed clusters


def _qemu(path: Path, *args: str) -> None:
    subprocess.run(["qemu-img", *args], check=True, capture_output=True, cwd=path.parent)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("options", ["cluster_size=4k,compat=0.10", "cluster_size=4k", EXTENDED])
async def test_what_a_snapshot_shares_is_never_overwritten(tmp_path: Path, options: str) -> None:
    path = tmp_path / "i.qcow2"
    old = pattern(1 << 20, 3)
    (tmp_path / "raw").write_bytes(old)
    qemu_img("convert", "-O", "qcow2", "-o", options, tmp_path / "raw", path)
    qemu_img("snapshot", "-c", "one", path)
    child = MemoryChild(path.read_bytes())
    model = bytearray(old)
    async with open_disk(child) as disk:
        for offset, nbytes in ((5, 10), (4096 * 9 + 3, 4096 * 5), (900_000, 5000)):
            await disk.write(offset, b"N" * nbytes)
            model[offset : offset + nbytes] = b"N" * nbytes
        await disk.discard(65536, 65536)
        model[65536:131072] = bytes(65536)
        if "0.10" not in options:
            await disk.zero(200704, 40960)
            model[200704:241664] = bytes(40960)
        await disk.write(70000, b"M" * 100)
        model[70000:70100] = b"M" * 100
        assert await disk.read(0, len(model)) == model
    check_image(child.data)
    assert qemu_reads(child.data) == model
    path.write_bytes(child.data)
    qemu_img("snapshot", "-a", "one", path)
    assert qemu_reads(path.read_bytes()) == old
    qemu_img("snapshot", "-d", "one", path)
    check_image(path.read_bytes())


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize(
    ("cluster", "extended"), [(512, False), (65536, False), (2 << 20, False), (16384, True), (65536, True)]
)
async def test_compressed_clusters_are_read_and_replaced(
    tmp_path: Path, kind: str, cluster: int, extended: bool
) -> None:
    size = max(1 << 20, 2 * cluster)
    old = (b"compressible " * (size // 13 + 1))[:size]
    (tmp_path / "raw").write_bytes(old)
    path = tmp_path / "i.qcow2"
    options = f"cluster_size={cluster},compression_type={kind},extended_l2={'on' if extended else 'off'}"
    qemu_img("convert", "-c", "-O", "qcow2", "-o", options, tmp_path / "raw", path)
    child = MemoryChild(path.read_bytes())
    model = bytearray(old)
    async with open_disk(child) as disk:
        assert (await disk.driver.co_map(0, 10)).kind is ExtentKind.COMPRESSED
        assert await disk.read(0, size) == old
        await asyncio.gather(*(disk.read(offset, 4096) for offset in range(0, size, size // 32)))
        before = bytes(child.data)
        for offset, nbytes in ((100, 50), (cluster + 7, cluster // 2), (size - 300, 300)):
            await disk.write(offset, b"N" * nbytes)
            model[offset : offset + nbytes] = b"N" * nbytes
        await disk.flush()
        first_l2 = len(before)
        assert first_l2
        assert await disk.read(0, size) == model
        await disk.discard(0, cluster)
        model[:cluster] = bytes(cluster)
    check_image(child.data)
    assert qemu_reads(child.data) == model


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_a_dirty_image_is_repaired_by_a_writable_open(tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on,compat=1.1", path, "1M")
    qemu_io(path, "write -P 5 0 128k", "abort", check=False)
    child = MemoryChild(path.read_bytes())
    assert child.data[79] & 1
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        assert await disk.read(0, 131072) == b"\5" * 131072
    assert child.data[79] & 1, "a reader repairs nothing"
    async with open_disk(child) as disk:
        await disk.write(131072, b"x" * 65536)
        assert child.data[79] & 1 == 0 or disk.driver._image.lazy
    check_image(child.data)
    assert not child.data[79] & 1
