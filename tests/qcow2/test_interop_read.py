"""Reading what QEMU wrote, through the whole graph: every cluster size, width, version, backing and compression."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

import blockio
from blockio.driver.gate import AllowAll
from tests.support.qemu import assert_clean, qemu_img, qemu_img_json, qemu_io

MIB = 1 << 20
SIZE = 3 * MIB + 512

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")


def matrix() -> list[tuple[int, str, str]]:
    kinds = [
        "compat=0.10",
        "refcount_bits=1",
        "refcount_bits=64,lazy_refcounts=on",
        "refcount_bits=16",
        "compression_type=zstd,refcount_bits=8",
    ]
    backings = ["", "raw", "short", "long"]
    return [
        (cluster, kind, backing)
        for index, (cluster, kind, backing) in enumerate(product((512, 4096, 65536, 2 * MIB), kinds, backings))
        # All pairs of two, a third of all triples: each costs seconds of QEMU.
        if index % 3 == 0 or (cluster, backing) == (65536, "")
    ] + [(cluster, "extended_l2=on", backing) for cluster in (16384, 65536, 2 * MIB) for backing in backings]


def make(path: Path, cluster: int, kind: str, backing: str) -> None:
    options = f"cluster_size={cluster},{kind}"
    if backing:
        length = {"raw": SIZE, "short": MIB + 512, "long": 5 * MIB}[backing]
        base = path.parent / "base.raw"
        base.write_bytes(bytes(range(1, 252)) * (length // 251 + 1))
        with base.open("r+b") as file:
            file.truncate(length)
        options += ",backing_file=base.raw,backing_fmt=raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE))
    commands = [
        f"write -P 1 0 {3 * 65536}",
        f"write -P 2 {MIB + 1024} 70000",
        f"write -z {2 * 65536} 65536",
        f"write -P 3 {SIZE - 512} 512",
        f"discard {65536} 65536",
    ]
    if cluster < MIB:
        commands += [f"write -c -P 4 {2 * MIB} {cluster}", f"write -c -P 5 {2 * MIB + cluster} {cluster}"]
    qemu_io(path, *commands, format="qcow2")


@pytest.mark.parametrize(("cluster", "kind", "backing"), matrix())
async def test_every_byte(cluster: int, kind: str, backing: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.qcow2"
    make(path, cluster, kind, backing)
    raw = tmp_path / "flat.raw"
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    expected = raw.read_bytes()
    async with blockio.open(str(path), format="qcow2", read_only=True, gate=AllowAll()) as blk:
        assert await blk.co_getlength() == SIZE
        data = bytearray(SIZE)
        await blk.co_preadv(0, data)
        assert data == expected
        # Again in pieces that fit no cluster: cached metadata, the fast lane, compressed clusters in parts.
        for offset in range(0, SIZE - 4096, 99 * 512 + 1):
            part = bytearray(4096)
            await blk.co_preadv(offset, part)
            assert part == expected[offset : offset + 4096], offset


async def test_an_internal_snapshot_and_bitmaps_do_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "s.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "4M")
    qemu_io(path, "write -P 1 0 2M", format="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_img("bitmap", "--add", path, "b0")
    qemu_io(path, "write -P 2 1M 2M", format="qcow2")
    async with blockio.open(str(path), format="qcow2", read_only=True) as blk:
        data = bytearray(4 * MIB)
        await blk.co_preadv(0, data)
    assert data == b"\1" * MIB + b"\2" * (2 * MIB) + bytes(MIB)


async def test_a_dirty_image_is_repaired_when_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "dirty.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", path, "4M")
    qemu_io(path, "write -P 1 0 1M", "sigraise 9", format="qcow2", check=False)
    assert qemu_img_json("info", path)["dirty-flag"], "qemu-io was killed before it settled"
    async with blockio.open(str(path), format="qcow2") as blk:
        data = bytearray(MIB)
        await blk.co_preadv(0, data)
        assert data == b"\1" * MIB
    assert not qemu_img_json("info", path)["dirty-flag"]
    assert_clean(path)
