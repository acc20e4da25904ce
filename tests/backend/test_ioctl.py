"""ioctls: the device's answer, in every form, counted and parked like any request."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import struct
import termios
from pathlib import Path

import pytest

from blockio.backend import BlockBackend
from blockio.errors import BlockError, NoMedium, UnsupportedFeature
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm

_FS_IOC_GETFLAGS = 0x80086601


def options(path: Path, **more: object) -> dict[str, object]:
    return {"driver": "raw", **more, "file": {"driver": "file", "filename": str(path)}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4096))
    return path


async def test_every_form_reaches_the_file_through_raw(path: Path) -> None:
    with path.open("rb") as file:
        expected = fcntl.ioctl(file, termios.FIONREAD, bytes(4))
    async with await BlockBackend.new_open(options=options(path)) as blk:
        for ask in (
            lambda memory: blk.co_ioctl(termios.FIONREAD, memory),
            lambda memory: blk.aio_ioctl(termios.FIONREAD, memory),
            lambda memory: asyncio.to_thread(blk.ioctl, termios.FIONREAD, memory),
        ):
            memory = bytearray(4)
            assert await ask(memory) == 0
            assert memory == expected
        assert struct.unpack("i", expected) == (4096,)


async def test_who_cannot(path: Path, blk: BlockBackend) -> None:
    with pytest.raises(UnsupportedFeature) as caught:
        await blk.co_ioctl(1)
    assert caught.value.errno == errno.ENOTSUP
    answers: list[int] = []
    with pytest.raises(BlockError):
        await blk.aio_ioctl(1, cb=answers.append)
    assert answers == [-errno.ENOTSUP]
    async with await BlockBackend.new_open(options=options(path)) as raw:
        with pytest.raises(BlockError) as refused:
            await raw.co_ioctl(0x5401, bytearray(64))
        assert refused.value.errno == errno.ENOTTY
    # A window with an offset of its own would let a command out of it.
    async with await BlockBackend.new_open(options=options(path, offset=512)) as window:
        with pytest.raises(UnsupportedFeature):
            await window.co_ioctl(termios.FIONREAD, bytearray(4))
    async with BlockBackend(Perm.ALL) as empty:
        with pytest.raises(NoMedium):
            await empty.co_ioctl(1)


async def test_parked_while_drained(path: Path) -> None:
    async with await BlockBackend.new_open(options=options(path)) as blk:
        async with blk.drained():
            request = blk.aio_ioctl(termios.FIONREAD, bytearray(4))
            await asyncio.sleep(0)
            assert blk.in_flight == 0
            assert not request.done()
        assert await request == 0


async def test_aborted(blk: BlockBackend, disk: MemoryDisk) -> None:
    answers: list[int] = []
    request = blk.abort_aio_request(answers.append, -errno.ENOSPC)
    assert answers == []
    assert blk.in_flight == 1
    with pytest.raises(BlockError) as caught:
        await request
    assert caught.value.errno == errno.ENOSPC
    assert answers == [-errno.ENOSPC]
    assert disk.log == []
    with pytest.raises(ValueError, match="negative"):
        blk.abort_aio_request(None, 0)
    async with BlockBackend() as empty:
        empty.abort_aio_request(answers.append, -errno.EIO)
        await empty.drain()
        assert answers == [-errno.ENOSPC, -errno.EIO]
