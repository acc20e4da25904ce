"""Op blockers: reasons why something may not be done with a node now (QEMU's bdrv_op_block).

Older than permissions and coarser: a job that needs a node as it is blocks whole operations on it, with a reason that
the user is told. A reason is any object; it takes its own blocks away again, and only those. ``str()`` of it is what
people read.
"""

from __future__ import annotations

import errno
from enum import Enum
from typing import TYPE_CHECKING

from blockio.errors import BlockError

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode

__all__ = ["OpType", "op_block", "op_block_all", "op_blocker", "op_unblock", "op_unblock_all"]


class OpType(Enum):
    """What can be blocked (QEMU's BlockOpType)."""

    BACKUP_SOURCE = "backup-source"
    BACKUP_TARGET = "backup-target"
    CHANGE = "change"
    COMMIT_SOURCE = "commit-source"
    COMMIT_TARGET = "commit-target"
    DATAPLANE = "dataplane"
    DRIVE_DEL = "drive-del"
    EJECT = "eject"
    EXTERNAL_SNAPSHOT = "external-snapshot"
    INTERNAL_SNAPSHOT = "internal-snapshot"
    INTERNAL_SNAPSHOT_DELETE = "internal-snapshot-delete"
    MIRROR_SOURCE = "mirror-source"
    MIRROR_TARGET = "mirror-target"
    RESIZE = "resize"
    STREAM = "stream"
    REPLACE = "replace"


def op_blocker(node: BlockNode, op: OpType) -> BlockError | None:
    """Why *op* is blocked on *node* (EBUSY; of several reasons the latest), or None where it is not."""
    reasons = node.op_blockers.get(op)
    return BlockError(f"Node '{node.node_name}' is busy: {reasons[-1]}", errno.EBUSY) if reasons else None


def op_block(node: BlockNode, op: OpType, reason: object) -> None:
    """Refuse *op* because of *reason*, until ``op_unblock`` with the same object."""
    node.op_blockers.setdefault(op, []).append(reason)


def op_unblock(node: BlockNode, op: OpType, reason: object) -> None:
    """*reason* (that very object) no longer speaks against *op*; nothing happens where it did not."""
    reasons = [other for other in node.op_blockers.get(op, ()) if other is not reason]
    if reasons:
        node.op_blockers[op] = reasons
    else:
        node.op_blockers.pop(op, None)


def op_block_all(node: BlockNode, reason: object) -> None:
    """Refuse everything because of *reason*."""
    for op in OpType:
        op_block(node, op, reason)


def op_unblock_all(node: BlockNode, reason: object) -> None:
    """*reason* no longer speaks against anything."""
    for op in OpType:
        op_unblock(node, op, reason)
