"""Migration: a backend whose image is, for a while, somebody else's to write.

Stands on the system *migration-activation* of the reference document. Before another machine takes the disk over, its
nodes are inactivated: everything is written back and the backend's permissions are given up. Activating takes them back
and drops what was cached.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from blockio.backend.events import ErrorReported, EventSource
from blockio.backend.perms import Permissions
from blockio.backend.run_state import Machine, MachineState, RunState
from blockio.errors import BlockError, NoMedium, message_of
from blockio.graph.perms import set_edge_perm
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.edge import Edge

__all__ = ["Migration"]


class Migration(Permissions, EventSource, Machine):
    """Giving permissions up and taking them back.

    Invariant: ``_arrival`` is set exactly while the permissions are held but others may still do everything, because
    the machine has not arrived yet.
    """

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """Active."""
        super().__init__(perm, shared, context)
        self._force_allow_inactivate = False
        self._arrival: Callable[[], None] | None = None

    def set_run_state(self, run_state: RunState) -> None:
        """Belong to *run_state* from now on: stop requests go there, and its arrival is waited for."""
        waiting = self._arrival is not None
        self._forget_arrival()
        super().set_run_state(run_state)
        if waiting:
            self._await_arrival()

    def set_force_allow_inactivate(self) -> None:
        """Let the root be inactivated although this backend, which is no device's, writes (an export). For good."""
        self._force_allow_inactivate = True

    def _can_inactivate(self) -> bool:
        """A device's backend, a named one, one that does not write, or one that was told that it may."""
        return (
            self._has_device()
            or bool(self._name)
            or not self._perm & (Perm.WRITE | Perm.WRITE_UNCHANGED)
            or self._force_allow_inactivate
        )

    async def invalidate_cache(self) -> None:
        """Activate the root: the image is ours again, whatever was cached of it is not trusted (``blk_activate``).

        NoMedium ("Device 'x' has no medium") while empty. PermissionConflict or ImageLocked where somebody else still
        uses it, and what the drivers raise: it stays inactive. Does nothing where it is active.
        """
        await self._context.run(self._invalidate_cache())

    async def _invalidate_cache(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        node = self.bs
        if node is None:
            raise NoMedium(f"Device '{self._name}' has no medium")
        from blockio.graph.activation import activate_node  # only a migration comes here

        await activate_node(node)

    async def inactivate_root(self) -> None:
        """Inactivate the root and what only it uses: written back, permissions given up, others may have the image.

        EPERM where a user of it does not allow that (see ``set_force_allow_inactivate``), NoMedium while empty, any
        error of writing back: it stays active. RuntimeError inside a request.
        """
        await self._context.run(self._inactivate_root())

    async def _inactivate_root(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        node = self.bs
        if node is None:
            raise NoMedium(f"Device '{self._name}' has no medium")
        from blockio.graph.activation import inactivate_node  # as above

        await inactivate_node(node)

    # -- ChildParent

    def inactivate(self, edge: Edge) -> None:
        """The node goes to sleep: give the permissions up (``blk_root_inactivate``). EPERM where it must not."""
        if self._disable_perm:
            return
        if not self._can_inactivate():
            raise BlockError(f"{self._describe()} is in use", errno.EPERM)
        self._disable_perm = True
        set_edge_perm(edge, Perm.NONE, Perm.ALL)
        self._bind_lanes()

    def activate(self, edge: Edge) -> None:
        """The node is awake: take the permissions back (``blk_root_activate``). PermissionConflict: it stays without.

        First while sharing everything; what is not to be shared is refused when that worked, and while the machine is
        still arriving (others may be copying its disk) only once it has.
        """
        if not self._disable_perm:
            return
        set_edge_perm(edge, self._perm, Perm.ALL)
        if self._run_state.check(MachineState.INMIGRATE):
            self._disable_perm = False
            self._await_arrival()
        else:
            try:
                set_edge_perm(edge, self._perm, self._shared)
            except OSError:
                set_edge_perm(edge, Perm.NONE, Perm.ALL)
                raise
            self._disable_perm = False
        self._bind_lanes()

    def _await_arrival(self) -> None:
        if self._arrival is None:
            self._arrival = self._run_state.add_change_handler(self._vm_state_changed)
            # It may have arrived, in another thread, before anybody listened.
            self._vm_state_changed(self._run_state.running, self._run_state.state)

    def _vm_state_changed(self, running: bool, state: MachineState) -> None:
        """In whatever thread the machine changed (``blk_vm_state_changed``)."""
        if state is MachineState.INMIGRATE:
            return
        if self.in_own_loop():
            self._arrived()
        else:
            self._context.schedule_bh(self._arrived)

    def _arrived(self) -> None:
        if self._arrival is None:
            return
        self._forget_arrival()
        if self._closed:
            return
        try:
            self.set_perm(self._perm, self._shared)
        except OSError as error:
            self.emit(ErrorReported(self._name, message_of(error)))

    def _forget_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival()
            self._arrival = None

    def _has_device(self) -> bool:
        """Whether a device model is attached; the system *device-attach-devops* knows."""
        return False
