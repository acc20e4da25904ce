"""Life: reference counts, and the end that the last one brings.

Stands on the system *lifecycle-refcount* of the reference document. A backend is made with one reference, its maker's.
Whoever needs it to stay (a device, an iteration, an export) takes one more. The last one that is given back drains the
backend, then lets go of everything. ``close`` is the maker's way to give back the first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from blockio.aio.context import finish
from blockio.backend.names import Names, delist
from blockio.backend.root import Root
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext

__all__ = ["Life"]


class Life(Names, Root):
    """``ref``, ``unref`` and ``close``.

    Invariant: ``_refcnt`` is the number of references that were taken and not given back; ``_closed`` exactly when it
    is 0. While ``_ending`` somebody gives back what was the last one when they began.
    """

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """One reference, the maker's."""
        super().__init__(perm, shared, context)
        self._refcnt = 1
        self._ending = False
        self._given_back = False

    def get_refcnt(self) -> int:
        """How many references there are; 0 once it is closed."""
        return self._refcnt

    def ref(self) -> None:
        """Take a reference: it stays open until that is given back with ``unref``. RuntimeError once it is closed."""
        if self._refcnt == 0:
            raise RuntimeError(f"{self._describe()} is closed")
        self._refcnt += 1

    async def unref(self) -> None:
        """Give one reference back. The last one drains it, then closes it as ``close`` does.

        RuntimeError, with nothing changed: it is closed; or this is the last reference and it is still named
        (``monitor_remove_blk``), has notifiers, or the caller is inside one of its requests. Cancelled while it drains:
        the reference is still the caller's. Somebody who took one meanwhile keeps it open.
        """
        if self._refcnt == 0:
            raise RuntimeError(f"{self._describe()} is closed already: more references were given back than taken")
        if self._refcnt == 1:
            self._refuse_inside_request()
            self._refuse_last_unref()
        await self._context.run(self._unref())

    def _refuse_last_unref(self) -> None:
        """RuntimeError where the last reference may not be given back now (the asserts of ``blk_delete``).

        Not so once its maker has closed it: then name and notifiers go along, whoever is the last.
        """
        if self._ending:
            raise RuntimeError(f"the last reference on {self._describe()} is being given back already")
        if self._given_back:
            return
        if self._name:
            raise RuntimeError(f"{self._describe()} is on the monitor's list; call monitor_remove_blk() first")
        if self._has_notifiers():
            raise RuntimeError(f"{self._describe()} has notifiers; take them back first")

    async def close(self) -> None:
        """Take its name away and give back the reference that its maker got; the last one closes it.

        Closing waits for its requests, lets go of the root, the notifiers and the throttle group, and ends its streams
        of events. Where others hold a reference (an attached device), it is closed when they give theirs back.
        RuntimeError where that was done already, or inside one of its requests. Errors of closing the image (a failed
        last write-back) are raised after everything was let go of. Cancelled while it waits, it can be closed again.
        """
        if self._closed or self._given_back:
            raise RuntimeError(f"{self._describe()} is closed already")
        self._refuse_inside_request()
        await self._context.run(self._close())

    async def _close(self) -> None:
        self._given_back = True
        try:
            await self._unref()
        except BaseException:
            self._given_back = self._refcnt == 0
            raise
        self.monitor_remove_blk()

    async def _unref(self) -> None:
        if self._refcnt > 1:
            self._refcnt -= 1
            return
        self._refuse_last_unref()
        self._ending = True
        try:
            await self.drain()
        finally:
            self._ending = False
        if self._refcnt > 1:  # somebody found it on the list meanwhile
            self._refcnt -= 1
            return
        self._refuse_last_unref()
        self.monitor_remove_blk()
        self._refcnt = 0
        await finish(asyncio.ensure_future(self._delete()))

    async def _delete(self) -> None:
        """The end (``blk_delete``). Nobody holds it, nothing is in flight; what fails is raised last."""
        try:
            if self._root is not None:
                try:
                    self._tell_of_removal()
                finally:
                    await self._take_root_out()
        finally:
            self._closed = True
            self.throttle.leave()
            self._forget_arrival()
            self._forget_notifiers()
            self._drive_info_del()
            self._end_events()
            delist(self)
