"""What is known of an internal snapshot, and how one is found (QEMU's QEMUSnapshotInfo)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

__all__ = ["SnapshotInfo", "find_snapshot"]


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An internal snapshot, as its image describes it."""

    id: str = ""
    """Unique in its image; given by the image."""
    name: str = ""
    """What people call it; several may have the same."""
    vm_state_size: int = 0
    """How many bytes of a machine's state are kept with it."""
    date_sec: int = 0
    """Seconds since 1970 when it was taken."""
    date_nsec: int = 0
    vm_clock_nsec: int = 0
    """How long the machine had run."""
    icount: int | None = None
    """How many instructions the machine had executed, where that was counted."""
    disk_size: int = 0
    """The disk's length in bytes when it was taken."""


class _Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=_Named)


def find_snapshot(snapshots: Sequence[_T], id: str | None, name: str | None) -> _T | None:
    """The first with that *id* and that *name*, of which either may be None: any will do. None where both are."""
    if id is None and name is None:
        return None
    return next((one for one in snapshots if id in {None, one.id} and name in {None, one.name}), None)
