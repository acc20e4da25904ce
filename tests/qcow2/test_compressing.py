"""Compressed writes: what they refuse, how they are packed, and that QEMU reads them."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from blockio import img
from blockio.buffers import IoVector
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.img.opening import Image
from blockio.types import ExtentKind
from blockio_drivers.qcow2.compress import compress_clusters, decompress_cluster
from blockio_drivers.qcow2.header import CompressionType
from blockio_drivers.qcow2.options import LEVELS
from tests.qcow2.engine import Disk, check_image, new_image, open_disk, qemu_reads
from tests.support.qemu import assert_clean, qemu_img

CLUSTER = 4096


def compressible(rnd: random.Random, nbytes: int) -> bytes:
    part = rnd.randbytes(rnd.randrange(1, CLUSTER // 2))
    return (part * (nbytes // len(part) + 1))[:nbytes]


async def compressed(disk: Disk, offset: int, data: bytes) -> None:
    await disk.driver.co_pwritev_compressed(offset, IoVector.of(data))


@pytest.mark.parametrize("kind", CompressionType)
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_comes_back(kind: CompressionType, level: int) -> None:
    rnd = random.Random(level)
    clusters = [compressible(rnd, CLUSTER), rnd.randbytes(CLUSTER), b"short", bytes(CLUSTER)]
    packed = compress_clusters(kind, clusters, CLUSTER, level)
    assert [data is None for data in packed] == [False, True, False, False]
    for data, cluster in zip(packed, clusters, strict=True):
        if data is not None:
            assert decompress_cluster(kind, data, CLUSTER) == cluster.ljust(CLUSTER, b"\0")


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    "options", [{}, {"compat": "0.10"}, {"compression_type": "zstd", "refcount_bits": 1}, {"lazy_refcounts": True}]
)
async def test_requests_are_whole_clusters_of_nothing(options: dict[str, object]) -> None:
    size = 10 * CLUSTER + 512
    image = await new_image(size, cluster_size=CLUSTER, **options)
    async with open_disk(image) as disk:
        await compressed(disk, 10 * CLUSTER, b"e" * 512)
        await compressed(disk, 0, b"a" * CLUSTER)
        await disk.write(CLUSTER, b"b" * 100)
        for offset, nbytes, wanted in (
            (512, CLUSTER, errno.EINVAL),
            (2 * CLUSTER, 512, errno.EINVAL),
            (0, CLUSTER, errno.EIO),
            (CLUSTER, CLUSTER, errno.EIO),
        ):
            with pytest.raises(BlockError) as caught:
                await compressed(disk, offset, b"x" * nbytes)
            assert caught.value.errno == wanted
            disk.at_rest()
        assert (await disk.driver.co_map(0, CLUSTER)).kind is ExtentKind.COMPRESSED
        await disk.write(10, b"over")
        assert (await disk.driver.co_map(0, CLUSTER)).kind is ExtentKind.DATA
        await compressed(disk, 0, b"")
        assert not len(image.data) % 512
        wanted_content = (
            (b"a" * 10 + b"over").ljust(CLUSTER, b"a") + (b"b" * 100).ljust(9 * CLUSTER, b"\0") + b"e" * 512
        )
        assert await disk.read(0, size) == wanted_content
    check_image(image.data)
    assert qemu_reads(image.data) == wanted_content


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
async def test_model_of_all_writes(bits: int) -> None:
    rnd = random.Random(bits)
    image = await new_image(64 * CLUSTER, cluster_size=CLUSTER, refcount_bits=bits, lazy_refcounts=bits == 8)
    model = bytearray(64 * CLUSTER)
    async with open_disk(image) as disk:
        for _ in range(80):
            start = rnd.randrange(60)
            count = rnd.randrange(1, 5)
            offset, nbytes = start * CLUSTER, count * CLUSTER
            if rnd.random() < 0.6:
                await disk.discard(offset, nbytes)
                data = compressible(rnd, nbytes) if rnd.random() < 0.8 else rnd.randbytes(nbytes)
                await compressed(disk, offset, data)
            else:
                data = rnd.randbytes(rnd.randrange(1, nbytes))
                offset += rnd.randrange(CLUSTER)
                await disk.write(offset, data)
            model[offset : offset + len(data)] = data
            if rnd.random() < 0.2:
                await disk.flush()
            assert await disk.read(offset, len(data)) == data
            disk.at_rest()
        assert await disk.read(0, len(model)) == model
    check_image(image.data)
    assert qemu_reads(image.data) == model


async def test_small_clusters_share_a_host_cluster_as_far_as_their_width_counts() -> None:
    for bits, together in ((1, 1), (2, 3), (16, 8)):
        image = await new_image(64 * CLUSTER, cluster_size=CLUSTER, refcount_bits=bits)
        async with open_disk(image) as disk:
            await compressed(disk, 0, b"a" * 8 * CLUSTER)
            hosts = [(await disk.driver.co_map(n * CLUSTER, 1)).host_offset & 0xFFFFFF for n in range(8)]
        assert [host // CLUSTER for host in hosts].count(hosts[0] // CLUSTER) == together


async def test_a_level_that_is_none() -> None:
    image = await new_image(CLUSTER, cluster_size=CLUSTER)
    with pytest.raises(OptionError, match="Compression level must be between 1 and 9"):
        async with open_disk(image, compression_level=10):
            pass


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
async def test_conversions(tmp_path: Path, kind: str) -> None:
    rnd = random.Random(kind)
    first, second, target = tmp_path / "a", tmp_path / "b", tmp_path / "x.qcow2"
    first.write_bytes(compressible(rnd, 300_032) + bytes(1 << 20) + rnd.randbytes(70_144))
    second.write_bytes(compressible(rnd, 3 << 20) + bytes(512))
    sources = [Image(filename=str(path), format="raw") for path in (first, second)]
    options = {"compression_type": kind}
    for level in (None, 9):
        await img.convert(sources, str(target), "qcow2", options=options, compress=True, compression_level=level)
        assert_clean(target)
        back = tmp_path / "back"
        qemu_img("convert", "-f", "qcow2", "-O", "raw", target, back)
        assert back.read_bytes() == first.read_bytes() + second.read_bytes()
        found = await img.check(Image(filename=str(target), format="qcow2"))
        assert found.result.compressed_clusters > 45


async def test_what_cannot_be_compressed_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(bytes(65536))
    disk = Image(filename=str(source), format="raw")
    with pytest.raises(UnsupportedFeature, match="Compression not supported for this file format"):
        await img.convert(disk, str(tmp_path / "x"), "raw", compress=True)
    with pytest.raises(UnsupportedFeature, match="Compression and preallocation not supported at the same time"):
        await img.convert(disk, str(tmp_path / "x"), "qcow2", options={"preallocation": "full"}, compress=True)
    assert not (tmp_path / "x").exists()
