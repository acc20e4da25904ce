"""Permissions: what each user of a node needs and what it lets the others do.

A change is a transaction over the graph. From the nodes where something changed, everything below is visited, parents
before children: the users of a node are compared, its driver is asked (it may take locks), and what it needs of its
own children follows from what its users need of it. Only when all agreed is anything carried out; else
everything is as it was. There is no await in it: nobody sees a half-changed graph.

Facts: ``reference/permissions-and-errors.md``; QEMU's bdrv_list_refresh_perms.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

from blockio.errors import BlockError, PermissionConflict, ReadOnly
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["Transaction", "cumulative", "perm_names", "refresh", "release_edge", "set_edge_perm"]

_SECTOR: Final = 512
_NAMES: Final = (
    (Perm.CONSISTENT_READ, "consistent read"),
    (Perm.WRITE, "write"),
    (Perm.WRITE_UNCHANGED, "write unchanged"),
    (Perm.RESIZE, "resize"),
)


def perm_names(perm: Perm) -> str:
    """``write, resize``: as messages name permissions."""
    return ", ".join(name for bit, name in _NAMES if perm & bit)


def cumulative(node: BlockNode) -> tuple[Perm, Perm]:
    """What all users of *node* together need, and what all of them share. Nobody: nothing and everything."""
    perm, shared = 0, int(Perm.ALL)
    for edge in node.parents:
        perm |= edge.perm
        shared &= edge.shared
    return Perm(perm), Perm(shared)


class Transaction:
    """Steps that are carried out together or not at all.

    ``with Transaction() as tran:`` commits at the end of the block and aborts when it raises. A step's change is
    made when it is added; ``abort`` takes it back (in reverse order) and ``commit`` finishes it (in order). Neither
    may fail.
    """

    def __init__(self) -> None:
        self._commits: list[Callable[[], object]] = []
        self._aborts: list[Callable[[], object]] = []

    def add(self, *, commit: Callable[[], object] | None = None, abort: Callable[[], object] | None = None) -> None:
        """Note what finishes and what takes back a change that was just made."""
        if commit is not None:
            self._commits.append(commit)
        if abort is not None:
            self._aborts.append(abort)

    def commit(self) -> None:
        """Carry out."""
        steps, self._commits, self._aborts = self._commits, [], []
        _run_all(steps)

    def abort(self) -> None:
        """Take back."""
        steps, self._commits, self._aborts = self._aborts[::-1], [], []
        _run_all(steps)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()

    # -- the changes that permissions know of

    def set_perm(self, edge: Edge, perm: Perm, shared: Perm) -> bool:
        """Let *edge* need *perm* and share *shared*; whether that is new. If so its node must be refreshed."""
        old = edge.perm, edge.shared
        if old == (perm, shared):
            return False

        def undo() -> None:
            edge.perm, edge.shared = old

        edge.perm, edge.shared = perm, shared
        self.add(commit=edge.bind, abort=undo)
        return True


def _run_all(steps: Iterable[Callable[[], object]]) -> None:
    failure: BaseException | None = None
    for step in steps:
        try:
            step()
        except BaseException as error:  # the rest must run whatever one step does; raised below
            failure = failure or error
    if failure is not None:
        raise failure


def refresh(tran: Transaction, nodes: Iterable[BlockNode]) -> None:
    """Recompute permissions from *nodes* downwards, inside *tran*. Raises, then the caller aborts *tran*.

    *nodes* are those whose users, flags or state changed. Below them only those are visited for whom that makes a
    difference: where an edge stays what it is, everything below it does.

    PermissionConflict: two users of a node exclude each other. ReadOnly: a read-only node would have to be written.
    And whatever a driver's ``check_perm`` raises (ImageLocked).
    """
    touched = _propagate(tran, nodes)
    for node in _parents_first(touched):
        _check_users(node)
        perm, shared = cumulative(node)
        _check_node(node, perm)
        driver = node.driver
        if driver is not None:
            driver.check_perm(perm, shared)
            tran.add(commit=partial(driver.set_perm, perm, shared), abort=driver.abort_perm)


def _propagate(tran: Transaction, nodes: Iterable[BlockNode]) -> set[BlockNode]:
    """Carry what users need down the edges from *nodes*; the nodes for whom something may have changed."""
    queue = deque(nodes)
    touched = set(queue)
    # First in, first out: a node is looked at again at most once for each length of a way to it.
    while queue:
        node = queue.popleft()
        driver = node.driver
        if driver is None:
            continue
        perm, shared = cumulative(node)
        for edge in node.children.values():
            wanted, allowed = driver.child_perm(edge.name, edge.role, perm, shared)
            if edge.node.flags.force_share:
                allowed = Perm.ALL
            if tran.set_perm(edge, wanted, allowed):
                touched.add(edge.node)
                queue.append(edge.node)
    return touched


def _parents_first(nodes: set[BlockNode]) -> list[BlockNode]:
    """*nodes*, each before those of its children that are among them (the graph has no cycle)."""
    order: list[BlockNode] = []
    seen: set[BlockNode] = set()
    for start in nodes:
        if start in seen:
            continue
        seen.add(start)
        # Depth first with an explicit stack: chains may be longer than Python likes to recurse.
        stack = [(start, iter(list(start.children.values())))]
        while stack:
            node, edges = stack[-1]
            for edge in edges:
                if edge.node in nodes and edge.node not in seen:
                    seen.add(edge.node)
                    stack.append((edge.node, iter(list(edge.node.children.values()))))
                    break
            else:
                order.append(node)
                stack.pop()
    order.reverse()
    return order


def _check_users(node: BlockNode) -> None:
    users = node.parents
    if len(users) < 2:
        return
    for holder in users:
        for other in users:
            clash = holder.perm & ~other.shared
            if clash and holder is not other:
                raise PermissionConflict(
                    f"Permission conflict on node '{node.node_name}': permissions '{perm_names(clash)}' are both "
                    f"required by {holder.describe()} and unshared by {other.describe()}."
                )


def _check_node(node: BlockNode, perm: Perm) -> None:
    if not perm & (Perm.WRITE | Perm.WRITE_UNCHANGED):
        return
    if node.flags.read_only or node.flags.inactive:
        raise ReadOnly("Block node is read-only", errno.EPERM)
    driver = node.driver
    alignment = node.path.limits.request_alignment
    sectors = 0 if driver is None else -(-driver.length // _SECTOR)
    if not perm & Perm.RESIZE and sectors * _SECTOR % alignment:
        # Padding a last, short block would write past the end. That a last, short sector is filled QEMU allows.
        raise BlockError(
            "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment",
            errno.EPERM,
        )


def set_edge_perm(edge: Edge, perm: Perm, shared: Perm) -> None:
    """Let *edge* need *perm* and share *shared* (QEMU's bdrv_child_try_set_perm).

    Raises as ``refresh`` does, and nothing has changed. A pure loosening cannot fail: where a driver balks at it, the
    edge keeps what it had and nothing is raised.
    """
    tightens = bool(perm & ~edge.perm) or bool(edge.shared & ~shared)
    try:
        with Transaction() as tran:
            tran.set_perm(edge, perm, shared)
            refresh(tran, [edge.node])
    except OSError:
        if tightens:
            raise


def release_edge(edge: Edge) -> None:
    """Take *edge* out of the graph and loosen what its node holds for it; cannot fail.

    The edge's reference on the node is the caller's to give back (``await edge.node.unref()``).
    """
    node = edge.node
    edge.parent.detached(edge)
    node.parents.remove(edge)
    edge.attached = False
    edge.bind()
    if edge.parent_node is not None and edge.parent_node.children.get(edge.name) is edge:
        del edge.parent_node.children[edge.name]
    # Fewer users need less: what a driver cannot give back now it gives back when its node closes.
    with suppress(OSError), Transaction() as tran:
        refresh(tran, [node])
    if edge.quiesced_parent:
        edge.quiesced_parent = False
        edge.parent.drained_end(edge)
