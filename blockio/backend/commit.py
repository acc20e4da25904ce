"""Committing an overlay into its backing file.

Stands on the system *truncate-empty-commit* of the reference document (the other two are in ``requests.py``), and on
QEMU's bdrv_commit: the offline commit of ``qemu-img commit`` and the monitor's ``commit``, during which nothing else
happens to the disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.backend.names import all_backends
from blockio.backend.operation import Operation
from blockio.buffers import IoVector, aligned_buffer
from blockio.driver.base import BlockDriver, DriverKind
from blockio.errors import NoMedium, UnsupportedFeature
from blockio.graph.blockers import OpType, op_blocker
from blockio.graph.drain import drained
from blockio.graph.mutate import attach_child, detach_child
from blockio.graph.node import BlockNode
from blockio.graph.perms import Transaction, refresh
from blockio.graph.reopen import reopen
from blockio.io.driver_calls import make_empty
from blockio.io.status import block_status_above
from blockio.io.workers import Workers
from blockio.types import Perm, RequestFlags, Role, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blockio.backend.backend import BlockBackend
    from blockio.graph.edge import Edge

__all__ = ["commit", "commit_all"]

_CHUNK: Final = 2 << 20
_ZERO: Final = int(StatusFlags.ZERO)
_ALLOCATED: Final = int(StatusFlags.ALLOCATED)
_MAY_UNMAP: Final = int(RequestFlags.MAY_UNMAP)


async def commit_all() -> None:
    """Commit every overlay that is a backend's disk into its backing file (``blk_commit_all``).

    Filters above an overlay are looked through; backends without a medium, and disks without a backing file, are left
    out. The first error ends it and is raised; what was committed by then stays so.
    """
    for blk in all_backends():
        if blk.is_inserted():
            await blk.context.run(_commit_below(blk))


async def _commit_below(blk: BlockBackend) -> None:
    node = blk.bs
    while node is not None and node.driver_class.kind is DriverKind.FILTER:
        node = None if node.primary is None else node.primary.node
    if node is not None and node.backing is not None:
        await commit(node)


async def commit(
    node: BlockNode,
    base: BlockNode | None = None,
    *,
    empty: bool = True,
    pace: Callable[[int], Awaitable[object]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write everything that the layers from *node* down to *base* hold into *base*, the backing file by default.

    Then, unless *empty* is False, *node*'s layer is emptied where its format can; the layers between the two keep what
    they have. *node* is drained meanwhile; a base that is read-only is reopened for the time. A shorter base grows to
    *node*'s length. The layer is emptied only after the base's data is on stable storage. *pace* is awaited with each
    number of bytes before they are copied; *progress* is told how many bytes are done, and of how many.

    NoMedium; UnsupportedFeature without a backing file; ValueError for a base that is not below; BlockError (EBUSY)
    where an op blocker forbids it; ReadOnly, PermissionConflict, ImageLocked where the base cannot be written. Failed
    or cancelled: the disk reads as before, and the commit may be tried again.
    """
    if node.driver is None:
        raise NoMedium
    if node.backing is None:
        raise UnsupportedFeature(f"node '{node.node_name}' has no backing file to commit into")
    base = base or node.backing.node
    link = _link_onto(node, base)
    for busy in (op_blocker(node, OpType.COMMIT_SOURCE), op_blocker(base, OpType.COMMIT_TARGET)):
        if busy is not None:
            raise busy
    was_read_only = base.flags.read_only
    async with drained(node):
        if was_read_only:
            await reopen(base, read_only=False)
        try:
            with Transaction() as tran:
                # What is written below reads the same from above, so that the overlay and its users may let us.
                tran.set_perm(link, link.perm, link.shared | Perm.WRITE | Perm.RESIZE)
                refresh(tran, [base])
            target = attach_child(Operation("commit"), base, "commit", Role.DATA, Perm.WRITE | Perm.RESIZE)
            try:
                await _Copy(node, base, target, pace, progress).run()
                await target.co_flush()
            finally:
                await detach_child(target)
        finally:
            with Transaction() as tran:
                refresh(tran, [link.parent if isinstance(link.parent, BlockNode) else node])
            if was_read_only:
                await reopen(base, read_only=True)
        if empty and type(node.driver).co_make_empty is not BlockDriver.co_make_empty and not node.read_only:
            await make_empty(node)
        if not node.read_only:
            await node.path.co_flush()


def _link_onto(node: BlockNode, base: BlockNode) -> Edge:
    """The edge by which *base* is somebody's backing file, on the way down from *node*."""
    link = node.backing
    while link is not None:
        if link.node is base:
            return link
        link = link.node.backing or link.node.primary
    raise ValueError(f"node '{base.node_name}' is not below node '{node.node_name}'")


class _Copy:
    """The moving of the bytes: several pieces at a time, each with memory of its own."""

    def __init__(
        self,
        node: BlockNode,
        base: BlockNode,
        target: Edge,
        pace: Callable[[int], Awaitable[object]] | None,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self._node = node
        self._base = base
        self._target = target
        self._pace = pace
        self._progress = progress
        self._free: list[memoryview] = []
        self._done = 0

    async def run(self) -> None:
        node, length = self._node, self._node.length
        if length > self._target.length:
            await self._target.co_truncate(length)
        self._advance(0)
        offset = 0
        async with Workers() as workers:
            while offset < length:
                status = await block_status_above(node, self._base, offset, min(1 << 30, length - offset))
                end = offset + status.length
                if not status.length:
                    break
                flags = int(status.flags)
                if not flags & _ALLOCATED:
                    self._advance(status.length)
                elif flags & _ZERO:
                    await workers.add(self._zero(offset, status.length))
                else:
                    for start in range(offset, end, _CHUNK):
                        if self._pace is not None:
                            await self._pace(min(_CHUNK, end - start))
                        await workers.add(self._move(start, min(_CHUNK, end - start)))
                offset = end

    async def _zero(self, offset: int, nbytes: int) -> None:
        await self._target.co_pwrite_zeroes(offset, nbytes, _MAY_UNMAP)
        self._advance(nbytes)

    async def _move(self, offset: int, nbytes: int) -> None:
        memory = self._free.pop() if self._free else aligned_buffer(_CHUNK)
        part = IoVector.of(memory[:nbytes])
        await self._node.path.co_preadv(offset, part)
        await self._target.co_pwritev(offset, part)
        self._free.append(memory)
        self._advance(nbytes)

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._node.length)
