"""Changing the graph: attach, detach, replace, insert and remove nodes, reopen.

All of it happens in the thread of the nodes' context. What only links and unlinks is a plain function: nothing can
come between. What sends an edge that is in use elsewhere drains first. A change either happens with all the
permissions it needs or not at all.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from blockio.driver.base import FormatDriver
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.graph import drain
from blockio.graph.edge import Edge
from blockio.graph.frozen import refuse_frozen
from blockio.graph.node import BlockNode
from blockio.graph.perms import Transaction, cumulative, refresh, release_edge
from blockio.types import Perm, Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blockio.graph.path import ChildParent

__all__ = [
    "append_node",
    "attach_child",
    "child_perms",
    "detach_child",
    "drop_node",
    "replace_child",
    "replace_node",
    "set_backing",
]


def child_perms(parent: BlockNode, name: str, role: Role) -> tuple[Perm, Perm]:
    """What *parent*'s driver needs of and shares on a child, given what its own users do now."""
    driver = parent.driver
    if driver is None:
        raise BlockError(errno=errno.ENOMEDIUM)
    return driver.child_perm(name, role, *cumulative(parent))


def attach_child(
    parent: ChildParent, node: BlockNode, name: str, role: Role, perm: Perm, shared: Perm = Perm.ALL
) -> Edge:
    """A new edge from *parent* to *node* (QEMU's bdrv_attach_child, bdrv_root_attach_child).

    Takes a reference of its own on *node*. Where *node* is drained, *parent* is told to be quiet before it can send
    anything. Raises PermissionConflict, ReadOnly, ImageLocked (nothing has changed), OptionError for a cycle,
    RuntimeError for a closed node or a name in use.
    """
    parent_node = parent if isinstance(parent, BlockNode) else None
    if node.refcnt == 0:
        raise RuntimeError(f"node '{node.node_name}' is closed")
    if parent_node is not None:
        _refuse_stranger(parent_node, node)
    if node.flags.force_share and parent_node is not None:
        shared = Perm.ALL
    edge = Edge(parent, node, name, role, perm, shared, parent_node=parent_node)
    if parent_node is not None:
        if name in parent_node.children:
            raise RuntimeError(f"node '{parent_node.node_name}' already has a child '{name}'")
        _refuse_cycle(parent_node, node, name)
    with Transaction() as tran:
        _link(tran, edge, node)
        refresh(tran, [node])
    return edge


async def detach_child(edge: Edge) -> None:
    """Take *edge* out of the graph and give its reference back, which may close the node.

    Nothing may be in flight through the edge: drain its node (or know better) first. Raises what closing raises;
    the edge is gone nevertheless.
    """
    release_edge(edge)
    await edge.node.unref()


async def replace_child(edge: Edge, node: BlockNode) -> None:
    """Let *edge* lead to *node* instead (QEMU's bdrv_replace_child_bs). Its perm and shared stay what they are.

    Both nodes are drained meanwhile. Raises as ``attach_child``, and then nothing has changed.
    """
    await _replace([edge], node)


async def replace_node(old: BlockNode, new: BlockNode, *, keep: Iterable[Edge] = ()) -> None:
    """Let every user of *old* use *new* instead, but those in *keep* (QEMU's bdrv_replace_node)."""
    kept = set(keep)
    await _replace([edge for edge in old.parents if edge not in kept], new)


async def set_backing(node: BlockNode, backing: BlockNode | None) -> None:
    """Let *backing* be what *node* falls back on where it holds no data itself; None: nothing (zeroes).

    Drained meanwhile. UnsupportedFeature for a driver without backing files; else as ``attach_child``.
    """
    driver = node.driver
    if not isinstance(driver, FormatDriver) or not driver.capabilities.backing:
        raise UnsupportedFeature(
            f"Driver '{node.driver_class.name}' of node '{node.node_name}' does not support backing files"
        )
    async with drain.drained(node):
        edge = node.backing
        if edge is not None and backing is not None:
            await _replace([edge], backing)
            edge.named_by_image = edge.inherits = False
        elif edge is not None:
            refuse_frozen(edge)
            driver.backing = None
            await detach_child(edge)
        elif backing is not None:
            perm, shared = child_perms(node, "backing", Role.COW)
            driver.backing = attach_child(node, backing, "backing", Role.COW, perm, shared)
        node.limits_changed()
        node.path.refresh_lanes()


async def append_node(new: BlockNode, top: BlockNode) -> None:
    """Put *new*, a filter or an overlay, between *top* and all its users (QEMU's bdrv_append).

    *new* has *top* below it already (a filter opened with ``file`` naming it), or it is an overlay without a backing
    file and gets *top* as one. Raises as ``attach_child``, and then nothing has changed.
    """
    own = next((edge for edge in new.children.values() if edge.node is top), None)
    attached: Edge | None = None
    async with drain.drained(top), drain.drained(new):
        if own is None:
            if new.backing is not None:
                raise OptionError(f"Node '{new.node_name}' already has a backing file")
            await set_backing(new, top)
            own = attached = new.backing
        assert own is not None
        try:
            await replace_node(top, new, keep=[own])
        except BaseException:
            if attached is not None:
                await set_backing(new, None)
            raise


async def drop_node(node: BlockNode) -> None:
    """Take a filter, or an overlay that nobody needs any more, out from between its users and what is below it.

    Its users then use its filtered or backing child (QEMU's bdrv_drop_filter). *node* itself stays, without that child,
    until its last reference is given back. Raises as ``attach_child``, and then nothing has changed.
    """
    edge = next((e for e in node.children.values() if e.role & (Role.FILTERED | Role.COW)), None)
    if edge is None:
        raise OptionError(f"Node '{node.node_name}' has nothing below it that could take its place")
    await _replace(list(node.parents), edge.node, dropping=edge)


async def _replace(edges: list[Edge], node: BlockNode, *, dropping: Edge | None = None) -> None:
    if not edges:
        return
    old = edges[0].node
    if node.refcnt == 0:
        raise RuntimeError(f"node '{node.node_name}' is closed")
    _refuse_stranger(old, node)
    for edge in (*edges, *(() if dropping is None else (dropping,))):
        refuse_frozen(edge)
    for edge in edges:
        if edge.parent_node is not None:
            _refuse_cycle(edge.parent_node, node, edge.name)
    node.ref()  # held until the edges hold theirs, so that draining cannot outlive it
    old.ref()
    try:
        async with drain.drained(old), drain.drained(node):
            with Transaction() as tran:
                for edge in edges:
                    _link(tran, edge, node)
                if dropping is not None:
                    _unlink(tran, dropping)
                refresh(tran, [node, old])
            for _ in edges:
                old.refcnt -= 1  # the references of the edges; ours keeps it from zero
            if dropping is not None:
                node.refcnt -= 1  # as above
    finally:
        await node.unref()
        await old.unref()


def _link(tran: Transaction, edge: Edge, node: BlockNode) -> None:
    """Point *edge* at *node*, inside *tran*. The lists change at once, everybody is told when it is certain."""
    old = edge.node if edge.attached else None
    parent = edge.parent_node
    was_attached = edge.attached
    index = old.parents.index(edge) if old is not None else 0

    def undo() -> None:
        node.parents.remove(edge)
        edge.attached = was_attached
        if old is not None:
            old.parents.insert(index, edge)
            edge.node = old
            edge.parent.attached(edge)  # who was told that the edge leaves must hear that it stays
        elif parent is not None:
            del parent.children[edge.name]

    def carry_out() -> None:
        node.ref()
        # Quiet the parent before it can use the new way, release it only when it has one.
        if node.quiesce_counter and not edge.quiesced_parent:
            edge.quiesced_parent = True
            edge.parent.drained_begin(edge)
        edge.bind()
        edge.parent.attached(edge)
        if not node.quiesce_counter and edge.quiesced_parent:
            edge.quiesced_parent = False
            edge.parent.drained_end(edge)

    if old is not None:
        edge.parent.detached(edge)
        old.parents.remove(edge)
    elif parent is not None:
        parent.children[edge.name] = edge
    edge.node = node
    edge.attached = True
    node.parents.append(edge)
    tran.add(commit=carry_out, abort=undo)


def _unlink(tran: Transaction, edge: Edge) -> None:
    """Take *edge*, whose parent is a node, out of the graph, inside *tran*. Its reference is the caller's."""
    node, parent = edge.node, edge.parent_node
    assert parent is not None
    index = node.parents.index(edge)
    names = list(parent.children)

    def undo() -> None:
        node.parents.insert(index, edge)
        parent.children[edge.name] = edge
        parent.children.update({name: parent.children.pop(name) for name in names})  # in their old order
        edge.attached = True
        edge.parent.attached(edge)

    def carry_out() -> None:
        edge.bind()
        if edge.quiesced_parent:
            edge.quiesced_parent = False
            edge.parent.drained_end(edge)

    edge.parent.detached(edge)
    node.parents.remove(edge)
    del parent.children[edge.name]
    edge.attached = False
    tran.add(commit=carry_out, abort=undo)


def _refuse_stranger(here: BlockNode, node: BlockNode) -> None:
    """Nodes that are connected live in one thread: two would change the same lists at once."""
    if here.context is not node.context:
        raise BlockError(f"Node '{node.node_name}' and node '{here.node_name}' are in different contexts", errno.EPERM)


def _refuse_cycle(parent: BlockNode, node: BlockNode, name: str) -> None:
    if parent is node or (parent.parents and parent.is_below(node)):
        raise OptionError(
            f"Making '{node.node_name}' a {name} child of '{parent.node_name}' would create a cycle", errno.EINVAL
        )
