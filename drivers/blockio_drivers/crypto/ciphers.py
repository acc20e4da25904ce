"""Encrypting and decrypting runs of 512-byte sectors, each with an IV made of its number.

The ciphers are those of ``cryptography``; here is what makes them fast for disks. One cipher object for each
sector costs ten times what the sector itself does, so whole runs go through AES at once:

* XTS is ECB between two exclusive-ors with the *tweaks* (IEEE 1619). The tweaks of all blocks of a run are made side by
  side: encrypting the IVs is one call, and multiplying in GF(2^128) is shifts and exclusive-ors.
* CBC decryption is ECB decryption and one exclusive-or with the ciphertext, shifted by a block.
* CBC encryption depends on its own output, but only within a sector. CTR's counter can be set anew.

The arithmetic around AES is done with long integers (``by_numbers``) until numpy (``by_arrays``) is worth loading.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from blockio.errors import UnsupportedFeature
from blockio_drivers.crypto import by_numbers
from blockio_drivers.crypto.by_numbers import BLOCK, BLOCKS, SECTOR

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext
    from typing_extensions import Buffer

__all__ = ["SECTOR", "IvGenerator", "SectorCipher", "make_iv_generator"]

_LOADING_PAYS: Final = 16 << 20
"""So many bytes done with integers cost what loading numpy does."""
_ON_LOOPS: Final = 16 << 10
"""Requests up to this size may be made by an event loop, which must not load anything."""
_XTS_WORTH: Final = 4 << 10
"""From this size on arrays are faster than integers."""
_CBC_ENCRYPT_WORTH: Final = 64 << 10
_CBC_DECRYPT_WORTH: Final = 8 << 10

IvGenerator = Callable[[int, int], bytes]
"""From the number of the first sector and how many there are: their IVs, 16 bytes each, one behind the other."""


def make_iv_generator(name: str, key: bytes, iv_hash: str | None = None) -> IvGenerator:
    """``plain`` (32 bits of the sector's number), ``plain64``, or ``essiv`` (that, encrypted with the key's hash).

    UnsupportedFeature for another name, and for a hash that makes no AES key.
    """
    if name == "plain64":
        return _plain64
    if name == "plain":
        return lambda first, count: _numbered([sector & 0xFFFFFFFF for sector in range(first, first + count)])
    if name != "essiv":
        raise UnsupportedFeature(f"IV generator '{name}' not supported")
    digest = hashlib.new(iv_hash or "sha256", key).digest()
    if len(digest) not in (16, 24, 32):
        raise UnsupportedFeature(f"IV generator hash '{iv_hash}' not supported: no cipher has such keys")
    blocks = _Blocks(digest)
    return lambda first, count: blocks.encryptor.update(_plain64(first, count))


def _plain64(first: int, count: int) -> bytes:
    return _numbered(range(first, first + count))


def _numbered(numbers: Sequence[int]) -> bytes:
    """Each of *numbers* in a block of its own."""
    return struct.pack("<" + "Q8x" * len(numbers), *numbers)


class SectorCipher:
    """AES in one mode with one key. Used from any thread: nothing in it changes.

    *mode* is ``xts`` (the key is two keys), ``cbc``, ``ctr`` or ``ecb``. UnsupportedFeature for another.
    """

    __slots__ = ("_blocks", "_decrypt", "_encrypt", "_key", "_make_ivs", "_tweak_blocks")

    def __init__(self, mode: str, key: bytes, make_ivs: IvGenerator) -> None:
        ways: dict[str, tuple[Callable[[memoryview, bytes], None], Callable[[memoryview, bytes], None]]] = {
            "xts": (self._xts_encrypt, self._xts_decrypt),
            "cbc": (self._cbc_encrypt, self._cbc_decrypt),
            "ctr": (self._ctr, self._ctr),
            "ecb": (self._ecb_encrypt, self._ecb_decrypt),
        }
        if mode not in ways:
            raise UnsupportedFeature(f"Cipher mode '{mode}' not supported")
        self._encrypt, self._decrypt = ways[mode]
        self._make_ivs = make_ivs
        half = len(key) // 2 if mode == "xts" else len(key)
        self._key = key[:half]
        self._blocks = _Blocks(self._key)
        self._tweak_blocks = _Blocks(key[half:] or self._key)

    def __repr__(self) -> str:
        return "<SectorCipher>"

    def encrypt(self, memory: Buffer, sector: int) -> None:
        """Encrypt *memory*, whole sectors of which the first has that number, in place."""
        self._transform(self._encrypt, memory, sector)

    def decrypt(self, memory: Buffer, sector: int) -> None:
        """Decrypt *memory*, whole sectors of which the first has that number, in place."""
        self._transform(self._decrypt, memory, sector)

    def _transform(self, work: Callable[[memoryview, bytes], None], memory: Buffer, sector: int) -> None:
        view = memoryview(memory).cast("B")
        if view.nbytes % SECTOR:
            raise ValueError(f"{view.nbytes} bytes are no whole sectors")
        if view.nbytes:
            work(view, self._make_ivs(sector, view.nbytes // SECTOR))

    def _xts_encrypt(self, memory: memoryview, ivs: bytes) -> None:
        self._xts(memory, ivs, self._blocks.encryptor)

    def _xts_decrypt(self, memory: memoryview, ivs: bytes) -> None:
        self._xts(memory, ivs, self._blocks.decryptor)

    def _xts(self, memory: memoryview, ivs: bytes, aes: CipherContext) -> None:
        _arithmetic(memory.nbytes, _XTS_WORTH).xts(memory, self._tweak_blocks.encryptor.update(ivs), aes)

    def _cbc_encrypt(self, memory: memoryview, ivs: bytes) -> None:
        arithmetic = _arithmetic(memory.nbytes, _CBC_ENCRYPT_WORTH)
        if arithmetic is by_numbers:
            _, _, modes = _cryptography()
            by_numbers.cbc_encrypt(memory, ivs, _cipher(self._key, modes.CBC(bytes(BLOCK))).encryptor())
        else:
            arithmetic.cbc_encrypt(memory, ivs, self._blocks.encryptor)

    def _cbc_decrypt(self, memory: memoryview, ivs: bytes) -> None:
        _arithmetic(memory.nbytes, _CBC_DECRYPT_WORTH).cbc_decrypt(memory, ivs, self._blocks.decryptor)

    def _ctr(self, memory: memoryview, ivs: bytes) -> None:
        _, _, modes = _cryptography()
        counter = _cipher(self._key, modes.CTR(bytes(BLOCK))).encryptor()
        for at in range(0, memory.nbytes, SECTOR):
            counter.reset_nonce(ivs[at // BLOCKS : at // BLOCKS + BLOCK])
            memory[at : at + SECTOR] = counter.update(memory[at : at + SECTOR])

    def _ecb_encrypt(self, memory: memoryview, ivs: bytes) -> None:
        memory[:] = self._blocks.encryptor.update(memory)

    def _ecb_decrypt(self, memory: memoryview, ivs: bytes) -> None:
        memory[:] = self._blocks.decryptor.update(memory)


class _Blocks(threading.local):
    """AES of whole blocks, each by itself. Setting it up costs as much as kilobytes of data, so each thread keeps one.

    It remembers nothing from one call to the next, for there is never half a block.
    """

    def __init__(self, key: bytes) -> None:
        _, _, modes = _cryptography()
        cipher = _cipher(key, modes.ECB())
        self.encryptor: CipherContext = cipher.encryptor()
        self.decryptor: CipherContext = cipher.decryptor()


class _Arithmetic:
    """Which module does the arithmetic: integers at first, arrays when loading numpy has paid for itself.

    So no program spends more than twice what the better of both would have cost it, and short ones load nothing.
    """

    def __init__(self) -> None:
        self._spent = 0
        self._arrays: ModuleType | None = None

    def __call__(self, nbytes: int, worth: int) -> Any:
        """The module for a request of *nbytes*, which is arrays' from *worth* on where they are loaded.

        Loads them in the caller's thread while others go on with integers.
        """
        if self._arrays is None and nbytes > _ON_LOOPS:
            before, self._spent = self._spent, self._spent + nbytes
            if before < _LOADING_PAYS <= self._spent:
                self._arrays = _load_arrays()
        return by_numbers if self._arrays is None or nbytes < worth else self._arrays


_arithmetic: Final = _Arithmetic()


def _load_arrays() -> ModuleType | None:
    try:
        from blockio_drivers.crypto import by_arrays
    except ImportError:
        return None  # numpy is not installed, or not for this machine
    return by_arrays


def _cryptography() -> tuple[Any, Any, Any]:
    # only encrypted images need it, and it takes long to load
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher, algorithms, modes


def _cipher(key: bytes, mode: Any) -> Any:
    cipher, algorithms, _ = _cryptography()
    return cipher(algorithms.AES(key), mode)
