"""Permissions: what the user of a backend needs of the root node, and what others may do meanwhile.

Stands on the systems *permissions* and *migration-activation* of the reference document.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from blockio.backend.core import BackendCore
from blockio.errors import BlockError
from blockio.graph.perms import set_edge_perm
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.graph.edge import Edge

__all__ = ["Permissions"]


class Permissions(BackendCore):
    """``set_perm`` and ``get_perm``, and giving them up while the node is inactive.

    Invariant: the root edge holds (``_perm``, ``_shared``), or nothing at all while ``_disable_perm``.
    """

    _disable_perm = False

    def set_perm(self, perm: Perm, shared: Perm) -> None:
        """Need *perm* of the root and let others have *shared*, now and after every later ``insert_bs``.

        PermissionConflict or ImageLocked where somebody else does not allow it: the old ones stay. Only in the
        backend's own loop. Requests that have begun are not looked at again.
        """
        self._must_be_home("set_perm", "await blk.context.run(...) something that calls it")
        if self._root is not None and not self._disable_perm:
            set_edge_perm(self._root, perm, shared)
        self._perm = perm
        self._shared = shared
        self._bind_lanes()

    def get_perm(self) -> tuple[Perm, Perm]:
        """What is needed, what is shared; also while they are given up."""
        return self._perm, self._shared

    def is_writable(self) -> bool:
        """Whether the permission to write was asked for."""
        return bool(self._perm & Perm.WRITE)

    def supports_write_perm(self) -> bool:
        """Whether the root could be written to: it is not read-only. True while empty."""
        return self._root is None or not self._root.read_only

    # -- ChildParent

    def inactivate(self, edge: Edge) -> None:
        """The node goes to sleep: give the permissions up. EPERM for a nameless backend that writes."""
        if self._disable_perm:
            return
        if not self._name and self._perm & (Perm.WRITE | Perm.WRITE_UNCHANGED):
            raise BlockError(f"{self._describe()} is in use", errno.EPERM)
        self._disable_perm = True
        set_edge_perm(edge, Perm.NONE, Perm.ALL)

    def activate(self, edge: Edge) -> None:
        """The node is awake: take the permissions back. PermissionConflict: it stays without them."""
        if not self._disable_perm:
            return
        set_edge_perm(edge, self._perm, self._shared)
        self._disable_perm = False
