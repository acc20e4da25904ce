"""``snapshot``: copies of a disk inside its image.

>>> await img.snapshot_create("disk.qcow2", "before the upgrade")
>>> await img.snapshot_apply("disk.qcow2", "before the upgrade")

Each opens the image, does its work and closes it. Failing or cancelled, they have done all or nothing.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from blockio.driver.snapshots import SnapshotInfo, find_snapshot
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.img.opening import ImageLike, opened
from blockio.img.options import split_options
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.backend import BlockBackend

__all__ = [
    "load_snapshot",
    "snapshot_apply",
    "snapshot_choice",
    "snapshot_create",
    "snapshot_delete",
    "snapshot_list",
    "snapshot_rename",
]

_WRITING: Final = OpenFlags(unmap=True)


async def snapshot_list(image: ImageLike) -> tuple[SnapshotInfo, ...]:
    """The snapshots in *image*, in its order; UnsupportedFeature where the format has none."""
    async with opened(image, OpenFlags(read_only=True)) as blk:
        return await blk.co_snapshot_list()


async def snapshot_create(image: ImageLike, name: str, *, now: Callable[[], int] = time.time_ns) -> SnapshotInfo:
    """Keep *image*'s disk as it is, as *name*; *now* tells nanoseconds since 1970. Errors begin with what failed."""
    async with opened(image, _WRITING) as blk:
        try:
            # An instruction count of 0, not none, is what QEMU's tool gives its snapshots.
            return await blk.co_snapshot_create(name, icount=0, now=now)
        except BlockError as error:
            code = error.errno or 0
            raise type(error)(f"Could not create snapshot '{name}': {-code} ({error})", code) from error


async def snapshot_apply(image: ImageLike, name: str) -> None:
    """Make *image*'s disk what the snapshot with that id, or else of that name, kept."""
    async with opened(image, _WRITING) as blk:
        try:
            await blk.co_snapshot_goto(name)
        except BlockError as error:
            raise error.prefixed(f"Could not apply snapshot '{name}': ") from error


async def snapshot_delete(image: ImageLike, name: str) -> None:
    """Delete the first snapshot called *name* from *image*. BlockError ENOENT where there is none."""
    async with opened(image, _WRITING) as blk:
        try:
            found = find_snapshot(await blk.co_snapshot_list(), None, name)
        except UnsupportedFeature:
            found = None
        if found is None:
            raise BlockError(f"Could not delete snapshot '{name}': snapshot not found", errno.ENOENT)
        try:
            await blk.co_snapshot_delete(found.id, found.name)
        except BlockError as error:
            raise error.prefixed(f"Could not delete snapshot '{name}': ") from error


async def snapshot_rename(image: ImageLike, name: str, new_name: str) -> None:
    """Call the snapshot of *image* with the id *name*, or else of that name, *new_name*. BlockError ENOENT."""
    async with opened(image, _WRITING) as blk:
        snapshots = await blk.co_snapshot_list()
        by_id = find_snapshot(snapshots, name, None) is not None
        await blk.co_snapshot_rename(name if by_id else None, None if by_id else name, new_name)


def snapshot_choice(text: str) -> tuple[str | None, str | None]:
    """Id and name out of ``snapshot.id=…,snapshot.name=…``. OptionError for other keys."""
    wanted: dict[str, str] = {}
    for key, value in split_options(text):
        if key not in {"snapshot.id", "snapshot.name"}:
            raise OptionError(f"Invalid parameter '{key}'")
        wanted[key] = value
    return wanted.get("snapshot.id"), wanted.get("snapshot.name")


async def load_snapshot(blk: BlockBackend, which: str) -> None:
    """Let *blk*, opened read-only, show the snapshot *which*: an id or a name, or ``snapshot.id=…,snapshot.name=…``.

    OptionError for other keys; errors begin with "Failed to load snapshot".
    """
    try:
        if which.startswith("snapshot."):
            await blk.co_snapshot_load(*snapshot_choice(which))
            return
        try:
            await blk.co_snapshot_load(which, None)
        except BlockError as error:
            if error.errno != errno.ENOENT:
                raise
            await blk.co_snapshot_load(None, which)
    except OptionError:
        raise
    except BlockError as error:
        raise error.prefixed("Failed to load snapshot: ") from error
