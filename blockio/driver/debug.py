"""Debug events: what requests do on their way, told to drivers that want to know (QEMU's bdrv_debug_event).

An event goes to one node: a format tells the node its metadata lies in (``child.debug_event``), the request path tells
the node that it works on. Nobody listens but a ``DebugDriver``, so everywhere else ``debug_event`` is None
and an event costs a look at it; the fast lane has no events, and a driver that wants them keeps it closed.

A listener may suspend: events are told only where the teller may be suspended, and the request stays in flight.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from blockio.driver.block import BlockDriver

if TYPE_CHECKING:
    from blockio.driver.child import Child

__all__ = ["EVENTS", "DebugDriver", "DebugEvent", "DebugListener", "tell"]

DebugEvent: TypeAlias = Literal[
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
    "none",
]
"""QEMU's BlkdebugEvent. Those that are never told (``reftable_update`` …) can be waited for all the same."""

EVENTS: Final[frozenset[str]] = frozenset(get_args(DebugEvent))

DebugListener: TypeAlias = Callable[[DebugEvent], Awaitable[None]]


class DebugDriver(BlockDriver):
    """A driver that listens to debug events and stops requests at them.

    Breakpoints are set and removed in the node's context. A tag may name several.
    """

    @abstractmethod
    async def co_debug_event(self, event: DebugEvent) -> None:
        """*event* happens now. Returns when the request may go on; cancelling it cancels the request."""

    @abstractmethod
    def debug_breakpoint(self, event: str, tag: str) -> None:
        """Suspend the next request that *event* happens to, as *tag*. BlockError ENOENT for an event there is not."""

    @abstractmethod
    def debug_remove_breakpoint(self, tag: str) -> None:
        """Forget the breakpoints called *tag*, and let the requests go on that are suspended as *tag*.

        BlockError ENOENT where no breakpoint was left to be forgotten; the requests go on nevertheless.
        """

    @abstractmethod
    def debug_resume(self, tag: str) -> None:
        """Let one request go on that is suspended as *tag*. BlockError ENOENT where none is."""

    @abstractmethod
    def debug_is_suspended(self, tag: str) -> bool:
        """Whether a request is suspended as *tag*."""

    @abstractmethod
    async def co_debug_wait(self, tag: str) -> None:
        """Return when a request is suspended as *tag*."""


async def tell(child: Child, event: DebugEvent) -> None:
    """*event* happens to *child*'s node."""
    listener = child.debug_event
    if listener is not None:
        await listener(event)
