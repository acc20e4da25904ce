"""Reading several compressed clusters at once: fetched and decompressed together, right in all three lives."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.errors import BlockError, CorruptImage
from blockio.io import mapped
from blockio.types import OpenFlags
from blockio_drivers.qcow2 import compressed
from tests.support.cancel import cancelled_after
from tests.support.qemu import pattern, qemu_img, qemu_io

CLUSTER = 4096
SIZE = 256 << 10

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")


@cache
def content() -> bytes:
    """Compressible, and no two clusters alike."""
    return b"".join(pattern(64, seed=at) * (CLUSTER // 64) for at in range(SIZE // CLUSTER))


@pytest.fixture(params=["zlib", "zstd"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An image of compressed clusters only, made by the other side."""
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(content())
    options = f"cluster_size={CLUSTER},compression_type={request.param}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    return path


def damage(path: Path) -> None:
    """Spoil the first compressed cluster: header, refcounts and tables come before it."""
    data = bytearray(path.read_bytes())
    data[5 * CLUSTER : 5 * CLUSTER + 40] = b"\xff" * 40
    path.write_bytes(data)


def opened(path: Path) -> Any:
    return BlockBackend.new_open(str(path), options={"driver": "qcow2"}, flags=OpenFlags(unmap=True))


@pytest.mark.parametrize("start", [0, 1, CLUSTER - 1, 3 * CLUSTER + 17])
@pytest.mark.parametrize("nbytes", [2 * CLUSTER, 7 * CLUSTER + 1, SIZE // 2, SIZE - 4 * CLUSTER])
async def test_every_byte_is_right(packed: Path, start: int, nbytes: int) -> None:
    async with await opened(packed) as blk:
        memory = bytearray(nbytes)
        await blk.co_preadv(start, memory)
        assert memory == content()[start : start + nbytes]


async def test_between_other_clusters(packed: Path) -> None:
    qemu_io(packed, "write -P 7 8k 4k", "write -z 20k 8k", "write -P 9 100k 50k", format="qcow2")
    expected = bytearray(content())
    expected[8192:12288] = b"\7" * 4096
    expected[20480:28672] = bytes(8192)
    expected[100 << 10 : 150 << 10] = b"\x09" * (50 << 10)
    async with await opened(packed) as blk:
        memory = bytearray(SIZE)
        await blk.co_preadv(0, memory)
        assert memory == expected
        await blk.co_preadv(5, part := bytearray(60_000))
        assert part == expected[5:60_005]


async def test_cut_into_jobs(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with await opened(packed) as blk:
        jobs = (CLUSTER, 3 * CLUSTER, 5 * CLUSTER + 7)
        for job, (start, nbytes) in product(jobs, ((0, SIZE), (CLUSTER // 2, 17 * CLUSTER))):
            monkeypatch.setattr(mapped, "_PACKED_TOGETHER", job)
            await blk.co_preadv(start, memory := bytearray(nbytes))
            assert memory == content()[start : start + nbytes]


async def test_scattered_over_the_file_into_scattered_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written from back to front, with others' clusters in between."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={CLUSTER}", path, str(SIZE))
    order = (15, 14, 2, 3, 7, 0, 9, 1)
    words = [f"write -c -P {at + 1} {at * CLUSTER} {CLUSTER}" for at in order]
    words[4:4] = [f"write -P 77 {32 * CLUSTER} {5 * CLUSTER}", f"write -c -P 78 {40 * CLUSTER} {CLUSTER}"]
    qemu_io(path, *words, format="qcow2")
    expected = bytearray(SIZE)
    for at in order:
        expected[at * CLUSTER : (at + 1) * CLUSTER] = bytes((at + 1,)) * CLUSTER
    expected[32 * CLUSTER : 37 * CLUSTER] = b"M" * (5 * CLUSTER)
    expected[40 * CLUSTER : 41 * CLUSTER] = b"N" * CLUSTER
    async with await opened(path) as blk:
        for near, sizes in product((0, 2048, 16 << 10), ((SIZE,), (100, CLUSTER, SIZE - CLUSTER - 100))):
            monkeypatch.setattr(compressed, "_NEAR", near)
            memory = [bytearray(nbytes) for nbytes in sizes]
            await blk.co_preadv(0, memory)
            assert b"".join(memory) == expected


async def test_one_damaged_cluster_fails_the_request_and_nothing_else(packed: Path) -> None:
    damage(packed)
    async with await opened(packed) as blk:
        with pytest.raises(CorruptImage):
            await blk.co_preadv(0, bytearray(SIZE))
        memory = bytearray(SIZE // 2)
        await blk.co_preadv(SIZE // 2, memory)
        assert memory == content()[SIZE // 2 :]
        assert blk.in_flight == 0


@pytest.mark.both_loops
async def test_cancelled_at_any_moment_the_memory_is_the_callers(packed: Path) -> None:
    async with await opened(packed) as blk:
        for turns in range(12):
            memory = bytearray(SIZE)
            if await cancelled_after(turns, blk.co_preadv(0, memory)):
                seen = bytes(memory)
                await blk.co_preadv(0, bytearray(SIZE))
                assert memory == seen
        assert blk.in_flight == 0


async def test_a_failing_thread_is_an_error_of_the_request(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> list[bytes]:
        raise BlockError("no room", 12)

    async with await opened(packed) as blk:
        with monkeypatch.context() as patch:
            patch.setattr(compressed, "_decompress_all", fail)
            with pytest.raises(BlockError, match="no room"):
                await blk.co_preadv(0, bytearray(SIZE))
        memory = bytearray(SIZE)
        await blk.co_preadv(0, memory)
        assert memory == content()
