"""The dirty bitmaps of one node."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from blockio.errors import BlockError

if TYPE_CHECKING:
    from blockio.bitmaps.dirty import DirtyBitmap

__all__ = ["DirtyBitmaps"]


class DirtyBitmaps:
    """Bitmaps that a node's writes are recorded in; the newest comes first, as in QEMU's list.

    Touched only in the thread of the node's context. *changed* is called when the first bitmap comes and when the
    last one goes: while there is none, nothing needs to be recorded.
    """

    __slots__ = ("_changed", "_list", "_named")

    def __init__(self, changed: Callable[[], object] = lambda: None) -> None:
        self._list: list[DirtyBitmap] = []
        """Oldest first."""
        self._named: dict[str, DirtyBitmap] = {}
        self._changed = changed

    def __bool__(self) -> bool:
        return bool(self._list)

    def __iter__(self) -> Iterator[DirtyBitmap]:
        return iter(self._list[::-1])

    def __contains__(self, bitmap: object) -> bool:
        return any(item is bitmap for item in self._list)

    def find(self, name: str) -> DirtyBitmap | None:
        """The bitmap of that name."""
        return self._named.get(name)

    def create(self, size: int, granularity: int, name: str | None = None) -> DirtyBitmap:
        """A new bitmap for a disk of *size* bytes, all clean and enabled (``bdrv_create_dirty_bitmap``).

        Raises BlockError EEXIST for a name in use, ENAMETOOLONG above 1023 bytes; ValueError for the granularity.
        """
        # Most nodes have none.
        from blockio.bitmaps.dirty import MAX_NAME, DirtyBitmap

        if name is not None:
            if self.find(name) is not None:
                raise BlockError(f"Bitmap already exists: {name}", errno.EEXIST)
            if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
                raise BlockError(f"Bitmap name too long: {name}", errno.ENAMETOOLONG)
        bitmap = DirtyBitmap(size, granularity, name)
        self._list.append(bitmap)
        if name is not None:
            self._named[name] = bitmap
        if len(self._list) == 1:
            self._changed()
        return bitmap

    def release(self, bitmap: DirtyBitmap) -> None:
        """Forget *bitmap*. RuntimeError while an operation has it; ValueError where it is not here.

        What an image stores of it is not touched: a persistent one is removed from there first.
        """
        if bitmap.busy or bitmap.successor is not None:
            raise RuntimeError(f"bitmap {bitmap.name!r} is in use")
        for at, item in enumerate(self._list):
            if item is bitmap:
                del self._list[at]
                break
        else:
            raise ValueError(f"{bitmap!r} is not here")
        if bitmap.name is not None:
            del self._named[bitmap.name]
        if not self._list:
            self._changed()

    # -- what the node tells

    def mark(self, offset: int, nbytes: int) -> None:
        """A write of *nbytes* at *offset* ended, well or not: record it. What lies past the disk's end is left out.

        Bitmaps that are disabled, or must not change, record nothing.
        """
        for bitmap in self._list:
            if bitmap.disabled or bitmap.readonly or bitmap.inconsistent:
                continue
            length = min(nbytes, bitmap.size - offset)
            if length > 0:
                bitmap.set(offset, length)

    def truncate(self, size: int) -> None:
        """The disk is *size* bytes long now."""
        for bitmap in self._list:
            if bitmap.size != size:
                bitmap.truncate(size)

    # -- successors

    def create_successor(self, bitmap: DirtyBitmap) -> DirtyBitmap:
        """A nameless bitmap that records instead of *bitmap*, which is busy until ``abdicate`` or ``reclaim``.

        Raises BlockError (EPERM) for one that is busy or has one already.
        """
        from blockio.bitmaps.dirty import BitmapUse

        bitmap.check(BitmapUse.BUSY)
        if bitmap.successor is not None:
            raise BlockError("Cannot create a successor for a bitmap that already has one", errno.EPERM)
        successor = self.create(bitmap.size, bitmap.granularity)
        successor.disabled, bitmap.disabled = bitmap.disabled, True
        bitmap.successor = successor
        bitmap.busy = True
        return successor

    def abdicate(self, bitmap: DirtyBitmap) -> DirtyBitmap:
        """The operation succeeded: *bitmap* goes, its successor takes its name and place. BlockError without one."""
        successor = bitmap.successor
        if successor is None:
            raise BlockError("Cannot relinquish control if there's no successor present", errno.EPERM)
        if bitmap.name is not None:
            self._named[bitmap.name] = successor
        successor.name, bitmap.name = bitmap.name, None
        successor.persistent, bitmap.persistent = bitmap.persistent, False
        bitmap.successor = None
        bitmap.busy = False
        self.release(bitmap)
        return successor

    def reclaim(self, bitmap: DirtyBitmap) -> DirtyBitmap:
        """The operation failed: *bitmap* takes what its successor recorded, and goes on. BlockError without one."""
        successor = bitmap.successor
        if successor is None:
            raise BlockError("Cannot reclaim a successor when none is present", errno.EPERM)
        bitmap._merge(successor)
        bitmap.disabled = successor.disabled
        bitmap.successor = None
        bitmap.busy = False
        self.release(successor)
        return bitmap
