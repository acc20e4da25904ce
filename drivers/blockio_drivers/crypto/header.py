"""The LUKS1 header (``PHDR``): its 592 bytes as a frozen value and back.

Stands on the LUKS1 on-disk format specification 1.2.3, figures 1 and 2. All numbers are big-endian; offsets are in
sectors on disk and in bytes here. A pure codec: any input decodes or raises a ``BlockError`` with QEMU's message.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

import msgspec

from blockio.errors import BlockError, CorruptImage, NotThisFormat, UnsupportedFeature

__all__ = [
    "AREA",
    "HEADER_BYTES",
    "KEY_SLOTS",
    "MAGIC",
    "STRIPES",
    "CipherSpec",
    "KeySlot",
    "LuksHeader",
    "area_after",
]

MAGIC: Final = b"LUKS\xba\xbe"
HEADER_BYTES: Final = 592
KEY_SLOTS: Final = 8
STRIPES: Final = 4000
AREA: Final = 4096
"""Key material starts at this and ends at multiples of it."""

_SECTOR: Final = 512
_ENABLED: Final = 0x00AC71F3
_DISABLED: Final = 0x0000DEAD
_FIXED: Final = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT: Final = struct.Struct(">II32sII")
_CIPHERS: Final = {
    "aes": {16: "aes-128", 24: "aes-192", 32: "aes-256"},
    "serpent": {16: "serpent-128", 24: "serpent-192", 32: "serpent-256"},
    "twofish": {16: "twofish-128", 24: "twofish-192", 32: "twofish-256"},
    "cast5": {16: "cast5-128"},
}
_MODES: Final = ("ecb", "cbc", "xts", "ctr")
_IV_GENERATORS: Final = ("plain", "plain64", "essiv")
_HASHES: Final = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160")


class CipherSpec(msgspec.Struct, frozen=True):
    """What the header's words mean, by the names that users give to the parts."""

    cipher_alg: str
    cipher_mode: str
    ivgen_alg: str
    ivgen_hash_alg: str | None
    hash_alg: str

    @classmethod
    def chosen(
        cls,
        cipher_alg: str | None = None,
        cipher_mode: str | None = None,
        ivgen_alg: str | None = None,
        ivgen_hash_alg: str | None = None,
        hash_alg: str | None = None,
    ) -> CipherSpec:
        """What users chose for a new volume, with QEMU's defaults."""
        ivgen = ivgen_alg or "plain64"
        iv_hash = ivgen_hash_alg or ("sha256" if ivgen == "essiv" else None)
        return cls(cipher_alg or "aes-256", cipher_mode or "xts", ivgen, iv_hash, hash_alg or "sha256")

    @property
    def key_bytes(self) -> int:
        """How long the master key is."""
        one = int(self.cipher_alg.rpartition("-")[2]) // 8
        return 2 * one if self.cipher_mode == "xts" else one

    def validate(self) -> None:
        """Refuse names that users gave and nobody knows, in QEMU's words: BlockError (EINVAL), UnsupportedFeature."""
        for name, value, known in (
            ("cipher-alg", self.cipher_alg, [*_names(), "des", "3des"]),
            ("cipher-mode", self.cipher_mode, _MODES),
            ("ivgen-alg", self.ivgen_alg, _IV_GENERATORS),
            ("ivgen-hash-alg", self.ivgen_hash_alg, (None, *_HASHES)),
            ("hash-alg", self.hash_alg, _HASHES),
        ):
            if value not in known:
                raise BlockError(f"Parameter '{name}' does not accept value '{value}'", errno.EINVAL)
        if not self.cipher_alg.startswith("aes-"):
            raise UnsupportedFeature(f"Algorithm '{self.cipher_alg}' not supported")
        if self.ivgen_hash_alg is not None and self.ivgen_alg != "essiv":
            raise BlockError(f"Unexpected IV generator hash algorithm '{self.ivgen_hash_alg}'", errno.EINVAL)


def _names() -> list[str]:
    return [name for sizes in _CIPHERS.values() for name in sizes.values()]


class KeySlot(msgspec.Struct, frozen=True):
    """One of the eight places where the master key may lie, encrypted with a passphrase. ``offset`` in bytes."""

    active: bool
    iterations: int
    salt: bytes
    offset: int
    stripes: int = STRIPES


class LuksHeader(msgspec.Struct, frozen=True, kw_only=True):
    """All fields. ``payload_offset`` is in bytes; 0 where the header is detached from what it encrypts."""

    cipher_name: str
    cipher_mode: str
    hash_spec: str
    payload_offset: int
    key_bytes: int
    digest: bytes
    digest_salt: bytes
    digest_iterations: int
    uuid: str
    slots: tuple[KeySlot, ...]

    # -- decoding

    @classmethod
    def decode(cls, data: bytes, *, detached: bool = False) -> LuksHeader:
        """From the first ``HEADER_BYTES`` of a volume. *detached*: the payload lies elsewhere.

        NotThisFormat, UnsupportedFeature for another version, CorruptImage (EINVAL) for what contradicts itself.
        """
        if len(data) < HEADER_BYTES or data[:6] != MAGIC:
            raise NotThisFormat("Volume is not in LUKS format")
        (
            _magic,
            version,
            cipher_name,
            cipher_mode,
            hash_spec,
            payload,
            key_bytes,
            digest,
            digest_salt,
            digest_iterations,
            uuid,
        ) = _FIXED.unpack_from(data)
        if version != 1:
            raise UnsupportedFeature(f"LUKS version {version} is not supported")
        slots = []
        for number in range(KEY_SLOTS):
            state, iterations, salt, offset, stripes = _SLOT.unpack_from(data, _FIXED.size + number * _SLOT.size)
            if stripes != STRIPES:
                raise _corrupt(f"Keyslot {number} is corrupted (stripes {stripes} != {STRIPES})")
            if offset < AREA // _SECTOR:
                raise _corrupt(f"Keyslot {number} is overlapping with the LUKS header")
            if state not in (_ENABLED, _DISABLED):
                raise _corrupt(f"Keyslot {number} state (active/disable) is corrupted")
            if state == _ENABLED and not iterations:
                raise _corrupt(f"Keyslot {number} iteration count is zero")
            slots.append(KeySlot(state == _ENABLED, iterations, salt, offset * _SECTOR, stripes))
        header = cls(
            cipher_name=_text(cipher_name, "cipher name"),
            cipher_mode=_text(cipher_mode, "cipher mode"),
            hash_spec=_text(hash_spec, "hash spec"),
            payload_offset=payload * _SECTOR,
            key_bytes=key_bytes,
            digest=digest,
            digest_salt=digest_salt,
            digest_iterations=digest_iterations,
            uuid=uuid.partition(b"\0")[0].decode("ascii", "replace"),
            slots=tuple(slots),
        )
        header._refuse_misplaced(detached)
        return header

    def _refuse_misplaced(self, detached: bool) -> None:
        if self.payload_offset < AREA and not detached:
            raise _corrupt("LUKS payload is overlapping with the header")
        if not self.digest_iterations:
            raise _corrupt("LUKS key iteration count is zero")
        length = self.material_bytes
        for number, slot in enumerate(self.slots):
            if slot.offset + length > self.payload_offset and not detached:
                raise _corrupt(f"Keyslot {number} is overlapping with the encrypted payload")
            for other in range(number + 1, KEY_SLOTS):
                start = self.slots[other].offset
                if slot.offset + length > start and start + length > slot.offset:
                    raise _corrupt(f"Keyslots {number} and {other} are overlapping in the header")

    @property
    def material_bytes(self) -> int:
        """How much room one slot's stripes have, in whole areas."""
        return area_after(self.key_bytes * STRIPES)

    def spec(self) -> CipherSpec:
        """The names of cipher, mode, IV generator and hashes. UnsupportedFeature, CorruptImage for unknown ones."""
        mode, dash, ivgen = self.cipher_mode.partition("-")
        if not dash:
            raise _corrupt(f"Unexpected cipher mode string format '{self.cipher_mode}'")
        ivgen, colon, iv_hash = ivgen.partition(":")
        if mode not in _MODES:
            raise UnsupportedFeature(f"Algorithm '{mode}' for cipher mode not supported")
        if self.hash_spec not in _HASHES:
            raise UnsupportedFeature(f"Algorithm '{self.hash_spec}' for hash not supported")
        if ivgen not in _IV_GENERATORS:
            raise UnsupportedFeature(f"Algorithm '{ivgen}' for IV generator not supported")
        if colon and iv_hash not in _HASHES:
            raise UnsupportedFeature(f"Algorithm '{iv_hash}' for IV generator hash not supported")
        if ivgen == "essiv" and not colon:
            raise _corrupt("Missing IV generator hash specification")
        sizes = _CIPHERS.get(self.cipher_name)
        if sizes is None:
            raise UnsupportedFeature(
                f"Algorithm '{self.cipher_name}' with key size {self.key_bytes} bytes not supported"
            )
        if mode == "xts" and self.key_bytes % 2:
            raise _corrupt("XTS cipher key length should be a multiple of 2")
        one = self.key_bytes // 2 if mode == "xts" else self.key_bytes
        if one not in sizes:
            raise UnsupportedFeature(f"Algorithm '{self.cipher_name}' with key size {one} bytes not supported")
        if self.cipher_name != "aes":
            raise UnsupportedFeature(f"Algorithm '{sizes[one]}' not supported")
        return CipherSpec(sizes[one], mode, ivgen, iv_hash if colon else None, self.hash_spec)

    # -- encoding

    def encode(self) -> bytes:
        """The header's bytes."""
        fixed = _FIXED.pack(
            MAGIC,
            1,
            self.cipher_name.encode(),
            self.cipher_mode.encode(),
            self.hash_spec.encode(),
            self.payload_offset // _SECTOR,
            self.key_bytes,
            self.digest,
            self.digest_salt,
            self.digest_iterations,
            self.uuid.encode(),
        )
        return fixed + b"".join(
            _SLOT.pack(
                _ENABLED if slot.active else _DISABLED,
                slot.iterations,
                slot.salt,
                slot.offset // _SECTOR,
                slot.stripes,
            )
            for slot in self.slots
        )

    def with_slot(self, number: int, slot: KeySlot) -> LuksHeader:
        """The same header with another slot *number*."""
        slots = (*self.slots[:number], slot, *self.slots[number + 1 :])
        return msgspec.structs.replace(self, slots=slots)


def area_after(nbytes: int) -> int:
    """*nbytes* rounded up to a whole area."""
    return -(-nbytes // AREA) * AREA


def _text(field: bytes, what: str) -> str:
    text, nul, _ = field.partition(b"\0")
    if not nul:
        raise _corrupt(f"LUKS header {what} is not NUL terminated")
    return text.decode("ascii", "replace")


def _corrupt(message: str) -> CorruptImage:
    return CorruptImage(message, errno.EINVAL)
