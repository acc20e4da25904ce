"""Op blockers: reasons belong to who gave them, and stay with the node."""

from __future__ import annotations

import errno

import pytest

from blockio.backend import BlockBackend
from blockio.graph.blockers import OpType, op_block
from blockio.types import Perm


class Reason:
    """Why; two of the same words are still two reasons."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __str__(self) -> str:
        return self.words

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


async def test_blocked_with_a_reason(blk: BlockBackend) -> None:
    assert blk.bs is not None
    job, mirror = Reason("block device is in use by a job"), Reason("mirroring")
    assert blk.op_is_blocked(OpType.RESIZE) is None
    blk.op_block_all(job)
    blk.op_block_all(mirror)
    error = blk.op_is_blocked(OpType.RESIZE)
    assert error is not None
    assert str(error) == f"Node '{blk.bs.node_name}' is busy: mirroring"
    assert error.errno == errno.EBUSY
    blk.op_unblock(OpType.RESIZE, mirror)
    assert "in use by a job" in str(blk.op_is_blocked(OpType.RESIZE))
    blk.op_unblock_all(job)
    assert blk.op_is_blocked(OpType.RESIZE) is None
    assert blk.op_is_blocked(OpType.EJECT) is not None
    blk.op_unblock_all(mirror)
    assert all(blk.op_is_blocked(op) is None for op in OpType)


async def test_with_the_node_and_not_with_the_backend(blk: BlockBackend) -> None:
    assert blk.bs is not None
    reason = object()
    op_block(blk.bs, OpType.EJECT, reason)
    async with await BlockBackend.new_with_bs(blk.bs, Perm.CONSISTENT_READ, Perm.ALL) as other:
        assert other.op_is_blocked(OpType.EJECT) is not None
        await other.remove_bs()
        assert other.op_is_blocked(OpType.EJECT) is None
        other.op_block_all(reason)
        other.op_unblock(OpType.EJECT, reason)
        other.op_unblock_all(reason)
    assert blk.op_is_blocked(OpType.EJECT) is not None


@pytest.mark.parametrize("op", list(OpType))
async def test_what_was_never_blocked(blk: BlockBackend, op: OpType) -> None:
    blk.op_unblock(op, object())
    assert blk.op_is_blocked(op) is None
