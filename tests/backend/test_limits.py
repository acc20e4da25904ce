"""What one request may be, and what a real device says of itself."""

from __future__ import annotations

import asyncio
import errno
import subprocess
from pathlib import Path

import pytest

from blockio.backend import BlockBackend
from blockio.errors import NoMedium, UnsupportedFeature
from blockio.types import INT_MAX, BlockSizes, OpenFlags, Perm


async def test_of_an_empty_backend() -> None:
    async with BlockBackend(Perm.ALL) as empty:
        assert empty.get_request_alignment() == 512
        assert empty.get_max_transfer() == INT_MAX
        assert empty.get_geometry() == 0
        with pytest.raises(NoMedium):
            empty.get_max_iov()
        with pytest.raises(NoMedium):
            await empty.co_probe_blocksizes()
        with pytest.raises(NoMedium):
            await empty.co_probe_geometry()


async def test_of_a_disk(blk: BlockBackend) -> None:
    assert blk.get_request_alignment() == 1
    assert blk.get_max_transfer() == INT_MAX
    assert blk.get_max_iov() == 1024
    assert blk.get_geometry() == 2048
    with pytest.raises(UnsupportedFeature) as caught:
        await blk.co_probe_blocksizes()
    assert caught.value.errno == errno.ENOTSUP
    with pytest.raises(UnsupportedFeature):
        await asyncio.to_thread(blk.probe_geometry)


async def test_of_a_file_opened_directly(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 16))
    options = {"driver": "file", "filename": str(path)}
    async with await BlockBackend.new_open(options=options, flags=OpenFlags(cache_direct=True)) as blk:
        alignment = blk.get_request_alignment()
        assert alignment >= 512
        assert alignment & (alignment - 1) == 0


def loop_device(path: Path) -> str:
    """A loop device with 4096-byte blocks on *path*; skips where the machine allows none."""
    done = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", "4096", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.mark.peer("losetup")
async def test_of_a_real_block_device(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    device = await asyncio.to_thread(loop_device, path)
    try:
        options = {"driver": "raw", "file": {"driver": "host_device", "filename": device}}
        async with await BlockBackend.new_open(options=options) as blk:
            assert await blk.co_probe_blocksizes() == BlockSizes(physical=4096, logical=4096)
            assert await asyncio.to_thread(blk.probe_blocksizes) == BlockSizes(4096, 4096)
            with pytest.raises(UnsupportedFeature):  # a loop device has no heads
                await blk.co_probe_geometry()
    finally:
        await asyncio.to_thread(subprocess.run, ["losetup", "--detach", device], check=True)
