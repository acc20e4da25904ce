"""The filter ``compress``: every write becomes a compressed one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from blockio.backend import BlockBackend
from blockio.buffers import IoVector
from blockio.driver.registry import register, unregister
from blockio.errors import BlockError, UnsupportedFeature
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.conformance import Traits, check_driver
from blockio.testing.driver import MemoryDisk, MemoryDriver
from blockio.types import BlockInfo, Capability, RequestFlags

CLUSTER = 4096


class CompressingDriver(MemoryDriver):
    """A memory disk that takes whole clusters compressed, and says so in its log."""

    name = "compressing-memory"
    capabilities = replace(MemoryDriver.capabilities, write_compressed=Capability.NATIVE)

    async def co_get_info(self) -> BlockInfo:
        return BlockInfo(cluster_size=CLUSTER)

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        assert not offset % CLUSTER
        assert not iov.nbytes % CLUSTER
        await asyncio.sleep(0)
        await self.disk.arrive("compress", offset, iov.nbytes)
        self._store(offset, iov.tobytes())


@pytest.fixture(autouse=True)
def _driver() -> Any:
    register(CompressingDriver)
    yield
    unregister(CompressingDriver)


def above(disk: MemoryDisk) -> dict[str, Any]:
    """The filter over *disk*."""
    return {"driver": "compress", "file": {"driver": CompressingDriver.name, "disk": disk.name}}


@asynccontextmanager
async def opened(disk: MemoryDisk) -> AsyncIterator[BlockBackend]:
    async with await BlockBackend.new_open(options=above(disk), resize=True) as blk:
        yield blk
        assert blk.in_flight == 0


async def test_conformance() -> None:
    disks: list[MemoryDisk] = []

    async def make(length: int) -> Mapping[str, Any]:
        disks.append(MemoryDisk(length))
        disks[-1].__enter__()
        return above(disks[-1])

    report = await check_driver(make, Traits())
    for disk in disks:
        disk.__exit__()
    assert report.ok, f"\n{report}"


async def test_writes_are_whole_clusters_and_compressed() -> None:
    with MemoryDisk() as disk:
        async with opened(disk) as blk:
            assert not blk.try_pwritev(0, bytes(CLUSTER))
            await blk.co_pwritev(0, b"x" * 2 * CLUSTER)
            await blk.co_pwritev(CLUSTER + 5, b"y" * 10)
            await blk.co_pwritev(4 * CLUSTER, b"z" * CLUSTER, RequestFlags.WRITE_COMPRESSED)
            assert [entry for entry in disk.log if entry[0] in ("write", "compress")] == [
                ("compress", 0, 2 * CLUSTER),
                ("compress", CLUSTER, CLUSTER),
                ("compress", 4 * CLUSTER, CLUSTER),
            ]
            memory = bytearray(20)
            assert blk.try_preadv(CLUSTER, memory) is False  # not a whole cluster
            await blk.co_preadv(CLUSTER, memory)
            assert memory == b"x" * 5 + b"y" * 10 + b"x" * 5


async def test_zeroes_and_discards_are_what_they_are() -> None:
    with MemoryDisk() as disk:
        async with opened(disk) as blk:
            await blk.co_pwrite_zeroes(0, 3 * CLUSTER)
            await blk.co_pwrite_zeroes(5 * CLUSTER, 100)
            assert disk.log[0] == ("zero", 0, 3 * CLUSTER)
            assert disk.log[-1] == ("compress", 5 * CLUSTER, CLUSTER)


async def test_writes_into_one_cluster_at_once() -> None:
    with MemoryDisk() as disk:
        async with opened(disk) as blk:
            await asyncio.gather(*(blk.co_pwritev(number * 100, bytes([number + 1]) * 100) for number in range(100)))
            memory = bytearray(10_000)
            await blk.co_preadv(0, memory)
            assert memory == b"".join(bytes([number + 1]) * 100 for number in range(100))


async def test_a_failure_is_the_writers() -> None:
    with MemoryDisk() as disk:
        async with opened(disk) as blk:
            disk.fail = BlockError(errno=5)
            with pytest.raises(BlockError):
                await blk.co_pwritev(0, b"x" * CLUSTER)
            disk.fail = None
            await blk.co_pwritev(0, b"x" * CLUSTER)


async def test_cancelled_at_every_await() -> None:
    with MemoryDisk() as disk:
        async with opened(disk) as blk:

            async def scenario() -> None:
                await blk.co_pwritev(100, b"x" * 5000)

            async def afterwards(nth: int) -> None:
                await blk.co_pwritev(50, bytes([nth]) * 6000)
                memory = bytearray(6000)
                await blk.co_preadv(50, memory)
                assert memory == bytes([nth]) * 6000

            assert await cancel_at_every_await(scenario, afterwards) >= 1


async def test_only_over_what_compresses() -> None:
    with MemoryDisk() as disk:
        for options in (disk.options(), {"driver": "raw", "file": disk.options()}):
            with pytest.raises(UnsupportedFeature, match=r"not supported for underlying format: (memory|raw)"):
                await BlockBackend.new_open(options={"driver": "compress", "file": options})
        below = {"driver": "compress", "file": above(disk)}
        async with await BlockBackend.new_open(options=below) as blk:
            await blk.co_pwritev(0, b"x" * CLUSTER)
        assert ("compress", 0, CLUSTER) in disk.log


async def test_a_disk_of_half_a_cluster_more_is_not_written() -> None:
    refused = pytest.raises(BlockError, match="Image size is not a multiple of request alignment")
    with MemoryDisk(CLUSTER + 512) as disk, refused:
        await BlockBackend.new_open(options=above(disk))
