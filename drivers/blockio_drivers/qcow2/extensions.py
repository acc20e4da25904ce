"""The header extensions of qcow2: what stands between the header's fields and the backing file name.

Stands on the *Header extensions*, *Feature name table*, *Bitmaps extension* and *Full disk encryption header
pointer* sections of QEMU's ``docs/interop/qcow2.txt``. A pure codec, used by ``header`` alone; offsets and
sizes are bytes.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

import msgspec

from blockio.errors import CorruptImage, ImageError, LimitExceeded
from blockio.types import HostOffset, Limits

__all__ = [
    "BACKING_FORMAT",
    "BITMAPS",
    "DATA_FILE",
    "ENCRYPTION",
    "END",
    "FEATURE_NAMES",
    "QEMU_FEATURE_NAMES",
    "BitmapsExtension",
    "EncryptionExtension",
    "ExtensionReader",
    "FeatureKind",
    "FeatureName",
    "UnknownExtension",
    "corrupt",
    "extension",
    "extensions",
    "feature_list",
    "feature_table",
    "text",
]

END: Final = 0x00000000
BACKING_FORMAT: Final = 0xE2792ACA
FEATURE_NAMES: Final = 0x6803F857
BITMAPS: Final = 0x23852875
ENCRYPTION: Final = 0x0537BE77
DATA_FILE: Final = 0x44415441


_BACKING_FORMAT_BUFFER: Final = 16
_FEATURE_ENTRY: Final = 48
_MAX_BITMAP_ENTRY: Final = 1023 + 24
_INT64_MAX: Final = 2**63 - 1


class FeatureKind(IntEnum):
    """Which bitmap an entry of the feature name table speaks of."""

    INCOMPATIBLE = 0
    COMPATIBLE = 1
    AUTOCLEAR = 2


class FeatureName(msgspec.Struct, frozen=True):
    """One entry of the feature name table. ``kind`` and ``bit`` may be values nobody knows."""

    kind: int
    bit: int
    name: str


QEMU_FEATURE_NAMES: Final = (
    FeatureName(FeatureKind.INCOMPATIBLE, 0, "dirty bit"),
    FeatureName(FeatureKind.INCOMPATIBLE, 1, "corrupt bit"),
    FeatureName(FeatureKind.INCOMPATIBLE, 2, "external data file"),
    FeatureName(FeatureKind.INCOMPATIBLE, 3, "compression type"),
    FeatureName(FeatureKind.INCOMPATIBLE, 4, "extended L2 entries"),
    FeatureName(FeatureKind.COMPATIBLE, 0, "lazy refcounts"),
    FeatureName(FeatureKind.AUTOCLEAR, 0, "bitmaps"),
    FeatureName(FeatureKind.AUTOCLEAR, 1, "raw external data"),
)
"""The table QEMU writes into every version 3 image with clusters above 4 KiB."""


class BitmapsExtension(msgspec.Struct, frozen=True):
    """Where the directory of persistent bitmaps lies."""

    nb_bitmaps: int
    directory_size: int
    directory_offset: HostOffset


class EncryptionExtension(msgspec.Struct, frozen=True):
    """Where the LUKS header lies: ``length`` bytes written, in whole clusters."""

    offset: HostOffset
    length: int


class UnknownExtension(msgspec.Struct, frozen=True):
    """A header extension of somebody else's, kept as it is."""

    magic: int
    data: bytes


def corrupt(message: str) -> ImageError:
    """The error for a header that contradicts itself: EINVAL, as QEMU answers; EIO is for what is met later."""
    return CorruptImage(message, errno.EINVAL)


def extensions(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The header extensions: type, length, data, padding to a multiple of 8; type 0 ends them.

    They lie between the header and the backing file name (or the end of the cluster).
    """
    offset = start
    while offset < end:
        if offset + 8 > end:
            raise corrupt("Header extension too large")
        magic, length = struct.unpack_from(">II", data.ljust(offset + 8, b"\0"), offset)
        offset += 8
        if length > end - offset:
            raise corrupt("Header extension too large")
        if magic == END:
            return
        yield magic, data[offset : offset + length]
        offset += -(-length // 8) * 8


def text(raw: bytes) -> str:
    """A string of the header. QEMU keeps these as C strings, so that what follows a zero byte is nobody's."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def extension(magic: int, payload: bytes) -> bytes:
    """One extension as it stands on disk, padding included."""
    return struct.pack(">II", magic, len(payload)) + payload.ljust(-(-len(payload) // 8) * 8, b"\0")


def feature_table(others: tuple[FeatureName, ...]) -> bytes:
    """QEMU's feature name table, followed by those names of *others* that it does not have."""
    known = {(entry.kind, entry.bit) for entry in QEMU_FEATURE_NAMES}
    names = (*QEMU_FEATURE_NAMES, *(entry for entry in others if (entry.kind, entry.bit) not in known))
    return b"".join(map(_feature_entry, names))


def _feature_entry(entry: FeatureName) -> bytes:
    name = entry.name.encode("utf-8", "surrogateescape")[: _FEATURE_ENTRY - 2]
    return bytes((entry.kind, entry.bit)) + name.ljust(_FEATURE_ENTRY - 2, b"\0")


def _decode_feature_names(payload: bytes) -> tuple[FeatureName, ...]:
    """Entries of 48 bytes: type, bit number, name padded with zeroes. One without a name ends the table."""
    names = []
    for at in range(0, len(payload) - _FEATURE_ENTRY + 1, _FEATURE_ENTRY):
        entry = payload[at : at + _FEATURE_ENTRY]
        if not entry[2]:
            break
        names.append(FeatureName(entry[0], entry[1], text(entry[2:])))
    return tuple(names)


def feature_list(data: bytes, start: int, end: int, missing: int) -> str:
    """The names of the incompatible bits in *missing*, from the image's own table as far as that goes."""
    names = []
    try:
        table = next((p for magic, p in extensions(data, start, end) if magic == FEATURE_NAMES), b"")
    except ImageError:
        table = b""
    for entry in _decode_feature_names(table):
        # The shift counts modulo 64 as the processor does; a name for bit 70 is nobody's anyway.
        if entry.kind == FeatureKind.INCOMPATIBLE and entry.bit < 64 and missing >> entry.bit & 1:
            names.append(entry.name)
            missing &= ~(1 << entry.bit)
    if missing:
        names.append(f"Unknown incompatible feature: {missing:x}")
    return ", ".join(names)


class ExtensionReader:
    """Collects the extensions of one header; each kind is validated as it comes."""

    def __init__(self, cluster_size: int, *, luks: bool, bitmaps_valid: bool, trust: Limits) -> None:
        self.cluster_size = cluster_size
        self.luks = luks
        self.bitmaps_valid = bitmaps_valid
        self.trust = trust
        self.backing_format: str | None = None
        self.data_file: str | None = None
        self.feature_names: tuple[FeatureName, ...] = ()
        self.bitmaps: BitmapsExtension | None = None
        self.stale_bitmaps = False
        self.encryption: EncryptionExtension | None = None
        self.unknown: list[UnknownExtension] = []
        self._kept = 0

    def take(self, magic: int, payload: bytes) -> None:
        """Note one extension; a later one of the same known kind replaces an earlier, as in QEMU."""
        if magic == BACKING_FORMAT:
            if len(payload) >= _BACKING_FORMAT_BUFFER:
                raise corrupt(f"ERROR: ext_backing_format: len={len(payload)} too large (>={_BACKING_FORMAT_BUFFER})")
            self.backing_format = text(payload)
        elif magic == FEATURE_NAMES:
            self.feature_names = _decode_feature_names(payload)
        elif magic == ENCRYPTION:
            self.encryption = self._encryption(payload)
        elif magic == BITMAPS:
            self.bitmaps = self._bitmaps(payload)
        elif magic == DATA_FILE:
            if len(payload) > self.trust.max_header_string:
                raise LimitExceeded("Data file name too long")
            self.data_file = text(payload)
        else:
            self._kept += 8 + len(payload)
            if self._kept > self.trust.max_header_extensions:
                raise LimitExceeded("Header extension too large")
            self.unknown.append(UnknownExtension(magic, payload))

    def _encryption(self, payload: bytes) -> EncryptionExtension:
        """Offset (at a cluster boundary) and length of the LUKS header; only LUKS images may have one."""
        if not self.luks:
            raise corrupt("CRYPTO header extension only expected with LUKS encryption method")
        if len(payload) != 16:
            raise corrupt(f"CRYPTO header extension size {len(payload)}, but expected size 16")
        offset, length = struct.unpack(">QQ", payload)
        if offset % self.cluster_size:
            raise corrupt(
                f"Encryption header offset '{offset}' is not a multiple of cluster size '{self.cluster_size}'"
            )
        if length > _INT64_MAX - offset:
            raise corrupt("Encryption header offset invalid")
        return EncryptionExtension(HostOffset(offset), length)

    def _bitmaps(self, payload: bytes) -> BitmapsExtension | None:
        """Number of bitmaps, four reserved bytes, size and offset of the directory (at a cluster boundary).

        Without the autoclear bit a program that knows no bitmaps has written to the image: what the extension
        says is void.
        """
        if len(payload) != 24:
            raise corrupt("bitmaps_ext: Invalid extension length")
        if not self.bitmaps_valid:
            self.stale_bitmaps = True
            return None
        nb_bitmaps, reserved, directory_size, directory_offset = struct.unpack(">IIQQ", payload)
        if reserved:
            raise corrupt("bitmaps_ext: Reserved field is not zero")
        if nb_bitmaps > self.trust.max_bitmaps:
            raise corrupt(
                f"bitmaps_ext: Image has {nb_bitmaps} bitmaps, exceeding the QEMU supported maximum of "
                f"{self.trust.max_bitmaps}"
            )
        if nb_bitmaps == 0:
            raise corrupt("found bitmaps extension with zero bitmaps")
        if directory_offset % self.cluster_size or directory_offset > _INT64_MAX:
            raise corrupt("bitmaps_ext: invalid bitmap directory offset")
        maximum = self.trust.max_bitmaps * _MAX_BITMAP_ENTRY
        if directory_size > maximum:
            raise corrupt(
                f"bitmaps_ext: bitmap directory size ({directory_size}) exceeds the maximum supported size ({maximum})"
            )
        return BitmapsExtension(nb_bitmaps, directory_size, HostOffset(directory_offset))
