"""Committing overlays, emptying layers, compressed writes and zeroing whole disks; the real tool has the last word."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.backend.commit import commit, commit_all
from blockio.errors import BlockError, NoMedium, ReadOnly, UnsupportedFeature
from blockio.graph.blockers import OpType, op_block, op_unblock
from blockio.testing.driver import MemoryDisk
from blockio.types import OpenFlags, Perm, RequestFlags
from tests.support.qemu import assert_clean, qemu_img

KIB = 1024
SIZE = 512 * KIB


def stack(folder: Path) -> dict[str, Any]:
    """What opens ``top.qcow2`` on ``base.qcow2`` in *folder*."""
    layers = [
        {"driver": "qcow2", "file": {"driver": "file", "filename": str(folder / name)}}
        for name in ("base.qcow2", "top.qcow2")
    ]
    return {**layers[1], "backing": layers[0]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The folder of a base of 256 KiB that holds b's, and an overlay of 512 KiB."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    (tmp_path / "b.raw").write_bytes(b"b" * (256 * KIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", tmp_path / "b.raw", base)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top, str(SIZE))
    return tmp_path


def content(path: Path) -> bytes:
    out = path.with_suffix(".out")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, out)
    return out.read_bytes()


async def change(blk: BlockBackend) -> bytes:
    """Write here and there; what the disk holds then."""
    model = bytearray((b"b" * (256 * KIB)).ljust(SIZE, b"\0"))
    for offset, data in ((1000, b"x" * 70_000), (400 * KIB, b"y" * 5)):
        await blk.co_pwritev(offset, data)
        model[offset : offset + len(data)] = data
    await blk.co_pwrite_zeroes(128 * KIB, 64 * KIB)
    model[128 * KIB : 192 * KIB] = bytes(64 * KIB)
    return bytes(model)


@pytest.mark.peer("qemu-img")
async def test_committed(images: Path) -> None:
    async with await BlockBackend.new_open(options=stack(images)) as blk:
        expected = await change(blk)
        assert blk.bs is not None
        assert blk.bs.backing is not None
        assert blk.bs.backing.read_only
        await commit(blk.bs)
        assert blk.bs.backing.read_only
        memory = bytearray(SIZE)
        await blk.co_preadv(0, memory)
        assert memory == expected
        await blk.co_pwritev(0, b"again")
    for name in ("base.qcow2", "top.qcow2"):
        assert_clean(images / name)
    assert content(images / "base.qcow2") == expected
    assert content(images / "top.qcow2") == b"again" + expected[5:]


@pytest.mark.peer("qemu-img")
async def test_under_a_user_who_shares_nothing(images: Path) -> None:
    """What is written below reads the same above, so nobody there has to agree."""
    async with await BlockBackend.new_open(options=stack(images)) as blk:
        expected = await change(blk)
        blk.set_perm(Perm.CONSISTENT_READ | Perm.WRITE, Perm.CONSISTENT_READ)
        assert blk.bs is not None
        assert blk.bs.backing is not None
        shared = blk.bs.backing.shared
        await commit(blk.bs)
        assert blk.bs.backing.shared == shared
    assert content(images / "base.qcow2") == expected


@pytest.mark.peer("qemu-img")
async def test_all_of_them(images: Path, blk: BlockBackend) -> None:
    """Disks without a backing file, and empty backends, are left out."""
    async with BlockBackend(), await BlockBackend.new_open(options=stack(images)) as overlay:
        expected = await change(overlay)
        await commit_all()
        memory = bytearray(SIZE)
        await overlay.co_preadv(0, memory)
        assert memory == expected
    assert content(images / "base.qcow2") == expected


@pytest.mark.peer("qemu-img")
async def test_refused_and_unharmed(images: Path, blk: BlockBackend) -> None:
    assert blk.bs is not None
    with pytest.raises(UnsupportedFeature, match="no backing file"):
        await commit(blk.bs)
    async with await BlockBackend.new_open(options=stack(images)) as overlay:
        expected = await change(overlay)
        assert overlay.bs is not None
        assert overlay.bs.backing is not None
        base = overlay.bs.backing.node
        for node, op in ((overlay.bs, OpType.COMMIT_SOURCE), (base, OpType.COMMIT_TARGET)):
            reason = "a job"
            op_block(node, op, reason)
            with pytest.raises(BlockError, match="is busy: a job") as caught:
                await commit_all()
            assert caught.value.errno == errno.EBUSY
            op_unblock(node, op, reason)
        task = asyncio.create_task(commit(overlay.bs))
        for _ in range(8):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not overlay.quiesced
        assert overlay.bs.backing.read_only
        memory = bytearray(SIZE)
        await overlay.co_preadv(0, memory)
        assert memory == expected
        await commit(overlay.bs)
    assert content(images / "base.qcow2") == expected


@pytest.mark.peer("qemu-img")
async def test_made_empty(images: Path, blk: BlockBackend) -> None:
    async with await BlockBackend.new_open(options=stack(images)) as overlay:
        await change(overlay)
        await overlay.co_make_empty()
        memory = bytearray(SIZE)
        await overlay.co_preadv(0, memory)
        assert memory == (b"b" * (256 * KIB)).ljust(SIZE, b"\0")
        await change(overlay)
        await asyncio.to_thread(overlay.make_empty)
        overlay.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
        with pytest.raises(ReadOnly):
            await overlay.co_make_empty()
    assert_clean(images / "top.qcow2")
    with pytest.raises(UnsupportedFeature, match="memory does not support emptying of block device files"):
        await blk.co_make_empty()
    await blk.remove_bs()
    with pytest.raises(NoMedium, match="No medium inserted"):
        await blk.co_make_empty()


@pytest.mark.peer("qemu-img")
async def test_compressed(tmp_path: Path, blk: BlockBackend) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "256k")
    options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}}
    async with await BlockBackend.new_open(options=options) as compressing:
        if compressing.bs is not None and compressing.bs.driver is not None:
            able = compressing.bs.driver.capabilities.write_compressed.value > 0
        if able:
            await compressing.co_pwrite_compressed(0, b"z" * 65536)
            await asyncio.to_thread(compressing.pwrite_compressed, 65536, b"a" * 65536)
            memory = bytearray(131072)
            await compressing.co_preadv(0, memory)
            assert memory == b"z" * 65536 + b"a" * 65536
        else:
            with pytest.raises(UnsupportedFeature):
                await compressing.co_pwrite_compressed(0, b"z" * 65536)
    assert_clean(image)
    with pytest.raises(UnsupportedFeature) as caught:
        await blk.co_pwrite_compressed(0, bytes(65536))
    assert caught.value.errno == errno.ENOTSUP


async def test_a_whole_disk_made_zero(blk: BlockBackend, disk: MemoryDisk) -> None:
    await blk.co_pwritev(5000, b"x" * 70_000)
    await blk.co_make_zero(RequestFlags.MAY_UNMAP)
    assert not any(disk.data)
    await blk.co_pwritev(5000, b"x")
    await asyncio.to_thread(blk.make_zero)
    assert not any(disk.data)
    await blk.remove_bs()
    with pytest.raises(NoMedium):
        await blk.co_make_zero()


@pytest.mark.peer("qemu-img")
async def test_what_is_zero_already_is_left_alone(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}}
    async with await BlockBackend.new_open(options=options, flags=OpenFlags(unmap=True)) as blk:
        await blk.co_pwritev(65536, b"x" * 65536)
        blk.account_nodes()
        await blk.co_make_zero()
        assert [(row.write.operations, row.write.bytes) for row in blk.node_stats()[:1]] == [(1, 65536)]
    assert_clean(image)
