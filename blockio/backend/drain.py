"""Drain: a time in which nothing is under way.

Stands on the system *drain-queue* of the reference document. In a drained section of a backend none of its requests
is in flight, on the backend or on its nodes, requests that would end in NoMedium included; new ones park and go on in
the order of their arrival when the last section ends. Sections nest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from blockio.aio.context import finish
from blockio.backend.core import BackendCore
from blockio.backend.names import all_backends
from blockio.backend.parking import holding
from blockio.graph.drain import (
    current_requests,
    drain_all_begin,
    drain_all_end,
    drained_begin,
    drained_end,
    refuse_self_wait,
)

if TYPE_CHECKING:
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["Drain", "drain_all", "drained_all"]


class Drain(BackendCore):
    """``drained()`` and ``drain()``, and what the graph asks of a backend when it drains."""

    @property
    def quiesced(self) -> bool:
        """Whether it is in a drained section now."""
        return self._quiesce > 0

    @contextlib.asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """``async with blk.drained():`` nothing of this backend is under way inside.

        The section stays with the nodes it began on: the root may be removed, replaced or resized inside. RuntimeError
        inside a request of the same nodes, which would wait for itself. Cancelled while it waits, everything goes on.

        Requests made meanwhile are parked until the section ends. One that this task awaits inside it raises
        RuntimeError, for it would wait for you, unless ``set_disable_request_queuing`` lets requests run while drained.
        """
        self._refuse_inside_request()
        node = await self._context.run(self._drained_begin())
        try:
            with holding(self):
                yield
        finally:
            # Whoever leaves a section must not leave the backend parked behind it, cancelled or not.
            if self.in_own_loop():
                self._drained_end(node)
            else:
                await finish(asyncio.ensure_future(self._context.run(self._end_over_there(node))))

    async def drain(self) -> None:
        """Wait until everything that has been asked for so far is done (``blk_drain``)."""
        async with self.drained():
            pass

    async def _drained_begin(self) -> BlockNode | None:
        # Quiesced by itself as well: without a root nobody else does it, and the root may go meanwhile.
        self._quiesce_begin()
        node = self.bs
        try:
            if node is None:
                await self._wait_idle()
            else:
                await drained_begin(node)
        except BaseException:
            self._quiesce_end()
            raise
        return node

    async def _end_over_there(self, node: BlockNode | None) -> None:
        self._drained_end(node)

    def _drained_end(self, node: BlockNode | None) -> None:
        if node is not None:
            drained_end(node)
        self._quiesce_end()

    def _refuse_inside_request(self) -> None:
        if self._root is not None:
            refuse_self_wait(self._root.node)
        scope = current_requests.get()
        while scope is not None:
            if scope.active and scope.owner is self:
                raise RuntimeError(
                    f"a drain of {self._describe()} from inside one of the requests it waits for would never end; "
                    "drain from a task made with context=blockio.outside_requests()"
                )
            scope = scope.outer

    # -- ChildParent: the graph drains a node below

    def drained_begin(self, edge: Edge) -> None:
        """Send nothing more (``blk_root_drained_begin``)."""
        self._quiesce_begin()

    def drained_poll(self, edge: Edge) -> bool:
        """Whether requests are still under way (``blk_root_drained_poll``)."""
        return self._in_flight > 0

    def drained_end(self, edge: Edge) -> None:
        """Go on; the parked requests first, in their order (``blk_root_drained_end``)."""
        self._quiesce_end()


@contextlib.asynccontextmanager
async def drained_all() -> AsyncIterator[None]:
    """``async with drained_all():`` nothing of any backend or node is under way inside (``bdrv_drain_all_begin``).

    RuntimeError inside any request.
    """
    scope = current_requests.get()
    while scope is not None:
        if scope.active:
            raise RuntimeError(
                "drain_all from inside a request would never end; "
                "drain from a task made with context=blockio.outside_requests()"
            )
        scope = scope.outer
    await drain_all_begin()
    try:
        for blk in all_backends():  # those without a root are known to no node
            await blk.context.run(blk._wait_idle())
        with holding(None):
            yield
    finally:
        drain_all_end()


async def drain_all() -> None:
    """Wait until every request of every backend that has been asked for so far is done (``blk_drain_all``)."""
    async with drained_all():
        pass
