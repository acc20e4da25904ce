"""Moving a graph to another context: everybody is asked, then everybody moves.

A node's context is that of its whole graph: of its children, its parents, and theirs. The backends at the top ask for
a move; they have drained everything before they carry it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.node import BlockNode

__all__ = ["carry_out_move", "check_move"]


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
    """Move *node* and all it is connected with. The graph is drained; ``check_move`` has allowed it."""
    nodes = _connected(node, seen)
    for here in nodes:
        if here.context is not context:
            for _, detach in list(here.aio_notifiers):
                detach()
            if here.driver is not None:
                here.driver.detach_context()
    for here in nodes:
        if here.context is not context:
            here.context = context
            if here.driver is not None:
                here.driver.attach_context(context)
            for attached, _ in list(here.aio_notifiers):
                attached(context)
        for edge in here.parents:
            if edge.parent_node is None and edge not in seen:
                seen.add(edge)
                edge.parent.set_context(edge, context, seen)


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
