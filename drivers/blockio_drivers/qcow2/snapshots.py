"""Internal snapshots: kept, shown, applied, let go of.

Stands on the *Snapshots* section of QEMU's ``docs/interop/qcow2.txt``. A snapshot is an L1 table of its own, which
leads to the L2 tables and clusters that the disk had; what both lead to has a refcount above one and is copied before
it is written. How such a change becomes one write is told in ``revision``.

Invariants:

* ``entries`` is the snapshot table, and the image's guard knows it and the L1 tables it names.
* The machine's state lies past the disk's end in the same L1 table; a snapshot taken with one takes it along, and the
  disk has none afterwards.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from blockio.errors import BlockError, CorruptImage, LimitExceeded, UnsupportedFeature
from blockio_drivers.qcow2.areas import Area
from blockio_drivers.qcow2.overlap import SortedOffsets
from blockio_drivers.qcow2.tables import L1_OFFSET_MASK, table_from_bytes

if TYPE_CHECKING:
    from array import array

    from blockio.driver.snapshots import SnapshotInfo
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping
    from blockio_drivers.qcow2.revision import Revision
    from blockio_drivers.qcow2.snapshot_table import SnapshotEntry
    from blockio_drivers.qcow2.writeback import WriteBack

__all__ = ["MAX_SNAPSHOTS", "Snapshots"]

MAX_SNAPSHOTS: Final = 65536
_NUMBER: Final = re.compile(r"\s*\+?(\d+)")
_UINT32_MAX: Final = (1 << 32) - 1
_EXTRA_OF_VERSION_3: Final = 16


class Snapshots:
    """One image's snapshots; see the module's docstring. One change at a time, and no request is under way then."""

    def __init__(
        self,
        image: Image,
        mapping: Mapping,
        allocator: Allocator,
        write_back: WriteBack,
        *,
        protect_tables: bool,
        pass_discard: bool,
    ) -> None:
        self._image = image
        self._mapping = mapping
        self._allocator = allocator
        self._write_back = write_back
        self.pass_discard = pass_discard
        self.protect_tables = protect_tables
        self.entries: list[SnapshotEntry] = []
        self._table_bytes = 0

    # -- life

    async def open(self) -> None:
        """Read the snapshot table. CorruptImage or LimitExceeded where it is none."""
        header = self._image.header
        self.entries, self._table_bytes = [], 0
        if header.nb_snapshots:
            from blockio_drivers.qcow2.snapshot_table import parse_snapshots  # most images have none, here as below

            self.entries, self._table_bytes = await parse_snapshots(
                self._image.read,
                header.snapshots_offset,
                header.nb_snapshots,
                header.cluster_size,
                self._image.host.trust,
                disk_size=header.disk_size,
            )

    def succeed(self, other: Snapshots) -> None:
        """Go on with the table that *other* knows, and the image's guard."""
        self.entries, self._table_bytes = other.entries, other._table_bytes

    async def protect(self) -> None:
        """Tell the image's guard of the tables, before the first write."""
        guard, limit = self._image.guard, self._image.host.trust.max_l1_bytes
        guard.snapshot_table_bytes = self._table_bytes
        guard.inactive_l1 = [
            Area(entry.l1_table_offset, min(entry.l1_size * 8, limit)) for entry in self.entries if entry.l1_size
        ]
        guard.inactive_l2 = SortedOffsets()
        guard.refresh()
        if self.protect_tables:
            found: set[int] = set()
            for offset, size in guard.inactive_l1:
                found.update(entry & L1_OFFSET_MASK for entry in table_from_bytes(await self._image.read(offset, size)))
            guard.inactive_l2 = SortedOffsets(sorted(found))

    # -- looking

    def infos(self) -> tuple[SnapshotInfo, ...]:
        """What everybody may know of them, in the table's order."""
        return tuple(entry.info() for entry in self.entries)

    def find(self, id: str | None, name: str | None, message: str) -> SnapshotEntry:
        """The first with that id and name; ENOENT with *message*."""
        from blockio.driver.snapshots import find_snapshot

        found = find_snapshot(self.entries, id, name)
        if found is None:
            raise BlockError(message, errno.ENOENT)
        return found

    async def l1_table(self, entry: SnapshotEntry) -> array[int]:
        """The L1 table of a snapshot. LimitExceeded or CorruptImage where it is none."""
        if entry.l1_size > self._image.host.trust.max_l1_bytes // 8:
            raise LimitExceeded("Snapshot L1 table too large")
        if entry.l1_table_offset & self._image.geometry.cluster_mask or entry.l1_table_offset >> 63:
            raise CorruptImage("Snapshot L1 table offset invalid", errno.EINVAL)
        return table_from_bytes(await self._image.read(entry.l1_table_offset, entry.l1_size * 8))

    async def load(self, id: str | None, name: str | None) -> None:
        """Look at the disk through a snapshot's L1 table. The image is read-only, so nothing of it is ever written."""
        entry = self.find(id, name, "Can't find snapshot")
        table = await self.l1_table(entry)
        self._mapping.cache.drop()
        self._image.l1 = table

    # -- changing

    async def create(self, info: SnapshotInfo) -> None:
        """Keep the disk as it is. BlockError EFBIG for one too many, EINVAL where refcounts have no room for it."""
        from blockio_drivers.qcow2.snapshot_table import NO_ICOUNT, SnapshotEntry, encode_snapshots

        image = self._image
        if image.header.has_data_file:
            raise UnsupportedFeature
        if len(self.entries) >= MAX_SNAPSHOTS:
            raise BlockError(errno=errno.EFBIG)
        numbers = (_NUMBER.match(entry.id) for entry in self.entries)
        entry = SnapshotEntry(
            id=str(1 + max((int(found[1]) for found in numbers if found), default=0)),
            name=info.name,
            l1_table_offset=0,
            l1_size=len(image.l1),
            date_sec=info.date_sec & _UINT32_MAX,
            date_nsec=info.date_nsec,
            vm_clock_nsec=info.vm_clock_nsec,
            vm_state_size=info.vm_state_size,
            disk_size=image.length,
            icount=NO_ICOUNT if info.icount is None else info.icount,
        )
        encode_snapshots([entry])  # a name that has no room is refused before anything is done

        def change(revision: Revision) -> None:
            shared = image.l1
            if entry.vm_state_size:
                shared = shared[: image.geometry.l1_entries_for(image.length)]
            revision.count(shared, 1)
            revision.keep(image.l1)
            revision.activate([*shared, *(0 for _ in range(len(image.l1) - len(shared)))])

        await self._revise(change, [*self.entries, entry])

    async def goto(self, name: str) -> None:
        """Make the disk what a snapshot kept. ENOENT where there is none."""
        from blockio.driver.snapshots import find_snapshot

        image = self._image
        entry = find_snapshot(self.entries, name, None) or find_snapshot(self.entries, None, name)
        if image.header.has_data_file:
            raise UnsupportedFeature
        if entry is None:
            raise BlockError(errno=errno.ENOENT)
        size = entry.disk_size
        if size % 512:
            raise CorruptImage("The snapshot's disk size is not a multiple of 512", errno.EINVAL)
        if size != image.length and image.header.bitmaps is not None:
            raise UnsupportedFeature("Can't change the length of a disk that has persistent bitmaps")
        table = await self.l1_table(entry)
        entries = max(len(table), len(image.l1), image.geometry.l1_entries_for(size))
        if entries * 8 > image.host.trust.max_l1_bytes:
            raise LimitExceeded("Failed to grow the L1 table: File too large")

        def change(revision: Revision) -> None:
            revision.count(image.l1, -1)
            revision.count(table, 1)
            revision.activate([*table, *(0 for _ in range(entries - len(table)))], size=size)

        await self._revise(change, None)

    async def delete(self, id: str | None, name: str | None) -> None:
        """Let go of a snapshot. ENOENT where there is none."""
        image = self._image
        if image.header.has_data_file:
            raise UnsupportedFeature
        entry = self.find(id, name, "Can't find the snapshot")
        table = await self.l1_table(entry)

        def change(revision: Revision) -> None:
            revision.count(table, -1)
            revision.activate(image.l1)
            revision.let_go(entry.l1_table_offset, entry.l1_size * 8)

        await self._revise(change, [other for other in self.entries if other is not entry])

    async def rename(self, id: str | None, name: str | None, new_name: str) -> None:
        """Give a snapshot another name. ENOENT where there is none, EINVAL where the name is too long."""
        from blockio_drivers.qcow2.snapshot_table import encode_snapshots

        entry = self.find(id, name, "Can't find the snapshot")
        renamed = replace(entry, name=new_name)
        encode_snapshots([renamed])
        await self._revise(lambda _: None, [renamed if other is entry else other for other in self.entries])

    async def complete(self) -> None:
        """Give every entry the extra data that version 3 demands: how large its state is, and how long its disk."""
        if any(entry.extra_data_size < _EXTRA_OF_VERSION_3 for entry in self.entries):
            size = _EXTRA_OF_VERSION_3
            await self._revise(
                lambda _: None,
                [replace(entry, extra_data_size=max(entry.extra_data_size, size)) for entry in self.entries],
            )

    async def rewrite(self, entries: list[SnapshotEntry], table_bytes: int) -> None:
        """Write *entries* in place of a table of *table_bytes* that a repair has found wanting."""
        self.entries, self._table_bytes = entries, table_bytes
        await self.protect()
        await self._revise(lambda _: None, list(entries))

    async def _revise(self, change: Callable[[Revision], None], snapshots: list[SnapshotEntry] | None) -> None:
        from blockio_drivers.qcow2.revision import Revision
        from blockio_drivers.qcow2.snapshot_table import encode_snapshots

        await self._write_back.settle_all()
        async with self._write_back.exclusive():
            revision = Revision(self._image, self._mapping, self._allocator, pass_discard=self.pass_discard)
            change(revision)
            before = self._image.header
            try:
                await revision.publish(snapshots, self._table_bytes)
            finally:
                if revision.snapshots is not None:
                    self.entries = revision.snapshots
                    self._table_bytes = len(encode_snapshots(self.entries))
                if self._image.header is not before:
                    # The tables as they are now; what cannot be read is not protected.
                    with suppress(OSError):
                        await self.protect()
