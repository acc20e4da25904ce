"""The file driver's bytes: reading, writing, flushing, lanes, direct I/O, copying."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from blockio.aio.context import AioContext, IOThread
from blockio.buffers import IoVector, aligned_buffer
from blockio.errors import BlockError, UnsupportedFeature
from blockio.types import OpenFlags, RequestFlags
from blockio_drivers.file import FileDriver
from blockio_drivers.posix import direct
from tests.drivers.file_rig import content, open_driver, read, write
from tests.support.qemu import pattern

SIZE = 256 << 10
CONTENT = pattern(SIZE)
DIRECT = OpenFlags(cache_direct=True)

every_engine = pytest.mark.parametrize("aio", ["threads", "io_uring", None])
cached_and_direct = pytest.mark.parametrize("flags", [OpenFlags(), DIRECT], ids=["cached", "direct"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.both_loops
@every_engine
@cached_and_direct
async def test_what_is_written_is_read(path: Path, flags: OpenFlags, aio: Any) -> None:
    async with open_driver(path, flags, aio=aio) as driver:
        assert driver.length == SIZE
        assert await read(driver, 4096, 8192) == CONTENT[4096:12288]
        await write(driver, 8192, b"x" * 4096)
        await write(driver, 65536, b"y" * 4096, int(RequestFlags.FUA))
        assert await read(driver, 4096, 12288) == CONTENT[4096:8192] + b"x" * 4096 + CONTENT[12288:16384]
        await driver.co_flush_to_disk()
    assert content(path)[65536:69632] == b"y" * 4096


async def test_single_bytes_where_the_page_cache_is_used(path: Path) -> None:
    async with open_driver(path) as driver:
        assert driver.limits().request_alignment == 1
        assert await read(driver, 4097, 3) == CONTENT[4097:4100]
        await write(driver, 1, b"q")
    assert content(path)[:3] == CONTENT[:1] + b"q" + CONTENT[2:3]


@every_engine
async def test_behind_the_end_there_are_zeroes(path: Path, aio: Any) -> None:
    async with open_driver(path, aio=aio) as driver:
        assert await read(driver, SIZE - 10, 30) == CONTENT[-10:] + bytes(20)
        assert await read(driver, SIZE + 100, 30) == bytes(30)


async def test_direct_reads_across_an_end_inside_a_block(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(CONTENT[:5000])
    async with open_driver(path, DIRECT) as driver:
        assert await read(driver, 0, 8192) == CONTENT[:5000] + bytes(3192)


async def test_writes_grow_the_file(path: Path) -> None:
    async with open_driver(path) as driver:
        await write(driver, SIZE + 4096, b"end")
        assert await driver.co_getlength() == SIZE + 4099
        assert await read(driver, SIZE, 8192) == bytes(4096) + b"end" + bytes(4093)


# -- lanes


async def test_the_fast_lane_reads_what_is_cached(path: Path) -> None:
    async with open_driver(path) as driver:
        await read(driver, 0, SIZE)
        buffer = bytearray(512)
        assert driver.try_preadv(1024, [buffer], 512)
        assert buffer == CONTENT[1024:1536]
        if driver.try_pwritev(0, [b"fast"], 4):  # not every file system can
            assert await read(driver, 0, 4) == b"fast"
        bound = driver.try_preadv
    assert not bound(1024, [buffer], 512)


async def test_the_fast_lane_is_closed_under_direct_io(path: Path) -> None:
    async with open_driver(path, DIRECT) as driver:
        assert not driver.try_preadv(0, [aligned_buffer(4096)], 4096)
        assert not driver.try_pwritev(0, [aligned_buffer(4096)], 4096)


# -- direct I/O with memory of any alignment


@every_engine
@pytest.mark.parametrize(
    "cuts",
    [(8192,), (1, 8191), (4096, 4096), (100, 4000, 4092), (512, 7680)],
    ids=lambda cuts: "+".join(map(str, cuts)),
)
@pytest.mark.parametrize("shift", [0, 1, 512])
async def test_memory_of_any_alignment(path: Path, aio: Any, cuts: tuple[int, ...], shift: int) -> None:
    memory = aligned_buffer(16384)
    views, at = [], shift
    for nbytes in cuts:
        views.append(memory[at : at + nbytes])
        at += nbytes
    async with open_driver(path, DIRECT, aio=aio) as driver:
        await driver.co_preadv(4096, IoVector.of(views), 0)
        assert b"".join(views) == CONTENT[4096:12288]
        await driver.co_pwritev(16384, IoVector.of(views), 0)
        await driver.co_pwritev(32768, IoVector.of([bytes(view) for view in views]), 0)
    after = content(path)
    assert after[16384:24576] == after[32768:40960] == CONTENT[4096:12288]
    assert after[24576:32768] == CONTENT[24576:32768]


async def test_bounced_requests_take_bounded_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def counted(nbytes: int) -> memoryview:
        taken.append(nbytes)
        return aligned_buffer(nbytes)

    monkeypatch.setattr(direct, "CHUNK", 16384)
    monkeypatch.setattr(direct, "aligned_buffer", counted)
    async with open_driver(path, DIRECT) as driver:
        memory = memoryview(bytearray(SIZE + 1))[1:]
        await driver.co_preadv(0, IoVector.of(memory), 0)
        assert memory == CONTENT
        memory[:5] = b"hello"
        await driver.co_pwritev(0, IoVector.of(memory), 0)
    assert taken == [16384, 16384]
    assert content(path) == b"hello" + CONTENT[5:]


# -- flushing


async def test_after_a_failed_flush_none_succeeds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost write once; a second fdatasync would say that all is well."""

    def lost(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async with open_driver(path, aio="threads") as driver:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", lost)
            with pytest.raises(BlockError) as first:
                await driver.co_flush_to_disk()
        with pytest.raises(BlockError) as second:
            await driver.co_flush_to_disk()
        assert first.value.errno == second.value.errno == errno.EIO
        assert await read(driver, 0, 4) == CONTENT[:4]
    async with open_driver(path) as driver:
        await driver.co_flush_to_disk()


async def test_fua_is_left_out_where_nothing_is_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_driver(path, OpenFlags(cache_no_flush=True), aio="threads") as driver:
        seen: list[int] = []
        real = os.pwritev

        def watched(fd: int, views: Any, offset: int, flags: int = 0) -> int:
            seen.append(flags)
            return real(fd, views, offset, flags)

        monkeypatch.setattr(os, "pwritev", watched)
        await write(driver, 0, b"x", int(RequestFlags.FUA))
        assert seen == [0]


# -- copying


async def test_copying_between_files(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    async with open_driver(path) as source, open_driver(other) as target:
        await source.co_copy_range_to(4096, target, 8192, 65536)
        with pytest.raises(UnsupportedFeature):
            await source.co_copy_range_to(SIZE - 100, target, 0, 200)  # not all of it is there
    assert content(other)[8192:] == CONTENT[4096 : 4096 + 65536]


# -- cancellation


@every_engine
@cached_and_direct
async def test_cancelled_at_any_moment_and_used_again(path: Path, flags: OpenFlags, aio: Any) -> None:
    async with open_driver(path, flags, aio=aio) as driver:
        for operation in (
            lambda: read(driver, 4096, 65536),
            lambda: write(driver, 4096, CONTENT[4096:69632]),
            driver.co_flush_to_disk,
            lambda: driver.co_block_status(0, SIZE, want_zero=True),
            lambda: driver.co_pwrite_zeroes(SIZE - 4096, 4096, 0),
        ):
            for turns in range(4):
                task: asyncio.Task[Any] = asyncio.ensure_future(operation())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            await operation()
        assert await read(driver, 4096, 65536) == CONTENT[4096:69632]
        assert await read(driver, SIZE - 4096, 4096) == bytes(4096)


async def test_cancelled_while_opening_leaks_nothing(path: Path) -> None:
    async def use() -> None:
        async with open_driver(path):
            await asyncio.sleep(0)

    for turns in range(12):
        before = set(os.listdir("/proc/self/fd"))
        task = asyncio.create_task(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert set(os.listdir("/proc/self/fd")) == before
    await use()


# -- contexts


@every_engine
async def test_moving_to_another_context(path: Path, aio: Any) -> None:
    driver: FileDriver
    async with open_driver(path, aio=aio) as driver:
        await read(driver, 0, 512)
        here = AioContext.current()
        driver.detach_context()
        async with IOThread() as thread:

            async def there() -> bytes:
                driver.attach_context(AioContext.current())
                try:
                    assert driver.host.events[-1] == ("limits",)  # type: ignore[attr-defined]  # MemoryHost's
                    return await read(driver, 512, 512)
                finally:
                    driver.detach_context()

            assert await thread.context.run(there()) == CONTENT[512:1024]
        driver.attach_context(here)
        assert await read(driver, 1024, 512) == CONTENT[1024:1536]
