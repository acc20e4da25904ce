"""Internal snapshots of a backend's disk (QEMU's bdrv_snapshot_*, which it has for nodes only).

A snapshot is a copy of the disk inside its own image, which costs no more than the tables that lead to it; only what is
written afterwards takes room. Formats that have none are UnsupportedFeature.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from blockio.backend.requests import Requests
from blockio.errors import ReadOnly
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.driver.snapshots import SnapshotInfo
    from blockio.graph.node import BlockNode

__all__ = ["Snapshots"]

_T = TypeVar("_T")


class Snapshots(Requests):
    """``co_snapshot_list``, ``create``, ``goto``, ``delete``, ``rename`` and ``load``.

    All raise NoMedium, and UnsupportedFeature where the root's image has no snapshots. Those that change something
    raise ReadOnly, and have nothing else under way at the disk meanwhile; failing or cancelled, they have done all or
    nothing.
    """

    async def _on_root(self, work: Callable[[BlockNode], Coroutine[Any, Any, _T]], *, writes: bool) -> _T:
        if self._elsewhere():
            return await self._context.run(self._on_root(work, writes=writes))
        edge = self._edge()
        if writes and (edge.read_only or not self._perm & Perm.WRITE):
            raise ReadOnly
        return await work(edge.node)

    async def co_snapshot_list(self) -> tuple[SnapshotInfo, ...]:
        """The snapshots in the root's own image, in its order."""
        from blockio.io.snapshots import snapshot_list  # few processes ask, here as below

        return await self._on_root(snapshot_list, writes=False)

    async def co_snapshot_create(
        self,
        name: str,
        *,
        vm_state_size: int = 0,
        vm_clock_nsec: int = 0,
        icount: int | None = None,
        now: Callable[[], int] = time.time_ns,
    ) -> SnapshotInfo:
        """Keep the disk as it is now as *name*, which may be there already; the answer has the id, which is unique.

        *vm_state_size* bytes saved by ``co_save_vmstate`` go into the snapshot, and are gone from the disk. *now* tells
        the time in nanoseconds since 1970. BlockError EINVAL where the image's refcounts are too narrow for one
        more, EFBIG for too many snapshots.
        """
        from blockio.driver.snapshots import SnapshotInfo
        from blockio.io.snapshots import snapshot_create

        seconds, nanoseconds = divmod(now(), 10**9)
        wanted = SnapshotInfo(
            name=name,
            vm_state_size=vm_state_size,
            date_sec=seconds,
            date_nsec=nanoseconds,
            vm_clock_nsec=vm_clock_nsec,
            icount=icount,
        )
        return await self._on_root(lambda node: snapshot_create(node, wanted), writes=True)

    async def co_snapshot_goto(self, name: str) -> None:
        """Make the disk (and its length) what the snapshot with that id, or else of that name, kept.

        The snapshot stays; what the disk was is lost unless it was kept too. BlockError ENOENT where there is none.
        """
        from blockio.io.snapshots import snapshot_goto

        await self._on_root(lambda node: snapshot_goto(node, name), writes=True)

    async def co_snapshot_delete(self, id: str | None = None, name: str | None = None) -> None:
        """Let go of the first snapshot with that *id* and *name*; one may be None. BlockError ENOENT."""
        from blockio.io.snapshots import snapshot_delete

        await self._on_root(lambda node: snapshot_delete(node, id, name), writes=True)

    async def co_snapshot_rename(self, id: str | None, name: str | None, new_name: str) -> None:
        """Call the first snapshot with that *id* and *name* *new_name*. BlockError ENOENT."""
        from blockio.io.snapshots import snapshot_rename

        await self._on_root(lambda node: snapshot_rename(node, id, name, new_name), writes=True)

    async def co_snapshot_load(self, id: str | None = None, name: str | None = None) -> None:
        """Let the disk, opened read-only, read as that snapshot until it is closed. BlockError ENOENT."""
        from blockio.io.snapshots import snapshot_load

        await self._on_root(lambda node: snapshot_load(node, id, name), writes=False)
