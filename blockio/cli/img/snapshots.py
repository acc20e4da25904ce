"""How internal snapshots are shown to people."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from blockio.cli.output import human_size

if TYPE_CHECKING:
    from blockio.driver.snapshots import SnapshotInfo

__all__ = ["shown", "snapshot_lines"]

_LONGEST: Final = 255
"""How many bytes of a name the tools know."""


def shown(name: str) -> str:
    """As much of *name* as the tools know."""
    raw = name.encode("utf-8", "surrogateescape")
    return name if len(raw) <= _LONGEST else raw[:_LONGEST].decode("utf-8", "surrogateescape")


def snapshot_lines(snapshots: Sequence[SnapshotInfo]) -> Iterator[str]:
    """The list of *snapshots*, with its head."""
    yield "Snapshot list:"
    yield f"{'ID':<9} {'TAG':<16} {'VM SIZE':>8}{'DATE':>20}{'VM CLOCK':>13}{'ICOUNT':>11}"
    for snapshot in snapshots:
        date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.date_sec))
        seconds, nanoseconds = divmod(snapshot.vm_clock_nsec, 10**9)
        hours, rest = divmod(seconds, 3600)
        clock = f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}.{nanoseconds // 10**6:03d}"
        icount = "" if snapshot.icount is None else str(snapshot.icount)
        size = human_size(snapshot.vm_state_size)
        yield f"{snapshot.id:<9} {shown(snapshot.name):<16} {size:>8}{date:>20}{clock:>13}{icount:>11}"
