"""Requests as coroutines: the document's checks in its order, and the memory they take."""

from __future__ import annotations

import errno
import mmap

import pytest

from blockio.backend import BlockBackend
from blockio.errors import BlockError, NoMedium, OutOfRange, ReadOnly
from blockio.testing.driver import MemoryDisk
from blockio.types import INT_MAX, OpenFlags, Perm, RequestFlags, StatusFlags
from tests.backend.conftest import LENGTH


async def read(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    memory = bytearray(nbytes)
    await blk.co_preadv(offset, memory)
    return bytes(memory)


async def test_what_is_written_is_read(blk: BlockBackend) -> None:
    await blk.co_pwritev(1000, b"hello")
    assert await read(blk, 998, 9) == b"\0\0hello\0\0"


async def test_memory_of_every_kind(blk: BlockBackend) -> None:
    with mmap.mmap(-1, 4096) as mapped:
        mapped[:5] = b"abcde"
        await blk.co_pwritev(0, mapped)
        into = mmap.mmap(-1, 4096)
        await blk.co_preadv(0, into)
        assert into[:5] == b"abcde"
        into.close()
    await blk.co_pwritev(0, [b"one", bytearray(b"two"), memoryview(b"three"), b""])
    parts = [bytearray(4), bytearray(7)]
    await blk.co_preadv(0, parts)
    assert parts == [b"onet", b"wothree"]


async def test_part_of_a_vector(blk: BlockBackend) -> None:
    await blk.co_pwritev_part(10, 4, [b"abc", b"defg"], 2)
    assert await read(blk, 9, 6) == b"\0cdef\0"
    with pytest.raises(ValueError, match="slice"):
        await blk.co_pwritev_part(0, 6, b"abcdef", 1)


@pytest.mark.parametrize("memory", [b"bytes", memoryview(b"bytes"), [bytearray(1), b"x"]])
async def test_a_read_needs_memory_it_may_fill(blk: BlockBackend, memory: object) -> None:
    with pytest.raises(TypeError, match="writable"):
        await blk.co_preadv(0, memory)  # type: ignore[arg-type]  # some of them on purpose


@pytest.mark.parametrize("memory", ["text", 5, None, memoryview(bytearray(8))[::2]])
async def test_what_is_not_memory(blk: BlockBackend, memory: object) -> None:
    with pytest.raises(TypeError):
        await blk.co_preadv(0, memory)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError):
        await blk.co_pwritev(0, memory)  # type: ignore[arg-type]  # on purpose
    assert blk.in_flight == 0


@pytest.mark.parametrize(("offset", "nbytes"), [(LENGTH, 1), (LENGTH - 1, 2), (-1, 1), (1 << 62, 1), (LENGTH + 1, 0)])
async def test_outside_the_disk(blk: BlockBackend, disk: MemoryDisk, offset: int, nbytes: int) -> None:
    with pytest.raises(OutOfRange) as caught:
        await read(blk, offset, nbytes)
    assert caught.value.errno == errno.EIO
    why = f"{nbytes} bytes at {offset} reach past the disk's end at {LENGTH}"
    assert str(caught.value) == (why if offset >= 0 else "offset -1 is before the disk's beginning")
    with pytest.raises(OutOfRange):
        await blk.co_pwritev(offset, bytes(nbytes))
    with pytest.raises(OutOfRange):
        await blk.co_pwrite_zeroes(offset, nbytes)
    with pytest.raises(OutOfRange):
        await blk.co_pdiscard(offset, nbytes)
    assert disk.log == []


async def test_nothing_at_the_very_end_is_fine(blk: BlockBackend) -> None:
    await blk.co_preadv(LENGTH, bytearray())
    await blk.co_pwritev(LENGTH, b"")
    await blk.co_pwrite_zeroes(LENGTH, 0)


async def test_the_order_of_the_checks() -> None:
    async with BlockBackend(Perm.ALL) as empty:
        with pytest.raises(OutOfRange):  # too large comes before no medium
            await empty.co_pwrite_zeroes(0, INT_MAX + 1)
        with pytest.raises(NoMedium) as caught:  # no medium comes before a negative offset
            await empty.co_preadv(-1, bytearray(1))
        assert caught.value.errno == errno.ENOMEDIUM
        assert str(caught.value) == "No medium found"


async def test_a_negative_count_is_a_mistake(blk: BlockBackend) -> None:
    for request in (blk.co_pwrite_zeroes(0, -1), blk.co_pdiscard(0, -1), blk.co_block_status(0, -1)):
        with pytest.raises(ValueError, match="-1 bytes"):
            await request


async def test_everything_is_no_medium_while_empty() -> None:
    async with BlockBackend(Perm.ALL) as empty:
        for request in (
            empty.co_preadv(0, bytearray(1)),
            empty.co_pwritev(0, b"x"),
            empty.co_pwrite_zeroes(0, 1),
            empty.co_pdiscard(0, 1),
            empty.co_flush(),
            empty.co_getlength(),
            empty.co_block_status(0, 1),
            empty.co_get_info(),
        ):
            with pytest.raises(NoMedium, match="No medium found"):
                await request
        with pytest.raises(NoMedium, match="No medium inserted"):
            await empty.co_truncate(0)
        with pytest.raises(NoMedium):
            empty.getlength()
        assert empty.get_geometry() == 0
        assert empty.in_flight == 0


async def test_beyond_the_end_where_allowed(blk: BlockBackend) -> None:
    blk.set_allow_write_beyond_eof(True)
    await blk.co_pwritev(LENGTH, b"tail")
    assert blk.getlength() == LENGTH + 4
    assert await read(blk, LENGTH, 4) == b"tail"


async def test_write_cache_off_makes_every_write_durable(blk: BlockBackend, disk: MemoryDisk) -> None:
    await blk.co_pwritev(0, b"x")
    assert [entry[0] for entry in disk.log] == ["write"]
    disk.log.clear()
    blk.set_enable_write_cache(False)
    await blk.co_pwritev(0, b"y")
    await blk.co_pwrite_zeroes(512, 512)
    assert [entry[0] for entry in disk.log] == ["write", "flush", "zero", "flush"]
    assert not blk.enable_write_cache


async def test_flags_travel(blk: BlockBackend, disk: MemoryDisk) -> None:
    await blk.co_pwritev(0, b"x", RequestFlags.FUA)
    assert [entry[0] for entry in disk.log] == ["write", "flush"]


async def test_truncate_and_length(blk: BlockBackend) -> None:
    await blk.co_truncate(2 * LENGTH + 1)
    assert blk.getlength() == await blk.co_getlength() == 2 * LENGTH + 1
    assert blk.nb_sectors() == 4097
    with pytest.raises(ValueError, match="-1 bytes"):
        await blk.co_truncate(-1)


async def test_block_status(blk: BlockBackend) -> None:
    status = await blk.co_block_status(0, 4096)
    assert status.flags & StatusFlags.ALLOCATED
    assert status.length == 4096


async def test_an_error_below_arrives_and_the_next_request_works(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.fail = BlockError(errno=errno.ENOSPC)
    with pytest.raises(OSError, match="No space left on device") as caught:
        await blk.co_pwritev(0, b"x")
    assert caught.value.errno == errno.ENOSPC
    disk.fail = None
    assert blk.in_flight == 0
    await blk.co_pwritev(0, b"x")


async def test_read_only(disk: MemoryDisk) -> None:
    async with await BlockBackend.new_open(options=disk.options(), flags=OpenFlags(read_only=True)) as blk:
        assert not blk.is_writable()
        assert not blk.supports_write_perm()
        with pytest.raises(ReadOnly, match="Operation not permitted"):
            await blk.co_pwritev(0, b"x")
        await blk.co_preadv(0, bytearray(1))


async def test_writing_without_the_permission(disk: MemoryDisk) -> None:
    async with await BlockBackend.new_open(options=disk.options()) as blk:
        blk.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
        for request in (blk.co_pwritev(0, b"x"), blk.co_pwrite_zeroes(0, 1), blk.co_pdiscard(0, 1)):
            with pytest.raises(ReadOnly, match="without the permission to write"):
                await request
        blk.set_perm(Perm.WRITE_UNCHANGED, Perm.ALL)
        await blk.co_pwritev(0, b"x", RequestFlags.WRITE_UNCHANGED)
        with pytest.raises(ReadOnly):
            await blk.co_pwritev(0, b"x")


async def test_use_after_close(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    await blk.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await blk.co_preadv(0, bytearray(1))
    with pytest.raises(RuntimeError, match="closed already"):
        await blk.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await blk.__aenter__()
