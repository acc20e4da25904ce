"""The user that a node has while an operation works on it, such as a commit or a rebase."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from blockio.errors import BlockError
from blockio.graph.path import PassiveParent

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.edge import Edge

__all__ = ["Operation"]


class Operation(PassiveParent):
    """A node's user while something is done to it as a whole.

    Whoever drains the node waits for the piece in flight; the next one waits for nobody.
    """

    def __init__(self, what: str) -> None:
        """*what* is done: ``commit`` …"""
        self._what = what

    def parent_desc(self) -> str:
        """For messages of others who are in its way."""
        return f"a {self._what} operation"

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """Not now."""
        raise BlockError("Cannot change iothread of active block backend", errno.EPERM)

    def inactivate(self, edge: Edge) -> None:
        """Not now."""
        raise BlockError(f"{self.parent_desc()} is in use", errno.EPERM)
