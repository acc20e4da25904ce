"""The space behind a file: block status, zeroing, discarding, growing, shrinking, creating, and a full disk."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockio.aio import syscalls
from blockio.aio.engine import FileEngine
from blockio.buffers import IoVector
from blockio.errors import BlockError, UnsupportedFeature
from blockio.types import OpenFlags, PreallocMode, RequestFlags, StatusFlags
from blockio_drivers.file import FileCreateOptions, FileDriver
from tests.drivers.file_rig import content, open_driver, picture, read, write

KIB4 = 4096
UNMAP = int(RequestFlags.MAY_UNMAP)

every_engine = pytest.mark.parametrize("aio", ["threads", "io_uring"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Eight blocks: ``DDDDDDDD``."""
    path = tmp_path / "disk"
    path.write_bytes(b"D" * 8 * KIB4)
    return path


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """Eight blocks: ``-DD--D--``."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for index in (1, 2, 5):
            file.seek(index * KIB4)
            file.write(b"D" * KIB4)
        file.truncate(8 * KIB4)
    return path


def spent(path: Path) -> int:
    return path.stat().st_blocks * 512


def length(path: Path) -> int:
    return path.stat().st_size


# -- block status


async def test_data_and_holes(sparse: Path) -> None:
    async with open_driver(sparse) as driver:
        assert await picture(driver) == "-DD--D--"
        assert await driver.co_get_allocated_file_size() == spent(sparse)


async def test_the_inside_of_a_block_is_told_to_the_byte(sparse: Path) -> None:
    async with open_driver(sparse) as driver:
        status = await driver.co_block_status(KIB4 + 5, 100000, want_zero=True)
        assert status == (StatusFlags.DATA | StatusFlags.OFFSET_VALID, 2 * KIB4 - 5, KIB4 + 5, "node0", 0)


async def test_who_does_not_ask_for_zeroes_gets_a_cheap_answer(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "lseek", None)
    async with open_driver(sparse) as driver:
        status = await driver.co_block_status(0, 8 * KIB4, want_zero=False)
        assert status.flags & StatusFlags.DATA
        assert status.length == 8 * KIB4


async def test_one_look_tells_a_hole_and_the_data_behind_it(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = os.lseek

    def watched(fd: int, offset: int, whence: int) -> int:
        looks.append(offset)
        return real(fd, offset, whence)

    async with open_driver(sparse) as driver:
        monkeypatch.setattr(os, "lseek", watched)
        assert await picture(driver) == "-DD--D--"
        assert looks == [0, KIB4, 3 * KIB4, 5 * KIB4, 6 * KIB4]  # three times in a worker, for five extents


async def test_what_is_known_is_forgotten_when_it_changes(path: Path) -> None:
    async with open_driver(path) as driver:
        assert await picture(driver) == "DDDDDDDD"
        await driver.co_pdiscard(KIB4, KIB4)
        assert await picture(driver) == "D-DDDDDD"
        await driver.co_pwrite_zeroes(4 * KIB4, KIB4, UNMAP)
        assert await picture(driver) == "D-DD-DDD"
        await write(driver, KIB4, b"x" * KIB4)
        assert await picture(driver) == "DDDD-DDD"
        await driver.co_truncate(2 * KIB4, exact=True, prealloc=PreallocMode.OFF, flags=0)
        await driver.co_truncate(4 * KIB4, exact=True, prealloc=PreallocMode.OFF, flags=0)
        assert await picture(driver) == "DD--"


async def test_a_file_system_that_cannot_tell(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def cannot(fd: int, offset: int, whence: int) -> int:
        asked.append(offset)
        raise OSError(errno.EINVAL, "Invalid argument")

    async with open_driver(sparse) as driver:
        monkeypatch.setattr(os, "lseek", cannot)
        assert await picture(driver) == "DDDDDDDD"
        assert await picture(driver) == "DDDDDDDD"
        assert asked == [0]


async def test_a_file_that_changes_while_it_is_looked_at(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, cut = os.lseek, True

    def changing(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_HOLE and cut:
            raise OSError(errno.ENXIO, "cut meanwhile")
        return real(fd, offset, whence)

    async with open_driver(sparse) as driver:
        told = await picture(driver)
        await driver.co_truncate(driver.length, exact=True, prealloc=PreallocMode.OFF, flags=0)  # nothing is known
        monkeypatch.setattr(os, "lseek", changing)
        assert await picture(driver) == "DDDDDDDD"
        cut = False
        assert await picture(driver) == told


# -- zeroing and discarding


@every_engine
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_zeroes_without_writing(path: Path, aio: Any, direct: bool) -> None:
    async with open_driver(path, OpenFlags(cache_direct=direct), aio=aio) as driver:
        before = spent(path)
        await driver.co_pwrite_zeroes(KIB4, 2 * KIB4, 0)
        assert spent(path) >= before  # still allocated
        assert await read(driver, 0, 8 * KIB4) == b"D" * KIB4 + bytes(2 * KIB4) + b"D" * 5 * KIB4
        await driver.co_pwrite_zeroes(4 * KIB4, 2 * KIB4, UNMAP)
        assert spent(path) < before
        assert await read(driver, 3 * KIB4, 5 * KIB4) == b"D" * KIB4 + bytes(2 * KIB4) + b"D" * 2 * KIB4


@pytest.mark.parametrize("flags", [0, UNMAP])
@pytest.mark.parametrize("start", [6 * KIB4, 8 * KIB4, 12 * KIB4])
async def test_zeroes_behind_the_end_grow_the_file(path: Path, flags: int, start: int) -> None:
    async with open_driver(path) as driver:
        await driver.co_pwrite_zeroes(start, 4 * KIB4, flags)
        assert await driver.co_getlength() == start + 4 * KIB4
        kept = min(start, 8 * KIB4)
        assert content(path) == b"D" * kept + bytes(start + 4 * KIB4 - kept)


def without(monkeypatch: pytest.MonkeyPatch, *modes: int) -> list[int]:
    """The file system refuses these fallocate modes; the list fills with all that were tried."""
    tried: list[int] = []
    real = FileEngine.fallocate

    async def fallocate(self: FileEngine, mode: int, offset: int, nbytes: int) -> None:
        tried.append(mode)
        if mode in modes:
            raise BlockError(errno=errno.ENOTSUP)
        await real(self, mode, offset, nbytes)

    monkeypatch.setattr(FileEngine, "fallocate", fallocate)
    return tried


ZERO = syscalls.FALLOC_FL_ZERO_RANGE
PUNCH = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE


async def test_without_zero_range_a_hole_is_punched_and_filled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = without(monkeypatch, ZERO)
    async with open_driver(path) as driver:
        before = spent(path)
        await driver.co_pwrite_zeroes(KIB4, KIB4, 0)
        await driver.co_pwrite_zeroes(8 * KIB4, KIB4, 0)
        assert tried == [ZERO, PUNCH, 0, 0]  # what cannot be is tried once; behind the end nothing is punched
        assert spent(path) >= before
    assert content(path) == b"D" * KIB4 + bytes(KIB4) + b"D" * 6 * KIB4 + bytes(KIB4)


async def test_where_nothing_helps_the_framework_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, ZERO, PUNCH, 0)
    async with open_driver(path) as driver:
        with pytest.raises(UnsupportedFeature):
            await driver.co_pwrite_zeroes(KIB4, KIB4, UNMAP)
        with pytest.raises(UnsupportedFeature):
            await driver.co_pdiscard(KIB4, KIB4)
    assert content(path) == b"D" * 8 * KIB4


async def test_growing_without_fallocate(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, ZERO, 0)
    async with open_driver(path) as driver:
        await driver.co_pwrite_zeroes(7 * KIB4, 3 * KIB4, UNMAP)
    assert content(path) == b"D" * 7 * KIB4 + bytes(3 * KIB4)


async def test_other_errors_come_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: FileEngine, mode: int, offset: int, nbytes: int) -> None:
        raise BlockError(errno=errno.ENOSPC)

    monkeypatch.setattr(FileEngine, "fallocate", full)
    async with open_driver(path) as driver:
        for operation in (driver.co_pwrite_zeroes(0, KIB4, 0), driver.co_pdiscard(0, KIB4)):
            with pytest.raises(BlockError) as refused:
                await operation
            assert refused.value.errno == errno.ENOSPC


# -- the length


@every_engine
@pytest.mark.parametrize("prealloc", ["off", "falloc", "full"])
async def test_growing(path: Path, aio: Any, prealloc: str) -> None:
    async with open_driver(path, aio=aio) as driver:
        await driver.co_truncate(3 << 20, exact=True, prealloc=PreallocMode(prealloc), flags=0)
        assert driver.length == length(path) == 3 << 20
        assert (spent(path) >= 3 << 20) == (prealloc != "off")
    assert content(path) == b"D" * 8 * KIB4 + bytes((3 << 20) - 8 * KIB4)


async def test_shrinking(path: Path) -> None:
    async with open_driver(path) as driver:
        await driver.co_truncate(5, exact=True, prealloc=PreallocMode.OFF, flags=0)
        assert driver.length == 5
        with pytest.raises(BlockError, match="Preallocation can't be used for shrinking files"):
            await driver.co_truncate(1, exact=True, prealloc=PreallocMode.FULL, flags=0)
        with pytest.raises(UnsupportedFeature, match="Unsupported preallocation mode: metadata"):
            await driver.co_truncate(9, exact=True, prealloc=PreallocMode.METADATA, flags=0)
        assert driver.length == 5


async def test_a_cancelled_preallocation_is_cut_back(path: Path) -> None:
    async with open_driver(path) as driver:
        for turns in range(1, 12, 3):
            growing = asyncio.create_task(driver.co_truncate(64 << 20, exact=True, prealloc=PreallocMode.FULL, flags=0))
            for _ in range(turns):
                await asyncio.sleep(0)
            growing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await growing
            assert driver.length == length(path) == 8 * KIB4
        assert await read(driver, 0, 8 * KIB4) == b"D" * 8 * KIB4


# -- creating


@pytest.mark.parametrize("prealloc", ["off", "falloc", "full"])
async def test_creating(tmp_path: Path, prealloc: str) -> None:
    path = tmp_path / "new"
    path.write_bytes(b"old content")
    await FileDriver.co_create_file(
        str(path), FileCreateOptions(size=1 << 20, preallocation=PreallocMode(prealloc), nocow=True)
    )
    assert content(path) == bytes(1 << 20)
    assert (spent(path) >= 1 << 20) == (prealloc != "off")
    assert await FileDriver.co_file_exists(str(path))
    await FileDriver.co_delete_file(str(path))
    assert not await FileDriver.co_file_exists(str(path))
    with pytest.raises(BlockError, match="new': No such file"):
        await FileDriver.co_delete_file(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "Could not create '{}': Is a directory"),
        ("missing/new", "Could not create '{}': No such file or directory"),
        ("fifo", "'file' driver requires '{}' to be a regular file"),
    ],
)
async def test_what_cannot_be_created(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = str(tmp_path / name)
    with pytest.raises(BlockError) as refused:
        await FileDriver.co_create_file(path, FileCreateOptions(size=0))
    assert str(refused.value) == message.format(path)


async def test_creating_with_metadata_preallocation_touches_nothing(path: Path) -> None:
    with pytest.raises(BlockError, match="Unsupported preallocation mode: metadata"):
        await FileDriver.co_create_file(str(path), FileCreateOptions(size=0, preallocation=PreallocMode.METADATA))
    assert content(path) == b"D" * 8 * KIB4


# -- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(where)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@every_engine
async def test_a_full_disk(small_disk: Path, aio: Any) -> None:
    path = small_disk / "disk"
    path.touch()
    async with open_driver(path, aio=aio) as driver:
        with pytest.raises(BlockError) as full:
            await write(driver, 0, b"x" * (2 << 20))
        assert full.value.errno == errno.ENOSPC
        assert str(full.value) == "No space left on device"
        await driver.co_truncate(0, exact=True, prealloc=PreallocMode.OFF, flags=0)
        await write(driver, 0, b"y" * KIB4)
        for prealloc, words in (
            (PreallocMode.FALLOC, "Could not preallocate new data: "),
            (PreallocMode.FULL, "Could not write zeros for preallocation: "),
        ):
            with pytest.raises(BlockError) as full:
                await driver.co_truncate(2 << 20, exact=True, prealloc=prealloc, flags=0)
            assert str(full.value) == f"{words}No space left on device"
            assert full.value.errno == errno.ENOSPC
            assert driver.length == length(path) == KIB4
        buffer = IoVector.of(bytearray(KIB4))
        await driver.co_preadv(0, buffer, 0)
        assert buffer.tobytes() == b"y" * KIB4
    with pytest.raises(BlockError, match="Could not preallocate new data: No space left on device"):
        await FileDriver.co_create_file(
            str(small_disk / "new"), FileCreateOptions(size=2 << 20, preallocation=PreallocMode.FALLOC)
        )
