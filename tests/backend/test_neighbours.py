"""blockio and running QEMU tools exclude each other on one file, in the words users know; and nothing is leaked."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from blockio.aio.context import IOThread
from blockio.backend import BlockBackend
from blockio.errors import BlockError, ImageLocked
from blockio.graph.node import all_nodes
from blockio.types import OpenFlags, Perm
from tests.support.leaks import no_leaks
from tests.support.qemu import QemuIo, assert_clean, qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A qcow2 image: its metadata is nobody else's while one writes. (A raw one's users share all, as QEMU's do.)"""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    return path


def options(path: Path, format: str = "qcow2") -> dict[str, Any]:
    return {"driver": format, "file": {"driver": "file", "filename": str(path)}}


async def test_held_by_a_writer(image: Path) -> None:
    with QemuIo(image, format="qcow2"):
        with pytest.raises(ImageLocked) as caught:
            await BlockBackend.new_open(options=options(image))
        assert 'Failed to get "write" lock' in str(caught.value)
        assert f"Is another process using the image [{image}]?" in str(caught.value)
        assert caught.value.errno == errno.EAGAIN
        assert all_nodes() == []
        flags = OpenFlags(read_only=True, force_share=True)
        async with await BlockBackend.new_open(options=options(image), flags=flags) as blk:
            await blk.co_preadv(0, bytearray(512))
    async with await BlockBackend.new_open(options=options(image)) as blk:
        await blk.co_pwritev(0, b"free again")


async def test_held_by_a_reader(image: Path) -> None:
    """Two readers get along; a writer does not join them."""
    with QemuIo(image, format="qcow2", options=("-r",)):
        async with await BlockBackend.new_open(options=options(image), flags=OpenFlags(read_only=True)):
            pass
        with pytest.raises(ImageLocked, match='"write" lock'):
            await BlockBackend.new_open(options=options(image))


async def test_we_hold_it(image: Path) -> None:
    async with await BlockBackend.new_open(options=options(image)) as blk:
        refused = qemu_io(image, "write 0 512", format="qcow2", check=False)
        assert refused.returncode == 1
        assert 'Failed to get "write" lock' in refused.stderr
        await blk.co_pwritev(0, b"ours")
    qemu_io(image, "write -P 7 0 512", format="qcow2")


async def test_permissions_reach_the_file(tmp_path: Path) -> None:
    """What a raw image's user shares is what other processes may do."""
    path = tmp_path / "disk.raw"
    qemu_img("create", "-q", "-f", "raw", path, "1M")
    async with await BlockBackend.new_open(options=options(path, "raw"), flags=OpenFlags(read_only=True)) as blk:
        qemu_io(path, "write -P 7 0 512", format="raw")  # everything is shared
        blk.set_perm(Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)
        refused = qemu_io(path, "write 0 512", format="raw", check=False)
        assert 'Failed to get "write" lock' in refused.stderr
        blk.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
        with QemuIo(path, format="raw"):
            with pytest.raises(ImageLocked, match='Failed to get shared "write" lock'):
                blk.set_perm(Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)
            assert blk.get_perm() == (Perm.CONSISTENT_READ, Perm.ALL)
            await blk.co_preadv(0, bytearray(512))


async def test_nothing_is_left_after_life_and_failure(image: Path) -> None:

    async def live() -> None:
        async with await BlockBackend.new_open(options=options(image), resize=True) as blk:
            await blk.co_pwritev(1000, b"x" * 100_000)
            await blk.drain()
            await blk.co_truncate(2 << 20)
            with pytest.raises(BlockError):
                await blk.co_preadv(1 << 40, bytearray(1))
        with QemuIo(image, format="qcow2"), pytest.raises(ImageLocked):
            await BlockBackend.new_open(options=options(image))

    await live()  # the loop's own descriptors (a ring, a wake-up) come with the first life
    with no_leaks():
        await live()
    assert all_nodes() == []


async def test_in_a_thread_of_its_own(image: Path) -> None:
    with no_leaks():
        async with IOThread() as thread:
            blk = await BlockBackend.new_open(options=options(image), context=thread.context)
            for number in range(20):
                await blk.co_pwritev(number * 4096, bytes([number]) * 4096)
            memory = bytearray(4096)
            await blk.co_preadv(7 * 4096, memory)
            assert memory == b"\7" * 4096
            await blk.close()
    assert_clean(image)
