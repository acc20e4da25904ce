"""Reopening: prepared by all, then done by all; or nothing happened."""

from __future__ import annotations

import asyncio

import pytest

from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError, ReadOnly
from blockio.graph.mutate import attach_child, detach_child
from blockio.graph.node import BlockNode
from blockio.graph.open import open_node
from blockio.graph.perms import set_edge_perm
from blockio.graph.reopen import reopen
from blockio.types import OpenFlags, Perm, Role
from tests.graph.rig import Path, Store, User, image, world

READ, WRITE = Perm.CONSISTENT_READ, Perm.WRITE
DISKS = {"top": image(backing="toy-store:base", format="raw", size=512), "base": bytes(512)}


async def chain(**options: object) -> BlockNode:
    return await open_node("toy-store:top", options={"driver": "toy", **options}, path_factory=Path, gate=AllowAll())


def access(node: BlockNode) -> dict[str, bool]:
    """Who may be written: the node, its file, its backing file."""
    return {
        "node": not node.flags.read_only,
        **{name: not edge.node.flags.read_only for name, edge in node.children.items()},
    }


async def test_read_only_and_back() -> None:
    with world(**DISKS):
        node = await chain()
        Store.log.clear()
        await reopen(node, read_only=True)
        assert access(node) == {"node": False, "file": False, "backing": False}
        assert node.children["file"].perm == READ
        assert Store.log == ["flush top", "prepare top", "check top", "commit top", "set top"]
        await reopen(node, read_only=False)
        assert access(node) == {"node": True, "file": True, "backing": False}
        assert node.children["file"].perm & WRITE
        assert node.quiesce_counter == 0
        await node.unref()


async def test_nothing_to_change_is_nothing_done() -> None:
    with world(**DISKS):
        node = await chain()
        Store.log.clear()
        await reopen(node, read_only=False)
        assert Store.log == []
        await node.unref()


async def test_what_a_child_said_itself_stays() -> None:
    with world(**DISKS):
        node = await chain(file={"cache.direct": "off"})
        await reopen(node, cache_direct=True)
        assert node.flags.cache_direct
        assert not node.children["file"].node.flags.cache_direct
        assert node.children["backing"].node.flags.cache_direct
        await node.unref()


async def test_a_node_that_others_opened_stays() -> None:
    with world(**DISKS):
        file = await open_node(options={"driver": "toy-store", "filename": "top", "node-name": "f0"}, path_factory=Path)
        node = await open_node(options={"driver": "raw", "file": "f0"}, path_factory=Path)
        await reopen(node, read_only=True)
        assert not file.flags.read_only
        await node.unref()
        await file.unref()


async def test_a_writer_is_in_the_way() -> None:
    with world(**DISKS):
        node, user = await chain(), User()
        edge = attach_child(user, node, "root", Role.FILTERED | Role.PRIMARY, READ | WRITE)
        Store.log.clear()
        with pytest.raises(ReadOnly, match=r"Read-only block node .* cannot support read-write users"):
            await reopen(node, read_only=True)
        assert access(node) == {"node": True, "file": True, "backing": False}
        assert Store.log == ["flush top", "prepare top", "undo top"]
        assert (edge.perm, user.quiesced, node.quiesce_counter) == (READ | WRITE, 0, 0)
        set_edge_perm(edge, READ, Perm.ALL)
        await reopen(node, read_only=True)
        await detach_child(edge)
        await node.unref()


@pytest.mark.parametrize("failing", ["flush top", "prepare top", "check top"])
async def test_a_step_that_fails_undoes_all(failing: str) -> None:
    with world(**DISKS):
        node = await chain()
        before = node.flags, node.children["file"].node.flags, node.children["file"].perm
        Store.fail[failing] = BlockError("no")
        with pytest.raises(BlockError, match=r"^no$"):
            await reopen(node, read_only=True)
        assert (node.flags, node.children["file"].node.flags, node.children["file"].perm) == before
        Store.fail.clear()
        await reopen(node, read_only=True)
        await node.unref()


async def test_cancelled_at_every_await() -> None:
    with world(**DISKS):
        node = await chain()
        turns = 0
        while True:
            task = asyncio.ensure_future(reopen(node, read_only=True))
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = task.done()
            task.cancel()
            await asyncio.wait([task])
            # All or nothing, and never half of it.
            assert set(access(node).values()) == ({False} if not task.cancelled() else {False, True})
            assert node.quiesce_counter == node.children["file"].node.quiesce_counter == 0
            if ended:
                break
            turns += 1
        assert turns > 2
        await node.unref()


async def test_sharing_by_force_is_for_readers() -> None:
    with world(**DISKS):
        node = await chain()
        with pytest.raises(OptionError, match="force-share=on can only be used with read-only images"):
            await reopen(node, force_share=True)
        await reopen(node, force_share=True, read_only=True)
        assert node.children["file"].node.flags.force_share
        assert node.children["file"].shared == Perm.ALL
        await node.unref()


async def test_a_closed_node_is_not_reopened() -> None:
    with world(**DISKS):
        node = await chain()
        await node.unref()
        with pytest.raises(RuntimeError, match="closed"):
            await reopen(node, read_only=True)


async def test_flags_that_nobody_has() -> None:
    with world(**DISKS):
        node = await chain()
        with pytest.raises(TypeError):
            await reopen(node, nonsense=True)
        assert node.flags == OpenFlags()
        await node.unref()
