"""Encryption of the guest's data: LUKS, whose header lies in clusters of the image, and the old AES without one.

Stands on the *Data Encryption* and *Full disk encryption header pointer* sections of QEMU's ``docs/interop/qcow2.txt``.

What is encrypted is the data of plain clusters, a machine's state included. Compressed clusters, metadata and
bitmaps are in the clear. Each sector's initialization vector is made of its number: LUKS counts sectors of the file,
so that a cluster must be encrypted anew when it moves; AES counts those of the guest. The password of AES is its key,
as far as 16 bytes go, so that no password is wrong: another one makes noise of the data.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from blockio.buffers import IoVector
from blockio.errors import BlockError, CorruptImage, OptionError, UnsupportedFeature
from blockio.types import HostOffset
from blockio_drivers.crypto.ciphers import SECTOR, SectorCipher, make_iv_generator
from blockio_drivers.crypto.transfer import read_decrypted, write_encrypted
from blockio_drivers.crypto.volume import (
    DEFAULT_ITER_TIME,
    KeySlotChange,
    LuksVolume,
    format_volume,
    passphrase_of,
    read_header,
    slots_info,
)
from blockio_drivers.qcow2.extensions import EncryptionExtension
from blockio_drivers.qcow2.header import CryptMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blockio.driver.base import DriverHost
    from blockio.driver.child import Child
    from blockio.types import Limits
    from blockio_drivers.crypto.header import CipherSpec, LuksHeader
    from blockio_drivers.qcow2.header import Header
    from blockio_drivers.qcow2.options import EncryptOptions

__all__ = ["Encryption", "check_options", "format_luks", "open_encryption"]

PREFIX: Final = "encrypt."
"""What stands before the options' names in messages."""
_AES_KEY: Final = 16


class Encryption:
    """How the data of one open image is encrypted.

    Invariant: ``_cipher`` is None only on a node without I/O, which cannot be read or written; ``volume`` only there
    and where there is no LUKS header.
    """

    def __init__(
        self,
        method: CryptMethod,
        cipher: SectorCipher | None,
        *,
        volume: LuksVolume | None = None,
        shown: tuple[LuksHeader, CipherSpec] | None = None,
    ) -> None:
        self.method = method
        self.volume = volume
        self._cipher = cipher
        self._shown = shown
        self._by_host = method is CryptMethod.LUKS

    def __repr__(self) -> str:
        return f"<Encryption {self.method.name}>"

    @property
    def _key(self) -> SectorCipher:
        if self._cipher is None:
            raise UnsupportedFeature("The image was opened without its key")
        return self._cipher

    async def read(self, child: Child, offset: int, host_offset: int, iov: IoVector) -> None:
        """Fill *iov* with the guest's bytes from *offset* on, at *host_offset* of *child*: whole sectors."""
        place = host_offset if self._by_host else offset
        await read_decrypted(self._key, child, host_offset, iov, place // SECTOR)

    async def write(self, child: Child, offset: int, host_offset: int, iov: IoVector) -> None:
        """Write *iov*, the guest's bytes from *offset* on, to *host_offset* of *child*: whole sectors."""
        place = host_offset if self._by_host else offset
        await write_encrypted(self._key, child, host_offset, iov, place // SECTOR)

    def info(self) -> dict[str, Any]:
        """``encrypt`` of ``info``, in QEMU's words and order."""
        if self.volume is not None:
            return slots_info(self.volume.header, self.volume.spec, format="luks")
        if self._shown is not None:
            return slots_info(*self._shown, format="luks")
        return {"format": self.method.name.lower()}

    async def refresh(self) -> None:
        """Somebody else had the image: its key slots may be others. What ``read_header`` raises."""
        if self.volume is not None:
            await self.volume.refresh()

    async def amend(self, change: KeySlotChange, trust: Limits, *, force: bool) -> None:
        """See ``LuksVolume.amend``; UnsupportedFeature without a key or a LUKS header."""
        if self.volume is None:
            raise UnsupportedFeature("The image was opened without its key")
        await self.volume.amend(change, trust, force=force)

    def change_loop(self) -> None:
        """A lock for the new loop. Nobody holds it now."""
        if self.volume is not None:
            self.volume.change_loop()


def check_options(options: Mapping[str, Any] | None, method: int) -> str | None:
    """The id of the secret in *options*, which must fit the header's *method*. OptionError in QEMU's words."""
    given = dict(options or {})
    wanted = given.pop("format", None)
    if method == CryptMethod.NONE:
        if wanted is not None:
            raise OptionError(f"No encryption in image header, but options specified format '{wanted}'")
        return None  # nobody looks at the rest
    name = CryptMethod(method).name.lower()
    if wanted not in (None, name):
        raise OptionError(f"Header reported '{name}' encryption format but options specify '{wanted}'")
    secret = given.pop("key-secret", None)
    if given:
        raise OptionError(f"Parameter '{next(iter(given))}' is unexpected")
    if secret is not None and not isinstance(secret, str):
        raise OptionError(f"Invalid parameter type for '{PREFIX}key-secret', expected: string")
    return secret


async def open_encryption(file: Child, header: Header, secret: str | None, host: DriverHost) -> Encryption:
    """Unlock the image with the passphrase that *secret* names; on a node without I/O only look at its header.

    Raises OptionError for a secret that is missing or does not fit (EPERM), what ``LuksHeader.decode`` raises,
    CorruptImage where there is no LUKS header or it reaches out of its room, LimitExceeded where it asks for too much.
    """
    method = CryptMethod(header.crypt_method)
    keyless = host.flags.no_io
    if method is CryptMethod.AES:
        return Encryption(method, None if keyless else aes_cipher(passphrase_of(secret, PREFIX)))
    place = header.encryption
    if place is None:
        if not keyless:
            raise CorruptImage(f"Missing CRYPTO header for crypt method {method.value}", errno.EINVAL)
        return Encryption(method, None)
    if keyless:
        return Encryption(method, None, shown=await read_header(LuksPlace(file, place)))
    passphrase_of(secret, PREFIX)
    assert secret is not None  # ``passphrase_of`` looked
    volume = await LuksVolume.open(LuksPlace(file, place), secret, host.trust, prefix=PREFIX)
    return Encryption(method, volume.cipher, volume=volume)


def aes_cipher(password: bytes) -> SectorCipher:
    """AES-128-CBC with *password* for a key."""
    key = password[:_AES_KEY].ljust(_AES_KEY, b"\0")
    return SectorCipher("cbc", key, make_iv_generator("plain64", key))


class LuksPlace:
    """The ``Place`` of the LUKS header inside the image: what the header extension says, and no byte more."""

    def __init__(self, file: Child, where: EncryptionExtension) -> None:
        self._file = file
        self._offset = where.offset
        self._length = where.length

    def _within(self, offset: int, nbytes: int) -> int:
        if offset + nbytes > self._length:
            raise CorruptImage("Request for data outside of extension header", errno.EINVAL)
        return self._offset + offset

    async def read(self, offset: int, nbytes: int) -> bytes:
        """See ``Place``."""
        data = bytearray(nbytes)
        try:
            await self._file.co_preadv(self._within(offset, nbytes), IoVector.of(data))
        except CorruptImage:
            raise
        except BlockError as error:
            raise error.prefixed("Unable to read encryption header: ") from error
        return bytes(data)

    async def write(self, offset: int, data: bytes) -> None:
        """See ``Place``."""
        try:
            await self._file.co_pwritev(self._within(offset, len(data)), IoVector.of(data))
        except CorruptImage:
            raise
        except BlockError as error:
            raise error.prefixed("Unable to write encryption header: ") from error

    async def flush(self) -> None:
        """See ``Place``."""
        await self._file.co_flush()


# -- new images


async def format_luks(file: Child, offset: int, options: EncryptOptions) -> None:
    """Write a new LUKS header to *offset* of *file*. It is stable on return."""
    assert options.key_secret is not None  # ``validate`` looked
    nbytes = options.header_bytes()
    # All of it has room, whatever key slots are added, and nothing else shows in those that are not used.
    await file.co_pwrite_zeroes(offset, nbytes)
    place = LuksPlace(file, EncryptionExtension(HostOffset(offset), nbytes))
    spent = DEFAULT_ITER_TIME if options.iter_time is None else options.iter_time
    await format_volume(place, options.spec(), options.key_secret, spent, PREFIX)
