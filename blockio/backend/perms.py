"""Permissions: what the user of a backend needs of the root node, and what others may do meanwhile.

Stands on the system *permissions* of the reference document; see ``migration.py`` for giving them up for a while.
"""

from __future__ import annotations

from blockio.backend.core import BackendCore
from blockio.graph.perms import set_edge_perm
from blockio.types import Perm

__all__ = ["Permissions"]


class Permissions(BackendCore):
    """``set_perm`` and ``get_perm``.

    Invariant: the root edge holds (``_perm``, ``_shared``). Not so while ``_disable_perm``: then nobody applies what
    is set, and a root that is inserted, or was inactivated, holds nothing.
    """

    _disable_perm = False

    def set_perm(self, perm: Perm, shared: Perm) -> None:
        """Need *perm* of the root and let others have *shared*, now and after every later ``insert_bs``.

        PermissionConflict or ImageLocked where somebody else does not allow it: the old ones stay. Only in the
        backend's own loop. Requests that have begun are not looked at again. While they are given up for a
        migration they are only noted.
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

    def _held_perm(self) -> tuple[Perm, Perm]:
        """What a root that is inserted now has to grant."""
        return (Perm.NONE, Perm.ALL) if self._disable_perm else (self._perm, self._shared)
