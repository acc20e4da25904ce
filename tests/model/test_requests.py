"""Random requests against a bytearray: every stack, both lanes, every engine.

Whatever happens (drains, flushes, resizes, reopening with another engine, cancellation in the middle of a write), the
disk reads as the bytearray says, nothing stays in flight, and at the end qemu-img finds the image clean and reads the
same bytes. ``make explore`` runs many more and longer ones at random.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from blockio.backend import AioRequest, BlockBackend
from blockio.errors import UnsupportedFeature
from blockio.types import OpenFlags, RequestFlags
from tests.model.stacks import LENGTH, STACKS, Stack
from tests.support.explore import few
from tests.support.qemu import assert_clean, qemu_img

_T = TypeVar("_T")

_ENGINES = ("threads", "io_uring")

_lengths = st.one_of(
    st.sampled_from([1, 511, 512, 513, 1024, 4096, 8192, 65536, 65537]), st.integers(min_value=1, max_value=100_000)
)
_places = st.one_of(
    st.integers(min_value=0, max_value=2 * LENGTH),
    st.integers(min_value=0, max_value=2 * LENGTH // 512).map(lambda n: n * 512),
    st.integers(min_value=0, max_value=2 * LENGTH // 65536).map(lambda n: n * 65536),
)
_lanes = st.sampled_from(["fast", "slow"])


class Requests(RuleBasedStateMachine):
    """One disk, and the bytes it should read as."""

    stack: Stack

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="blockio-model-"))
        self.runner = asyncio.Runner()
        self.blk: BlockBackend | None = None
        self.options: dict[str, Any] = {}
        self.model = bytearray()
        self.seed = 0
        self.steps: list[str] = []
        """What was done, for the message of a failure that does not repeat."""

    def run(self, coro: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(coro)

    @property
    def disk(self) -> BlockBackend:
        assert self.blk is not None
        return self.blk

    # -- life

    @initialize(aio=st.sampled_from(_ENGINES))
    def make(self, aio: str) -> None:
        self.options, content = self.stack.make(self.folder, aio)
        self.model = bytearray(content)
        self.run(self._open())

    async def _open(self) -> None:
        self.steps.append(f"open with aio={self.options['file']['aio']}")
        self.blk = await BlockBackend.new_open(options=self.options, flags=OpenFlags(unmap=True), resize=True)

    async def _close(self) -> None:
        blk, self.blk = self.blk, None
        if blk is not None:
            await blk.close()

    @rule(aio=st.sampled_from(_ENGINES))
    def reopen(self, aio: str) -> None:
        self.run(self._close())
        self.options["file"]["aio"] = aio
        self.run(self._open())

    def teardown(self) -> None:
        try:
            if self.blk is not None:
                self.run(self._compare())
                self.run(self._close())
                self._ask_the_peer()
        finally:
            try:
                self.run(self._close())
            finally:
                self.runner.close()
                shutil.rmtree(self.folder)

    def _ask_the_peer(self) -> None:
        if self.stack.format != "qcow2":
            return
        path, out = self.folder / "disk.qcow2", self.folder / "out.raw"
        assert_clean(path)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", path, out)
        assert out.read_bytes() == self.model, "qemu-img reads other bytes"

    # -- requests

    def _clip(self, offset: int, nbytes: int) -> tuple[int, int]:
        offset = min(offset, len(self.model))
        return offset, min(nbytes, len(self.model) - offset)

    def _data(self, nbytes: int) -> bytes:
        self.seed += 1
        return bytes((self.seed * 7 + at // 97) % 255 + 1 for at in range(nbytes))

    @rule(offset=_places, nbytes=_lengths, lane=_lanes, fua=st.booleans())
    def write(self, offset: int, nbytes: int, lane: str, fua: bool) -> None:
        offset, nbytes = self._clip(offset, nbytes)
        data = self._data(nbytes)
        self.steps.append(f"write {nbytes} at {offset}, {lane}, fua={fua}")
        self.run(self._write(offset, data, lane, RequestFlags.FUA if fua else 0))
        self.model[offset : offset + nbytes] = data

    async def _write(self, offset: int, data: bytes, lane: str, flags: int) -> None:
        if lane == "fast":
            await self.disk.co_pwritev(offset, data, flags)
            return
        half = len(data) // 3
        async with self.disk.drained():
            request = self.disk.aio_pwritev(offset, [data[:half], data[half:]], flags)
        await request

    @rule(offset=_places, nbytes=_lengths, lane=_lanes)
    def read(self, offset: int, nbytes: int, lane: str) -> None:
        offset, nbytes = self._clip(offset, nbytes)
        assert self.run(self._read(offset, nbytes, lane)) == self.model[offset : offset + nbytes]

    async def _read(self, offset: int, nbytes: int, lane: str) -> bytes:
        memory = bytearray(b"\xee" * nbytes)
        if lane == "fast":
            await self.disk.co_preadv(offset, memory)
        else:
            async with self.disk.drained():
                request = self.disk.aio_preadv(offset, memory)
            await request
        return bytes(memory)

    @rule(offset=_places, nbytes=_lengths, unmap=st.booleans())
    def zero(self, offset: int, nbytes: int, unmap: bool) -> None:
        offset, nbytes = self._clip(offset, nbytes)
        self.steps.append(f"zero {nbytes} at {offset}, unmap={unmap}")
        self.run(self.disk.co_pwrite_zeroes(offset, nbytes, RequestFlags.MAY_UNMAP if unmap else 0))
        self.model[offset : offset + nbytes] = bytes(nbytes)

    @rule(offset=_places, nbytes=_lengths)
    def discard(self, offset: int, nbytes: int) -> None:
        """What a discarded byte reads as is anybody's guess; the others stay."""
        offset, nbytes = self._clip(offset, nbytes)
        self.steps.append(f"discard {nbytes} at {offset}")
        self.run(self.disk.co_pdiscard(offset, nbytes))
        self.model[offset : offset + nbytes] = self.run(self._read(offset, nbytes, "slow"))

    @rule()
    def flush(self) -> None:
        self.steps.append("flush")
        self.run(self.disk.co_flush())

    @rule(starts=st.lists(_places, min_size=2, max_size=8), drain=st.booleans())
    def many_at_once(self, starts: list[int], drain: bool) -> None:
        """Writes of disjoint ranges next to each other, at once, perhaps with a drain among them."""
        base = min(starts)
        ranges = [self._clip(base + number * 3000, 3000) for number in range(len(starts))]
        parts = [(offset, self._data(nbytes)) for offset, nbytes in ranges]
        self.steps.append(f"at once, drain={drain}: {[(offset, len(data)) for offset, data in parts]}")

        async def all_of_them() -> None:
            requests: list[AioRequest] = [self.disk.aio_pwritev(offset, data) for offset, data in reversed(parts)]
            if drain:
                await self.disk.drain()
                assert all(request.done() for request in requests)
            for request in requests:
                await request

        self.run(all_of_them())
        for offset, data in parts:
            self.model[offset : offset + len(data)] = data

    @rule(offset=_places, nbytes=_lengths, turns=st.integers(min_value=0, max_value=12))
    def cancelled_write(self, offset: int, nbytes: int, turns: int) -> None:
        """Each byte is the old or the new one afterwards, and nothing else changed."""
        offset, nbytes = self._clip(offset, nbytes)
        data = self._data(nbytes)
        self.steps.append(f"write {nbytes} at {offset}, cancelled after {turns} turns")

        async def cancelled() -> None:
            task = asyncio.create_task(self._write(offset, data, "slow", 0))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.disk.drain()

        self.run(cancelled())
        now = self.run(self._read(offset, nbytes, "slow"))
        old = self.model[offset : offset + nbytes]
        assert all(new in (a, b) for new, a, b in zip(now, old, data, strict=True)), "bytes nobody wrote"
        self.model[offset : offset + nbytes] = now

    @precondition(lambda self: "size" not in self.options)
    @rule(sectors=st.integers(min_value=1, max_value=2 * LENGTH // 512))
    def resize(self, sectors: int) -> None:
        length = sectors * 512
        self.steps.append(f"resize {len(self.model)} to {length}")
        try:
            self.run(self.disk.co_truncate(length, exact=True))
        except UnsupportedFeature:
            # Version 2 has no zero clusters to hide a longer backing file with; QEMU refuses the same.
            assert self.stack.name == "overlay-v2"
            return
        self.model = self.model[:length].ljust(length, b"\0")
        assert self.disk.getlength() == length

    @rule()
    def read_everything(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        now = await self._read(0, len(self.model), "slow")
        if now != self.model:
            at = next(i for i, (a, b) in enumerate(zip(now, self.model, strict=True)) if a != b)
            steps = "\n".join(self.steps)
            raise AssertionError(f"byte {at} is {now[at]:#x} and should be {self.model[at]:#x} after\n{steps}")

    @invariant()
    def nothing_left(self) -> None:
        if self.blk is not None:
            assert self.blk.in_flight == 0
            assert not self.blk.quiesced
            assert self.blk.getlength() == len(self.model)


@pytest.mark.parametrize(
    "stack",
    [
        pytest.param(stack, id=stack.name, marks=[pytest.mark.peer("qemu-img")] if stack.peers else [])
        for stack in STACKS
    ],
)
def test_requests(stack: Stack) -> None:
    machine: type[Requests] = type(f"Requests_{stack.name}", (Requests,), {"stack": stack})
    run_state_machine_as_test(machine, settings=few(6, part=4, stateful_step_count=25))
