"""Chains of images that stay what they are while somebody relies on them (QEMU's bdrv_freeze_backing_chain).

Invariant: ``edge.frozen`` holds exactly while the edge belongs to one ``FrozenLinks`` that was not released; whatever
would send such an edge elsewhere asks ``refuse_frozen`` first.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from blockio.errors import BlockError, OptionError

if TYPE_CHECKING:
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["FrozenLinks", "refuse_frozen"]


class FrozenLinks:
    """The ``FrozenChain`` of the drivers: every link from *top*'s down to *bottom*.

    BlockError (EPERM) where one of them is frozen already, OptionError where *bottom* is not below *top*.
    """

    def __init__(self, top: BlockNode, bottom: BlockNode) -> None:
        links: list[Edge] = []
        node = top
        while node is not bottom:
            edge = node.layer_below
            if edge is None:
                raise OptionError(f"Bottom node '{bottom.node_name}' is not in the backing chain of '{top.node_name}'")
            links.append(edge)
            node = edge.node
        for edge in links:
            refuse_frozen(edge)
        for edge in links:
            edge.frozen = True
        self._links = links
        self._first = links[0].node if links else bottom
        self._bottom = bottom

    async def co_is_allocated(self, offset: int, nbytes: int) -> tuple[int, int]:
        """See ``FrozenChain``."""
        below = self._bottom.layer_below
        base = None if below is None else below.node
        return await self._first.path.co_is_allocated_above(base, offset, nbytes)

    def release(self) -> None:
        """See ``FrozenChain``."""
        for edge in self._links:
            edge.frozen = False
        self._links = []


def refuse_frozen(edge: Edge) -> None:
    """BlockError (EPERM) where *edge* must not lead elsewhere."""
    if edge.frozen:
        raise BlockError(
            f"Cannot change '{edge.name}' link from '{_name(edge)}' to '{edge.node.node_name}'", errno.EPERM
        )


def _name(edge: Edge) -> str:
    return edge.parent.parent_desc() if edge.parent_node is None else edge.parent_node.node_name
