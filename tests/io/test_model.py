"""Random requests against a bytearray, over random limits, in both lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.buffers import IoVector
from blockio.types import BlockLimits, DetectZeroes, OpenFlags, RequestFlags
from tests.io.world import Disk, Rig, in_format, on_disk, opened, pattern

LENGTH = 16 << 10
ALIGNMENTS = st.sampled_from([1, 2, 16, 512, 4096])

limits = st.builds(
    lambda align, transfer, iov, zero, zero_max, discard: BlockLimits(
        request_alignment=align,
        max_transfer=transfer * align,
        max_iov=iov,
        pwrite_zeroes_alignment=zero,
        max_pwrite_zeroes=zero_max,
        pdiscard_alignment=discard,
        max_pdiscard=discard * 3,
    ),
    ALIGNMENTS,
    st.integers(0, 5),
    st.integers(1, 4),
    st.sampled_from([0, 1, 64, 1024, 8192]),
    st.sampled_from([0, 700, 2048]),
    st.sampled_from([0, 512, 2048]),
)
spans = st.tuples(st.integers(0, LENGTH - 1), st.integers(0, 6000)).map(lambda s: (s[0], min(s[1], LENGTH - s[0])))
kinds = st.sampled_from(["read", "write", "write-zeroes", "zero", "fua", "unmap", "flush", "try-read", "try-write"])
requests = st.lists(st.tuples(kinds, spans, st.integers(1, 5)), min_size=1, max_size=12)


def in_pieces(payload: bytes | bytearray, pieces: int) -> IoVector:
    """*payload* as a vector of about *pieces* views of uneven length."""
    view = memoryview(payload)
    step = max(1, len(view) // pieces)
    return IoVector.of([view[at : at + step] for at in range(0, len(view), step)])


async def play(rig: Rig, model: bytearray, steps: list[tuple[str, tuple[int, int], int]]) -> None:
    io = rig.io
    for number, (kind, (offset, nbytes), pieces) in enumerate(steps):
        end = offset + nbytes
        payload = pattern(nbytes, number) if kind != "write-zeroes" else bytes(nbytes)
        if kind == "read":
            memory = bytearray(b"\xee" * nbytes)
            await io.co_preadv(offset, in_pieces(memory, pieces))
            assert memory == model[offset:end]
        elif kind == "try-read":
            memory = bytearray(b"\xee" * nbytes)
            if io.try_preadv(offset, [memory], nbytes):
                assert memory == model[offset:end]
        elif kind == "try-write":
            if io.try_pwritev(offset, [payload], nbytes):
                model[offset:end] = payload
        elif kind in ("write", "write-zeroes", "fua"):
            await io.co_pwritev(offset, in_pieces(payload, pieces), RequestFlags.FUA if kind == "fua" else 0)
            model[offset:end] = payload
        elif kind in ("zero", "unmap"):
            await io.co_pwrite_zeroes(offset, nbytes, RequestFlags.MAY_UNMAP if kind == "unmap" else 0)
            model[offset:end] = bytes(nbytes)
        else:
            await io.co_flush()
        rig.whole()
    assert await rig.read(0, LENGTH) == model


@given(limits, requests, st.sampled_from(DetectZeroes), st.booleans(), st.booleans())
def test_a_disk_with_any_limits_is_a_bytearray(
    limits: BlockLimits,
    steps: list[tuple[str, tuple[int, int], int]],
    detect: DetectZeroes,
    fast: bool,
    zero_unaligned: bool,
) -> None:
    async def run() -> None:
        disk = Disk(LENGTH, limits=limits, fast=fast)
        disk.zero_unaligned = zero_unaligned
        async with opened(on_disk(disk), flags=OpenFlags(unmap=True), detect_zeroes=detect) as rig:
            await play(rig, bytearray(LENGTH), steps)

    asyncio.run(run())


@given(
    requests,
    st.sampled_from([512, 4096]),
    st.sampled_from([1 << 30, 1024]),
    st.one_of(st.none(), st.sampled_from([0, 3000, LENGTH, LENGTH + 5000])),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 512]),
)
def test_a_format_over_any_backing_file_is_a_bytearray(
    steps: list[tuple[str, tuple[int, int], int]],
    cluster: int,
    most: int,
    backing: int | None,
    cached: bool,
    fresh: bool,
    keep: bool,
    align: int,
) -> None:
    async def run() -> None:
        model = bytearray(LENGTH)
        below = None
        if backing is not None:
            content = pattern(backing, 77)
            model[: min(LENGTH, backing)] = content[:LENGTH]
            below = on_disk(Disk(content))
        # What the file holds where nothing was written yet: zeroes if the format says so, else whatever.
        disk = Disk(bytes(1 << 20) if fresh else b"\xdd" * (1 << 20), limits=BlockLimits(request_alignment=align))
        async with opened(in_format(disk, length=LENGTH, cluster=cluster, backing=below)) as rig:
            rig.format.cached = cached
            rig.format.fresh = fresh
            rig.format.most = most
            rig.node.copy_on_read = int(keep)
            rig.node.path.refresh_lanes()
            await play(rig, model, steps)
            rig.format.whole()

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(4))
async def test_requests_at_the_same_time_leave_what_some_order_would(seed: int) -> None:
    """Overlapping misaligned writes: each block's bytes come from exactly one of them, none is torn by the padding."""
    disk = Disk(LENGTH, limits=BlockLimits(request_alignment=512), pauses=2 + seed)
    async with opened(on_disk(disk)) as rig:
        writers = [(at, 300) for at in range(0, 6000, 300)]
        jobs: list[Coroutine[Any, Any, None]] = [
            rig.write(at, bytes([1 + number]) * nbytes) for number, (at, nbytes) in enumerate(writers)
        ]
        jobs += [rig.io.co_pwrite_zeroes(6000, 100), rig.io.co_flush()]
        await asyncio.gather(*jobs)
        got = await rig.read(0, 6100)
        for number, (at, nbytes) in enumerate(writers):
            assert got[at : at + nbytes] == bytes([1 + number]) * nbytes
        rig.whole()


def _picture(blocks: Callable[[int], bool]) -> str:
    return "".join("A" if blocks(at) else "." for at in range(8))


async def test_a_write_far_past_the_end_makes_the_disk_longer_and_the_gap_zero() -> None:
    disk = Disk(pattern(1000))
    async with opened(on_disk(disk)) as rig:
        await rig.write(6000, b"x" * 144)
        assert rig.node.length == 6144
        assert rig.top.resizes == 1
        got = await rig.read(0, 8192)
        assert got == pattern(1000) + bytes(5000) + b"x" * 144 + bytes(2048)
        assert _picture(lambda at: any(got[at * 1024 : (at + 1) * 1024])) == "A....A.."
