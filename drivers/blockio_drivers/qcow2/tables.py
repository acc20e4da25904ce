"""Where guest bytes are: the geometry of an image and the codec of L1 and L2 entries.

Stands on the *Cluster mapping* section of QEMU's ``docs/interop/qcow2.txt``. Tables are kept as ``array('Q')`` in
the machine's own byte order; on disk they are big-endian. Offsets and sizes are bytes. A pure codec: no I/O.
"""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.types import HostOffset

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio_drivers.qcow2.header import Header

__all__ = [
    "ALL_ALLOCATED",
    "ALL_ZERO",
    "BITMAP_TABLE_OFFSET_MASK",
    "COMPRESSED",
    "COPIED",
    "L1_OFFSET_MASK",
    "L1_RESERVED_MASK",
    "L2_OFFSET_MASK",
    "L2_RESERVED_MASK",
    "REFCOUNT_TABLE_OFFSET_MASK",
    "REFCOUNT_TABLE_RESERVED_MASK",
    "ZERO",
    "CompressedCluster",
    "Geometry",
    "table_from_bytes",
    "table_to_bytes",
]

COPIED: Final = 1 << 63
"""In L1 and L2 entries: the refcount of what the entry points at is exactly one, so that it may be written in place."""
COMPRESSED: Final = 1 << 62
"""In an L2 entry: the descriptor below is that of a compressed cluster."""
ZERO: Final = 1
"""In a standard L2 entry of version 3 without subclusters: the cluster reads as zeroes."""
ALL_ALLOCATED: Final = 0xFFFF_FFFF
"""In the bitmap of an extended L2 entry: every subcluster has data. Bit *n* is that of subcluster *n*."""
ALL_ZERO: Final = ALL_ALLOCATED << 32
"""In the bitmap of an extended L2 entry: every subcluster reads as zeroes."""

L1_OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
"""Bits 9-55 of an L1 entry: where the L2 table starts; 0 means none."""
L1_RESERVED_MASK: Final = 0x7F00_0000_0000_01FF
L2_OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
"""Bits 9-55 of a standard L2 entry: where the cluster starts; 0 without COPIED means unallocated."""
L2_RESERVED_MASK: Final = 0x3F00_0000_0000_01FE
REFCOUNT_TABLE_OFFSET_MASK: Final = 0xFFFF_FFFF_FFFF_FE00
"""Bits 9-63 of a refcount table entry: where the refcount block starts; 0 means that all its refcounts are 0."""
REFCOUNT_TABLE_RESERVED_MASK: Final = 0x1FF
BITMAP_TABLE_OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00

_INT_MAX: Final = 2**31 - 1
_SWAP: Final = sys.byteorder == "little"


class CompressedCluster(msgspec.Struct, frozen=True):
    """Where compressed data lies: at ``offset`` (any byte), in at most ``nbytes`` up to a sector's end."""

    offset: HostOffset
    nbytes: int


class Geometry(msgspec.Struct, frozen=True):
    """The numbers that follow from an image's header, computed once.

    All ``*_bits`` are exponents of two; masks are for the value itself. An L2 slice is what the caches read at
    once and is no matter of the format: it is not here.
    """

    version: int
    cluster_bits: int
    cluster_size: int
    cluster_mask: int
    """``offset & cluster_mask`` is the offset inside its cluster."""
    l2_bits: int
    l2_entries: int
    """Entries of one L2 table: one cluster of them."""
    l1_shift: int
    """``guest_offset >> l1_shift`` is the L1 index."""
    cluster_offset_mask: int
    """The offset field of a compressed cluster descriptor."""
    csize_shift: int
    csize_mask: int
    refcount_order: int
    refcount_bits: int
    refcount_block_bits: int
    refcount_block_entries: int
    """Refcounts in one refcount block: one cluster of them."""
    zero_bit: int
    """``ZERO`` where the image knows zero clusters in its L2 entries, else 0."""
    extended_l2: bool
    """Whether L2 entries have a second word, the bitmap of the cluster's subclusters."""
    l2_entry_bytes: int
    subcluster_bits: int
    """Of what an L2 entry speaks of apart: a 32nd of a cluster with extended L2 entries, else all of it."""
    data_file: bool
    """Whether guest data is in a file of its own, where each cluster lies at its guest offset and none is counted."""

    @classmethod
    def of(cls, header: Header) -> Geometry:
        """From a decoded header."""
        return cls.make(
            header.cluster_bits,
            header.refcount_order,
            version=header.version,
            extended_l2=header.extended_l2,
            data_file=header.has_data_file,
        )

    @classmethod
    def make(
        cls,
        cluster_bits: int,
        refcount_order: int = 4,
        *,
        version: int = 3,
        extended_l2: bool = False,
        data_file: bool = False,
    ) -> Geometry:
        """From the numbers alone, for an image that has no header yet."""
        entry_size = 16 if extended_l2 else 8
        l2_bits = cluster_bits - (entry_size.bit_length() - 1)
        # "x = 62 - (cluster_bits - 8)": below bit x the offset, from x to 61 the additional sectors.
        csize_shift = 62 - (cluster_bits - 8)
        block_bits = cluster_bits + 3 - refcount_order
        return cls(
            version=version,
            cluster_bits=cluster_bits,
            cluster_size=1 << cluster_bits,
            cluster_mask=(1 << cluster_bits) - 1,
            l2_bits=l2_bits,
            l2_entries=1 << l2_bits,
            l1_shift=cluster_bits + l2_bits,
            cluster_offset_mask=(1 << csize_shift) - 1,
            csize_shift=csize_shift,
            csize_mask=(1 << (cluster_bits - 8)) - 1,
            refcount_order=refcount_order,
            refcount_bits=1 << refcount_order,
            refcount_block_bits=block_bits,
            refcount_block_entries=1 << block_bits,
            zero_bit=ZERO if version >= 3 and not extended_l2 else 0,
            extended_l2=extended_l2,
            l2_entry_bytes=entry_size,
            subcluster_bits=cluster_bits - 5 if extended_l2 else cluster_bits,
            data_file=data_file,
        )

    # -- positions

    @property
    def subcluster_size(self) -> int:
        """Bytes of a subcluster; those of a cluster in an image without."""
        return 1 << self.subcluster_bits

    @property
    def subcluster_mask(self) -> int:
        """``offset & subcluster_mask`` is the offset inside its subcluster."""
        return (1 << self.subcluster_bits) - 1

    def clusters(self, nbytes: int) -> int:
        """How many clusters hold *nbytes*."""
        return (nbytes + self.cluster_mask) >> self.cluster_bits

    def l1_entries_for(self, disk_size: int) -> int:
        """How many L1 entries a disk of *disk_size* bytes needs."""
        return (disk_size + (1 << self.l1_shift) - 1) >> self.l1_shift

    # -- L2 entries

    def compressed(self, entry: int) -> CompressedCluster:
        """Where the data of a compressed *entry* lies.

        The descriptor counts the 512-byte sectors *beyond* the one that holds the first byte; the data may end
        before the last sector does, and another compressed cluster may begin there.
        """
        offset = entry & self.cluster_offset_mask
        sectors = ((entry >> self.csize_shift) & self.csize_mask) + 1
        return CompressedCluster(HostOffset(offset), sectors * 512 - (offset & 511))

    def compressed_entry(self, offset: HostOffset, nbytes: int) -> int:
        """The L2 entry for *nbytes* (at least 1) of compressed data at *offset*. ValueError where it has no room."""
        sectors = ((offset + nbytes - 1) >> 9) - (offset >> 9)
        if nbytes < 1 or offset & ~self.cluster_offset_mask or sectors > self.csize_mask:
            raise ValueError(f"no compressed cluster descriptor for {nbytes} bytes at {offset:#x}")
        return COMPRESSED | offset | (sectors << self.csize_shift)


def table_from_bytes(data: Buffer) -> array[int]:
    """Big-endian 64-bit entries as an array in the machine's order. ValueError for a part of an entry."""
    table = array("Q")
    table.frombytes(data)
    if _SWAP:
        table.byteswap()
    return table


def table_to_bytes(table: array[int], start: int = 0, stop: int | None = None) -> bytes:
    """Entries *start* to *stop* as they stand on disk."""
    part = table[start:stop]
    if _SWAP:
        part.byteswap()
    return part.tobytes()
