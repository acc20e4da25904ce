"""Misaligned requests on a disk with blocks: what is read, what is written, who waits."""

from __future__ import annotations

import asyncio
import errno

import pytest

from blockio.buffers import IoVector
from blockio.errors import BlockError, OutOfRange, ReadOnly, UnsupportedFeature
from blockio.types import BlockLimits, OpenFlags, Perm, RequestFlags
from tests.io.world import Disk, failing_after, on_disk, opened, pattern

BLOCKS = BlockLimits(request_alignment=512)


async def test_a_misaligned_read_reads_whole_blocks() -> None:
    disk = Disk(pattern(4096), limits=BLOCKS)
    async with opened(on_disk(disk)) as rig:
        assert await rig.read(100, 1000) == pattern(4096)[100:1100]
        assert disk.ranges("read") == [(0, 1536)]


async def test_a_misaligned_write_reads_its_edges_and_writes_whole_blocks() -> None:
    disk = Disk(pattern(8192), limits=BLOCKS)
    async with opened(on_disk(disk)) as rig:
        await rig.write(700, b"x" * 2000)
        assert [entry[:3] for entry in disk.log] == [("read", 512, 512), ("read", 2560, 512), ("write", 512, 2560)]
        assert disk.data == pattern(8192)[:700] + b"x" * 2000 + pattern(8192)[2700:]


async def test_a_request_of_no_bytes_succeeds_wherever_it_is() -> None:
    disk = Disk(4096, limits=BLOCKS)
    async with opened(on_disk(disk), flags=OpenFlags(read_only=True), perm=Perm.CONSISTENT_READ) as rig:
        await rig.read(7, 0)
        await rig.io.co_pwritev(7, IoVector.of(b""))
        await rig.io.co_pwrite_zeroes(7, 0)
        await rig.io.co_pdiscard(7, 0)
        assert disk.log == []


@pytest.mark.parametrize("edge", [0, 1])
async def test_an_error_of_the_edge_read_is_the_writes_error_and_nothing_is_written(edge: int) -> None:
    disk = Disk(pattern(8192), limits=BLOCKS)
    async with opened(on_disk(disk)) as rig:
        disk.before = failing_after(edge)
        with pytest.raises(BlockError) as caught:
            await rig.write(700, b"x" * 2000)
        assert caught.value.errno == errno.EIO
        assert disk.data == pattern(8192)
        rig.whole()
        await rig.write(700, b"x" * 2000)
        assert await rig.read(700, 2000) == b"x" * 2000


async def test_neighbours_in_one_block_wait_for_each_other_and_strangers_do_not() -> None:
    disk = Disk(4096, limits=BLOCKS, pauses=2)
    async with opened(on_disk(disk)) as rig:
        disk.gate = asyncio.Event()
        first = asyncio.ensure_future(rig.write(0, b"a" * 100))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(rig.write(100, b"b" * 100))
        reader = asyncio.ensure_future(rig.read(0, 512))
        stranger = asyncio.ensure_future(rig.write(1024, b"c" * 512))
        for _ in range(3):
            await asyncio.sleep(0)
        assert [entry[:3] for entry in disk.log] == [("read", 0, 512), ("write", 1024, 512)]
        disk.gate.set()
        await asyncio.gather(first, second, stranger)
        got = await reader
        assert got[:200] == b"a" * 100 + b"b" * 100
        assert bytes(disk.data[:200]) == b"a" * 100 + b"b" * 100
        rig.whole()


async def test_serialising_and_no_wait_answer_busy() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:
        disk.gate = asyncio.Event()
        first = asyncio.ensure_future(rig.write(0, b"a" * 100))
        await asyncio.sleep(0)
        flags = RequestFlags.SERIALISING | RequestFlags.NO_WAIT
        with pytest.raises(BlockError) as caught:
            await rig.write(50, b"b" * 100, flags)
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(BlockError):
            await rig.io.co_pwrite_zeroes(50, 100, flags)
        disk.gate.set()
        await first
        await rig.write(50, b"b" * 100, flags)
        assert bytes(disk.data[:150]) == b"a" * 50 + b"b" * 100
        rig.whole()


async def test_what_is_refused_before_it_begins() -> None:
    disk = Disk(4096, limits=BLOCKS)
    async with opened(on_disk(disk)) as rig:
        for offset in (-1, 2**63):
            with pytest.raises(OutOfRange):
                await rig.io.co_preadv(offset, IoVector.of(bytearray(1)))
            with pytest.raises(OutOfRange):
                await rig.io.co_pwritev(offset, IoVector.of(b"x"))
            with pytest.raises(OutOfRange):
                await rig.io.co_pwrite_zeroes(offset, 1)
        with pytest.raises(UnsupportedFeature):
            await rig.io.co_pwrite_zeroes(1, 10, RequestFlags.NO_FALLBACK)
        assert disk.log == []
        rig.whole()
    async with opened(on_disk(Disk(4096)), flags=OpenFlags(read_only=True), perm=Perm.CONSISTENT_READ) as rig:
        with pytest.raises(ReadOnly) as caught:
            await rig.io.co_pwritev(0, IoVector.of(b"x"))
        assert caught.value.errno == errno.EPERM
        with pytest.raises(ReadOnly):
            await rig.io.co_pwrite_zeroes(0, 1)
        rig.whole()


async def test_bounce_buffers_serve_vectors_with_more_pieces_than_the_driver_takes() -> None:
    disk = Disk(4096, limits=BlockLimits(request_alignment=512, max_iov=2))
    async with opened(on_disk(disk)) as rig:
        payload = pattern(2048)
        await rig.io.co_pwritev(0, IoVector.of([payload[at : at + 64] for at in range(0, 2048, 64)]))
        assert bytes(disk.data[:2048]) == payload
        memory = bytearray(2048)
        view = memoryview(memory)
        await rig.io.co_preadv(0, IoVector.of([view[at : at + 100] for at in range(0, 2048, 100)]))
        assert memory == payload


async def test_vectors_are_cut_between_pieces_where_those_make_blocks() -> None:
    disk = Disk(8192, limits=BlockLimits(request_alignment=512, max_iov=2, max_transfer=4096))
    async with opened(on_disk(disk)) as rig:
        payload = pattern(6144)
        await rig.io.co_pwritev(0, IoVector.of([payload[at : at + 1536] for at in range(0, 6144, 1536)]))
        assert disk.ranges("write") == [(0, 3072), (3072, 3072)]
        assert bytes(disk.data[:6144]) == payload


@pytest.mark.parametrize(("length", "align", "refused"), [(1000, 512, False), (1536, 4096, True), (8192, 4096, False)])
async def test_who_may_write_but_not_resize_needs_whole_blocks(length: int, align: int, refused: bool) -> None:
    """Padding the last one would make the disk longer; but not the last sector, which every disk has whole in QEMU."""
    disk = Disk(length, limits=BlockLimits(request_alignment=align))
    opening = opened(on_disk(disk), perm=Perm.CONSISTENT_READ | Perm.WRITE)
    if refused:
        with pytest.raises(BlockError, match="Image size is not a multiple of request alignment"):
            await opening.__aenter__()
        return
    async with opening as rig:
        await rig.write(length - 10, b"x" * 10)
        assert await rig.read(length - 12, 12) == bytes(2) + b"x" * 10
        rig.whole()
