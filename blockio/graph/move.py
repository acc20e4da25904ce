"""Moving a graph to another context: everybody is asked, everything is drained, then everybody moves.

A node's context is that of its whole graph: of its children, its parents, and theirs. A backend at the top asks for a
move. It has two halves: ``_leave`` in the thread of the old context, which touches nothing of the graph afterwards, and
``_arrive`` in the thread of the new one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from blockio.aio.context import finish
from blockio.graph.drain import drained_begin, drained_end

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["carry_out_move", "check_move", "move_graph"]


def check_move(node: BlockNode, context: AioContext, seen: set[object]) -> None:
    """May *node*, and with it all it is connected with, move to *context*? Raises BlockError(EPERM) if not.

    *seen* holds the nodes and edges already asked, and is added to.
    """
    for here in _connected(node, seen):
        for edge in here.parents:
            if edge.parent_node is None and edge not in seen:
                seen.add(edge)
                edge.parent.can_set_context(edge, context, seen)


def carry_out_move(node: BlockNode, context: AioContext, seen: set[object]) -> None:
    """The first half, for *node* and all it is connected with. The graph is drained; ``check_move`` has allowed it."""
    _leave(_connected(node, seen), context, seen)


async def move_graph(node: BlockNode, context: AioContext, asking: Edge) -> None:
    """Move *node* and all it is connected with to *context*; *asking* is the edge of who asks, and need not agree.

    Called in the old context. BlockError (EPERM) where a parent refuses; RuntimeError where *context* does not run:
    nothing has moved. Cancelled while it drains: the same. Once everything has left it goes on to its end, and the
    cancellation after that. Nobody may change the graph meanwhile.
    """
    check_move(node, context, {asking})
    drained: list[BlockNode] = []
    try:
        # What is connected may have grown while we waited.
        while missing := [here for here in _connected(node, set()) if here not in drained]:
            await drained_begin(missing[0])
            drained.append(missing[0])
        check_move(node, context, {asking})
        if context.loop.is_closed() or not context.loop.is_running():
            raise RuntimeError(f"the event loop of {context!r} does not run")
        old = node.context
        _leave(drained, context, set())
    except BaseException:
        for here in reversed(drained):
            drained_end(here)
        raise
    arrival = _arrive(drained, context)
    try:
        over_there = asyncio.ensure_future(context.run(arrival))
        await finish(over_there)
    except RuntimeError:
        if not context.loop.is_closed():
            raise
        arrival.close()  # it has stopped since; everything is still quiet, so go back
        _leave(drained, old, set())
        await _arrive(drained, old)
        raise


def _leave(nodes: list[BlockNode], context: AioContext, seen: set[object]) -> None:
    """In the thread of the old context, as the last thing done there."""
    for here in nodes:
        for _, detach in reversed(here.aio_notifiers):
            detach()
    for here in nodes:
        if here.driver is not None:
            here.driver.detach_context()
    parents = [edge for here in nodes for edge in here.parents if edge.parent_node is None and edge not in seen]
    seen.update(parents)
    for here in nodes:
        here.context = context
    for edge in parents:
        edge.parent.set_context(edge, context, seen)


async def _arrive(nodes: list[BlockNode], context: AioContext) -> None:
    """In the thread of the new context; ends the drained sections of *nodes*."""
    try:
        for here in nodes:
            if here.driver is not None:
                here.driver.attach_context(context)
        for here in nodes:
            here.path.refresh_lanes()
            for attached, _ in list(here.aio_notifiers):
                attached(context)
    finally:
        for here in reversed(nodes):
            drained_end(here)


def _connected(node: BlockNode, seen: set[object]) -> list[BlockNode]:
    """*node* and all nodes that edges connect it with, but those in *seen*, to which they are added."""
    found: list[BlockNode] = []
    queue = [node]
    while queue:
        here = queue.pop()
        if here in seen:
            continue
        seen.add(here)
        found.append(here)
        queue += [edge.node for edge in here.children.values()]
        queue += [edge.parent_node for edge in here.parents if edge.parent_node is not None]
    return found
