"""Where the tables of internal snapshots lie, so that nothing is written over them.

Snapshots themselves are neither taken nor applied here: what they share with the active disk shows in the COPIED
flags, which are all a writer needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio_drivers.qcow2.areas import Area, parse_snapshots
from blockio_drivers.qcow2.overlap import SortedOffsets
from blockio_drivers.qcow2.tables import L1_OFFSET_MASK, table_from_bytes

if TYPE_CHECKING:
    from blockio_drivers.qcow2.image import Image

__all__ = ["protect_snapshots"]


async def protect_snapshots(image: Image, *, tables: bool) -> None:
    """Tell the image's guard of the snapshot table and the snapshots' L1 tables; with *tables* of their L2 tables.

    CorruptImage or LimitExceeded where the snapshot table is none.
    """
    header, trust = image.header, image.host.trust
    entries, nbytes = await parse_snapshots(
        image.read, header.snapshots_offset, header.nb_snapshots, header.cluster_size, trust
    )
    guard = image.guard
    guard.snapshot_table_bytes = nbytes
    guard.inactive_l1 = [
        Area(entry.l1_table_offset, min(entry.l1_size * 8, trust.max_l1_bytes)) for entry in entries if entry.l1_size
    ]
    found: set[int] = set()
    if tables:
        for offset, size in guard.inactive_l1:
            found.update(entry & L1_OFFSET_MASK for entry in table_from_bytes(await image.read(offset, size)))
    guard.inactive_l2 = SortedOffsets(sorted(found))
    guard.refresh()
