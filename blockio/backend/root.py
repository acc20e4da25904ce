"""The root of a backend: inserting and removing a node, and what the graph tells its parent.

Stands on the system *root-insert-remove* of the reference document.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from blockio.backend.drain import Drain
from blockio.backend.migration import Migration
from blockio.backend.notifiers import Notifiers
from blockio.backend.root_state import RootStateKeeping
from blockio.backend.throttling import BackendThrottle
from blockio.errors import BlockError
from blockio.graph.mutate import attach_child, detach_child
from blockio.types import Perm, Role

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["Root"]

_ROLE: Final = Role.FILTERED | Role.PRIMARY


class Root(Drain, Migration, RootStateKeeping, Notifiers):
    """``insert_bs``, ``remove_bs``, and the ChildParent side towards the graph."""

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """Empty: see ``BlockBackend``."""
        super().__init__(perm, shared, context)
        self.throttle = BackendThrottle(self)

    async def insert_bs(self, node: BlockNode) -> None:
        """Make *node* the root, with the permissions set; the backend takes a reference of its own (``blk_insert_bs``).

        PermissionConflict or ImageLocked where its other users do not allow it: the backend stays empty. RuntimeError
        where there is a root already, or the node lives in another context. Cancelling it leaves one or the other.
        """
        await self._context.run(self._insert(node))

    async def _insert(self, node: BlockNode) -> None:
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        if self._root is not None:
            raise RuntimeError(f"{self._describe()} has a root; await remove_bs() first")
        if node.context is not self._context:
            raise RuntimeError(f"node '{node.node_name}' lives in {node.context!r}, {self._describe()} does not")
        attach_child(self, node, "root", _ROLE, *self._held_perm())
        for notify in list(self._insert_bs_notifiers):
            notify()

    async def remove_bs(self) -> None:
        """Take the root out: notifiers are told, its state is taken down, requests in flight end, the node loses this
        reference.

        Requests that park meanwhile, and all later ones, are NoMedium. RuntimeError where there is no root, and inside
        a request of this backend (``blk_remove_bs``).
        """
        self._refuse_inside_request()
        await self._context.run(self._remove())

    async def _remove(self) -> None:
        if self._root is None:
            raise RuntimeError(f"{self._describe()} has no root")
        self._tell_of_removal()
        await self._take_root_out()

    def _tell_of_removal(self) -> None:
        for notify in list(self._remove_bs_notifiers):
            notify()

    async def _take_root_out(self) -> None:
        root = self._root
        if root is None:
            raise RuntimeError(f"the root of {self._describe()} was removed while that was being told")
        self.update_root_state()
        async with self.drained():
            if self._root is not root:
                raise RuntimeError(f"the root of {self._describe()} was changed while it was being removed")
            try:
                await detach_child(root)
            finally:  # closing the node may fail; it is not ours any more
                self._root = None
                self._bind_lanes()

    # -- ChildParent

    def parent_desc(self) -> str:
        """The backend's name, else ``a block device`` (``blk_root_get_parent_desc``)."""
        return self._name or "a block device"

    def attached(self, edge: Edge) -> None:
        """The root edge leads to a node now, or to another one."""
        self._root = edge
        self._notifiers_attach(edge.node)
        self._bind_lanes()

    def detached(self, edge: Edge) -> None:
        """The root edge is about to leave its node, for another one or for good: nothing takes the fast lane now."""
        self._notifiers_detach(edge.node)
        self._close_lanes()

    def resized(self, edge: Edge) -> None:
        """The disk's length changed. The fast lane looks at the driver's own, so there is nothing to keep."""

    def change_media(self, edge: Edge, load: bool) -> None:
        """The root's medium was put in or is gone; the system *tray-media* tells the device."""

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """A backend in use does not follow its nodes to another thread; see ``context_move.py`` for those that do."""
        raise BlockError("Cannot change iothread of active block backend", errno.EPERM)

    def set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """Never called: ``can_set_context`` refuses."""
        raise AssertionError("a backend's nodes moved without asking it")
