"""Op blockers of the root node, by its backend.

Stands on the system *op-blockers* of the reference document: an empty backend blocks nothing, and blocking there does
nothing. ``graph.blockers`` keeps them, with the node and not with the backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.backend.core import BackendCore

if TYPE_CHECKING:
    from blockio.errors import BlockError
    from blockio.graph.blockers import OpType

__all__ = ["OpBlockers"]


class OpBlockers(BackendCore):
    """The four calls. In the backend's own loop."""

    def op_is_blocked(self, op: OpType) -> BlockError | None:
        """Why *op* may not be done now, as an error (EBUSY) to raise or show; None where it may."""
        from blockio.graph.blockers import op_blocker  # jobs block, and few processes run one

        return None if self.bs is None else op_blocker(self.bs, op)

    def op_unblock(self, op: OpType, reason: object) -> None:
        """*reason*, the very object it was blocked with, no longer speaks against *op*."""
        from blockio.graph.blockers import op_unblock  # jobs block, and few processes run one

        if self.bs is not None:
            op_unblock(self.bs, op, reason)

    def op_block_all(self, reason: object) -> None:
        """Nothing of what ``OpType`` lists may be done now; ``str(reason)`` says why."""
        from blockio.graph.blockers import op_block_all  # jobs block, and few processes run one

        if self.bs is not None:
            op_block_all(self.bs, reason)

    def op_unblock_all(self, reason: object) -> None:
        """*reason* no longer speaks against anything."""
        from blockio.graph.blockers import op_unblock_all  # jobs block, and few processes run one

        if self.bs is not None:
            op_unblock_all(self.bs, reason)
