"""What needs no waiting: guest bytes that tables in memory place in one piece, handed straight to the file below.

Here are the fast lane (``try_``) and the requests that a plain call starts (``start_``). Guest bytes that the image
does not hold are asked of the backing file in the same breath, so a read comes down a whole chain of overlays without
a coroutine; zeroes are filled in. Compressed clusters, tables that are not in memory and requests that fall into
pieces are the slow lane's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.buffers import fill_zero
from blockio.types import ExtentKind
from blockio_drivers.qcow2.tables import COPIED, L1_OFFSET_MASK, L2_OFFSET_MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.driver.child import Child
    from blockio_drivers.qcow2.image import Image
    from blockio_drivers.qcow2.mapping import Mapping

__all__ = ["Lanes"]

_NOT_COPIED: Final = COPIED - 1
_DATA: Final = ExtentKind.DATA
_KNOWN_TO_BE: Final = {ExtentKind.UNALLOCATED: -1, ExtentKind.ZERO: -2}
_BELOW: Final = _KNOWN_TO_BE[ExtentKind.UNALLOCATED]
"""In place of a host offset: the image does not hold these bytes."""


class Lanes:
    """The plain functions of one open image.

    Invariant: they hand out only what the tables in memory say at that moment, and write only into clusters that are
    the active disk's alone, in an image that is armed (``Image.armed``). Nothing here suspends. A dead image has no
    slices (``Mapping.cache`` was dropped), and the one question that does without them asks.
    """

    __slots__ = (
        "_ask_mapping",
        "_bits",
        "_cluster",
        "_file",
        "_image",
        "_l1_mask",
        "_l1_shift",
        "_mapping",
        "_mask",
        "_odd",
        "_plain",
        "_retired",
        "_slice_mask",
        "_slice_shift",
        "_slices",
    )

    def __init__(self, image: Image, mapping: Mapping) -> None:
        # One attribute each, no call: every request asks them.
        geometry = image.geometry
        self._image = image
        self._file = image.data
        self._retired = image.retired
        self._mapping = mapping
        self._plain = image.encryption is None
        self.find_slices()
        self._l1_shift = geometry.l1_shift
        self._l1_mask = (1 << geometry.l1_shift) - 1
        self._bits = geometry.cluster_bits
        self._mask = geometry.cluster_mask
        self._cluster = geometry.cluster_size
        self._ask_mapping = self._plain and (geometry.extended_l2 or geometry.data_file)
        self._odd = (_NOT_COPIED & ~L2_OFFSET_MASK) | self._mask

    def find_slices(self) -> None:
        """The mapping has a new cache."""
        # Where bytes are encrypted is not for those who know no key.
        self._slices = self._mapping.standard_slices if self._plain else {}
        self._slice_shift = self._mapping.slice_shift
        self._slice_mask = self._mapping.slice_subclusters - 1

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """From plain clusters that lie side by side in the file, from below, or zeroes."""
        found = self.try_descend(offset, bufs, nbytes)
        return found if isinstance(found, bool) else found.try_preadv(offset, bufs, nbytes)

    def try_descend(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool | Child:
        """As ``try_preadv``, but for what is below: the backing child then."""
        # The two most frequent answers of ``_to_read`` without the call, a quarter of what a layer costs: a cluster
        # with data, and a part of the disk of which an overlay holds nothing.
        found = self._slices.get(offset >> self._slice_shift)
        if found is not None:
            inside = offset & self._mask
            if inside + nbytes <= self._cluster:
                host = found.table[(offset >> self._bits) & self._slice_mask] & _NOT_COPIED
                if host and not host & self._odd:
                    found.hot = True
                    return self._file.try_preadv(host + inside, bufs, nbytes)
        elif (offset & self._l1_mask) + nbytes <= self._l1_mask:
            image = self._image
            try:
                if not (image.l1[offset >> self._l1_shift] & L1_OFFSET_MASK or image.dead or self._file.debug_event):
                    return image.driver.backing or fill_zero(bufs)
            except IndexError:  # an image that is only checked may have a table that is too short
                return False
        host = self._to_read(offset, nbytes)
        if host > 0:
            return self._file.try_preadv(host, bufs, nbytes)
        if host == 0 or self._file.debug_event is not None:  # a listener hears of reads from below
            return False
        if host == _BELOW:
            backing = self._image.driver.backing
            if backing is not None:
                return backing
        return fill_zero(bufs)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Only into plain clusters of our own, side by side, whose L2 slice is in memory."""
        host = self._to_overwrite(offset, nbytes)
        return host > 0 and self._file.try_pwritev(host, bufs, nbytes)

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """As ``try_preadv``, but for zeroes; the clusters are not given to anybody else meanwhile."""
        host = self._to_read(offset, nbytes)
        if host > 0:
            flight = self._file.start_preadv(host, bufs, nbytes)
            if flight is not None:
                flight.legs.append(self._retired.enter_flight())
            return flight
        if host != _BELOW or self._file.debug_event is not None:
            return None
        backing = self._image.driver.backing
        return None if backing is None else backing.start_preadv(offset, bufs, nbytes)

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """As ``try_pwritev``; the clusters are not given to anybody else meanwhile."""
        if self._image.data_file is not None and self._image.raw:
            return None  # it must be held while it is under way; see ``data_file``
        host = self._to_overwrite(offset, nbytes)
        if host <= 0:
            return None
        flight = self._file.start_pwritev(host, bufs, nbytes)
        if flight is not None:
            flight.legs.append(self._retired.enter_flight())
        return flight

    def _to_read(self, offset: int, nbytes: int) -> int:
        """The host offset of guest bytes in plain clusters, a value of ``_KNOWN_TO_BE``, or 0: the slow lane's."""
        found = self._slices.get(offset >> self._slice_shift)
        inside = offset & self._mask
        if found is not None:
            index = (offset >> self._bits) & self._slice_mask
            entry = found.table[index]
            host = entry & _NOT_COPIED
            if inside + nbytes <= self._cluster:
                if not host:
                    found.hot = True
                    return _BELOW
                if not host & self._odd:
                    found.hot = True
                    return host + inside
            elif host and not host & self._odd and self._neighbours(found.table, index, entry, inside + nbytes):
                found.hot = True
                return host + inside
        elif (offset & self._l1_mask) + nbytes <= self._l1_mask and not self._image.dead:
            l1 = self._image.l1
            index = offset >> self._l1_shift
            if index < len(l1) and not l1[index] & L1_OFFSET_MASK:
                return _BELOW
        extent = self._mapping.try_map(offset, nbytes)
        if extent is None or extent.length < nbytes:
            return 0
        if extent.kind is _DATA:
            return extent.host_offset if self._plain else 0
        return _KNOWN_TO_BE.get(extent.kind, 0)

    def _to_overwrite(self, offset: int, nbytes: int) -> int:
        """The host offset of guest bytes in plain clusters of our own that memory knows of; 0 for all others."""
        image = self._image
        if not image.armed:
            return 0
        found = self._slices.get(offset >> self._slice_shift)
        if found is None:
            host = self._mapping.in_place(offset, nbytes) if self._ask_mapping else 0
            return host if host > 0 and self._may_write(host, nbytes) else 0
        index = (offset >> self._bits) & self._slice_mask
        entry = found.table[index]
        host = entry ^ COPIED
        if not host or host & ~L2_OFFSET_MASK or host & self._mask:
            return 0
        inside = offset & self._mask
        if inside + nbytes > self._cluster and not self._neighbours(found.table, index, entry, inside + nbytes):
            return 0
        guard = image.guard
        if not guard.clear(host, host + inside + nbytes) and guard.hit(host + inside, nbytes) is not None:
            return 0
        found.hot = True
        return host + inside

    def _may_write(self, host: int, nbytes: int) -> bool:
        """No metadata is there, and in a data file nobody is busy who must not be overtaken."""
        image = self._image
        if image.data_file is not None:
            return not image.data_file.busy(host, nbytes)
        return image.guard.hit(host, nbytes) is None

    def _neighbours(self, table: Sequence[int], index: int, entry: int, nbytes: int) -> bool:
        """Whether the clusters of *nbytes* from entry *index* on lie side by side in the file."""
        step = self._cluster
        count = (nbytes + self._mask) >> self._bits
        if index + count > self._slice_mask + 1:
            return False
        for at in range(index + 1, index + count):
            entry += step
            if table[at] != entry:
                return False
        return True
