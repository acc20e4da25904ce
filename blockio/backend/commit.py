"""Committing an overlay into its backing file, and emptying a layer.

Stands on the system *truncate-empty-commit* of the reference document (``truncate`` itself is in ``requests.py``), and
on QEMU's bdrv_commit: the offline commit of ``qemu-img commit`` and the monitor's ``commit``, during which nothing else
happens to the disk.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from blockio.backend.names import all_backends
from blockio.backend.requests import Requests
from blockio.buffers import IoVector, aligned_buffer
from blockio.driver.base import BlockDriver, DriverKind
from blockio.errors import BlockError, NoMedium, ReadOnly, UnsupportedFeature
from blockio.graph.blockers import OpType, op_blocker
from blockio.graph.drain import drained
from blockio.graph.mutate import attach_child, detach_child
from blockio.graph.perms import Transaction, refresh
from blockio.graph.reopen import reopen
from blockio.io.driver_calls import make_empty
from blockio.types import Perm, RequestFlags, Role, StatusFlags

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["Commit", "commit", "commit_all"]

_CHUNK: Final = 2 << 20
_ZERO: Final = int(StatusFlags.ZERO)
_ALLOCATED: Final = int(StatusFlags.ALLOCATED)
_MAY_UNMAP: Final = int(RequestFlags.MAY_UNMAP)
_WRITES: Final = Perm.WRITE | Perm.WRITE_UNCHANGED


class Commit(Requests):
    """``co_make_empty``; committing is a function, for it concerns nodes."""

    async def co_make_empty(self) -> None:
        """Let go of everything the root's own layer holds, so that its backing file shows. Drained meanwhile.

        NoMedium ("No medium inserted"); ReadOnly; UnsupportedFeature for formats that cannot. RuntimeError inside a
        request. Cancelled: parts of the layer are gone.
        """
        if self._elsewhere():
            await self._context.run(self.co_make_empty())
            return
        edge = self._edge("No medium inserted")
        if edge.read_only or not self._perm & _WRITES:
            raise ReadOnly
        async with drained(edge.node):
            await make_empty(edge.node)


async def commit_all() -> None:
    """Commit every overlay that is a backend's disk into its backing file (``blk_commit_all``).

    Filters above an overlay are looked through; backends without a medium, and disks without a backing file, are left
    out. The first error ends it and is raised; what was committed by then stays so.
    """
    for blk in all_backends():
        if blk.is_inserted():
            await blk.context.run(_commit_below(blk))


async def _commit_below(blk: Commit) -> None:
    node = blk.bs
    while node is not None and node.driver_class.kind is DriverKind.FILTER:
        node = None if node.primary is None else node.primary.node
    if node is not None and node.backing is not None:
        await commit(node)


async def commit(node: BlockNode) -> None:
    """Write everything that *node*'s layer holds into its backing file, then empty the layer where its format can.

    *node* is drained meanwhile; a backing file that is read-only is reopened for the time. A shorter backing file grows
    to *node*'s length. The layer is emptied only after the backing file's data is on stable storage. NoMedium;
    UnsupportedFeature without a backing file; BlockError (EBUSY) where an op blocker forbids it; ReadOnly,
    PermissionConflict, ImageLocked where the backing file cannot be written. Failed or cancelled: the disk reads as
    before, and the commit may be tried again.
    """
    if node.driver is None:
        raise NoMedium
    cow = node.backing
    if cow is None:
        raise UnsupportedFeature(f"node '{node.node_name}' has no backing file to commit into")
    base = cow.node
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
                tran.set_perm(cow, cow.perm, cow.shared | Perm.WRITE | Perm.RESIZE)
                refresh(tran, [base])
            target = attach_child(_Committer(), base, "commit", Role.DATA, Perm.WRITE | Perm.RESIZE)
            try:
                await _copy(node, target)
                await target.co_flush()
            finally:
                await detach_child(target)
        finally:
            with Transaction() as tran:
                refresh(tran, [node])
            if was_read_only:
                await reopen(base, read_only=True)
        if type(node.driver).co_make_empty is not BlockDriver.co_make_empty and not node.read_only:
            await make_empty(node)
        if not node.read_only:
            await node.path.co_flush()


async def _copy(node: BlockNode, target: Edge) -> None:
    length = node.length
    if length > target.length:
        await target.co_truncate(length)
    memory = aligned_buffer(_CHUNK)
    offset = 0
    while offset < length:
        status = await node.path.co_block_status(offset, min(1 << 30, length - offset))
        end = offset + status.length
        if not status.length:
            break
        if status.flags & _ALLOCATED and status.flags & _ZERO:
            await target.co_pwrite_zeroes(offset, status.length, _MAY_UNMAP)
        elif status.flags & _ALLOCATED:
            for start in range(offset, end, _CHUNK):
                part = IoVector.of(memory[: min(_CHUNK, end - start)])
                await node.path.co_preadv(start, part)
                await target.co_pwritev(start, part)
        offset = end


class _Committer:
    """The backing file's user while it is committed into (a ``ChildParent``): it sends nothing by itself."""

    def parent_desc(self) -> str:
        """For messages of others who are in its way."""
        return "a commit operation"

    def drained_begin(self, edge: Edge) -> None:
        """Whoever drains the backing file waits for the piece in flight; the next one waits for nobody."""

    def drained_poll(self, edge: Edge) -> bool:
        """The node itself knows of the request in flight."""
        return False

    def drained_end(self, edge: Edge) -> None:
        """See ``drained_begin``."""

    def resized(self, edge: Edge) -> None:
        """Nothing is kept."""

    def change_media(self, edge: Edge, load: bool) -> None:
        """As above."""

    def attached(self, edge: Edge) -> None:
        """As above."""

    def detached(self, edge: Edge) -> None:
        """As above."""

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """Not now."""
        raise BlockError("Cannot change iothread of active block backend", errno.EPERM)

    def set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """Never called."""

    def activate(self, edge: Edge) -> None:
        """Nothing was given up."""

    def inactivate(self, edge: Edge) -> None:
        """Not now."""
        raise BlockError("a commit operation is in use", errno.EPERM)
