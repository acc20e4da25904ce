"""A LUKS volume of a stranger, by its header: no passphrase is tried, so no key is derived."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockio.driver.inspection import Finding, FindingKind, HeaderReport
from blockio.errors import BlockError
from blockio_drivers.crypto.header import HEADER_BYTES, LuksHeader

if TYPE_CHECKING:
    from blockio.driver.inspection import InspectSource
    from blockio.types import Limits

__all__ = ["inspect_volume"]


async def inspect_volume(source: InspectSource, trust: Limits) -> HeaderReport:
    """What the header in *source* says, and what trying a passphrase on it would cost."""
    findings = [Finding(FindingKind.NOTE, "The data is encrypted (luks)")]
    try:
        header = LuksHeader.decode(bytes(await source.read(0, min(HEADER_BYTES, source.length))))
    except BlockError as error:
        return HeaderReport(findings=(*findings, Finding.of(error)))
    try:
        header.spec()
    except BlockError as error:
        findings.append(Finding.of(error))
    active = [slot for slot in header.slots if slot.active]
    work = sum(slot.iterations + header.digest_iterations for slot in active)
    if work > trust.max_kdf_iterations:
        findings.append(Finding(FindingKind.LIMIT, f"A wrong passphrase costs {work} iterations of key derivation"))
    if not active:
        findings.append(Finding(FindingKind.NOTE, "No key slot is active: nobody can open it"))
    if header.payload_offset > source.length:
        findings.append(Finding(FindingKind.CORRUPT, "The payload begins past the end of the file"))
    facts: dict[str, Any] = {
        "cipher": f"{header.cipher_name}-{header.cipher_mode}",
        "hash": header.hash_spec,
        "key-bits": header.key_bytes * 8,
        "key-slots": len(active),
        "iterations": work,
        "payload-offset": header.payload_offset,
    }
    return HeaderReport(
        virtual_size=max(0, source.length - header.payload_offset), findings=tuple(findings), facts=facts
    )
