"""Whichever lanes a backend may take, its requests give the same bytes, the same errors and the same statistics.

Every sequence of requests runs once in each setting of ``set_lanes``, from the same image, on both engines below.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.backend import BlockBackend
from blockio.backend.lanes import Lanes
from blockio.types import OpenFlags, RequestFlags
from tests.model.stacks import LENGTH, STACKS, Stack
from tests.support.explore import few
from tests.support.qemu import assert_clean, pattern

_BY_NAME: Final = {stack.name: stack for stack in STACKS}


class Request(msgspec.Struct, frozen=True):
    """``read``, ``write``, ``zeroes``, ``discard``, ``flush``; *many* reads are under way at once."""

    kind: str
    offset: int = 0
    nbytes: int = 0
    parts: int = 1
    fua: bool = False
    many: int = 1


_offsets = st.one_of(
    st.integers(0, LENGTH // 4096 + 1).map(lambda n: n * 4096),
    st.integers(0, LENGTH + 1000),
    st.sampled_from([-1, 1 << 62]),
)
_lengths = st.one_of(st.sampled_from([0, 512, 4096, 65536]), st.integers(1, 70_000))
_requests = st.one_of(
    st.builds(Request, st.just("read"), _offsets, _lengths, st.integers(1, 3), many=st.sampled_from([1, 1, 5])),
    st.builds(Request, st.just("write"), _offsets, _lengths, st.integers(1, 3), st.booleans()),
    st.builds(Request, st.sampled_from(["zeroes", "discard"]), _offsets, _lengths),
    st.just(Request("flush")),
)


def _split(memory: bytes | bytearray, parts: int) -> list[memoryview]:
    view, step = memoryview(memory), len(memory) // parts
    return [view[step * part : step * (part + 1) if part + 1 < parts else None] for part in range(parts)]


async def _read(blk: BlockBackend, request: Request) -> bytes:
    memory = bytearray(request.nbytes)
    await blk.co_preadv(request.offset, _split(memory, request.parts) if request.parts > 1 else memory)
    return bytes(memory)


async def _do(blk: BlockBackend, request: Request, seed: int) -> object:
    """What came of it: bytes that were read, or the error."""
    try:
        match request.kind:
            case "read" if request.many > 1:
                return await asyncio.gather(*(_read(blk, request) for _ in range(request.many)))
            case "read":
                return await _read(blk, request)
            case "write":
                data = pattern(request.nbytes, seed)
                memory: Any = _split(data, request.parts) if request.parts > 1 else data
                await blk.co_pwritev(request.offset, memory, RequestFlags.FUA if request.fua else RequestFlags(0))
            case "zeroes":
                await blk.co_pwrite_zeroes(request.offset, request.nbytes)
            case "discard":
                await blk.co_pdiscard(request.offset, request.nbytes)
            case _:
                await blk.co_flush()
    except (OSError, ValueError) as error:
        return type(error), getattr(error, "errno", None), str(error)
    return None


async def _all(options: dict[str, Any], lanes: Lanes, requests: Sequence[Request], timing: bool) -> dict[str, object]:
    async with await BlockBackend.new_open(options=options, flags=OpenFlags(unmap=True)) as blk:
        blk.set_lanes(lanes)
        blk.stats.set_timing(timing)
        came_of_it = [await _do(blk, request, seed) for seed, request in enumerate(requests, 1)]
        assert blk.in_flight == 0
        counted = {
            name: msgspec.structs.replace(getattr(blk.stats.snapshot(), name), time_ns=0)
            for name in ("read", "write", "flush", "unmap")
        }
        blk.set_lanes("slow")
        content = bytearray(await blk.co_getlength())
        await blk.co_preadv(0, content)
        return {"results": came_of_it, "statistics": counted, "content": bytes(content)}


@pytest.mark.parametrize(
    "name",
    [
        "raw",
        "raw-window",
        pytest.param("qcow2", marks=pytest.mark.peer("qemu-img")),
        pytest.param("overlay-qcow2", marks=pytest.mark.peer("qemu-img")),
    ],
)
@pytest.mark.parametrize("aio", ["threads", "io_uring"])
def test_all_lanes_agree(name: str, aio: str) -> None:
    stack: Stack = _BY_NAME[name]
    folder = Path(tempfile.mkdtemp(prefix="blockio-lanes-"))
    try:
        options, _ = stack.make(folder, aio)
        files = {path: path.read_bytes() for path in folder.iterdir()}

        @few(5, part=6)
        @given(requests=st.lists(_requests, min_size=1, max_size=25), timing=st.booleans())
        def explore(requests: list[Request], timing: bool) -> None:
            found = {}
            for lanes in get_args(Lanes):
                for path, content in files.items():
                    path.write_bytes(content)
                found[lanes] = asyncio.run(_all(options, lanes, requests, timing))
                if stack.format == "qcow2":
                    assert_clean(folder / "disk.qcow2")
            slow = found.pop("slow")
            for lanes, got in found.items():
                for what, value in got.items():
                    assert value == slow[what], f"{what}: lanes {lanes}"

        explore()
    finally:
        shutil.rmtree(folder)
