"""The qcow2 header: the first cluster of an image, as a frozen value and back.

Stands on the *Header* and *Additional fields* sections of QEMU's ``docs/interop/qcow2.txt``; ``extensions`` has the
rest of the cluster. All numbers are big-endian; all offsets and sizes are bytes. This module is a pure codec: it does
no I/O, and any input either decodes or raises a ``BlockError`` with the message QEMU's tools give for it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import Any, Final

import msgspec

from blockio.errors import BlockError, CorruptImage, ImageError, LimitExceeded, NotThisFormat, UnsupportedFeature
from blockio.types import HostOffset, Limits
from blockio_drivers.qcow2.extensions import (
    BACKING_FORMAT,
    BITMAPS,
    DATA_FILE,
    ENCRYPTION,
    END,
    FEATURE_NAMES,
    BitmapsExtension,
    EncryptionExtension,
    ExtensionReader,
    FeatureName,
    UnknownExtension,
    corrupt,
    extension,
    extensions,
    feature_list,
    feature_table,
    text,
)

__all__ = [
    "AUTOCLEAR_FEATURES_OFFSET",
    "INCOMPATIBLE_FEATURES_OFFSET",
    "MAGIC",
    "MAX_CLUSTER_BITS",
    "MIN_CLUSTER_BITS",
    "Autoclear",
    "Compatible",
    "CompressionType",
    "CryptMethod",
    "Header",
    "Incompatible",
    "header_area",
]

MAGIC: Final = b"QFI\xfb"
MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
"""QEMU's own bound; the format knows none."""

INCOMPATIBLE_FEATURES_OFFSET: Final = 72
"""Where the incompatible feature bits stand, for setting the dirty and corrupt bits in place."""
AUTOCLEAR_FEATURES_OFFSET: Final = 88
"""Where the autoclear feature bits stand, for clearing unknown ones before the first write."""

_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
_V2_LENGTH: Final = 72
_V3_MIN_LENGTH: Final = 104
_KNOWN_LENGTH: Final = 112
"""The header as far as this module knows its fields: compression type at 104, then seven bytes of padding."""

_MAX_BACKING_NAME: Final = 1023
_SNAPSHOT_ENTRY_MIN: Final = 40
_INT64_MAX: Final = 2**63 - 1
_NOWHERE: Final = HostOffset(0)
_INT_MAX: Final = 2**31 - 1
_LARGEST_WITHOUT_FEATURE_NAMES: Final = 4096


class Incompatible(IntFlag):
    """Feature bits that a program must know to open the image at all."""

    DIRTY = 1 << 0
    """Refcounts may be wrong; they must be repaired before the first write."""
    CORRUPT = 1 << 1
    """Any structure may be wrong; the image must not be written but to repair it."""
    DATA_FILE = 1 << 2
    """Guest clusters live in an external data file."""
    COMPRESSION = 1 << 3
    """Compressed clusters use something else than zlib."""
    EXTENDED_L2 = 1 << 4
    """L2 entries are 16 bytes and describe 32 subclusters."""


class Compatible(IntFlag):
    """Feature bits that may be ignored."""

    LAZY_REFCOUNTS = 1 << 0
    """Refcount updates may be postponed behind the dirty bit."""


class Autoclear(IntFlag):
    """Feature bits that must be cleared by a writer that does not know them."""

    BITMAPS = 1 << 0
    """The bitmaps extension is consistent."""
    DATA_FILE_RAW = 1 << 1
    """The external data file is a valid raw image by itself."""


_INCOMPATIBLE_KNOWN: Final = 0x1F


class CompressionType(IntEnum):
    """The method of all compressed clusters of an image."""

    ZLIB = 0
    ZSTD = 1


class CryptMethod(IntEnum):
    """How guest data is encrypted."""

    NONE = 0
    AES = 1
    LUKS = 2


def header_area(head: bytes) -> int:
    """How many bytes from the file's start ``Header.decode`` needs: one cluster.

    *head* is the first 24 bytes or more (a shorter file counts as padded with zeroes). Raises NotThisFormat for
    other magic, UnsupportedFeature for a version other than 2 and 3, CorruptImage for a cluster size out of range.
    """
    head = head[:24].ljust(24, b"\0")
    if head[:4] != MAGIC:
        raise NotThisFormat("Image is not in qcow2 format")
    version = int.from_bytes(head[4:8], "big")
    if version not in {2, 3}:
        raise UnsupportedFeature(f"Unsupported qcow2 version {version}")
    cluster_bits = int.from_bytes(head[20:24], "big")
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise corrupt(f"Unsupported cluster size: 2^{cluster_bits}")
    return 1 << cluster_bits


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the first cluster says.

    The feature fields are plain integers, because they may hold bits that ``Incompatible``, ``Compatible`` and
    ``Autoclear`` do not name. Strings are UTF-8 with undecodable bytes as surrogates, as file names are.
    """

    version: int
    cluster_bits: int
    size: int
    """The virtual disk's length in bytes. QEMU itself cuts it down to whole 512-byte sectors; see ``disk_size``."""
    l1_size: int
    """Entries of the active L1 table."""
    l1_table_offset: HostOffset
    refcount_table_offset: HostOffset
    refcount_table_clusters: int
    nb_snapshots: int = 0
    snapshots_offset: HostOffset = _NOWHERE
    crypt_method: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression_type: CompressionType = CompressionType.ZLIB
    unknown_fields: bytes = b""
    """Header fields past byte 112, as somebody else wrote them."""
    backing_file: str | None = None
    backing_format: str | None = None
    data_file: str | None = None
    feature_names: tuple[FeatureName, ...] = ()
    bitmaps: BitmapsExtension | None = None
    stale_bitmaps: bool = False
    """There is a bitmaps extension, but its autoclear bit is off: somebody who knows no bitmaps wrote to the image."""
    encryption: EncryptionExtension | None = None
    unknown_extensions: tuple[UnknownExtension, ...] = ()

    # -- what follows from the fields

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @property
    def disk_size(self) -> int:
        """The length the guest sees: ``size`` without a last part of a sector."""
        return self.size & ~511

    @property
    def refcount_bits(self) -> int:
        """Width of one reference count."""
        return 1 << self.refcount_order

    @property
    def compat(self) -> str:
        """The version as users write it: ``0.10`` or ``1.1``."""
        return "0.10" if self.version == 2 else "1.1"

    @property
    def dirty(self) -> bool:
        """Whether refcounts may be wrong."""
        return bool(self.incompatible & Incompatible.DIRTY)

    @property
    def corrupt(self) -> bool:
        """Whether the image is marked corrupt."""
        return bool(self.incompatible & Incompatible.CORRUPT)

    @property
    def lazy_refcounts(self) -> bool:
        """Whether refcount updates may be postponed."""
        return bool(self.compatible & Compatible.LAZY_REFCOUNTS)

    @property
    def extended_l2(self) -> bool:
        """Whether L2 entries describe subclusters."""
        return bool(self.incompatible & Incompatible.EXTENDED_L2)

    @property
    def has_data_file(self) -> bool:
        """Whether guest data lives in an external data file."""
        return bool(self.incompatible & Incompatible.DATA_FILE)

    @property
    def data_file_raw(self) -> bool:
        """Whether the external data file must be a valid raw image by itself."""
        return self.has_data_file and bool(self.autoclear & Autoclear.DATA_FILE_RAW)

    def same_encryption(self, other: Header) -> bool:
        """Whether the data of both is encrypted alike, as far as the header knows."""
        return self.crypt_method == other.crypt_method and self.encryption == other.encryption

    def with_(self, **changes: Any) -> Header:
        """The same header with *changes* made."""
        return msgspec.structs.replace(self, **changes)

    # -- decoding

    @classmethod
    def decode(
        cls,
        data: bytes,
        *,
        file_length: int | None = None,
        trust: Limits | None = None,
        check: bool = False,
        writable: bool = False,
        on_fault: Callable[[BlockError], object] | None = None,
    ) -> Header:
        """Read the header from *data*, the image's first ``header_area`` bytes (fewer count as zero-padded).

        *file_length* is the length of the file around it; with it, tables that reach past the file's end are
        refused. *trust* bounds the tables. *check* is for a checker, which opens what others must refuse: no
        refcount table, a corrupt bit, tables past the end or in each other's way. *writable* refuses a corrupt image.

        *on_fault* is for an inspection: it is told of every fault that would be raised, what a fault makes meaningless
        counts as absent or usual, and only what ``header_area`` refuses is raised.

        Raises NotThisFormat, CorruptImage (EINVAL as QEMU; EACCES for a corrupt image opened writable),
        UnsupportedFeature (an unknown version, incompatible feature or compression type) or LimitExceeded.
        """
        trust = trust or Limits()
        fault = on_fault or _raised
        cluster_size = header_area(data)
        data = bytes(data[:cluster_size]).ljust(cluster_size, b"\0")
        (
            _magic,
            version,
            backing_offset,
            backing_size,
            cluster_bits,
            size,
            crypt_method,
            l1_size,
            l1_table_offset,
            refcount_table_offset,
            refcount_table_clusters,
            nb_snapshots,
            snapshots_offset,
        ) = _V2.unpack_from(data)

        # "For version 2, the header is exactly 72 bytes"; later versions say how long theirs is.
        incompatible = compatible = autoclear = 0
        refcount_order, header_length = 4, _V2_LENGTH
        if version == 3:
            incompatible, compatible, autoclear, refcount_order, header_length = _V3.unpack_from(data, _V2_LENGTH)
            if header_length < _V3_MIN_LENGTH:
                fault(corrupt("qcow2 header too short"))
                header_length = _V3_MIN_LENGTH
        if header_length > cluster_size:
            fault(corrupt("qcow2 header exceeds cluster size"))
            header_length = _V3_MIN_LENGTH
        if backing_offset > cluster_size:
            fault(corrupt("Invalid backing file offset"))
            backing_offset = 0
        extensions_end = backing_offset or cluster_size

        # A field is absent when the header ends at or before its offset; absent means zero.
        compression = data[_V3_MIN_LENGTH] if header_length > _V3_MIN_LENGTH else 0
        compression_type = _compression_type(compression, incompatible, fault)

        unknown = incompatible & ~_INCOMPATIBLE_KNOWN
        if unknown:
            names = feature_list(data, header_length, extensions_end, unknown)
            fault(UnsupportedFeature(f"Unsupported qcow2 feature(s): {names}"))
        if incompatible & Incompatible.CORRUPT and writable and not check:
            fault(CorruptImage("qcow2: Image is corrupt; cannot be opened read/write", errno.EACCES))
        if incompatible & Incompatible.EXTENDED_L2 and cluster_size >> 5 < 512:
            fault(corrupt(f"Unsupported subcluster size: {cluster_size >> 5}"))
        if refcount_order > 6:
            fault(corrupt("Reference count entry width too large; may not exceed 64 bits"))
            refcount_order = 4

        if refcount_table_clusters == 0 and not check:
            fault(corrupt("Image does not contain a reference count table"))
        _validate_table(
            "Reference count table",
            refcount_table_offset,
            refcount_table_clusters,
            cluster_size,
            trust.max_refcount_table_bytes,
            cluster_size,
            fault,
        )
        if not check:
            _validate_table(
                "Snapshot table",
                snapshots_offset,
                nb_snapshots,
                _SNAPSHOT_ENTRY_MIN,
                _SNAPSHOT_ENTRY_MIN * trust.max_snapshots,
                cluster_size,
                fault,
            )
        _validate_table("Active L1 table", l1_table_offset, l1_size, 8, trust.max_l1_bytes, cluster_size, fault)

        l2_bits = cluster_bits - (4 if incompatible & Incompatible.EXTENDED_L2 else 3)
        needed = -(-size // (1 << (cluster_bits + l2_bits)))
        if needed > _INT_MAX:
            fault(LimitExceeded("Image is too big"))
        if l1_size < needed:
            fault(corrupt("L1 table is too small"))
        if crypt_method > CryptMethod.LUKS:
            # QEMU prints the number as a signed one.
            fault(corrupt(f"Unsupported encryption method {(crypt_method ^ 1 << 31) - (1 << 31)}"))
            crypt_method = CryptMethod.NONE

        known = ExtensionReader(
            cluster_size,
            luks=crypt_method == CryptMethod.LUKS,
            bitmaps_valid=bool(autoclear & Autoclear.BITMAPS),
            trust=trust,
        )
        try:
            for magic, payload in extensions(data, header_length, extensions_end):
                known.take(magic, payload)
        except ImageError as error:
            if on_fault is None:
                raise
            fault(error)
        if autoclear & Autoclear.DATA_FILE_RAW and not incompatible & Incompatible.DATA_FILE:
            fault(corrupt("data-file-raw requires a data file"))

        backing_file = None
        if backing_offset:
            if backing_size > min(_MAX_BACKING_NAME, trust.max_header_string, cluster_size - backing_offset):
                fault(corrupt("Backing file name too long"))
            else:
                backing_file = text(data[backing_offset : backing_offset + backing_size]) or None

        header = cls(
            version=version,
            cluster_bits=cluster_bits,
            size=size,
            l1_size=l1_size,
            l1_table_offset=HostOffset(l1_table_offset),
            refcount_table_offset=HostOffset(refcount_table_offset),
            refcount_table_clusters=refcount_table_clusters,
            nb_snapshots=nb_snapshots,
            snapshots_offset=HostOffset(snapshots_offset),
            crypt_method=crypt_method,
            incompatible=incompatible,
            compatible=compatible,
            autoclear=autoclear,
            refcount_order=refcount_order,
            compression_type=compression_type,
            unknown_fields=data[_KNOWN_LENGTH:header_length],
            backing_file=backing_file,
            backing_format=known.backing_format,
            data_file=known.data_file,
            feature_names=known.feature_names,
            bitmaps=known.bitmaps,
            stale_bitmaps=known.stale_bitmaps,
            encryption=known.encryption,
            unknown_extensions=tuple(known.unknown),
        )
        if not check:
            header._refuse_misplaced_tables(file_length, fault)
        return header

    def _refuse_misplaced_tables(self, file_length: int | None, fault: Callable[[BlockError], object]) -> None:
        """Tell *fault* where the tables lie in the header, in each other or (partly) past the file's end.

        QEMU opens such images: a missing table reads as zeroes, so that a truncated image looks like an empty
        disk, and the first write destroys what is left. Only a checker should touch them.
        """
        areas = [
            ("header", 0, self.cluster_size),
            ("Reference count table", self.refcount_table_offset, self.refcount_table_clusters << self.cluster_bits),
            ("Active L1 table", self.l1_table_offset, self.l1_size * 8),
            ("Snapshot table", self.snapshots_offset, self.nb_snapshots * _SNAPSHOT_ENTRY_MIN),
        ]
        if self.encryption is not None:
            areas.append(("Encryption header", self.encryption.offset, self.encryption.length))
        placed = sorted((offset, offset + nbytes, name) for name, offset, nbytes in areas if nbytes)
        for (_, end, first), (start, _, second) in pairwise(placed):
            if start < end:
                name, other = (second, first) if first == "header" else (first, second)
                fault(corrupt(f"{name} overlaps with the {other[0].lower() + other[1:]}"))
        if file_length is not None:
            for _start, end, name in placed[1:]:
                if end > file_length:
                    fault(corrupt(f"{name} reaches past the end of the file"))

    # -- encoding

    def encode(self, cluster_size: int | None = None) -> bytes:
        """The first cluster's content up to and including the backing file name; write the rest as zeroes.

        Extensions come in QEMU's order; the feature name table is QEMU's plus whatever other names the image
        had. *cluster_size* defaults to the header's own. Raises BlockError ENOSPC where it all does not fit
        into one cluster, ValueError for a version 2 header with version 3 features.
        """
        if cluster_size is None:
            cluster_size = self.cluster_size
        if self.version == 2 and (self.incompatible or self.autoclear or self.compatible or self.refcount_order != 4):
            raise ValueError("a version 2 header has no feature bits and 16-bit refcounts")
        extensions = b"".join(self._encoded_extensions(cluster_size))
        header_length = _V2_LENGTH if self.version == 2 else _KNOWN_LENGTH + len(self.unknown_fields)
        name = (self.backing_file or "").encode("utf-8", "surrogateescape")
        if len(name) > _MAX_BACKING_NAME:
            raise corrupt("Backing file name too long")
        name_offset = header_length + len(extensions)
        if name_offset + len(name) > cluster_size:
            raise BlockError("No space left in the file header", errno.ENOSPC)
        fields = _V2.pack(
            MAGIC,
            self.version,
            name_offset if name else 0,
            len(name),
            self.cluster_bits,
            self.size,
            self.crypt_method,
            self.l1_size,
            self.l1_table_offset,
            self.refcount_table_offset,
            self.refcount_table_clusters,
            self.nb_snapshots,
            self.snapshots_offset,
        )
        if self.version == 3:
            fields += _V3.pack(self.incompatible, self.compatible, self.autoclear, self.refcount_order, header_length)
            fields += bytes((self.compression_type,)).ljust(_KNOWN_LENGTH - _V3_MIN_LENGTH, b"\0")
            fields += self.unknown_fields
        return fields + extensions + name

    def _encoded_extensions(self, cluster_size: int) -> Iterator[bytes]:
        if self.backing_format is not None:
            yield extension(BACKING_FORMAT, self.backing_format.encode("utf-8", "surrogateescape"))
        if self.has_data_file and self.data_file is not None:
            yield extension(DATA_FILE, self.data_file.encode("utf-8", "surrogateescape"))
        if self.encryption is not None:
            yield extension(ENCRYPTION, struct.pack(">QQ", self.encryption.offset, self.encryption.length))
        if self.version == 3 and cluster_size > _LARGEST_WITHOUT_FEATURE_NAMES:
            yield extension(FEATURE_NAMES, feature_table(self.feature_names))
        if self.bitmaps is not None:
            found = self.bitmaps
            packed = struct.pack(">IIQQ", found.nb_bitmaps, 0, found.directory_size, found.directory_offset)
            yield extension(BITMAPS, packed)
        for unknown in self.unknown_extensions:
            yield extension(unknown.magic, unknown.data)
        yield extension(END, b"")


def _raised(error: BlockError) -> None:
    raise error


def _compression_type(value: int, incompatible: int, fault: Callable[[BlockError], object]) -> CompressionType:
    """The compression type field, which must be zero without its incompatible bit and something else with it."""
    if value not in {0, 1}:
        fault(UnsupportedFeature(f"qcow2: unknown compression type: {value}"))
        return CompressionType.ZLIB
    announced = bool(incompatible & Incompatible.COMPRESSION)
    if announced != (value != 0):
        must = "not be set" if announced else "be set"
        fault(corrupt(f"qcow2: Compression type incompatible feature bit must {must}"))
    return CompressionType(value)


def _validate_table(
    name: str,
    offset: int,
    entries: int,
    entry_size: int,
    max_bytes: int,
    cluster_size: int,
    fault: Callable[[BlockError], object],
) -> None:
    """A table is within its size limit, starts at a cluster boundary and ends below 2^63."""
    if entries > max_bytes // entry_size:
        fault(LimitExceeded(f"{name} too large"))
    if offset % cluster_size or offset > _INT64_MAX - entries * entry_size:
        fault(corrupt(f"{name} offset invalid"))
