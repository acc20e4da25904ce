"""Many requests at once, clusters shared with snapshots or compressed, and images that lie."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blockio.errors import BlockError, CorruptImage, ImageError, NoMedium, OptionError, UnsupportedFeature
from blockio.testing.memory import MemoryChild
from blockio.types import BlockStatus, ExtentKind, OpenFlags, PreallocMode, RequestFlags, StatusFlags
from blockio_drivers.qcow2.cache import MetadataCache
from blockio_drivers.qcow2.tables import COPIED
from tests.qcow2.engine import Disk, check_image, new_image, open_disk, qemu_reads
from tests.support.qemu import pattern, qemu_img, qemu_io

CLUSTER = 4096


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
    child = await _written()
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
    assert cache.dirty_count == 2
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
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
async def test_what_a_snapshot_shares_is_never_overwritten(tmp_path: Path, compat: str) -> None:
    path = tmp_path / "i.qcow2"
    old = pattern(1 << 20, 3)
    (tmp_path / "raw").write_bytes(old)
    qemu_img("convert", "-O", "qcow2", "-o", f"cluster_size=4k,compat={compat}", tmp_path / "raw", path)
    qemu_img("snapshot", "-c", "one", path)
    child = MemoryChild(path.read_bytes())
    model = bytearray(old)
    async with open_disk(child) as disk:
        for offset, nbytes in ((5, 10), (4096 * 9 + 3, 4096 * 5), (900_000, 5000)):
            await disk.write(offset, b"N" * nbytes)
            model[offset : offset + nbytes] = b"N" * nbytes
        await disk.discard(65536, 65536)
        model[65536:131072] = bytes(65536)
        if compat == "1.1":
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
@pytest.mark.parametrize("cluster", [512, 65536, 2 << 20])
async def test_compressed_clusters_are_read_and_replaced(tmp_path: Path, kind: str, cluster: int) -> None:
    size = max(1 << 20, 2 * cluster)
    old = (b"compressible " * (size // 13 + 1))[:size]
    (tmp_path / "raw").write_bytes(old)
    path = tmp_path / "i.qcow2"
    options = f"cluster_size={cluster},compression_type={kind}"
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


# -- images that lie


def _put(child: MemoryChild, offset: int, value: int, size: int = 8) -> None:
    child.data[offset : offset + size] = value.to_bytes(size, "big")


async def _l2_offset(child: MemoryChild) -> tuple[int, int]:
    """Host offsets of the L1 table and of the first L2 table."""
    (l1,) = struct.unpack(">Q", child.data[40:48])
    (l2,) = struct.unpack(">Q", child.data[l1 : l1 + 8])
    return l1, l2 & 0x00FFFFFFFFFFFE00


async def _written(**options: Any) -> MemoryChild:
    child = await new_image(1 << 20, **options)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * 65536)
    return child


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("header", "qcow2_header"),
        ("l1", "active L1 table"),
        ("l2", "active L2 table"),
        ("reftable", "refcount table"),
        ("refblock", "refcount block"),
    ],
)
async def test_data_is_never_written_over_metadata(where: str, what: str) -> None:
    child = await _written()
    l1, l2 = await _l2_offset(child)
    (reftable,) = struct.unpack(">Q", child.data[48:56])
    (refblock,) = struct.unpack(">Q", child.data[reftable : reftable + 8])
    target = {"header": 0, "l1": l1, "l2": l2, "reftable": reftable, "refblock": refblock}[where]
    if where == "header":
        # The one entry that cannot lead to cluster 0: make cluster 0 look free instead.
        _put(child, refblock, 0, 2)
        _put(child, l2, 0)
        message = "Preventing invalid allocation of data cluster at offset 0"
    else:
        _put(child, l2, target | COPIED)
        message = f"Preventing invalid write on metadata (overlaps with {what})"
    before = bytes(child.data)
    async with open_disk(child) as disk:
        assert not disk.driver.try_pwritev(0, [b"x" * 512], 512)
        with pytest.raises(CorruptImage) as caught:
            await disk.write(0, b"x" * 512)
        assert caught.value.message == message
        assert (
            "report",
            f"qcow2: Marking image as corrupt: {message}; further corruption events will be suppressed",
        ) in (disk.host.events)
        with pytest.raises(NoMedium):
            await disk.read(0, 512)
        assert not disk.driver.try_preadv(0, [bytearray(512)], 512)
    assert child.data[79] & 2, "the corrupt bit"
    child.data[79] &= ~2
    assert child.data == before, "and nothing else was written"


async def test_a_corrupt_image_is_refused_but_for_readers_and_checkers() -> None:
    child = await _written()
    child.data[79] |= 2
    with pytest.raises(ImageError, match="qcow2: Image is corrupt; cannot be opened read/write"):
        async with open_disk(child):
            pass
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        assert await disk.read(0, 5) == b"aaaaa"
    async with open_disk(child, flags=OpenFlags(check=True)) as disk:
        assert await disk.read(0, 5) == b"aaaaa"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (COPIED | 0x52A00, "Cluster allocation offset 0x52a00 unaligned (L2 offset: 0x40000, L2 index: 0)"),
        (COPIED | 0x52A01, "Preallocated zero cluster offset 0x52a00 unaligned (L2 offset: 0x40000, L2 index: 0)"),
    ],
)
async def test_unaligned_entries_are_corruption(entry: int, message: str) -> None:
    child = await _written()
    _, l2 = await _l2_offset(child)
    assert l2 == 0x40000
    _put(child, l2, entry)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        for _ in range(2):
            with pytest.raises(CorruptImage) as caught:
                await disk.read(0, 512)
            assert caught.value.message == message
        told = [event for event in disk.host.events if event[0] == "corrupted"]
        assert told == [("corrupted", message, -1, -1, False)], "once, and not fatal for a reader"
        assert await disk.read(131072, 512) == bytes(512)


async def test_an_unaligned_l2_table_is_corruption() -> None:
    child = await _written()
    l1, _ = await _l2_offset(child)
    _put(child, l1, COPIED | 0x40200)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        with pytest.raises(CorruptImage, match=r"L2 table offset 0x40200 unaligned \(L1 index: 0\)"):
            await disk.read(0, 512)


async def test_zero_clusters_in_version_2_are_corruption() -> None:
    child = await _written(compat="0.10")
    _, l2 = await _l2_offset(child)
    _put(child, l2 + 8, 1)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        with pytest.raises(CorruptImage, match="Zero cluster entry found in pre-v3 image"):
            await disk.read(65536, 512)


async def test_a_damaged_compressed_cluster_is_an_error_each_time() -> None:
    child = await _written()
    _, l2 = await _l2_offset(child)
    _put(child, l2, (1 << 62) | 0x50000 | (3 << 54))
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        for _ in range(2):
            with pytest.raises(CorruptImage):
                await disk.read(0, 512)


async def test_new_metadata_is_not_put_where_a_stale_refcount_says_free() -> None:
    """Regression: L2 tables overwritten by an allocation that trusted a wrong refcount of 0."""
    child = await _written()
    l1, l2 = await _l2_offset(child)
    (reftable,) = struct.unpack(">Q", child.data[48:56])
    (refblock,) = struct.unpack(">Q", child.data[reftable : reftable + 8])
    _put(child, refblock + 2 * (l2 >> 16), 0, 2)
    async with open_disk(child) as disk:
        with pytest.raises(CorruptImage, match="overlaps with active L2 table"):
            await disk.write(65536, b"b" * 512)
    assert l1


# -- options and features


async def test_a_short_backing_file_does_not_shift_what_follows() -> None:
    """Regression: a backing file shorter than the overlay."""
    base = MemoryChild(b"B" * 5000)
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER, backing_file="b", backing_fmt="raw")
    async with open_disk(child, backing=base) as disk:
        await disk.write(3 * CLUSTER, b"t" * CLUSTER)
        wanted = (b"B" * 5000).ljust(3 * CLUSTER, b"\0") + b"t" * CLUSTER + bytes(CLUSTER)
        assert await disk.read(0, 5 * CLUSTER) == wanted
        await disk.write(4200, b"!")  # copies what the backing file has, and zeroes behind its end
        assert await disk.read(4096, 4096) == b"B" * 104 + b"!" + b"B" * 799 + bytes(3192)


async def test_version_2_over_a_backing_file_has_no_zeroes_and_no_discard() -> None:
    base = MemoryChild(b"B" * 5000)
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER, compat="0.10", backing_file="b", backing_fmt="raw")
    async with open_disk(child, backing=base) as disk:
        for request in (disk.zero, disk.discard):
            with pytest.raises(UnsupportedFeature):
                await request(0, CLUSTER)


async def test_zero_writes_keep_or_free_their_clusters() -> None:
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * 2 * CLUSTER)
        place = (await disk.driver.co_map(0, CLUSTER)).host_offset
        await disk.zero(0, CLUSTER)
        await disk.zero(CLUSTER, CLUSTER, int(RequestFlags.MAY_UNMAP))
        assert (await disk.driver.co_map(0, CLUSTER))[:3] == (ExtentKind.ZERO, CLUSTER, place)
        assert (await disk.driver.co_map(CLUSTER, CLUSTER))[:3] == (ExtentKind.ZERO, CLUSTER, -1)
        await disk.write(10, b"again")
        assert (await disk.driver.co_map(0, CLUSTER)).host_offset == place, "the reserved cluster is used again"
        assert await disk.read(0, 20) == bytes(10) + b"again" + bytes(5)
    check_image(child.data)


async def test_discards_are_passed_down_when_asked() -> None:
    for options, flags, passed in (
        (None, OpenFlags(unmap=True), True),
        (None, OpenFlags(), False),
        (True, OpenFlags(), True),
        (False, OpenFlags(unmap=True), False),
    ):
        child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
        async with open_disk(child, flags=flags, pass_discard_request=options) as disk:
            await disk.write(0, b"a" * 3 * CLUSTER)
            place = (await disk.driver.co_map(0, CLUSTER)).host_offset
            await disk.discard(0, 3 * CLUSTER)
            await disk.flush()
        assert (("discard", place, 3 * CLUSTER) in child.log) is passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap_check": "some"}, "Unsupported value 'some' for qcow2 option 'overlap-check'"),
        ({"l2_cache_entry_size": 3000}, "L2 cache entry size must be a power of two between 512 and the cluster size"),
        ({"cache_size": 4096, "l2_cache_size": 8192}, "l2-cache-size may not exceed cache-size"),
        ({"cache_size": 4096, "refcount_cache_size": 8192}, "refcount-cache-size may not exceed cache-size"),
    ],
)
async def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    child = await new_image(1 << 20)
    with pytest.raises(OptionError, match=message):
        async with open_disk(child, **options):
            pass


async def test_lazy_refcounts_need_version_3() -> None:
    child = await new_image(1 << 20, compat="0.10")
    with pytest.raises(OptionError, match="Lazy refcounts require a qcow2 image"):
        async with open_disk(child, lazy_refcounts=True):
            pass


@pytest.mark.peer("qemu-img")
async def test_lazy_refcounts_set_the_dirty_bit_before_and_clear_it_after() -> None:
    child = await new_image(1 << 20, lazy_refcounts=True)
    async with open_disk(child) as disk:
        assert not child.data[79] & 1
        await disk.write(0, b"x")
        await disk.flush()
        assert child.data[79] & 1
    assert not child.data[79] & 1
    check_image(child.data)


async def test_autoclear_bits_do_not_survive_a_writer() -> None:
    child = await new_image(1 << 20)
    child.data[95] |= 0x84
    async with open_disk(child, flags=OpenFlags(read_only=True)):
        pass
    assert child.data[95] == 0x84
    async with open_disk(child):
        pass
    assert child.data[95] == 0


# -- sizes


async def test_resize_refusals() -> None:
    child = await _written()
    async with open_disk(child) as disk:
        with pytest.raises(BlockError, match="The new size must be a multiple of 512"):
            await disk.truncate(1000)
        with pytest.raises(BlockError, match="Preallocation can't be used for shrinking an image"):
            await disk.truncate(512, PreallocMode.FULL)
        with pytest.raises(BlockError, match="Failed to grow the L1 table: File too large"):
            await disk.truncate(1 << 62)
        assert disk.driver.length == 1 << 20


@pytest.mark.peer("qemu-img")
async def test_version_2_with_snapshots_keeps_its_size(tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    _qemu(path, "create", "-f", "qcow2", "-o", "compat=0.10", str(path), "1M")
    _qemu(path, "snapshot", "-c", "s", str(path))
    async with open_disk(MemoryChild(path.read_bytes())) as disk:
        with pytest.raises(UnsupportedFeature, match="Can't resize a v2 image which has snapshots"):
            await disk.truncate(2 << 20)


@pytest.mark.peer("qemu-img")
async def test_what_was_cut_off_does_not_come_back() -> None:
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * 10 * CLUSTER)
        length = len(child.data)
        await disk.truncate(CLUSTER + 512)
        assert len(child.data) < length, "the file was cut"
        await disk.truncate(10 * CLUSTER)
        assert await disk.read(0, 10 * CLUSTER) == b"a" * (CLUSTER + 512) + bytes(9 * CLUSTER - 512)
    check_image(child.data)


@pytest.mark.peer("qemu-img")
async def test_an_l1_table_that_grows_moves(tmp_path: Path) -> None:
    child = await new_image(1 << 20, cluster_size=512)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * 5000)
        old = disk.driver._image.header.l1_table_offset
        await disk.truncate(64 << 20)
        assert disk.driver._image.header.l1_table_offset != old
        await disk.write((64 << 20) - 5000, b"z" * 5000)
        assert await disk.read(0, 5000) == b"a" * 5000
    check_image(child.data)


def describe(disk: Disk) -> dict[str, Any]:
    """What a user sees of the driver."""
    found = disk.driver.specific_info()
    return dict(found["data"])


async def test_preallocated_metadata_is_noticed() -> None:
    """What only ``map`` needs: data clusters that are holes of the file."""

    class Sparse(MemoryChild):
        async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
            page = bytes(self.data[offset : offset + 4096])
            return BlockStatus(StatusFlags.DATA if any(page) else StatusFlags.ZERO, min(nbytes, 4096), offset)

    fresh = await new_image(1 << 20, preallocation="metadata")
    for child, holes in ((Sparse(fresh.data), True), (MemoryChild(fresh.data), False)):
        async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
            assert await disk.driver.co_data_may_be_hole() is holes


async def test_facts() -> None:
    child = await new_image(1 << 20, refcount_bits=1)
    async with open_disk(child) as disk:
        assert describe(disk)["refcount-bits"] == 1
        info = await disk.driver.co_get_info()
        assert (info.cluster_size, info.is_dirty) == (65536, False)
        limits = disk.driver.limits()
        assert (limits.pwrite_zeroes_alignment, limits.pdiscard_alignment) == (65536, 65536)
        assert disk.driver.backing_reference() is None
        assert disk.driver.has_zero_init()
