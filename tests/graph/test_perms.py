"""Permissions: conflicts named as users know them, and the transaction against a model that recomputes everything."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.buffers import IoVector
from blockio.driver.base import ChildOpener, ProtocolDriver, default_child_perm
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, ImageLocked, PermissionConflict, ReadOnly
from blockio.graph.edge import Edge
from blockio.graph.mutate import attach_child, child_perms, detach_child
from blockio.graph.node import BlockNode
from blockio.graph.open import open_node
from blockio.graph.perms import Transaction, cumulative, perm_names, release_edge, set_edge_perm
from blockio.types import OpenFlags, Perm, RequestFlags, Role
from tests.graph.rig import Path, Store, User, image, world

READ, WRITE, RESIZE, ALL = Perm.CONSISTENT_READ, Perm.WRITE, Perm.RESIZE, Perm.ALL


def test_names_of_permissions() -> None:
    assert perm_names(ALL) == "consistent read, write, write unchanged, resize"
    assert perm_names(WRITE | RESIZE) == "write, resize"


# -- two users of one node


async def test_the_conflict_is_told_as_qemu_tells_it() -> None:
    with world(img=image(size=512)):
        f0 = await open_node(options={"driver": "toy-store", "filename": "img", "node-name": "f0"}, path_factory=Path)
        n0 = await open_node(options={"driver": "toy", "file": "f0", "node-name": "n0"}, path_factory=Path)
        with pytest.raises(PermissionConflict) as caught:
            await open_node(options={"driver": "toy", "file": "f0", "node-name": "n1"}, path_factory=Path)
        assert caught.value.errno == errno.EPERM
        assert str(caught.value) == (
            "Permission conflict on node 'f0': permissions 'write, resize' are both required by node 'n0' "
            "(uses node 'f0' as 'file' child) and unshared by node 'n1' (uses node 'f0' as 'file' child)."
        )
        assert len(f0.parents) == 1  # and nothing has changed
        await n0.unref()
        await f0.unref()


async def test_a_user_has_its_own_name_in_it() -> None:
    with world(img=bytes(512)):
        node = await open_node("toy-store:img", options={"driver": "toy-store", "node-name": "f0"}, path_factory=Path)
        first = attach_child(User("block device 'vda'"), node, "root", Role.IMAGE, WRITE, ALL & ~WRITE)
        with pytest.raises(PermissionConflict, match=r"by a block device \(uses node 'f0' as 'root' child\)"):
            attach_child(User("a block device"), node, "root", Role.IMAGE, WRITE, ALL)
        second = attach_child(User("a block device"), node, "root", Role.IMAGE, READ, ALL)
        with pytest.raises(PermissionConflict, match="'consistent read' are both required by a block device"):
            set_edge_perm(first, WRITE, ALL & ~READ)
        assert (first.perm, first.shared) == (WRITE, ALL & ~WRITE)
        await detach_child(first)
        await detach_child(second)
        await node.unref()


async def test_read_only_nodes_have_no_writers() -> None:
    with world(img=bytes(512)):
        node = await open_node("toy-store:img", options={"driver": "toy-store", "read-only": "on"}, path_factory=Path)
        with pytest.raises(ReadOnly, match="Block node is read-only"):
            attach_child(User(), node, "root", Role.IMAGE, WRITE)
        assert node.parents == []
        await node.unref()


async def test_a_ragged_end_needs_resize_to_be_written() -> None:
    with world(img=bytes(700)):
        node = await open_node("toy-store:img", options={"driver": "toy-store"}, path_factory=Path)
        path = node.path
        path.limits = type(path.limits)(request_alignment=4096)
        with pytest.raises(BlockError, match="Cannot get 'write' permission without 'resize'"):
            attach_child(User(), node, "root", Role.IMAGE, WRITE)
        edge = attach_child(User(), node, "root", Role.IMAGE, WRITE | RESIZE)
        await detach_child(edge)
        await node.unref()


# -- the transaction


async def test_drivers_are_asked_then_told() -> None:
    with world(img=image(size=512)):
        node = await open_node("toy-store:img", options={"driver": "toy"}, path_factory=Path)
        edge = attach_child(User(), node, "root", Role.IMAGE, READ)
        Store.log.clear()
        set_edge_perm(edge, READ | WRITE, ALL)
        assert Store.log == []  # a format's file is asked for WRITE already
        await detach_child(edge)
        await node.unref()
        node = await open_node("toy-store:img", options={"driver": "raw"}, path_factory=Path)
        edge = attach_child(User(), node, "root", Role.IMAGE, READ)
        Store.log.clear()
        set_edge_perm(edge, READ | WRITE, ALL)
        assert Store.log == ["check img", "set img"]
        await detach_child(edge)
        await node.unref()


async def test_a_driver_that_refuses_undoes_all() -> None:
    with world(img=bytes(512)):
        node = await open_node("toy-store:img", options={"driver": "raw"}, path_factory=Path)
        edge = attach_child(User(), node, "root", Role.IMAGE, READ)
        below = node.children["file"]
        before = below.perm, below.shared
        Store.fail["check img"] = ImageLocked('Failed to get "write" lock')
        with pytest.raises(ImageLocked):
            set_edge_perm(edge, WRITE, ALL)
        assert (edge.perm, edge.shared) == (READ, ALL)
        assert (below.perm, below.shared) == before
        Store.fail.clear()
        set_edge_perm(edge, WRITE, ALL)
        assert below.perm & WRITE
        await detach_child(edge)
        await node.unref()


async def test_loosening_cannot_fail() -> None:
    with world(img=bytes(512)):
        node = await open_node("toy-store:img", options={"driver": "toy-store"}, path_factory=Path)
        edge = attach_child(User(), node, "root", Role.IMAGE, WRITE, READ)
        Store.fail["check img"] = ImageLocked("no")
        set_edge_perm(edge, Perm.NONE, ALL)
        assert (edge.perm, edge.shared) == (WRITE, READ)  # kept, as nobody could be asked to let go
        release_edge(edge)
        assert node.parents == []
        await edge.node.unref()
        Store.fail.clear()
        await node.unref()


def test_steps_are_undone_backwards_and_all_of_them_run() -> None:
    log: list[str] = []

    def note(text: str) -> Callable[[], None]:
        return lambda: log.append(text)

    def fail() -> None:
        raise ZeroDivisionError

    tran = Transaction()
    tran.add(commit=note("c1"), abort=note("a1"))
    tran.add(commit=fail, abort=fail)
    tran.add(commit=note("c2"), abort=note("a2"))
    with pytest.raises(ZeroDivisionError):
        tran.abort()
    assert log == ["a2", "a1"]
    tran.commit()
    assert log == ["a2", "a1"]  # it ends once


# -- what an edge may do is what it asked for


async def test_requests_without_permission_reach_nobody() -> None:
    with world(img=bytes(512)):
        node = await open_node("toy-store:img", options={"driver": "toy-store"}, path_factory=Path)
        edge = attach_child(User(), node, "root", Role.IMAGE, READ)
        with pytest.raises(BlockError, match="without permission 'write'"):
            await edge.co_pwritev(0, IoVector.of(b"x"))
        with pytest.raises(BlockError, match="without permission 'resize'"):
            await edge.co_truncate(0)
        assert not edge.try_pwritev(0, [b"x"], 1)
        set_edge_perm(edge, WRITE, ALL)
        await edge.co_pwritev(0, IoVector.of(b"x"))
        assert edge.try_pwritev(0, [b"x"], 1)
        with pytest.raises(BlockError, match="without permission 'resize'"):
            await edge.co_truncate(0)
        await detach_child(edge)
        with pytest.raises(BlockError) as caught:
            await edge.co_preadv(0, IoVector.of(bytearray(1)))
        assert caught.value.errno == errno.ENOMEDIUM
        assert not edge.try_preadv(0, [bytearray(1)], 1)
        await node.unref()


# -- against a model


class Tally(ProtocolDriver):
    """A driver without storage that counts what the transaction asks and tells."""

    name = "tally"
    pending = 0
    told = (Perm.NONE, Perm.ALL)

    async def open(self, options: Any, opener: ChildOpener) -> None: ...
    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None: ...
    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None: ...

    def check_perm(self, perm: Perm, shared: Perm) -> None:
        self.pending += 1
        self.asked = perm, shared

    def set_perm(self, perm: Perm, shared: Perm) -> None:
        assert (perm, shared) == self.asked
        self.told = perm, shared
        self.pending -= 1

    def abort_perm(self) -> None:
        self.pending -= 1


@dataclass
class Model:
    """The graph as plain data: recomputed from nothing, every time."""

    read_only: list[bool]
    users: dict[int, tuple[int, Perm, Perm]] = field(default_factory=dict)
    edges: dict[tuple[int, int], Role] = field(default_factory=dict)

    def solve(self) -> dict[tuple[int, int], tuple[Perm, Perm]] | None:
        """What every edge needs and shares, or None where somebody is in somebody's way."""
        solved: dict[tuple[int, int], tuple[Perm, Perm]] = {}
        for node, read_only in enumerate(self.read_only):
            holders = [(perm, shared) for at, perm, shared in self.users.values() if at == node]
            holders += [solved[edge] for edge in self.edges if edge[1] == node]
            for index, (perm, _) in enumerate(holders):
                if any(perm & ~shared for other, (_, shared) in enumerate(holders) if other != index):
                    return None
            needed = Perm(0)
            allowed = Perm.ALL
            for perm, shared in holders:
                needed |= perm
                allowed &= shared
            if read_only and needed & (Perm.WRITE | Perm.WRITE_UNCHANGED):
                return None
            for edge, role in self.edges.items():
                if edge[0] == node:
                    solved[edge] = default_child_perm(role, needed, allowed, OpenFlags(read_only=read_only))
        return solved


perms = st.integers(0, 15).map(Perm)
mostly_shared = st.sampled_from([ALL, ALL, ALL & ~WRITE, ALL & ~RESIZE, READ, ALL & ~READ])
roles = st.sampled_from(
    [Role.FILTERED | Role.PRIMARY, Role.COW, Role.IMAGE, Role.DATA, Role.DATA | Role.PRIMARY, Role.METADATA]
)
nodes_at = st.integers(0, 4)
operations = st.one_of(
    st.tuples(st.just("attach user"), nodes_at, perms, mostly_shared),
    st.tuples(st.just("set perm"), st.integers(0, 9), perms, mostly_shared),
    st.tuples(st.just("detach user"), st.integers(0, 9)),
    st.tuples(st.just("attach child"), nodes_at, nodes_at, roles),
    st.tuples(st.just("detach child"), st.integers(0, 9)),
)


Step = tuple[Any, ...]
Pair = tuple[int, int]


class Graph:
    """The real thing beside the model: the same steps, carried out."""

    def __init__(self, read_only: list[bool]) -> None:
        self.nodes = [BlockNode(Tally, path_factory=Path, flags=OpenFlags(read_only=ro)) for ro in read_only]
        self.users: dict[int, Edge] = {}
        self.edges: dict[Pair, Edge] = {}

    def pick_user(self, number: int) -> int:
        return list(self.users)[number % len(self.users)]

    def pick_edge(self, number: int) -> Pair:
        return list(self.edges)[number % len(self.edges)]

    def possible(self, what: str, args: list[Any]) -> bool:
        if what == "attach child":
            return args[0] < args[1] and (args[0], args[1]) not in self.edges
        return what == "attach user" or bool(self.edges if what == "detach child" else self.users)

    def wish(self, model: Model, count: int, what: str, args: list[Any]) -> Model:
        wish = Model(model.read_only, dict(model.users), dict(model.edges))
        if what == "attach user":
            wish.users[count] = (args[0], args[1], args[2])
        elif what == "set perm":
            key = self.pick_user(args[0])
            wish.users[key] = (wish.users[key][0], args[1], args[2])
        elif what == "detach user":
            del wish.users[self.pick_user(args[0])]
        elif what == "attach child":
            wish.edges[args[0], args[1]] = args[2]
        else:
            del wish.edges[self.pick_edge(args[0])]
        return wish

    async def carry_out(self, count: int, what: str, args: list[Any]) -> None:
        if what == "attach user":
            self.users[count] = attach_child(User(), self.nodes[args[0]], "root", Role.IMAGE, args[1], args[2])
        elif what == "set perm":
            set_edge_perm(self.users[self.pick_user(args[0])], args[1], args[2])
        elif what == "detach user":
            await detach_child(self.users.pop(self.pick_user(args[0])))
        elif what == "attach child":
            above, below, role = args
            parent, name = self.nodes[above], f"child{below}"
            perm, shared = child_perms(parent, name, role)
            self.edges[above, below] = attach_child(parent, self.nodes[below], name, role, perm, shared)
        else:
            await detach_child(self.edges.pop(self.pick_edge(args[0])))

    def assert_is(self, model: Model) -> None:
        assert {pair: (edge.perm, edge.shared) for pair, edge in self.edges.items()} == model.solve()
        assert {key: (edge.perm, edge.shared) for key, edge in self.users.items()} == {
            key: (perm, shared) for key, (_, perm, shared) in model.users.items()
        }
        for node in self.nodes:
            assert isinstance(node.driver, Tally)
            assert node.driver.pending == 0, "a driver was asked and neither told nor released"
            assert node.driver.told == cumulative(node)

    async def close(self) -> None:
        for edge in self.users.values():
            await detach_child(edge)
        for node in self.nodes:
            await node.unref()


@given(st.lists(st.booleans(), min_size=5, max_size=5), st.lists(operations, max_size=25))
async def test_the_transaction_agrees_with_the_model(read_only: list[bool], steps: list[Step]) -> None:
    model = Model(read_only)
    graph = Graph(read_only)
    try:
        for count, (what, *args) in enumerate(steps):
            if not graph.possible(what, args):
                continue
            wish = graph.wish(model, count, what, args)
            if wish.solve() is not None:
                await graph.carry_out(count, what, args)
                model = wish
            else:
                with pytest.raises(BlockError):
                    await graph.carry_out(count, what, args)
            graph.assert_is(model)
    finally:
        await graph.close()


async def test_what_a_user_shares_reaches_the_backing_file() -> None:
    with world(top=image(backing="toy-store:base", format="raw", size=512), base=bytes(512)):
        top = await open_node("toy-store:top", path_factory=Path, gate=AllowAll())
        edge = attach_child(User(), top, "root", Role.FILTERED | Role.PRIMARY, READ | WRITE)
        backing = top.children["backing"]
        assert backing.perm == READ
        assert backing.shared == ALL  # the user shares WRITE
        set_edge_perm(edge, READ | WRITE, READ)
        assert backing.shared == READ | Perm.WRITE_UNCHANGED
        await detach_child(edge)
        await top.unref()
