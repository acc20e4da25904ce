"""The filter driver ``throttle``."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from blockio.aio.clock import ManualClock
from blockio.backend import BlockBackend
from blockio.buffers import IoVector
from blockio.driver.registry import register, unregister
from blockio.errors import OptionError
from blockio.graph.reopen import reopen
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.conformance import Traits, check_driver
from blockio.testing.driver import MemoryDisk, MemoryDriver
from blockio.throttle import ThrottleConfig, ThrottleGroup
from blockio.types import Capability, RequestFlags
from tests.throttle.rig import turns


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def group(clock: ManualClock) -> Iterator[ThrottleGroup]:
    """1000 bytes a second."""
    group = ThrottleGroup("g", ThrottleConfig.of(bps_total=1000), clock=clock)
    yield group
    group.delete()  # the next test takes the name, whoever still holds this one


@pytest.fixture
async def blk(group: ThrottleGroup) -> AsyncIterator[BlockBackend]:
    with MemoryDisk() as disk:
        options = {"driver": "throttle", "throttle-group": "g", "file": disk.options()}
        async with await BlockBackend.new_open(options=options, resize=True) as blk:
            yield blk
            assert blk.in_flight == 0
    assert group.members == ()
    assert group._turns == [None, None]


async def test_conformance() -> None:
    disks: list[MemoryDisk] = []
    group = ThrottleGroup("conforming", ThrottleConfig.of(bps_total=10**14))

    async def make(length: int) -> Mapping[str, Any]:
        disk = MemoryDisk(length)
        disk.__enter__()
        disks.append(disk)
        return {"driver": "throttle", "throttle-group": "conforming", "file": disk.options()}

    report = await check_driver(make, Traits())
    for disk in disks:
        disk.__exit__()
    assert report.ok, f"\n{report}"
    group.delete()


async def test_what_waits(blk: BlockBackend, clock: ManualClock) -> None:
    await blk.co_pwritev(0, bytes(2100))
    requests = [
        asyncio.create_task(blk.co_preadv(0, bytearray(1))),
        asyncio.create_task(blk.co_pwritev(0, b"x")),
    ]
    await turns(10)
    await blk.co_flush()
    assert not any(request.done() for request in requests)
    clock.advance(2.01)
    await asyncio.gather(*requests)


async def test_the_fast_lane_is_open_without_limits(blk: BlockBackend, group: ThrottleGroup) -> None:
    memory = bytearray(10)
    assert not blk.try_preadv(0, memory)
    group.set_config(ThrottleConfig())
    assert blk.try_preadv(0, memory)
    assert blk.try_pwritev(0, memory)
    group.set_config(ThrottleConfig.of(iops_total=5))
    assert not blk.try_pwritev(0, memory)


async def test_drained(blk: BlockBackend) -> None:
    await blk.co_pwritev(0, bytes(5000))
    requests = [asyncio.create_task(blk.co_pwritev(number, b"x")) for number in range(5)]
    await turns(10)
    async with blk.drained():
        assert all(request.done() for request in requests)
        parked = asyncio.create_task(blk.co_pwrite_zeroes(0, 100, RequestFlags.MAY_UNMAP))
        await turns(10)
    await turns(10)
    assert not parked.done()
    await blk.drain()
    await parked


async def test_cancelled_at_every_await(blk: BlockBackend, clock: ManualClock) -> None:
    async def before(_nth: int) -> None:
        clock.advance(1000)
        await blk.co_pwritev(0, bytes(200))

    async def scenario() -> None:
        asyncio.get_running_loop().call_soon(clock.advance, 1)
        await blk.co_pwritev(100, b"x" * 100)

    async def afterwards(_nth: int) -> None:
        assert blk.in_flight == 0
        clock.advance(1000)
        await blk.co_preadv(0, bytearray(10))

    assert await cancel_at_every_await(scenario, afterwards, before=before) >= 1


async def test_reopened(blk: BlockBackend, group: ThrottleGroup) -> None:
    assert blk.bs is not None
    await blk.co_pwritev(0, bytes(100_000))
    waits = asyncio.create_task(blk.co_preadv(0, bytearray(1)))
    await turns(10)
    await reopen(blk.bs, cache_no_flush=True)
    await waits
    assert len(group.members) == 1


class CompressingDriver(MemoryDriver):
    """A memory disk that takes compressed writes, and says so in its log."""

    name = "compressing-memory"
    capabilities = replace(MemoryDriver.capabilities, write_compressed=Capability.NATIVE)

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        await self.disk.arrive("compress", offset, iov.nbytes)


async def test_compressed_writes_wait_too(group: ThrottleGroup, clock: ManualClock) -> None:
    register(CompressingDriver)
    try:
        with MemoryDisk() as disk:
            below = {"driver": CompressingDriver.name, "disk": disk.name}
            spec = {"driver": "throttle", "throttle-group": "g", "file": below}
            async with await BlockBackend.new_open(options=spec) as blk:
                await blk.co_pwritev(0, bytes(65536), RequestFlags.WRITE_COMPRESSED)
                second = asyncio.create_task(blk.co_pwritev(65536, bytes(65536), RequestFlags.WRITE_COMPRESSED))
                await turns(10)
                assert disk.log == [("compress", 0, 65536)]
                clock.advance(66)
                await second
                assert disk.log[1:] == [("compress", 65536, 65536)]
    finally:
        unregister(CompressingDriver)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"throttle-group": "nope"}, "Throttle group 'nope' does not exist"),
        ({"throttle-group": ""}, "Throttle group '' does not exist"),
        ({}, "Please specify a throttle group"),
    ],
)
async def test_which_group(options: dict[str, str], message: str) -> None:
    with MemoryDisk() as disk:
        spec = {"driver": "throttle", "file": disk.options(), **options}
        with pytest.raises(OptionError, match=message):
            await BlockBackend.new_open(options=spec)


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize("option", ["throttle-group=nope,", "throttle-group=,", ""])
def test_which_group_in_qemus_words(tmp_path: Path, option: str) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(4096))
    done = subprocess.run(
        ["qemu-io", "-c", "quit", "--image-opts", f"driver=throttle,{option}file.driver=file,file.filename={image}"],
        capture_output=True,
        text=True,
        check=False,
    )
    spec: dict[str, Any] = {"driver": "throttle", "file": {"driver": "file", "filename": str(image)}}
    if option:
        spec["throttle-group"] = option.removesuffix(",").split("=")[1]
    with pytest.raises(OptionError) as caught:
        asyncio.run(BlockBackend.new_open(options=spec))
    assert done.stderr == f"qemu-io: can't open: {caught.value}\n"
