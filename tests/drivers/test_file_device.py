"""The host_device driver, on a loop device where the machine lets us make one."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockio.errors import BlockError, UnsupportedFeature
from blockio.types import OpenFlags, PreallocMode, RequestFlags, StatusFlags
from blockio_drivers.file import HostDeviceCreateOptions, HostDeviceDriver
from tests.drivers.file_rig import content, device, read, write

SIZE = 1 << 20
CONTENT = b"device! " * (SIZE // 8)


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    path = tmp_path / "backing"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def loop(backing: Path) -> Iterator[str]:
    done = subprocess.run(["losetup", "--find", "--show", str(backing)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot make a loop device: {done.stderr.strip()}")
    name = done.stdout.strip()
    yield name
    subprocess.run(["losetup", "--detach", name], check=True)


@pytest.mark.parametrize("aio", ["threads", "io_uring"])
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_bytes(loop: str, aio: Any, direct: bool) -> None:
    async with device(loop, OpenFlags(cache_direct=direct), aio=aio) as driver:
        assert driver.length == await driver.co_getlength() == SIZE
        assert driver.limits().request_alignment == (512 if direct else 1)
        assert not driver.has_zero_init()
        await write(driver, 4096, b"x" * 4096)
        assert await read(driver, 0, 12288) == CONTENT[:4096] + b"x" * 4096 + CONTENT[8192:12288]
        status = await driver.co_block_status(0, SIZE, want_zero=True)
        assert (status.flags, status.length) == (StatusFlags.DATA | StatusFlags.OFFSET_VALID, SIZE)
        await driver.co_flush_to_disk()


@pytest.mark.parametrize("flags", [0, int(RequestFlags.MAY_UNMAP), int(RequestFlags.NO_FALLBACK)])
async def test_zeroes(loop: str, flags: int) -> None:
    async with device(loop) as driver:
        await driver.co_pwrite_zeroes(8192, 4096, flags)
        assert await read(driver, 4096, 12288) == CONTENT[:4096] + bytes(4096) + CONTENT[:4096]
        assert await driver.co_getlength() == SIZE


async def test_discards(loop: str, backing: Path) -> None:
    async with device(loop) as driver:
        await driver.co_pdiscard(65536, 65536)
        await driver.co_flush_to_disk()
    assert content(backing)[65536:131072] == bytes(65536)


async def test_the_length_stays(loop: str) -> None:
    async with device(loop) as driver:
        await driver.co_truncate(SIZE // 2, exact=False, prealloc=PreallocMode.OFF, flags=0)
        assert driver.length == SIZE
        with pytest.raises(UnsupportedFeature, match="Cannot resize device files"):
            await driver.co_truncate(SIZE // 2, exact=True, prealloc=PreallocMode.OFF, flags=0)
        with pytest.raises(BlockError, match="Cannot grow device files") as refused:
            await driver.co_truncate(SIZE * 2, exact=False, prealloc=PreallocMode.OFF, flags=0)
        assert refused.value.errno == errno.EINVAL


async def test_creating_clears_the_first_block(loop: str, backing: Path) -> None:
    await HostDeviceDriver.co_create_file(loop, HostDeviceCreateOptions(size=SIZE))
    async with device(loop) as driver:
        assert await read(driver, 0, 1024) == bytes(512) + CONTENT[512:1024]
    with pytest.raises(BlockError, match="Cannot grow device files"):
        await HostDeviceDriver.co_create_file(loop, HostDeviceCreateOptions(size=SIZE + 512))
    with pytest.raises(UnsupportedFeature, match="image deletion"):
        await HostDeviceDriver.co_delete_file(loop)


async def test_a_character_device_has_no_length() -> None:
    async with device("/dev/null") as driver:
        assert driver.length == 0
        assert await read(driver, 0, 16) == bytes(16)
