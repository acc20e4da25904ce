"""What surrounds a write: FUA, zeroes, discards, flushes, generations, detect-zeroes, compressed writes."""

from __future__ import annotations

import asyncio
import errno

import pytest
from msgspec.structs import replace

from blockio.errors import BlockError, OutOfRange, UnsupportedFeature
from blockio.graph.reopen import reopen
from blockio.types import BlockLimits, Capability, DetectZeroes, OpenFlags, RequestFlags
from tests.io.world import ALL_NATIVE, Disk, failing_after, in_format, on_disk, opened, pattern

UNMAP = OpenFlags(unmap=True)
FLUSH = ["flush-to-os", "flush-to-disk"]

# -- FUA


async def test_fua_is_a_flush_behind_the_last_piece_of_the_write() -> None:
    disk = Disk(4096, limits=BlockLimits(max_transfer=1000))
    async with opened(on_disk(disk)) as rig:
        await rig.write(0, b"x" * 2500, RequestFlags.FUA)
        assert disk.operations == ["write"] * 3 + FLUSH
        assert {entry[3] for entry in disk.log} == {0}


async def test_a_drivers_own_fua_goes_along_with_every_piece() -> None:
    capabilities = replace(ALL_NATIVE, fua=Capability.NATIVE, zero_flags=RequestFlags.FUA)
    disk = Disk(4096, limits=BlockLimits(max_transfer=1000, max_pwrite_zeroes=1000), capabilities=capabilities)
    async with opened(on_disk(disk)) as rig:
        await rig.write(0, b"x" * 1500, RequestFlags.FUA)
        await rig.io.co_pwrite_zeroes(0, 1500, RequestFlags.FUA)
        assert [(entry[0], entry[3]) for entry in disk.log] == [("write", 0x10)] * 2 + [("zero", 0x10)] * 2


async def test_fua_of_a_zero_write_is_one_flush() -> None:
    disk = Disk(4096, limits=BlockLimits(max_pwrite_zeroes=1000))
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_pwrite_zeroes(0, 2500, RequestFlags.FUA)
        assert disk.operations == ["zero"] * 3 + FLUSH


async def test_fua_reaches_the_disk_although_nothing_else_was_written_since_the_last_flush() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_flush()
        disk.log.clear()
        await rig.write(0, b"x", RequestFlags.FUA)
        assert disk.operations == ["write", *FLUSH]


# -- zero writes


@pytest.mark.parametrize(
    ("offset", "nbytes", "most", "sent"),
    [
        # units of 4 KiB
        (0, 8192, 0, [(0, 8192)]),
        (1000, 10000, 0, [(1000, 3096), (4096, 4096), (8192, 2808)]),
        (1000, 2000, 0, [(1000, 2000)]),
        (4096, 100, 0, [(4096, 100)]),
        (0, 20480, 9000, [(0, 8192), (8192, 8192), (16384, 4096)]),
        (0, 8192, 100, [(0, 4096), (4096, 4096)]),
    ],
)
async def test_zeroes_go_in_head_body_and_tail(
    offset: int, nbytes: int, most: int, sent: list[tuple[int, int]]
) -> None:
    disk = Disk(pattern(32768), limits=BlockLimits(pwrite_zeroes_alignment=4096, max_pwrite_zeroes=most))
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_pwrite_zeroes(offset, nbytes)
        assert disk.ranges("zero") == sent


async def test_what_the_driver_cannot_zero_is_written() -> None:
    disk = Disk(pattern(32768), limits=BlockLimits(pwrite_zeroes_alignment=4096, max_transfer=3000))
    disk.zero_unaligned = False
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_pwrite_zeroes(1000, 10000)
        assert disk.ranges("zero") == [(4096, 4096)]
        assert disk.ranges("write") == [(1000, 3000), (4000, 96), (8192, 2808)]
        assert bytes(disk.data) == pattern(32768)[:1000] + bytes(10000) + pattern(32768)[11000:]


async def test_no_fallback_fails_where_zeroes_would_be_written() -> None:
    disk = Disk(pattern(8192), limits=BlockLimits(pwrite_zeroes_alignment=4096))
    disk.zero_unaligned = False
    async with opened(on_disk(disk)) as rig:
        with pytest.raises(UnsupportedFeature) as caught:
            await rig.io.co_pwrite_zeroes(0, 1000, RequestFlags.NO_FALLBACK)
        assert caught.value.errno == errno.ENOTSUP
        assert disk.data == pattern(8192)
    plain = Disk(8192, capabilities=replace(ALL_NATIVE, write_zeroes=Capability.EMULATED, zero_flags=RequestFlags.NONE))
    async with opened(on_disk(plain)) as rig:
        with pytest.raises(UnsupportedFeature):
            await rig.io.co_pwrite_zeroes(0, 4096, RequestFlags.NO_FALLBACK)
        await rig.io.co_pwrite_zeroes(0, 4096)
        assert plain.operations == ["write"]


@pytest.mark.parametrize(("unmap", "passed"), [(False, 0), (True, RequestFlags.MAY_UNMAP)])
async def test_may_unmap_needs_the_nodes_consent(unmap: bool, passed: int) -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk), flags=OpenFlags(unmap=unmap)) as rig:
        await rig.io.co_pwrite_zeroes(0, 4096, RequestFlags.MAY_UNMAP)
        assert disk.log == [("zero", 0, 4096, passed)]


async def test_a_misaligned_zero_write_keeps_its_neighbours() -> None:
    disk = Disk(pattern(8192), limits=BlockLimits(request_alignment=512))
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_pwrite_zeroes(700, 3000)
        assert bytes(disk.data) == pattern(8192)[:700] + bytes(3000) + pattern(8192)[3700:]
        assert disk.ranges("zero") == [(1024, 2560)]
        await rig.io.co_pwrite_zeroes(5000, 200)
        assert bytes(disk.data[4900:5300]) == pattern(8192)[4900:5000] + bytes(200) + pattern(8192)[5200:5300]


async def test_formats_are_asked_cluster_by_cluster_and_do_not_grow() -> None:
    disk = Disk(0)
    async with opened(in_format(disk, length=32768, backing=on_disk(Disk(pattern(32768))))) as rig:
        await rig.io.co_pwrite_zeroes(1000, 10000)
        assert {index for index, host in rig.format.table.items() if host == rig.format.ZEROED} == {1}
        assert await rig.read(0, 32768) == pattern(32768)[:1000] + bytes(10000) + pattern(32768)[11000:]
        with pytest.raises(OutOfRange):
            await rig.io.co_pwrite_zeroes(32768, 1)
        with pytest.raises(OutOfRange):
            await rig.write(32767, b"xx")
        rig.whole()


# -- detect-zeroes


@pytest.mark.parametrize(
    ("detect", "expected"),
    [
        (DetectZeroes.OFF, ("write", 0, 4096, 0)),
        (DetectZeroes.ON, ("zero", 0, 4096, 0)),
        (DetectZeroes.UNMAP, ("zero", 0, 4096, RequestFlags.MAY_UNMAP)),
    ],
)
async def test_detect_zeroes(detect: DetectZeroes, expected: tuple[str, int, int, int]) -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk), flags=UNMAP, detect_zeroes=detect) as rig:
        await rig.write(0, bytes(4096))
        assert disk.log == [expected]
        assert rig.io.try_pwritev(0, [bytes(4096)], 4096) is (detect is DetectZeroes.OFF)


# -- discard


@pytest.mark.parametrize(
    ("offset", "nbytes", "sent"),
    [
        # blocks of 512 bytes, units of 4 KiB
        (0, 8192, [(0, 8192)]),
        (1024, 10240, [(1024, 3072), (4096, 4096), (8192, 3072)]),
        (100, 4500, [(100, 412), (512, 3584), (4096, 504)]),
        (4096, 700, [(4096, 512), (4608, 188)]),
    ],
)
async def test_discards_go_in_fragments(offset: int, nbytes: int, sent: list[tuple[int, int]]) -> None:
    disk = Disk(32768, limits=BlockLimits(request_alignment=512, pdiscard_alignment=4096))
    async with opened(on_disk(disk), flags=UNMAP) as rig:
        await rig.io.co_pdiscard(offset, nbytes)
        assert disk.ranges("discard") == sent


async def test_discard_does_nothing_unless_the_node_may_unmap() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_pdiscard(0, 8192)
        assert disk.log == []


async def test_a_refused_discard_is_no_error_and_a_failed_one_is() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk), flags=UNMAP) as rig:
        disk.before = failing_after(0, UnsupportedFeature())
        await rig.io.co_pdiscard(0, 8192)
        disk.before = failing_after(0)
        with pytest.raises(BlockError):
            await rig.io.co_pdiscard(0, 8192)
        rig.whole()
        await rig.io.co_pdiscard(4096, 8192)
        assert rig.node.length == 8192


# -- flush and generations


async def test_a_flush_goes_to_the_disk_only_if_something_was_written() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk)) as rig:
        await rig.io.co_flush()
        assert disk.operations == ["flush-to-os"]
        await rig.write(0, b"x")
        await rig.io.co_flush()
        await rig.io.co_flush()
        assert disk.operations[1:] == ["write", *FLUSH, "flush-to-os"]
        assert rig.io.try_pwritev(0, [b"y"], 1)
        disk.log.clear()
        await rig.io.co_flush()
        assert disk.operations == FLUSH


async def test_a_failed_write_counts_as_written() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk)) as rig:
        disk.before = failing_after(0)
        with pytest.raises(BlockError):
            await rig.write(0, b"x")
        await rig.io.co_flush()
        assert disk.operations == ["write", *FLUSH]


async def test_a_failed_flush_is_done_again() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk)) as rig:
        await rig.write(0, b"x")
        disk.before = failing_after(1)
        with pytest.raises(BlockError):
            await rig.io.co_flush()
        rig.whole()
        disk.log.clear()
        await rig.io.co_flush()
        assert disk.operations == FLUSH


async def test_cache_no_flush_still_writes_back() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk), flags=OpenFlags(cache_no_flush=True)) as rig:
        await rig.write(0, b"x", RequestFlags.FUA)
        assert disk.operations == ["write", "flush-to-os"]


async def test_what_was_not_flushed_is_flushed_when_flushes_count_again() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk), flags=OpenFlags(cache_no_flush=True)) as rig:
        await rig.write(0, b"x")
        await rig.io.co_flush()
        await reopen(rig.node, cache_no_flush=False)
        await rig.io.co_flush()
        assert disk.operations == ["write", "flush-to-os", *FLUSH]


async def test_one_flush_at_a_time_and_the_waiting_ones_find_it_done() -> None:
    disk = Disk(8192, pauses=2)
    async with opened(on_disk(disk)) as rig:
        await rig.write(0, b"x")
        disk.log.clear()
        disk.gate = asyncio.Event()
        flushes = [asyncio.ensure_future(rig.io.co_flush()) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert disk.running == 1
        flushes[1].cancel()
        disk.gate.set()
        await asyncio.gather(*flushes, return_exceptions=True)
        assert disk.operations == [*FLUSH, "flush-to-os"]
        rig.whole()


async def test_a_write_during_a_flush_is_for_the_next_flush() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk)) as rig:
        await rig.write(0, b"x")
        disk.gate = asyncio.Event()
        flush = asyncio.ensure_future(rig.io.co_flush())
        await asyncio.sleep(0)
        gate, disk.gate = disk.gate, None
        await rig.write(100, b"y")
        gate.set()
        await flush
        disk.log.clear()
        await rig.io.co_flush()
        assert disk.operations == FLUSH


async def test_a_flush_goes_down_to_children_that_can_have_been_written() -> None:
    file, base = Disk(0), Disk(pattern(4096))
    async with opened(in_format(file, backing=on_disk(base))) as rig:
        await rig.write(0, b"x")
        await rig.io.co_flush()
        assert file.operations[-2:] == FLUSH
        assert "flush-to-os" not in base.operations
        file.before = failing_after(0)
        with pytest.raises(BlockError):
            await rig.io.co_flush()
        rig.whole()


async def test_the_highest_offset_and_growth_are_noted() -> None:
    disk = Disk(8192)
    async with opened(on_disk(disk)) as rig:
        await rig.write(1000, b"x" * 24)
        assert rig.io.wr_highest_offset == 1024
        assert rig.io.try_pwritev(4000, [b"y" * 96], 96)
        await rig.io.co_pwrite_zeroes(0, 10)
        assert rig.io.wr_highest_offset == 4096
        assert not rig.io.try_pwritev(8190, [b"long"], 4)
        assert rig.top.resizes == 0
        await rig.write(8190, b"long")
        assert (rig.node.length, rig.top.resizes) == (8194, 1)
        assert rig.io.try_preadv(8190, [bytearray(4)], 4)


async def test_compressed_writes_need_a_driver_that_compresses() -> None:
    async with opened(on_disk(Disk(8192))) as rig:
        with pytest.raises(UnsupportedFeature):
            await rig.write(0, b"x" * 512, RequestFlags.WRITE_COMPRESSED)
        with pytest.raises(UnsupportedFeature):
            await rig.write(0, b"", RequestFlags.WRITE_COMPRESSED)
        rig.whole()
