"""Quiesce, wait, resume (QEMU's drained sections).

``drained_begin(node)`` quiesces: every parent of the node stops sending, and where a parent is a node, its parents do
too, up to the backends. Then it waits until nothing is in flight in the node or anywhere above it. Requests of other
parents of the nodes *below* go on; modern QEMU does the same (its older subtree mode has no users left).

Invariants:

* ``node.quiesce_counter`` is the number of sections the node is in: its own, one for each quiesced child below it,
  and one for each drain-all. Only 0 -> 1 and 1 -> 0 are passed on.
* ``edge.quiesced_parent`` is true exactly while the edge's parent was told to be quiet because of this edge; it holds
  ``edge.quiesced_parent == (edge.node.quiesce_counter > 0)`` between any two awaits, also while the graph changes.
* Waiting is driven by ``kick()``: whoever brings an in-flight count to zero, or finishes what a ``drained_poll``
  speaks of, kicks. There is no polling in time and no wake-up is lost, because nothing suspends between the look
  and the waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar, Token, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Final

from blockio.graph.names import all_nodes

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.node import BlockNode

__all__ = [
    "RequestScope",
    "current_requests",
    "drain_all_begin",
    "drain_all_end",
    "drained",
    "drained_all",
    "drained_begin",
    "drained_end",
    "is_busy",
    "outside_requests",
    "refuse_self_wait",
]


class RequestScope:
    """``with RequestScope(node):`` around a slow-lane request: a drain inside it is refused instead of hanging.

    *owner* is whatever a drain would wait for: a ``BlockNode`` or any ``ChildParent``. Cheap enough for each request,
    but the fast lane needs none: it cannot suspend, so nothing can drain inside it.
    """

    __slots__ = ("_token", "active", "outer", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.active = False

    def __enter__(self) -> RequestScope:
        self.outer = current_requests.get()
        self.active = True
        self._token: Token[RequestScope | None] = current_requests.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        current_requests.reset(self._token)
        # Tasks and callbacks that were started inside inherit the variable and may outlive the request.
        self.active = False


current_requests: ContextVar[RequestScope | None] = ContextVar("blockio_current_requests", default=None)
"""The innermost request this code runs inside of; ``outer`` leads to those around it."""


def outside_requests() -> Context:
    """A context for a task that is started inside a request but is no part of it: it may drain.

    ``asyncio.create_task(blk.drain(), context=outside_requests())``. Without it the task inherits being inside, and a
    drain of it is refused for as long as the request runs. Whoever uses it must not have the request wait for the
    task: that would never end.
    """
    context = copy_context()
    context.run(current_requests.set, None)
    return context


_waiters: Final[dict[AioContext, set[asyncio.Future[None]]]] = {}
_all_sections = 0


def kick(context: AioContext) -> None:
    """Something that a drain in *context* may be waiting for has happened. Only from the context's own thread."""
    for waiter in _waiters.get(context, ()):
        if not waiter.done():
            waiter.set_result(None)


def drain_all_sections() -> int:
    """How many drain-all sections are open: a node that is made meanwhile is born quiesced."""
    return _all_sections


def is_busy(node: BlockNode) -> bool:
    """QEMU's bdrv_drain_poll: whether requests are in flight in *node* or in a parent that would end in it."""
    queue = [node]
    while queue:
        here = queue.pop()
        if here.in_flight or here.settling is not None:
            return True
        for edge in here.parents:
            if edge.parent_node is not None:
                queue.append(edge.parent_node)
            elif edge.parent.drained_poll(edge):
                return True
    return False


async def wait_idle(node: BlockNode) -> None:
    """Until ``is_busy`` is false. The caller has quiesced *node*; cancellation leaves everything as it is."""
    context = node.context
    while is_busy(node):
        waiter: asyncio.Future[None] = context.loop.create_future()
        waiters = _waiters.setdefault(context, set())
        waiters.add(waiter)
        try:
            await waiter
        finally:
            waiters.discard(waiter)
            if not waiters:
                _waiters.pop(context, None)


async def drained_begin(node: BlockNode) -> None:
    """Open a drained section: from its return on nothing is in flight in *node* and nobody sends to it.

    Nests. Cancelled, or failed: the section is not open. RuntimeError where the caller runs inside a request
    that this would wait for.
    """
    refuse_self_wait(node)
    node.quiesce()
    try:
        await wait_idle(node)
    except BaseException:
        node.unquiesce()
        raise


def drained_end(node: BlockNode) -> None:
    """Close one drained section; with the last one the parents send again, what they parked first."""
    node.unquiesce()


@asynccontextmanager
async def drained(node: BlockNode) -> AsyncIterator[None]:
    """``async with drained(node):`` a drained section."""
    await drained_begin(node)
    try:
        yield
    finally:
        drained_end(node)


def refuse_self_wait(node: BlockNode) -> None:
    """RuntimeError where the caller runs inside a request that a drain of *node* would wait for."""
    scope = current_requests.get()
    if scope is None:
        return
    above: set[object] = set()
    queue: list[BlockNode] = [node]
    while queue:
        here = queue.pop()
        if here in above:
            continue
        above.add(here)
        for edge in here.parents:
            if edge.parent_node is not None:
                queue.append(edge.parent_node)
            else:
                above.add(edge.parent)
    while scope is not None:
        if scope.active and scope.owner in above:
            raise RuntimeError(
                f"a drain of node '{node.node_name}' from inside one of the requests it waits for would never end; "
                "drain from a task made with context=blockio.outside_requests()"
            )
        scope = scope.outer


# -- all nodes


async def drain_all_begin() -> None:
    """Drain every node of the process (QEMU's bdrv_drain_all_begin). Nests with all other sections.

    Nodes made while the section is open are born quiesced. Nodes of other contexts are drained in their own thread.
    """
    global _all_sections  # noqa: PLW0603  # the count is the process's, as the table of nodes is
    nodes = all_nodes()
    for node in nodes:
        refuse_self_wait(node)
    _all_sections += 1
    quiesced: list[BlockNode] = []
    try:
        for node in nodes:
            await node.context.run(_quiesce(node))
            quiesced.append(node)
        for node in nodes:
            await node.context.run(wait_idle(node))
    except BaseException:
        _all_sections -= 1
        spared = set(nodes).difference(quiesced)
        for node in all_nodes():  # those made meanwhile were born quiesced
            if node not in spared:
                _end_in_context(node)
        raise


async def _quiesce(node: BlockNode) -> None:
    node.quiesce()


def drain_all_end() -> None:
    """Close one drain-all section."""
    global _all_sections  # noqa: PLW0603  # see drain_all_begin
    if _all_sections == 0:
        raise RuntimeError("no drain-all section is open")
    _all_sections -= 1
    for node in all_nodes():
        _end_in_context(node)


def _end_in_context(node: BlockNode) -> None:
    if node.context.is_current:
        node.unquiesce()
    else:
        node.context.schedule_bh(node.unquiesce)


@asynccontextmanager
async def drained_all() -> AsyncIterator[None]:
    """``async with drained_all():`` a drain-all section."""
    await drain_all_begin()
    try:
        yield
    finally:
        drain_all_end()
