"""Throttling: ``blk.throttle``, a backend's membership in a throttle group.

Stands on the system *throttle-groups* of the reference document. Reads, writes and zero writes are throttled, after
they were checked; discards and flushes are not. While the backend is drained nothing waits for its turn: what waited
is let through, and the drain waits for it. A backend in a group takes the slow lane only; one in none does not pay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockio.backend.drain import Drain
    from blockio.throttle.buckets import ThrottleConfig
    from blockio.throttle.groups import ThrottleGroup

__all__ = ["BackendThrottle"]


class BackendThrottle:
    """``blk.throttle``. Everything here belongs into the backend's own loop, except ``set_io_limits``.

    Invariant: ``blk._throttled`` is the member, whose limits are off exactly while the backend is quiesced, if it is in
    a group; else None.
    """

    __slots__ = ("_blk",)

    def __init__(self, blk: Drain) -> None:
        """Not for callers: a backend makes its own."""
        self._blk = blk

    @property
    def group(self) -> ThrottleGroup | None:
        """The group the backend is in, or None."""
        member = self._blk._throttled
        return None if member is None else member.group

    @property
    def waiting(self) -> int:
        """How many of the backend's requests wait for their turn; they are in flight."""
        member = self._blk._throttled
        return 0 if member is None else member.waiting

    def set_io_limits(self, config: ThrottleConfig) -> None:
        """Other limits, at once, for the whole group (``blk_set_io_limits``). RuntimeError where it is in none."""
        group = self.group
        if group is None:
            raise RuntimeError(
                f"{self._blk._describe()} is in no throttle group; call throttle.io_limits_enable() first"
            )
        group.set_config(config)

    def io_limits_enable(self, group: ThrottleGroup | str) -> None:
        """Join *group* (``blk_io_limits_enable``); a name is that of a group which exists, or is made without limits.

        Requests that have begun go on untouched. RuntimeError where the backend is in a group already, or closed.
        """
        blk = self._blk
        blk._must_be_home("throttle.io_limits_enable", "call it through blk.context.schedule_bh")
        if blk.closed:
            raise RuntimeError(f"{blk._describe()} is closed")
        if blk._throttled is not None:
            raise RuntimeError(
                f"{blk._describe()} is in {self.group!r}; await throttle.io_limits_update_group() instead"
            )
        self._join(_group(group))

    async def io_limits_disable(self) -> None:
        """Leave the group, in a drained section (``blk_io_limits_disable``); waiting requests go on.

        RuntimeError where it is in no group, or inside one of the backend's requests. Cancelled: it is in the group
        or is not.
        """
        if self._blk._throttled is None:
            raise RuntimeError(f"{self._blk._describe()} is in no throttle group")
        self._blk._refuse_inside_request()
        await self._blk.context.run(self._change(None))

    async def io_limits_update_group(self, group: ThrottleGroup | str) -> None:
        """Move to *group*, in a drained section (``blk_io_limits_update_group``); does nothing where it is in none.

        Nor where it is in *group* already. RuntimeError inside one of the backend's requests.
        """
        current = self.group
        if current is None or group is current or group == current.name:
            return
        self._blk._refuse_inside_request()
        await self._blk.context.run(self._change(_group(group)))

    async def _change(self, group: ThrottleGroup | None) -> None:
        async with self._blk.drained():
            if self._blk._throttled is None:  # somebody else was quicker, or it was closed
                return
            self.leave()
            if group is not None:
                self._join(group)

    def _join(self, group: ThrottleGroup) -> None:
        from blockio.throttle.groups import ThrottleMember  # few backends are in a group

        member = ThrottleMember(self._blk.context)
        if self._blk.quiesced:
            member.limits_off()
        member.join(group)
        self._blk._throttled = member
        self._blk._bind_lanes()

    # -- for the backend's other systems

    def leave(self) -> None:
        """The backend is drained, or has ended: be in no group; does nothing where it is in none."""
        member = self._blk._throttled
        if member is not None:
            self._blk._throttled = None
            member.leave()
            self._blk._bind_lanes()


def _group(group: ThrottleGroup | str) -> ThrottleGroup:
    from blockio.throttle.groups import ThrottleGroup, group_named  # as above

    if isinstance(group, str):
        return group_named(group)
    if not isinstance(group, ThrottleGroup):
        raise TypeError(f"a group is a ThrottleGroup or the name of one, not {group!r}")
    return group
