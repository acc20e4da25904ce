"""Disks that become longer and shorter."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from blockio.errors import BlockError, UnsupportedFeature
from blockio.testing.memory import MemoryChild
from blockio.types import OpenFlags, PreallocMode
from tests.qcow2.engine import check_image, new_image, open_disk, qemu_reads, written_image
from tests.support.qemu import qemu_img

CLUSTER = 4096


async def test_resize_refusals() -> None:
    child = await written_image()
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
    qemu_img("create", "-f", "qcow2", "-o", "compat=0.10", str(path), "1M")
    qemu_img("snapshot", "-c", "s", str(path))
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


@pytest.mark.peer("qemu-img")
async def test_what_lies_behind_the_end_of_the_disk_is_zero(tmp_path: Path) -> None:
    """Regression: the last cluster kept what its host cluster held before; QEMU, growing the disk, showed it."""
    cluster = 65536
    size = 3 * cluster + 512
    child = await new_image(size, cluster_size=cluster)
    async with open_disk(child, flags=OpenFlags()) as disk:
        await disk.write(0, b"secret!!" * (cluster // 4))
        await disk.discard(0, 2 * cluster)
        await disk.flush()
        await disk.write(3 * cluster, b"x" * 512)
    path = tmp_path / "i.qcow2"
    path.write_bytes(child.data)
    qemu_img("resize", "-f", "qcow2", path, str(4 * cluster))
    content = qemu_reads(path.read_bytes())
    assert content == bytes(3 * cluster) + b"x" * 512 + bytes(cluster - 512)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("bits", [1, 16, 64])
async def test_a_shorter_disk_is_a_shorter_file(tmp_path: Path, bits: int) -> None:
    """Refcount blocks that count nothing any more go too; the file becomes no longer than QEMU's."""
    size = 3 << 20
    child = await new_image(size, cluster_size=512, refcount_bits=bits)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * size)
        await disk.flush()
        theirs = tmp_path / "theirs.qcow2"
        theirs.write_bytes(child.data)
        await disk.truncate(4096)
        assert await disk.read(0, 4096) == b"a" * 4096
        ours = len(child.data)
        await disk.truncate(size)
        await disk.write(8192, b"b" * (size - 8192))
    check_image(child.data)
    assert qemu_reads(child.data) == b"a" * 4096 + bytes(4096) + b"b" * (size - 8192)
    qemu_img("resize", "-f", "qcow2", "--shrink", theirs, "4096")
    assert ours <= theirs.stat().st_size


class Patient(MemoryChild):
    """Cutting takes until ``go`` is set."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.fast = False
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def co_truncate(self, length: int, **options: Any) -> None:
        self.begun.set()
        await self.go.wait()
        await super().co_truncate(length, **options)


@pytest.mark.peer("qemu-img")
async def test_what_is_written_while_the_file_is_cut_stays() -> None:
    """Regression: a cluster that was handed out between the look for the last one and the cut was cut off."""
    child = Patient((await new_image(3 << 19, cluster_size=512)).data)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * (512 << 10))
        await disk.write(1 << 20, b"z" * (512 << 10))
        await disk.flush()
        cutting = asyncio.create_task(disk.truncate(1 << 20))
        await child.begun.wait()
        writing = asyncio.create_task(disk.write(512 << 10, b"b" * (100 << 10)))
        for _ in range(100):
            await asyncio.sleep(0)
        child.go.set()
        await asyncio.gather(cutting, writing)
        assert await disk.read(512 << 10, 100 << 10) == b"b" * (100 << 10)
    check_image(child.data)


async def test_the_length_is_known_when_a_resize_fails_too_late() -> None:
    """Regression: the header said one length, the driver another, when only the last flush failed."""
    child = await new_image(1 << 20)
    async with open_disk(child) as disk:
        image = disk.driver._image
        set_size = image.set_size

        async def fail(size: int) -> None:
            await set_size(size)
            raise BlockError

        image.set_size = fail  # type: ignore[method-assign]  # fails after it is done
        with pytest.raises(BlockError):
            await disk.truncate(2 << 20)
        assert disk.driver.length == 2 << 20
