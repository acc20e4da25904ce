"""An image of a stranger, by its header: nothing is opened, nothing believed, and all faults are told, not the first.

What only a walk through all tables shows is ``check``'s to find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from blockio.driver.gate import ReferenceKind
from blockio.driver.inspection import Finding, FindingKind, HeaderReport, Naming
from blockio.errors import BlockError, CorruptImage, ImageError, LimitExceeded
from blockio_drivers.qcow2.header import Autoclear, Compatible, CryptMethod, Header, Incompatible, header_area
from blockio_drivers.qcow2.snapshot_table import parse_snapshots

if TYPE_CHECKING:
    from collections.abc import Callable
    from enum import IntFlag

    from blockio.driver.inspection import InspectSource
    from blockio.types import Limits
    from blockio_drivers.qcow2.extensions import EncryptionExtension
    from blockio_drivers.qcow2.snapshot_table import SnapshotEntry

__all__ = ["inspect_image"]

_PROBED: Final = 512
_MOST_SHOWN: Final = 16
"""How many of a kind of thing are told of one by one."""
_LONGEST_NAME: Final = 255


async def inspect_image(source: InspectSource, trust: Limits) -> HeaderReport:
    """Header, extensions, LUKS header and snapshot table of the image in *source*."""
    findings: list[Finding] = []

    def fault(error: BlockError) -> None:
        findings.append(Finding.of(error))

    try:
        area = header_area(bytes(await source.read(0, min(_PROBED, source.length))))
        data = bytes(await source.read(0, min(area, source.length)))
        header = Header.decode(data, file_length=source.length, trust=trust, on_fault=fault)
    except BlockError as error:
        return HeaderReport(findings=(Finding.of(error),))
    findings += _state(header)
    facts = _facts(header)
    if header.crypt_method == CryptMethod.LUKS and not _forbidding(findings):
        told, facts["encryption"] = await _encryption(source, header.encryption, trust)
        findings += told
    if header.nb_snapshots and not _forbidding(findings):
        try:
            facts["snapshot-names"] = await _snapshots(source, header, trust, fault)
        except BlockError as error:
            fault(error)
    return HeaderReport(
        virtual_size=header.disk_size, namings=tuple(_namings(header)), findings=tuple(findings), facts=facts
    )


async def _encryption(
    source: InspectSource, place: EncryptionExtension | None, trust: Limits
) -> tuple[list[Finding], dict[str, Any]]:
    """What is to be told of the LUKS header, and its facts."""
    # few images are encrypted
    from blockio_drivers.crypto.inspect import inspect_volume

    if place is None or place.offset + place.length > source.length:
        where = "is missing" if place is None else "reaches past the end of the file"
        return [Finding(FindingKind.CORRUPT, f"The encryption header {where}")], {}
    report = await inspect_volume(_Part(source, place.offset, place.length), trust)
    return list(report.findings), report.facts


class _Part:
    """An ``InspectSource`` within another one."""

    def __init__(self, source: InspectSource, start: int, length: int) -> None:
        self._source = source
        self._start = start
        self.length = length

    async def read(self, offset: int, nbytes: int) -> bytearray:
        """See ``InspectSource``."""
        return await self._source.read(self._start + offset, nbytes)


def _forbidding(findings: list[Finding]) -> bool:
    """Whether something is so wrong that places which the header names are not worth a look."""
    return any(finding.kind in {FindingKind.CORRUPT, FindingKind.LIMIT} for finding in findings)


def _state(header: Header) -> list[Finding]:
    """What the header's own words mean for whoever opens the image."""
    found: list[Finding] = []

    def note(message: str, kind: FindingKind = FindingKind.NOTE) -> None:
        found.append(Finding(kind, message))

    if header.corrupt:
        note("The image is marked corrupt", FindingKind.CORRUPT)
    if header.dirty:
        note("The image was not closed: opening it for writing repairs its refcounts first")
    if header.crypt_method == CryptMethod.AES:
        note("The data is encrypted (aes)")
    if header.stale_bitmaps:
        note("The bitmaps extension is void: somebody who knows no bitmaps wrote to the image")
    for kind, bits, known in (
        ("compatible", header.compatible, Compatible),
        ("autoclear", header.autoclear, Autoclear),
    ):
        if unknown := bits & ~_all(known):
            note(f"Unknown {kind} features: {unknown:#x}")
    if header.unknown_extensions:
        note(f"{len(header.unknown_extensions)} unknown header extensions")
    if header.unknown_fields.strip(b"\0"):
        note(f"{len(header.unknown_fields)} bytes of unknown header fields")
    if header.has_data_file and not header.data_file:
        note("The data is in a file that the image does not name", FindingKind.UNSUPPORTED)
    if header.data_file and not header.has_data_file:
        note(f"A data file is named but not used: '{header.data_file}'")
    return found


def _all(flags: type[IntFlag]) -> int:
    return sum(flag.value for flag in flags)


def _facts(header: Header) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "compat": header.compat,
        "cluster-size": header.cluster_size,
        "refcount-bits": header.refcount_bits,
        "compression-type": header.compression_type.name.lower(),
        "l1-entries": header.l1_size,
        "snapshots": header.nb_snapshots,
        "bitmaps": header.bitmaps.nb_bitmaps if header.bitmaps is not None else 0,
    }
    for name, value, known in (
        ("incompatible-features", header.incompatible, Incompatible),
        ("compatible-features", header.compatible, Compatible),
        ("autoclear-features", header.autoclear, Autoclear),
    ):
        if value:
            facts[name] = _bits(value, known)
    if header.unknown_extensions:
        facts["unknown-extensions"] = [f"{one.magic:#010x}" for one in header.unknown_extensions[:_MOST_SHOWN]]
    return facts


def _bits(value: int, known: type[IntFlag]) -> list[str]:
    """The names of the bits that are set; a number for one that nobody named."""
    names = {flag.value: (flag.name or "").lower().replace("_", "-") for flag in known}
    return [names.get(1 << bit, f"bit {bit}") for bit in range(64) if value >> bit & 1]


def _namings(header: Header) -> list[Naming]:
    found: list[Naming] = []
    if header.backing_file is not None:
        found.append(Naming(ReferenceKind.BACKING, header.backing_file, header.backing_format or None))
    if header.has_data_file and header.data_file:
        found.append(Naming(ReferenceKind.DATA_FILE, header.data_file, "raw"))
    return found


async def _snapshots(
    source: InspectSource, header: Header, trust: Limits, fault: Callable[[BlockError], object]
) -> list[str]:
    """The first snapshots' names; tells *fault* what is wrong with any of their tables."""
    entries, _ = await parse_snapshots(
        source.read,
        header.snapshots_offset,
        header.nb_snapshots,
        header.cluster_size,
        trust,
        disk_size=header.disk_size,
    )
    wrong = [error for error in (_misplaced(entry, source.length, header, trust) for entry in entries) if error]
    for error in wrong[:_MOST_SHOWN]:
        fault(error)
    return [entry.name[:_LONGEST_NAME] for entry in entries[:_MOST_SHOWN]]


def _misplaced(entry: SnapshotEntry, length: int, header: Header, trust: Limits) -> ImageError | None:
    nbytes = entry.l1_size * 8
    if nbytes > trust.max_l1_bytes:
        return LimitExceeded(f"The L1 table of {entry.label} is too large")
    if entry.l1_table_offset % header.cluster_size:
        return CorruptImage(f"The L1 table of {entry.label} is misaligned")
    if entry.l1_table_offset + nbytes > length:
        return CorruptImage(f"The L1 table of {entry.label} reaches past the end of the file")
    return None
