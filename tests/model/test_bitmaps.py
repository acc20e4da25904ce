"""What was written since a bitmap was cleared is dirty, what nobody touched is clean: all stacks, both lanes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import blockio
from blockio import BlockBackend, RequestFlags
from blockio.bitmaps.dirty import DirtyBitmap
from blockio.graph.bitmap_commands import block_dirty_bitmap_add
from tests.model.stacks import STACKS, Stack
from tests.support.qemu import assert_clean

GRANULARITY = 512


class Watched:
    """A disk with a bitmap, what the disk read as when that was clean, and which granules were touched since."""

    def __init__(self, blk: BlockBackend, rnd: random.Random) -> None:
        self.blk = blk
        self.rnd = rnd
        self.touched: set[int] = set()
        self.content = b""

    @property
    def length(self) -> int:
        return self.blk.getlength()

    @property
    def bitmap(self) -> DirtyBitmap:
        assert self.blk.bs is not None
        bitmap = self.blk.bs.find_dirty_bitmap("b0")
        assert bitmap is not None
        return bitmap

    async def read(self) -> bytes:
        memory = bytearray(self.length)
        await self.blk.co_preadv(0, memory)
        return bytes(memory)

    async def begin(self) -> None:
        self.bitmap.clear()
        self.touched.clear()
        self.content = await self.read()

    async def request(self) -> None:
        rnd, blk = self.rnd, self.blk
        size = self.length
        nbytes = min(rnd.choice((1, 511, 512, 4096, 5000, 65536, 70_000)), size)
        offset = rnd.randrange(size - nbytes + 1)
        if rnd.random() < 0.5:
            offset = offset // 4096 * 4096
        kind = rnd.randrange(8)
        if kind < 5:
            await blk.co_pwritev(offset, rnd.randbytes(nbytes))
        elif kind == 5:
            await blk.co_pwrite_zeroes(offset, nbytes, rnd.choice((0, int(RequestFlags.MAY_UNMAP))))
        elif kind == 6:
            await blk.co_pdiscard(offset, nbytes)
        else:
            await blk.co_flush()
            return
        # The padding of a request is touched as well: at most to the next 4 KiB.
        self.touched.update(range(offset // 4096 * 8, -(-(offset + nbytes) // 4096) * 8))

    async def verify(self) -> None:
        now = await self.read()
        dirty = {at // GRANULARITY for at in self.bitmap}
        for granule in range(-(-len(now) // GRANULARITY)):
            part = slice(granule * GRANULARITY, (granule + 1) * GRANULARITY)
            if now[part] != self.content[part]:
                assert granule in dirty, f"a write at {granule * GRANULARITY} was missed"
        assert dirty <= self.touched, f"nobody touched {sorted(dirty - self.touched)[:5]}"


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("stack", [stack for stack in STACKS if "2M" not in stack.name], ids=lambda stack: stack.name)
async def test_what_is_written_is_dirty(stack: Stack, tmp_path: Path) -> None:
    rnd = random.Random(stack.name)
    options, _ = stack.make(tmp_path, "threads")
    kept = stack.format == "qcow2" and "v2" not in stack.name
    for turn in range(3):
        async with blockio.open(options={**options, "discard": "unmap"}, gate=blockio.AllowAll()) as blk:
            assert blk.bs is not None
            if not (turn and kept):
                await block_dirty_bitmap_add(blk.bs, "b0", granularity=GRANULARITY, persistent=kept)
            watched = Watched(blk, rnd)
            await watched.begin()
            for step in range(40):
                await watched.request()
                if step % 13 == 12:
                    await watched.verify()
                    await watched.begin()
            await watched.verify()
            last = list(watched.bitmap)
        if kept:
            async with blockio.open(options=options, read_only=True, gate=blockio.AllowAll()) as blk:
                assert list(Watched(blk, rnd).bitmap) == last
    if stack.format == "qcow2":
        assert_clean(tmp_path / "disk.qcow2")
