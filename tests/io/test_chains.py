"""Chains longer than a call stack: a request goes down through every layer, and none of them may be the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from blockio.errors import BlockError
from blockio.graph.mutate import attach_child, detach_child, set_backing
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.types import Perm, Role
from tests.io.world import Disk, Rig, failing_after, in_format, on_disk, opened, pattern

K = 1024
LAYERS = 260


@asynccontextmanager
async def chain(base: Disk) -> AsyncIterator[Rig]:
    """``LAYERS`` empty overlays over *base*; the rig is of the topmost."""
    async with opened(in_format(Disk(0), length=8 * K)) as top:
        below = await open_node(options=on_disk(base), path_factory=NodeIO)
        for _ in range(LAYERS - 1):
            layer = in_format(Disk(0), length=8 * K) | {"backing": below.node_name}
            node = await open_node(options=layer, path_factory=NodeIO)
            await below.unref()
            below = node
        await set_backing(top.node, below)
        await below.unref()
        yield top


async def test_reads_writes_and_copies_reach_the_bottom() -> None:
    content = pattern(8 * K)
    async with chain(Disk(content)) as rig:
        assert rig.io.height == LAYERS
        assert await rig.read(0, 8 * K) == content
        await rig.write(100, b"x" * 10)  # copies the rest of its cluster from below
        assert await rig.read(0, 4 * K) == content[:100] + b"x" * 10 + content[110 : 4 * K]
        rig.whole()


async def test_copies_inside_the_storage_reach_the_bottom() -> None:
    base, storage = Disk(pattern(8 * K)), Disk(8 * K)
    async with chain(base) as rig:
        target = await open_node(options=on_disk(storage), path_factory=NodeIO)
        edge = attach_child(rig.top, target, "target", Role.DATA, Perm.ALL, Perm.ALL)
        await rig.edge.co_copy_range_to(0, edge, 0, 8 * K)
        assert storage.data == base.data
        assert base.ranges("copy") == [(0, 4 * K), (4 * K, 4 * K)]
        rig.whole()
        await detach_child(edge)
        await target.unref()


async def test_failed_and_cancelled_down_there() -> None:
    base = Disk(pattern(8 * K))
    async with chain(base) as rig:
        base.before = failing_after(0)
        with pytest.raises(BlockError):
            await rig.read(0, 8 * K)
        rig.whole()
        base.before, base.gate = None, asyncio.Event()
        task = asyncio.ensure_future(rig.read(0, 4 * K))
        for _ in range(3 * LAYERS):
            await asyncio.sleep(0)
        assert base.running == 1
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert base.running == 0
        rig.whole()
        base.gate = None
        assert await rig.read(0, 8 * K) == pattern(8 * K)
