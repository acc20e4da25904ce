"""The fast lane: open while nothing speaks against it, with the same effect as the slow one. And the wall."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from blockio.buffers import IoVector
from blockio.errors import BlockError, NoMedium
from blockio.graph.drain import drained, drained_begin
from blockio.types import BlockLimits, OpenFlags, Perm, RequestFlags
from tests.io.world import Disk, Rig, in_format, on_disk, opened, pattern


def lanes(rig: Rig, offset: int = 0, nbytes: int = 512) -> str:
    """Which lanes are open: ``r``, ``w``, both or none."""
    memory = bytearray(nbytes)
    reads = rig.io.try_preadv(offset, [memory], nbytes)
    writes = rig.io.try_pwritev(offset, [bytes(memory)], nbytes) if reads else rig.io.try_pwritev(offset, [b""], 0)
    return ("r" if reads else "") + ("w" if writes else "")


async def test_open_inside_the_disk_only() -> None:
    async with opened(on_disk(Disk(4096))) as rig:
        assert lanes(rig) == "rw"
        assert lanes(rig, 3584) == "rw"
        assert not rig.io.try_preadv(4000, [bytearray(97)], 97)
        assert not rig.io.try_preadv(-1, [bytearray(1)], 1)
        assert not rig.io.try_pwritev(4096, [b"x"], 1)
        assert not rig.io.try_pwritev(-1, [b"x"], 1)


async def test_whole_blocks_only() -> None:
    async with opened(on_disk(Disk(4096, limits=BlockLimits(request_alignment=512)))) as rig:
        assert lanes(rig) == "rw"
        assert not rig.io.try_preadv(1, [bytearray(512)], 512)
        assert not rig.io.try_preadv(0, [bytearray(511)], 511)
        assert not rig.io.try_pwritev(512, [b"x" * 10], 10)


async def test_closed_while_a_serialising_request_is_in_flight() -> None:
    disk = Disk(4096, limits=BlockLimits(request_alignment=512))
    async with opened(on_disk(disk)) as rig:
        gate = disk.gate = asyncio.Event()
        write = asyncio.ensure_future(rig.write(10, b"x"))
        await asyncio.sleep(0)
        disk.gate = None  # only the write in flight waits
        assert lanes(rig) == ""
        gate.set()
        await write
        assert lanes(rig) == "rw"


@pytest.mark.parametrize(
    ("flags", "perm", "expected"),
    [
        (OpenFlags(), Perm.ALL, "rw"),
        (OpenFlags(read_only=True), Perm.CONSISTENT_READ, "r"),
        (OpenFlags(inactive=True), Perm.CONSISTENT_READ, ""),
    ],
)
async def test_flags_close_lanes(flags: OpenFlags, perm: Perm, expected: str) -> None:
    async with opened(on_disk(Disk(4096)), flags=flags, perm=perm) as rig:
        assert lanes(rig) == expected


async def test_a_format_reads_fast_what_it_knows_and_writes_slowly() -> None:
    async with opened(in_format(Disk(0), length=8192)) as rig:
        await rig.write(0, pattern(4096))
        assert lanes(rig) == ""
        rig.format.cached = True
        assert lanes(rig) == "r"
        assert lanes(rig, 4096) == ""


async def test_a_corrupt_node_has_no_lane_left() -> None:
    async with opened(on_disk(Disk(4096))) as rig:
        rig.node.corrupted("broken", fatal=True)
        assert lanes(rig) == ""
        requests = [
            rig.read(0, 10),
            rig.write(0, b"x"),
            rig.io.co_pwrite_zeroes(0, 10),
            rig.io.co_pdiscard(0, 10),
            rig.io.co_flush(),
            rig.io.co_truncate(10),
            rig.io.co_getlength(),
            rig.io.co_get_info(),
            rig.io.co_block_status(0, 10),
            rig.io.co_copy_range_to(0, rig.edge, 0, 10),
        ]
        for request in requests:
            with pytest.raises(NoMedium):
                await request
        rig.whole()


# -- drain


async def test_a_drain_waits_for_what_is_in_flight() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:
        disk.gate = asyncio.Event()
        write = asyncio.ensure_future(rig.write(0, b"x"))
        await asyncio.sleep(0)
        drain = asyncio.ensure_future(drained_begin(rig.node))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not drain.done()
        assert rig.io.in_flight == 1
        disk.gate.set()
        await drain
        assert write.done()
        rig.node.unquiesce()


async def test_a_drain_inside_a_request_is_refused() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:
        refused: list[RuntimeError] = []
        read = rig.node.driver.co_preadv  # type: ignore[union-attr]  # it is open

        async def drains(offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
            try:
                async with drained(rig.node):
                    pass
            except RuntimeError as error:
                refused.append(error)
            await read(offset, iov, flags)

        rig.node.driver.co_preadv = drains  # type: ignore[union-attr,method-assign]  # a driver that drains itself
        await rig.read(0, 10)
        assert len(refused) == 1
        async with drained(rig.node):
            pass


# -- the wall


@pytest.mark.parametrize("method", ["co_preadv", "co_pwritev", "co_pwrite_zeroes", "co_pdiscard", "co_flush_to_os"])
@pytest.mark.parametrize("breach", ["result", "errno", "negative errno"])
async def test_a_driver_that_breaks_its_promises_is_named(method: str, breach: str) -> None:
    async with opened(on_disk(Disk(4096)), flags=OpenFlags(unmap=True)) as rig:

        async def broken(*_args: object, **_kwargs: object) -> int:
            if breach == "result":
                return 10
            error = OSError()
            error.errno = None if breach == "errno" else -5
            raise error

        setattr(rig.node.driver, method, broken)
        requests: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "co_preadv": lambda: rig.read(0, 10),
            "co_pwritev": lambda: rig.write(0, b"x"),
            "co_pwrite_zeroes": lambda: rig.io.co_pwrite_zeroes(0, 10),
            "co_pdiscard": lambda: rig.io.co_pdiscard(0, 10),
            "co_flush_to_os": rig.io.co_flush,
        }
        request = requests[method]
        with pytest.raises(RuntimeError, match=f"driver 'test-disk' .*{method}"):
            await request()
        rig.whole()
        delattr(rig.node.driver, method)
        await request()


async def test_errors_of_the_system_pass_the_wall() -> None:
    disk = Disk(4096)
    async with opened(on_disk(disk)) as rig:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        disk.before = full
        with pytest.raises(OSError, match="No space left") as caught:
            await rig.write(0, b"x")
        assert not isinstance(caught.value, BlockError)
