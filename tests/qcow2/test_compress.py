"""Inflating one cluster: what is read, what is refused, and that QEMU agrees."""

from __future__ import annotations

import contextlib
import random
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from blockio.errors import CorruptImage
from blockio.types import HostOffset
from blockio_drivers.qcow2.compress import decompress_cluster
from blockio_drivers.qcow2.header import CompressionType
from tests.support.qcow2_craft import new_image
from tests.support.qemu import qemu_io

SIZE = 65536
TEXT = (b"the quick brown fox %d " * 4000)[:SIZE]
NOISE = random.Random(7).randbytes(20000)
FAR = (NOISE * 4)[:SIZE]  # repeats itself from 20000 bytes away, further than a 4 KiB window reaches


def deflate(data: bytes, window: int = -12) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, window)
    return packer.compress(data) + packer.flush()


def zstd(data: bytes, *, write_content_size: bool = True, write_checksum: bool = False) -> bytes:
    packer = zstandard.ZstdCompressor(write_content_size=write_content_size, write_checksum=write_checksum)
    return packer.compress(data)


ZLIB, ZSTD = CompressionType.ZLIB, CompressionType.ZSTD
CASES = {
    "zlib": (ZLIB, deflate(TEXT), TEXT),
    "zlib, window wider than it should be": (ZLIB, deflate(FAR, -15), FAR),
    "zlib, and more": (ZLIB, deflate(TEXT + TEXT), TEXT),
    "zlib, followed by noise": (ZLIB, deflate(TEXT) + NOISE[:700], TEXT),
    "zlib, too little": (ZLIB, deflate(TEXT[:-1]), None),
    "zlib, cut off": (ZLIB, deflate(FAR)[:-600], None),
    "zlib, with a zlib header": (ZLIB, zlib.compress(TEXT), None),
    "zlib, noise": (ZLIB, NOISE[:3000], None),
    "zstd": (ZSTD, zstd(TEXT), TEXT),
    "zstd, size not said": (ZSTD, zstd(TEXT, write_content_size=False), TEXT),
    "zstd, with a checksum": (ZSTD, zstd(TEXT, write_checksum=True), TEXT),
    "zstd, followed by noise": (ZSTD, zstd(TEXT) + NOISE[:700], TEXT),
    "zstd, two frames": (ZSTD, zstd(TEXT[:30000]) + zstd(TEXT[30000:]), TEXT),
    "zstd, and more": (ZSTD, zstd(TEXT + b"!"), None),
    "zstd, too little": (ZSTD, zstd(TEXT[:-1]), None),
    "zstd, cut off": (ZSTD, zstd(FAR)[:-600], None),
    "zstd, checksum wrong": (ZSTD, zstd(TEXT, write_checksum=True)[:-1] + b"!", None),
    "zstd, noise": (ZSTD, NOISE[:3000], None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cluster_or_a_declared_error(name: str) -> None:
    kind, data, expected = CASES[name]
    data += bytes(-len(data) % 512)
    if expected is None:
        with pytest.raises(CorruptImage):
            decompress_cluster(kind, data, SIZE)
    else:
        assert decompress_cluster(kind, data, SIZE) == expected
        assert decompress_cluster(kind, memoryview(bytearray(data)), SIZE) == expected


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize("name", CASES)
async def test_qemu_reads_and_refuses_the_same(name: str, tmp_path: Path) -> None:
    kind, data, expected = CASES[name]
    image = await new_image(SIZE, compression_type=kind.name.lower())
    at = image.l2_entry_at(0)
    offset = image.cluster(data)
    image.put_entry(at, image.geometry.compressed_entry(HostOffset(offset), len(data)))
    done = qemu_io(image.save(tmp_path / "c.qcow2"), f"read 0 {SIZE}", format="qcow2", options=("-r",), check=False)
    assert ("failed" in done.stdout) == (expected is None)


@given(st.sampled_from([ZLIB, ZSTD]), st.binary(max_size=600), st.integers(0, 200))
def test_no_data_yields_anything_but_a_cluster_or_corruption(kind: CompressionType, noise: bytes, at: int) -> None:
    sound = bytearray(deflate(TEXT[:4096]) if kind is ZLIB else zstd(TEXT[:4096]))
    sound[at : at + len(noise)] = noise
    for data in (noise, bytes(sound)):
        with contextlib.suppress(CorruptImage):
            assert len(decompress_cluster(kind, data, 4096)) == 4096


def test_a_bomb_yields_one_cluster() -> None:
    assert decompress_cluster(ZLIB, deflate(bytes(64 << 20)), 512) == bytes(512)
    with pytest.raises(CorruptImage):
        decompress_cluster(ZSTD, zstd(bytes(64 << 20)), 512)
