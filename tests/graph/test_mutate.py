"""Changing the graph under its users: all of a change or nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any

import pytest

from blockio.aio.context import IOThread
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError, PermissionConflict, ReadOnly, UnsupportedFeature
from blockio.graph.describe import tree
from blockio.graph.events import ImageCorrupted, NodeEvent, Reported
from blockio.graph.mutate import (
    append_node,
    attach_child,
    detach_child,
    drop_node,
    replace_child,
    replace_node,
    set_backing,
)
from blockio.graph.node import BlockNode, all_nodes
from blockio.graph.open import open_node
from blockio.types import Perm, Role
from tests.graph.rig import Path, Store, User, image, world

READ, WRITE, ALL = Perm.CONSISTENT_READ, Perm.WRITE, Perm.ALL
ROOT = Role.FILTERED | Role.PRIMARY


async def node_of(driver: str, name: str, **options: object) -> BlockNode:
    """A node called *name* over the disk of that name, or over a node where ``file`` says so."""
    storage = {} if "file" in options else {"file": {"driver": "toy-store", "filename": name}}
    return await open_node(
        options={"driver": driver, "node-name": name, **storage, **options}, path_factory=Path, gate=AllowAll()
    )


def picture(node: BlockNode) -> str:
    """``top(base)``: the nodes that have names of their own."""
    below = [picture(edge.node) for edge in node.children.values() if not edge.node.node_name.startswith("#")]
    return f"{node.node_name}({' '.join(below)})" if below else node.node_name


DISKS = {"a": image(size=512), "b": image(size=512), "c": image(size=512)}


# -- attach, detach, replace


async def test_an_edge_keeps_its_node_alive() -> None:
    with world(**DISKS):
        a, user = await node_of("toy", "a"), User()
        edge = attach_child(user, a, "root", ROOT, READ)
        await a.unref()
        assert a in all_nodes()
        await detach_child(edge)
        assert all_nodes() == []
        assert user.told == ["attached a", "detached a"]
        with pytest.raises(RuntimeError, match="closed"):
            attach_child(user, a, "root", ROOT, READ)
        with pytest.raises(RuntimeError, match="closed"):
            await a.unref()


async def test_a_name_is_used_once() -> None:
    with world(**DISKS):
        a, b = await node_of("toy", "a"), await node_of("toy", "b")
        with pytest.raises(RuntimeError, match="already has a child 'file'"):
            attach_child(a, b, "file", Role.COW, Perm.NONE)
        await a.unref()
        await b.unref()


async def test_replacing_takes_users_along() -> None:
    with world(**DISKS):
        a, b, users = await node_of("toy", "a"), await node_of("toy", "b"), [User("x"), User("y")]
        edges = [attach_child(user, a, "root", ROOT, READ) for user in users]
        await replace_child(edges[0], b)
        assert [edge.node for edge in edges] == [b, a]
        await replace_node(a, b)
        assert [edge.node for edge in edges] == [b, b]
        assert (a.refcnt, b.refcnt) == (1, 3)
        assert users[0].told == ["attached a", "quiet", "detached a", "attached b", "go on", *["quiet", "go on"] * 1]
        for edge in edges:
            await detach_child(edge)
        await a.unref()
        await b.unref()


async def test_a_replacement_that_is_not_allowed_changes_nothing() -> None:
    with world(**DISKS):
        a, b, user = await node_of("toy", "a"), await node_of("toy", "b"), User()
        edge = attach_child(user, a, "root", ROOT, WRITE)
        other = attach_child(User("other"), b, "root", ROOT, READ, ALL & ~WRITE)
        with pytest.raises(PermissionConflict):
            await replace_child(edge, b)
        assert edge.node is a
        assert (a.parents, b.parents) == ([edge], [other])
        assert (a.refcnt, b.refcnt, user.quiesced) == (2, 2, 0)
        assert user.told == ["attached a", "quiet", "detached a", "attached a", "go on"]
        for each in (edge, other):
            await detach_child(each)
        await a.unref()
        await b.unref()


async def test_nodes_of_two_threads_are_not_connected() -> None:
    with world(**DISKS):
        a, b = await node_of("toy-filter", "a"), await node_of("toy", "b")
        async with IOThread() as thread:
            b.context = thread.context
            for deed in (
                node_of("raw", "c", file="b"),
                replace_child(a.children["file"], b),
            ):
                with pytest.raises(BlockError, match="different contexts"):
                    await deed
            b.context = a.context
        assert (picture(a), b.parents, b.refcnt) == ("a", [], 1)
        await a.unref()
        await b.unref()


async def test_circles_are_refused() -> None:
    with world(**DISKS):
        a = await node_of("toy", "a")
        b = await node_of("toy", "b", backing="a")
        c = await node_of("toy", "c", backing="b")
        for below in (c, b, a):
            with pytest.raises(OptionError, match=rf"Making '{below.node_name}' a backing child of 'a' would create"):
                await set_backing(a, below)
        backing = b.children["backing"]
        with pytest.raises(OptionError, match="cycle"):
            await replace_child(backing, c)
        assert picture(c) == "c(b(a))"
        for node in (c, b, a):
            await node.unref()


# -- backing files


async def test_a_backing_file_comes_changes_and_goes() -> None:
    with world(**DISKS):
        a, b, c = [await node_of("toy", name) for name in "abc"]
        await set_backing(a, b)
        assert picture(a) == "a(b)"
        await set_backing(a, c)
        assert picture(a) == "a(c)"
        await set_backing(a, None)
        assert picture(a) == "a"
        assert [node.refcnt for node in (a, b, c)] == [1, 1, 1]
        for node in (a, b, c):
            await node.unref()


async def test_raw_has_no_backing_file() -> None:
    with world(**DISKS):
        a, b = await node_of("raw", "a"), await node_of("toy", "b")
        with pytest.raises(UnsupportedFeature, match="Driver 'raw' of node 'a' does not support backing files"):
            await set_backing(a, b)
        await a.unref()
        await b.unref()


# -- filters and overlays, in and out


async def test_a_filter_goes_in_and_out_under_its_users() -> None:
    with world(**DISKS):
        a, user = await node_of("toy", "a"), User()
        edge = attach_child(user, a, "root", ROOT, READ | WRITE, ALL & ~WRITE)
        sieve = await node_of("toy-filter", "sieve", file="a")
        await append_node(sieve, a)
        assert edge.node is sieve
        assert picture(sieve) == "sieve(a)"
        assert sieve.children["file"].perm == READ | WRITE
        await drop_node(sieve)
        assert edge.node is a
        assert picture(sieve) == "sieve"
        assert user.quiesced == 0
        await sieve.unref()
        await detach_child(edge)
        await a.unref()


async def test_an_overlay_goes_above() -> None:
    with world(**DISKS):
        a, b, user = await node_of("toy", "a"), await node_of("toy", "b"), User()
        edge = attach_child(user, a, "root", ROOT, READ | WRITE)
        await append_node(b, a)
        assert edge.node is b
        assert picture(b) == "b(a)"
        assert b.children["backing"].perm == READ
        await detach_child(edge)
        await b.unref()
        await a.unref()


async def test_an_overlay_that_may_not_be_written_changes_nothing() -> None:
    with world(**DISKS):
        a, user = await node_of("toy", "a"), User()
        b = await node_of("toy", "b", **{"read-only": "on"})
        edge = attach_child(user, a, "root", ROOT, READ | WRITE)
        with pytest.raises(ReadOnly):
            await append_node(b, a)
        assert edge.node is a
        assert (picture(a), picture(b)) == ("a", "b")
        assert (a.quiesce_counter, b.quiesce_counter, a.refcnt, b.refcnt) == (0, 0, 2, 1)
        await detach_child(edge)
        await b.unref()
        await a.unref()


async def test_dropping_that_fails_changes_nothing() -> None:
    with world(**DISKS):
        a, user = await node_of("raw", "a"), User()
        sieve = await node_of("toy-filter", "sieve", file="a")
        edge = attach_child(user, sieve, "root", ROOT, READ | WRITE)
        holder = attach_child(User(), a, "root", ROOT, READ)
        flags, a.flags = a.flags, a.flags.with_(read_only=True)  # behind everybody's back
        with pytest.raises(ReadOnly):
            await drop_node(sieve)
        assert edge.node is sieve
        assert picture(sieve) == "sieve(a)"
        assert a.parents.count(sieve.children["file"]) == 1
        a.flags = flags
        await drop_node(sieve)
        assert edge.node is a
        for each in (edge, holder):
            await detach_child(each)
        await sieve.unref()
        await a.unref()


async def test_there_is_nothing_below_a_file() -> None:
    with world(**DISKS):
        a = await open_node("toy-store:a", options={"driver": "toy-store"}, path_factory=Path)
        with pytest.raises(OptionError, match="nothing below"):
            await drop_node(a)
        await a.unref()


async def test_cancelled_while_it_waits_for_requests() -> None:
    with world(**DISKS):
        a, b, user = await node_of("toy", "a"), await node_of("toy", "b"), User()
        edge = attach_child(user, a, "root", ROOT, READ)
        user.busy = True
        changes: list[Coroutine[Any, Any, None]] = [append_node(b, a), replace_child(edge, b), set_backing(a, b)]
        for change in changes:
            task = asyncio.ensure_future(change)
            for _ in range(3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert edge.node is a
            assert (a.quiesce_counter, b.quiesce_counter, user.quiesced) == (0, 0, 0)
            assert (a.refcnt, b.refcnt) == (2, 1)
        user.busy = False
        await detach_child(edge)
        await a.unref()
        await b.unref()


# -- what a node tells


async def test_lengths_travel_up_through_filters() -> None:
    with world(**DISKS):
        a, user = await node_of("raw", "a"), User()
        sieve = await node_of("toy-filter", "sieve", file="a")
        edge = attach_child(user, sieve, "root", ROOT, READ)
        direct = attach_child(User(), a, "root", ROOT, WRITE | Perm.RESIZE)
        a.driver.length = 4096  # type: ignore[union-attr]  # as a driver would, behind a truncate
        a.length_changed()
        assert (sieve.length, edge.length) == (4096, 4096)
        assert user.told[-1] == "resized 4096"
        for each in (edge, direct):
            await detach_child(each)
        await sieve.unref()
        await a.unref()


async def test_a_fatal_corruption_ends_all_io_and_is_told_once() -> None:
    with world(**DISKS):
        a, events = await node_of("toy", "a"), list[NodeEvent]()
        stop = a.listen(events.append)
        edge = attach_child(User(), a, "root", ROOT, READ)
        a.corrupted("first", offset=5, fatal=False)
        a.corrupted("second", fatal=False)
        a.report("Repairing cluster 1")
        a.corrupted("third", size=9)
        assert events == [
            ImageCorrupted("a", "first", 5, -1, False),
            Reported("a", "Repairing cluster 1"),
            ImageCorrupted("a", "third", -1, 9, True),
        ]
        stop()
        assert edge.length == 0
        Store.log.clear()
        await detach_child(edge)
        await a.unref()
        assert any(line.startswith("close image") for line in Store.log)  # it lets go of what it holds


def test_a_forgotten_node_complains() -> None:
    async def forget() -> None:
        await open_node("toy-store:a", options={"driver": "toy"}, path_factory=Path)

    with world(**DISKS):
        asyncio.run(forget())
        with pytest.warns(ResourceWarning, match=r"toy open> was never closed"):
            gc.collect()
        Store.held = 0


async def test_a_tree_for_people() -> None:
    with world(top=image(backing="toy-store:base", format="raw", size=512), base=bytes(1024)):
        node = await node_of("toy", "top")
        backing = node.children["backing"].node
        lines = [line.split(" ", 1) for line in tree(node).splitlines()]
        assert [line[0] for line in lines] == ["top", "├─", "└─", ""]
        assert "toy rw 512" in lines[0][1]
        assert f"backing: {backing.node_name} raw ro 1024 toy-store:base" in lines[2][1]
        await node.unref()
