"""The values that pass between the rooms of the house.

Everything here is frozen, knows no I/O and imports nothing of blockio. Sizes and offsets are bytes, never
sectors. The names are QEMU's: what ``include/block/block-common.h`` calls ``BLK_PERM_WRITE`` is
``Perm.WRITE`` here, and carries the same bit, because scripts and lock bytes depend on it.
"""

from __future__ import annotations

from enum import Enum, IntFlag, StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, NewType

import msgspec

if TYPE_CHECKING:
    from blockio.driver.child import Child

__all__ = [
    "INT_MAX",
    "MAX_LENGTH",
    "BlockInfo",
    "BlockLimits",
    "BlockSizes",
    "BlockStatus",
    "BlockStatuses",
    "Capability",
    "ClusterIndex",
    "DetectZeroes",
    "Extent",
    "ExtentKind",
    "Extents",
    "Geometry",
    "GuestOffset",
    "HostOffset",
    "Limits",
    "OpenFlags",
    "Perm",
    "PreallocMode",
    "RequestFlags",
    "Role",
    "StatusFlags",
]

MAX_LENGTH: Final = (2**63 - 1) & -(1 << 30)
"""The longest disk and the highest end of a request, in bytes: leaves room to align upwards within 63 bits."""

INT_MAX: Final = 2**31 - 1
"""The longest single request, in bytes; a longer one fails with EIO as in the reference document."""

GuestOffset = NewType("GuestOffset", int)
"""A byte position on the virtual disk, as the guest sees it."""

HostOffset = NewType("HostOffset", int)
"""A byte position in the file (or data file) that stores an image."""

ClusterIndex = NewType("ClusterIndex", int)
"""A cluster's number: an offset divided by the cluster size, guest or host as the context says."""


class Perm(IntFlag):
    """What a parent may do with a child, or lets others do (QEMU's BLK_PERM bits)."""

    NONE = 0
    CONSISTENT_READ = 1
    WRITE = 2
    WRITE_UNCHANGED = 4
    RESIZE = 8
    ALL = 15


class Role(IntFlag):
    """What a child is to its parent (QEMU's BDRV_CHILD bits)."""

    NONE = 0
    DATA = 1
    METADATA = 2
    FILTERED = 4
    COW = 8
    PRIMARY = 16
    IMAGE = DATA | METADATA | PRIMARY


class RequestFlags(IntFlag):
    """Wishes that travel with a request (QEMU's BDRV_REQ bits). ``0`` is the common case."""

    NONE = 0
    COPY_ON_READ = 0x1
    ZERO_WRITE = 0x2
    MAY_UNMAP = 0x4
    FUA = 0x10
    WRITE_COMPRESSED = 0x20
    WRITE_UNCHANGED = 0x40
    SERIALISING = 0x80
    NO_FALLBACK = 0x100
    PREFETCH = 0x200
    NO_WAIT = 0x400


class StatusFlags(IntFlag):
    """The answer of a block status query (QEMU's BDRV_BLOCK bits)."""

    NONE = 0
    DATA = 0x01
    ZERO = 0x02
    OFFSET_VALID = 0x04
    RAW = 0x08
    ALLOCATED = 0x10
    EOF = 0x20
    RECURSE = 0x40
    COMPRESSED = 0x80


class PreallocMode(StrEnum):
    """How space for new bytes is provided when an image is made or grown."""

    OFF = "off"
    METADATA = "metadata"
    FALLOC = "falloc"
    FULL = "full"


class DetectZeroes(StrEnum):
    """Whether a written buffer of zeroes becomes a zero write, and whether that may unmap."""

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


class Capability(Enum):
    """How well a driver can do something: not at all, with the framework's help, or by itself."""

    NONE = 0
    EMULATED = 1
    NATIVE = 2


class ExtentKind(Enum):
    """What a format knows about a run of guest bytes."""

    DATA = "data"
    """Stored plainly in ``child`` from ``host_offset`` on."""
    ZERO = "zero"
    """Reads as zeroes here; no layer below is asked."""
    UNALLOCATED = "unallocated"
    """This layer says nothing: the COW child decides, or zeroes where there is none."""
    COMPRESSED = "compressed"
    """Stored, but only the driver can turn it into guest bytes (``FormatDriver.co_read_compressed``)."""
    ENCRYPTED = "encrypted"
    """As long as the guest bytes and at ``host_offset``, but only the driver can read it (``co_read_encrypted``)."""


class Extent(NamedTuple):
    """The answer to *where are these bytes?*: one run of one kind, starting at the asked offset.

    ``length`` is at least 1 and at most what was asked for. ``host_offset`` is the position in ``child`` for
    DATA and ENCRYPTED, the place in reserve of ZERO and UNALLOCATED (or -1), a driver's own key for COMPRESSED.
    """

    kind: ExtentKind
    length: int
    host_offset: int = -1
    child: Child | None = None


class Extents(NamedTuple):
    """Extents in a row that are of one kind and in one child: column by column, because a disk may have a million.

    The fields are those of ``Extent``; neither column is empty, and both are as long.
    """

    kind: ExtentKind
    lengths: list[int]
    host_offsets: list[int]
    child: Child | None = None


class BlockStatus(NamedTuple):
    """What a range holds: ``flags`` for ``length`` bytes; with OFFSET_VALID, ``node_name`` at ``host_offset``.

    ``node_name`` names the node that owns the bytes at ``host_offset``, as ``map`` reports it.
    """

    flags: StatusFlags
    length: int
    host_offset: int = 0
    node_name: str = ""
    depth: int = 0


class BlockStatuses(NamedTuple):
    """Answers in a row that differ in length and place only: the fields are those of ``BlockStatus``, as columns."""

    flags: StatusFlags
    lengths: list[int]
    host_offsets: list[int]
    node_name: str = ""


class BlockLimits(msgspec.Struct, frozen=True):
    """What a node can take in one request; all in bytes but ``max_iov``. 0 means *no limit*.

    ``request_alignment`` is a power of two, 1 for byte-addressed drivers. Requests that break it reach a
    driver only after ``blockio.io.align`` has padded them.
    """

    request_alignment: int = 1
    max_transfer: int = 0
    max_iov: int = 1024
    min_mem_alignment: int = 1
    opt_mem_alignment: int = 4096
    opt_transfer: int = 0
    pwrite_zeroes_alignment: int = 0
    max_pwrite_zeroes: int = 0
    pdiscard_alignment: int = 0
    max_pdiscard: int = 0


class Limits(msgspec.Struct, frozen=True):
    """What an image may cost its reader; breaking one is a ``LimitExceeded``. Immune to what the image says."""

    max_chain_depth: int = 200
    max_l1_bytes: int = 32 << 20
    max_refcount_table_bytes: int = 8 << 20
    max_header_string: int = 1023
    max_header_extensions: int = 1 << 20
    max_metadata_cache: int = 64 << 20
    max_decompressed_cluster: int = 2 << 20
    max_snapshots: int = 65536
    max_bitmaps: int = 65535
    max_bitmap_memory: int = 256 << 20
    """What the bits of all bitmaps that an image stores may take in memory together, and the tables that say where."""
    max_kdf_iterations: int = 100_000_000
    """PBKDF2 rounds for trying one passphrase on all key slots: some half a minute to a minute."""


class OpenFlags(msgspec.Struct, frozen=True):
    """How a node is opened. Children inherit them as ``graph.open`` says for each role."""

    read_only: bool = False
    auto_read_only: bool = False
    force_share: bool = False
    no_io: bool = False
    """Only metadata is wanted (``info``): no CONSISTENT_READ on the data is taken."""
    check: bool = False
    """Opened to be checked or repaired: a corrupt or dirty image does not refuse."""
    no_backing: bool = False
    unmap: bool = False
    """``discard=unmap``: discards and MAY_UNMAP are passed on; without it they do nothing."""
    cache_direct: bool = False
    cache_no_flush: bool = False
    cache_writeback: bool = True
    inactive: bool = False

    def with_(self, **changes: bool) -> OpenFlags:
        """The same flags with *changes* made."""
        return msgspec.structs.replace(self, **changes)


class BlockInfo(msgspec.Struct, frozen=True):
    """What ``bdrv_get_info`` tells of a node. ``cluster_size`` 0: the driver has none."""

    cluster_size: int = 0
    subcluster_size: int = 0
    vm_state_offset: int = 0
    is_dirty: bool = False
    needs_compressed_writes: bool = False


class BlockSizes(msgspec.Struct, frozen=True):
    """The units of a real block device in bytes: what it moves at once, and what it addresses."""

    physical: int
    logical: int


class Geometry(msgspec.Struct, frozen=True):
    """What a real disk says of its heads, sectors a track, and cylinders."""

    heads: int
    sectors: int
    cylinders: int
