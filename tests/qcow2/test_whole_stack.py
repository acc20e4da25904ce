"""The qcow2 driver where it works: on real files, under a BlockBackend, with everything in between."""

from __future__ import annotations

import asyncio
import errno
import random
from contextlib import suppress
from pathlib import Path

import pytest

import blockio
from blockio.errors import BlockError, ReadOnly
from blockio.graph.reopen import reopen
from blockio.types import Perm, PreallocMode, RequestFlags
from tests.support.full_disk import small_file_system
from tests.support.qemu import assert_clean, qemu_img, qemu_img_json, qemu_io

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("options", ["cluster_size=64k", "cluster_size=512,refcount_bits=64,lazy_refcounts=on"])
async def test_a_disk_that_is_full_for_a_while(options: str, tmp_path: Path) -> None:
    """Eight writers meet ENOSPC in the middle. When there is room again, everything is as if nothing had been."""
    part = 2 * MIB if "64k" in options else 700 * KIB
    block = 24 * KIB
    model = bytearray(8 * part)
    rnd = random.Random(1)
    with small_file_system(tmp_path, 8 * MIB) as folder:
        ballast = folder / "ballast"
        ballast.write_bytes(bytes(5 * MIB))
        path = folder / "disk.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(8 * part))
        async with blockio.open(str(path), format="qcow2") as blk:
            failed: list[tuple[int, bytes]] = []
            reasons: set[int | None] = set()

            async def writer(number: int) -> None:
                for at in range(number * part, (number + 1) * part - block, 32 * KIB):
                    data = rnd.randbytes(block)
                    try:
                        await blk.co_pwritev(at + 100, data)
                    except BlockError as error:
                        reasons.add(error.errno)
                        failed.append((at + 100, data))
                    else:
                        model[at + 100 : at + 100 + block] = data

            await asyncio.gather(*map(writer, range(8)))
            assert reasons == {errno.ENOSPC}
            with suppress(BlockError):
                await blk.co_flush()
            ballast.write_bytes(b"")
            # What failed is written again, or its blocks hold the old or the new content; then all is known.
            for at, data in failed[:20]:
                await blk.co_pwritev(at, data)
                model[at : at + block] = data
            for at, _ in failed[20:]:
                await blk.co_pwrite_zeroes(at, block, RequestFlags.MAY_UNMAP)
            await blk.co_flush()
            found = bytearray(len(model))
            await blk.co_preadv(0, found)
            assert found == model
        assert_clean(path)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "flat")
    assert (tmp_path / "flat").read_bytes() == model


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("lazy", ["off", "on"])
async def test_read_only_and_back(lazy: str, tmp_path: Path) -> None:
    """Read-only, the image on disk is whole and clean; writable again, it is written on, whoever had it meanwhile."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"lazy_refcounts={lazy}", path, "4M")
    async with blockio.open(str(path), format="qcow2") as blk:
        assert blk.bs is not None
        writing = Perm.CONSISTENT_READ | Perm.WRITE
        for turn in range(1, 4):
            await blk.co_pwritev(turn * 100 * KIB, bytes([turn]) * 70 * KIB)
            blk.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
            await reopen(blk.bs, read_only=True)
            assert_clean(path)
            assert not qemu_img_json("info", path)["dirty-flag"]
            qemu_io(path, f"read -P {turn} {turn * 100 * KIB} 70k", format="qcow2", options=("-r",))
            with pytest.raises(ReadOnly):
                await blk.co_pwritev(0, b"no")
            await reopen(blk.bs, read_only=False)
            blk.set_perm(writing, Perm.ALL)
    assert_clean(path)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("prealloc", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster", [512, 65536])
async def test_what_is_preallocated_has_room(cluster: int, prealloc: str, tmp_path: Path) -> None:
    """Regression: what a new refcount block jumped over remained a hole of the file."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", path, "1025k")
    async with blockio.open(str(path), format="qcow2", resize=True) as blk:
        await blk.co_truncate(5 * MIB, exact=True, prealloc=PreallocMode(prealloc))
    assert_clean(path)
    room = path.stat().st_blocks * 512
    assert (room >= 4 * MIB - 1024) is (prealloc in {"falloc", "full"})
    mapped = [part for part in qemu_img_json("map", path) if part["data"]]
    assert sum(part["length"] for part in mapped) >= (0 if prealloc == "off" else 4 * MIB - 1024)
