"""A LUKS1 volume: its header and key slots, unlocked with a passphrase, made new, its passphrases changed.

It does not know where it is: it reads and writes through a ``Place``, which is a file for the ``luks`` driver and some
clusters of the image for qcow2.

What an image may cost is bounded: the key material by the ciphers there are, the work by ``Limits.max_kdf_iterations``
for all that is tried together. Deriving keys takes seconds by design and is done in worker threads; a cancelled
request does not wait for them.

Order of writes, so that no crash loses a passphrase that worked or leaves half of one: a new slot's material, salt and
iterations are stable before the four bytes that make it active are written; a slot that goes is inactive on stable
storage before its material is destroyed.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from blockio.driver.secret import find_secret
from blockio.errors import CorruptImage, LimitExceeded, OptionError, UnsupportedFeature
from blockio_drivers.crypto.ciphers import SECTOR, SectorCipher, make_iv_generator
from blockio_drivers.crypto.header import (
    AREA,
    HEADER_BYTES,
    KEY_SLOTS,
    STRIPES,
    CipherSpec,
    KeySlot,
    LuksHeader,
    area_after,
)
from blockio_drivers.crypto.split import merge, split

if TYPE_CHECKING:
    from blockio.types import Limits

__all__ = [
    "DEFAULT_ITER_TIME",
    "KeySlotChange",
    "LuksVolume",
    "Place",
    "format_volume",
    "passphrase_of",
    "payload_offset_for",
    "read_header",
    "slots_info",
]

T = TypeVar("T")

DEFAULT_ITER_TIME: Final = 2000
"""Milliseconds that trying a passphrase shall take."""

_DIGEST_BYTES: Final = 20
_SALT_BYTES: Final = 32
_MIN_ITERATIONS: Final = 1000
_MAX_ITERATIONS: Final = 2**32 - 1
_WIPES: Final = 40
"""How often destroyed key material is written over, as cryptsetup and QEMU do."""


class Place(Protocol):
    """Where a volume's header and key material are; offsets in bytes from its start."""

    async def read(self, offset: int, nbytes: int) -> bytes:
        """*nbytes* from *offset*; what is past the end reads as zeroes."""

    async def write(self, offset: int, data: bytes) -> None:
        """Write *data* at *offset*."""

    async def flush(self) -> None:
        """What was written is on stable storage when this returns."""


class KeySlotChange(msgspec.Struct, frozen=True):
    """QEMU's LUKS amend options. ``iter_time`` in milliseconds."""

    state: str
    new_secret: str | None = None
    old_secret: str | None = None
    keyslot: int | None = None
    iter_time: int | None = None


class LuksVolume:
    """An unlocked volume. Invariant: ``header`` is what the place holds, ``cipher`` has its master key."""

    def __init__(self, header: LuksHeader, spec: CipherSpec, key: bytes, place: Place, secret: str) -> None:
        self.header = header
        self.spec = spec
        self.cipher = _payload_cipher(spec, key)
        self._key = key
        self._place = place
        self._secret = secret
        self._changing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<LuksVolume {self.header.uuid}>"

    @classmethod
    async def open(
        cls, place: Place, secret: str, trust: Limits, *, detached: bool = False, prefix: str = ""
    ) -> LuksVolume:
        """Read the header and unlock it with the passphrase that *secret* names.

        Raises what ``read_header`` does, OptionError where no slot has the passphrase (EPERM), there is no such secret
        (*prefix* is that of the option), LimitExceeded where the header asks for too much work.
        """
        header, spec = await read_header(place, detached=detached)
        passphrase = passphrase_of(secret, prefix)
        found = await _find_key(header, spec, place, passphrase, trust)
        if found is None:
            raise OptionError("Invalid password, cannot unlock any keyslot", errno.EPERM)
        return cls(header, spec, found[1], place, secret)

    def change_loop(self) -> None:
        """A lock stays with the loop that first waited for it. Nobody holds it now."""
        self._changing = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the header anew: somebody else had it. CorruptImage (EINVAL) where its key is another one now."""
        header, spec = await read_header(self._place, detached=not self.header.payload_offset)
        if header.digest != self.header.digest or spec != self.spec:
            raise CorruptImage("The key of the LUKS volume was changed", errno.EINVAL)
        self.header = header

    # -- passphrases

    async def amend(self, change: KeySlotChange, trust: Limits, *, force: bool) -> None:
        """Add a passphrase (``state=active``) or erase some (``inactive``), by QEMU's rules.

        Without *force* the last passphrase is not erased, nor a slot in use written over. OptionError with QEMU's
        message. What was written when it fails or is cancelled is a volume that opens with each passphrase that was
        not to be erased.
        """
        async with self._changing:
            if change.state == "active":
                await self._add(change, trust, force)
            elif change.state == "inactive":
                await self._erase(change, trust, force)
            else:
                raise OptionError(f"Parameter 'state' does not accept value '{change.state}'")

    async def _add(self, change: KeySlotChange, trust: Limits, force: bool) -> None:
        if change.new_secret is None:
            raise OptionError("'new-secret' is required to activate a keyslot")
        if change.old_secret is not None:
            raise OptionError("'old-secret' must not be given when activating keyslots")
        number = change.keyslot
        if number is None:
            number = next((at for at, slot in enumerate(self.header.slots) if not slot.active), None)
            if number is None:
                raise OptionError("Can't add a keyslot - all keyslots are in use")
        else:
            _check_number(number)
            if self.header.slots[number].active and not force:
                raise OptionError(f"Refusing to overwrite active keyslot {number} - please erase it first")
        new = find_secret(change.new_secret, text=True)
        spent = DEFAULT_ITER_TIME if change.iter_time is None else change.iter_time
        if self.header.slots[number].active:
            await self._deactivate(number)
        slot, material = await _make_slot(self.header, self.spec, number, self._key, new, spent)
        await self._place.write(slot.offset, material)
        await self._write_header(self.header.with_slot(number, msgspec.structs.replace(slot, active=False)))
        await self._write_header(self.header.with_slot(number, slot))

    async def _erase(self, change: KeySlotChange, trust: Limits, force: bool) -> None:
        if change.new_secret is not None:
            raise OptionError("'new-secret' must not be given when erasing keyslots")
        if change.iter_time is not None:
            raise OptionError("'iter-time' must not be given when erasing keyslots")
        old = None if change.old_secret is None else find_secret(change.old_secret, text=True)
        active = [at for at, slot in enumerate(self.header.slots) if slot.active]
        if change.keyslot is not None:
            number = change.keyslot
            _check_number(number)
            if old is not None and number not in await self._holding(old, [number], trust):
                raise OptionError(f"Given keyslot {number} doesn't contain the given old password for erase operation")
            if not force and number not in active:
                raise OptionError(f"Given keyslot {number} is already erased (inactive) ")
            if not force and active == [number]:
                raise OptionError(
                    f"Attempt to erase the only active keyslot {number} which will erase all the data in the image "
                    "irreversibly - refusing operation"
                )
            erased = [number]
        elif old is not None:
            erased = await self._holding(old, active, trust)
            if not erased:
                raise OptionError("No keyslots match given (old) password for erase operation")
            if not force and erased == active:
                raise OptionError(
                    "All the active keyslots match the (old) password that was given and erasing them will erase all "
                    "the data in the image irreversibly - refusing operation"
                )
        else:
            raise OptionError(
                "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must "
                "be given"
            )
        for number in erased:
            await self._deactivate(number)

    async def _holding(self, passphrase: bytes, numbers: Sequence[int], trust: Limits) -> list[int]:
        """Which of these slots *passphrase* opens."""
        budget = _Budget(trust)
        found = []
        for number in numbers:
            if await _try_slot(self.header, self.spec, self._place, number, passphrase, budget) is not None:
                found.append(number)
        return found

    async def _deactivate(self, number: int) -> None:
        slot = self.header.slots[number]
        await self._write_header(self.header.with_slot(number, msgspec.structs.replace(slot, active=False)))
        for _ in range(_WIPES):
            await self._place.write(slot.offset, os.urandom(self.header.key_bytes * STRIPES))
            await self._place.flush()
        gone = msgspec.structs.replace(slot, active=False, iterations=0, salt=bytes(_SALT_BYTES))
        await self._write_header(self.header.with_slot(number, gone))

    async def _write_header(self, header: LuksHeader) -> None:
        """What was written before is stable, then *header* is."""
        await self._place.flush()
        await self._place.write(0, header.encode())
        self.header = header
        await self._place.flush()


async def read_header(place: Place, *, detached: bool = False) -> tuple[LuksHeader, CipherSpec]:
    """The header at *place* and what its names mean; raises what ``LuksHeader.decode`` and ``spec`` raise."""
    header = LuksHeader.decode(await place.read(0, HEADER_BYTES), detached=detached)
    return header, header.spec()


def passphrase_of(secret: str | None, prefix: str = "") -> bytes:
    """What the secret of that id holds, as a passphrase; *prefix* is in front of the option's name in messages."""
    if secret is None:
        raise OptionError(f"Parameter '{prefix}key-secret' is required for cipher")
    return find_secret(secret, text=True)


def payload_offset_for(spec: CipherSpec) -> int:
    """Where the payload of a new volume begins: behind the header and eight slots."""
    return AREA + KEY_SLOTS * area_after(spec.key_bytes * STRIPES)


async def format_volume(place: Place, spec: CipherSpec, secret: str, iter_time: int, prefix: str = "") -> LuksVolume:
    """Write a new volume's header and its first key slot; *iter_time* in milliseconds. It is stable on return.

    Raises what ``CipherSpec.validate`` and ``passphrase_of`` raise before anything is written. Until the header's own
    write, which is the last, the place holds no volume.
    """
    spec.validate()
    passphrase = passphrase_of(secret, prefix)
    key = os.urandom(spec.key_bytes)
    room = area_after(spec.key_bytes * STRIPES)
    salt = os.urandom(_SALT_BYTES)
    iterations = await _benchmark(spec.hash_alg, _DIGEST_BYTES, iter_time / 8)
    digest = await _in_thread(_pbkdf2, spec.hash_alg, key, salt, iterations, _DIGEST_BYTES)
    ivgen = spec.ivgen_alg + (f":{spec.ivgen_hash_alg}" if spec.ivgen_hash_alg else "")
    header = LuksHeader(
        cipher_name=spec.cipher_alg.rpartition("-")[0],
        cipher_mode=f"{spec.cipher_mode}-{ivgen}",
        hash_spec=spec.hash_alg,
        payload_offset=payload_offset_for(spec),
        key_bytes=spec.key_bytes,
        digest=digest,
        digest_salt=salt,
        digest_iterations=iterations,
        uuid=str(uuid.uuid4()),
        slots=tuple(KeySlot(False, 0, bytes(_SALT_BYTES), AREA + at * room) for at in range(KEY_SLOTS)),
    )
    slot, material = await _make_slot(header, spec, 0, key, passphrase, iter_time)
    header = header.with_slot(0, slot)
    await place.write(slot.offset, material)
    await place.flush()
    await place.write(0, header.encode())
    await place.flush()
    return LuksVolume(header, spec, key, place, secret)


def slots_info(header: LuksHeader, spec: CipherSpec, *, format: str | None = None) -> dict[str, Any]:
    """QEMU's QCryptoBlockInfoLUKS, in the order in which its tools print it; *format* where others are possible."""
    info: dict[str, Any] = {"ivgen-alg": spec.ivgen_alg, "hash-alg": spec.hash_alg, "cipher-alg": spec.cipher_alg}
    info["uuid"] = header.uuid
    if spec.ivgen_hash_alg is not None:
        info["ivgen-hash-alg"] = spec.ivgen_hash_alg
    if format is not None:
        info["format"] = format
    info["cipher-mode"] = spec.cipher_mode
    slots = []
    for slot in header.slots:
        shown: dict[str, Any] = {"active": slot.active}
        if slot.active:
            shown["iters"] = slot.iterations
        shown["key-offset"] = slot.offset
        if slot.active:
            shown["stripes"] = slot.stripes
        slots.append(shown)
    info["slots"] = slots
    info["payload-offset"] = header.payload_offset
    info["master-key-iters"] = header.digest_iterations
    return info


# -- keys


class _Budget:
    """How much more work the image may ask for."""

    def __init__(self, trust: Limits) -> None:
        self.left = trust.max_kdf_iterations

    def spend(self, iterations: int) -> None:
        self.left -= iterations
        if self.left < 0:
            raise LimitExceeded("The key slots of the image ask for more iterations than Limits.max_kdf_iterations")


async def _find_key(
    header: LuksHeader, spec: CipherSpec, place: Place, passphrase: bytes, trust: Limits
) -> tuple[int, bytes] | None:
    budget = _Budget(trust)
    for number, slot in enumerate(header.slots):
        if slot.active:
            key = await _try_slot(header, spec, place, number, passphrase, budget)
            if key is not None:
                return number, key
    return None


async def _try_slot(
    header: LuksHeader, spec: CipherSpec, place: Place, number: int, passphrase: bytes, budget: _Budget
) -> bytes | None:
    """The master key, if *passphrase* opens slot *number*."""
    slot = header.slots[number]
    if not slot.active:
        return None
    budget.spend(slot.iterations + header.digest_iterations)
    # The cipher works on whole sectors; the stripes may end inside the last.
    nbytes = header.key_bytes * STRIPES
    material = await place.read(slot.offset, -(-nbytes // SECTOR) * SECTOR)

    def attempt() -> bytes | None:
        slot_key = _pbkdf2(spec.hash_alg, passphrase, slot.salt, slot.iterations, header.key_bytes)
        stripes = bytearray(material)
        _payload_cipher(spec, slot_key).decrypt(stripes, 0)
        key = merge(bytes(stripes[:nbytes]), STRIPES, spec.hash_alg)
        digest = _pbkdf2(spec.hash_alg, key, header.digest_salt, header.digest_iterations, _DIGEST_BYTES)
        return key if hmac.compare_digest(digest, header.digest) else None

    return await _in_thread(attempt)


async def _make_slot(
    header: LuksHeader, spec: CipherSpec, number: int, key: bytes, passphrase: bytes, iter_time: float
) -> tuple[KeySlot, bytes]:
    """An active slot for *passphrase*, and its key material."""
    salt = os.urandom(_SALT_BYTES)
    iterations = await _benchmark(spec.hash_alg, header.key_bytes, iter_time)

    def make() -> bytes:
        slot_key = _pbkdf2(spec.hash_alg, passphrase, salt, iterations, header.key_bytes)
        stripes = split(key, STRIPES, spec.hash_alg)
        padded = bytearray(stripes.ljust(-(-len(stripes) // SECTOR) * SECTOR, b"\0"))
        _payload_cipher(spec, slot_key).encrypt(padded, 0)
        return bytes(padded)

    material = await _in_thread(make)
    return KeySlot(True, iterations, salt, header.slots[number].offset), material


def _payload_cipher(spec: CipherSpec, key: bytes) -> SectorCipher:
    return SectorCipher(spec.cipher_mode, key, make_iv_generator(spec.ivgen_alg, key, spec.ivgen_hash_alg))


def _pbkdf2(hash_name: str, secret: bytes, salt: bytes, iterations: int, nbytes: int) -> bytes:
    return hashlib.pbkdf2_hmac(hash_name, secret, salt, iterations, nbytes)


async def _benchmark(hash_name: str, nbytes: int, milliseconds: float) -> int:
    """How many iterations take so long in one thread of this machine; at least 1000."""
    if milliseconds <= 0:
        milliseconds = DEFAULT_ITER_TIME

    def measure() -> int:
        try:
            hashlib.new(hash_name)
        except ValueError as error:
            raise UnsupportedFeature(f"Hash algorithm '{hash_name}' not supported") from error
        iterations = 1 << 12
        while True:
            began = time.thread_time()
            _pbkdf2(hash_name, b"benchmark", bytes(_SALT_BYTES), iterations, nbytes)
            spent = (time.thread_time() - began) * 1000
            # Long enough to be believed, or as long as is wanted.
            if spent >= min(100, milliseconds) or iterations >= _MAX_ITERATIONS // 2:
                return int(iterations * milliseconds / max(spent, 0.001))
            iterations *= 2

    return min(max(_MIN_ITERATIONS, await _in_thread(measure)), _MAX_ITERATIONS)


async def _in_thread(work: Callable[..., T], *args: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


def _check_number(number: int) -> None:
    if not 0 <= number < KEY_SLOTS:
        number %= 1 << 32  # as QEMU prints it
        raise OptionError(f"Invalid keyslot {number} specified, must be between 0 and {KEY_SLOTS - 1}")
