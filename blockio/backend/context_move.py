"""AioContexts: a backend and its nodes move to another thread.

Stands on the system *aio-context* of the reference document. A move drains everything that is connected, has drivers
let go of engines, and has them take up those of the new context in its own thread. Requests that were parked go on over
there, in the order of their arrival and before those that come later; whoever awaits them notices nothing.

By the document a backend follows its nodes, when somebody else moves them, only where that was allowed, or where it has
a name and no device: others may have noted which thread it lives in.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from blockio.aio.context import finish
from blockio.backend.medium import Medium
from blockio.errors import BlockError

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.edge import Edge

__all__ = ["ContextMove"]


class ContextMove(Medium):
    """``set_aio_context`` and who may follow. The notifiers are in ``notifiers.py``."""

    _allow_aio_context_change = False

    def get_aio_context(self) -> AioContext:
        """Where this backend and its nodes live; the same as ``context``."""
        return self._context

    def set_allow_aio_context_change(self, allow: bool) -> None:
        """Whether this backend follows its nodes when somebody else moves them."""
        self._allow_aio_context_change = allow

    async def set_aio_context(self, context: AioContext) -> None:
        """Move this backend, its nodes, and whoever else uses them, to *context*. From any loop.

        BlockError (EPERM, "Cannot change iothread of active block backend") where another user refuses; RuntimeError
        where *context* does not run, inside one of the backend's requests, and after ``close``: then, as when it is
        cancelled while it drains, everything is where it was.
        """
        self._refuse_inside_request()
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        if context.loop.is_closed() or not context.loop.is_running():
            raise RuntimeError(f"the event loop of {context!r} does not run")
        while context is not self._context:
            home = self._context
            await home.run(self._move(home, context))
            if self._context is home:
                return  # somebody else has moved it back meanwhile, and that is as good as before us

    async def _move(self, home: AioContext, context: AioContext) -> None:
        if self._context is not home:
            return  # it moved while we hopped; the caller looks again
        self._quiesce_begin()
        try:
            root = self._root
            if root is None:
                await self._wait_idle()
                if self._context is home and self._root is None:
                    self._switch(context)
            else:
                from blockio.graph.move import move_graph  # most backends stay where they are

                await move_graph(root.node, context, root)
        finally:
            # In whatever thread it lives now: whoever parked must not stay behind.
            if self._elsewhere():
                await finish(asyncio.ensure_future(self._context.run(self._unquiesce())))
            else:
                self._quiesce_end()

    async def _unquiesce(self) -> None:
        self._quiesce_end()

    # -- ChildParent

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """Somebody else moves the nodes: may they (``blk_root_can_set_aio_ctx``)?"""
        if self._allow_aio_context_change:
            return
        if not self._name or self.get_attached_dev() is not None:
            raise BlockError("Cannot change iothread of active block backend", errno.EPERM)

    def set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """The nodes have left for *context* (``blk_root_set_aio_ctx``)."""
        self._switch(context)
