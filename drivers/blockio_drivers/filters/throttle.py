"""throttle: a filter that lets requests through no faster than its throttle group allows.

The group is made by the program, by name, before the node is opened; several nodes and backends may share one. Reads,
writes, zero writes and discards wait for their turn, flushes do not. While the node is drained nothing waits. Without
limits in the group the fast lane stays open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from blockio.driver.base import Capabilities, ChildOpener, DriverHost, FilterDriver, ReopenState
from blockio.errors import OptionError
from blockio.throttle.buckets import Direction
from blockio.throttle.groups import ThrottleGroup, ThrottleMember, find_group
from blockio.types import Capability, RequestFlags

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.buffers import IoVector

__all__ = ["ThrottleDriver", "ThrottleOptions"]


class ThrottleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """``throttle-group``: the name of a ``blockio.throttle.ThrottleGroup``."""

    throttle_group: str | None = None


class ThrottleDriver(FilterDriver):
    """A member of a throttle group. Invariant: between ``open`` and ``close`` ``_member`` is in ``_group``."""

    name = "throttle"
    Options = ThrottleOptions
    strong_options = frozenset(("throttle-group",))
    reopen_options = frozenset(("throttle-group",))
    capabilities = Capabilities(write_compressed=Capability.NATIVE)

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._member = ThrottleMember(host.context)
        self._group: ThrottleGroup | None = None

    async def open(self, options: ThrottleOptions, opener: ChildOpener) -> None:
        # The child first, as QEMU does: where both are wrong its error is the one to see.
        await super().open(options, opener)
        self._group = _named(options)
        self._member.join(self._group)

    async def close(self) -> None:
        self._group = None
        self._member.leave()

    async def reopen_prepare(self, state: ReopenState) -> None:
        state.notes["throttle-group"] = _named(state.options)

    def reopen_commit(self, state: ReopenState) -> None:
        group: ThrottleGroup = state.notes["throttle-group"]
        if group is not self._group:
            self._member.leave()
            self._member.join(group)
            self._group = group

    async def drain_begin(self) -> None:
        self._member.limits_off()

    async def drain_end(self) -> None:
        self._member.limits_on()

    def attach_context(self, context: AioContext) -> None:
        self._member.move(context)

    # -- requests

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._member.intercept(Direction.READ, iov.nbytes)
        await self.file.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._member.intercept(Direction.WRITE, iov.nbytes)
        await self.file.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        await self._member.intercept(Direction.WRITE, nbytes)
        await self.file.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        await self._member.intercept(Direction.WRITE, nbytes)
        await self.file.co_pdiscard(offset, nbytes)

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        await self.co_pwritev(offset, iov, RequestFlags.WRITE_COMPRESSED)

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        group = self._group
        return group is not None and not group.limited and self.file.try_preadv(offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        group = self._group
        return group is not None and not group.limited and self.file.try_pwritev(offset, bufs, nbytes)


def _named(options: Any) -> ThrottleGroup:
    name: str | None = options.throttle_group
    if name is None:
        raise OptionError("Please specify a throttle group")
    group = find_group(name)
    if group is None:
        raise OptionError(f"Throttle group '{name}' does not exist")
    return group
