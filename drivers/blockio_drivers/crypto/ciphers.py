"""Encrypting and decrypting runs of 512-byte sectors, each with an IV made of its number.

The ciphers are those of ``cryptography``; here is what makes them fast for disks. One cipher object for each
sector costs ten times what the sector itself does, so whole runs go through AES at once:

* XTS is ECB between two exclusive-ors with the *tweaks* (IEEE 1619). The tweaks of all blocks of a run are made side by
  side: encrypting the IVs is one call, and multiplying in GF(2^128) is some operations on one long integer.
* CBC decryption is ECB decryption and one exclusive-or with the ciphertext, shifted by a block.
* CBC encryption depends on its own output. One chain does for a run: what it carries into a sector's first block is
  taken out of that block beforehand, and the IV put in its place. CTR's counter can be set anew.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blockio.errors import UnsupportedFeature

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["SECTOR", "IvGenerator", "SectorCipher", "make_iv_generator"]

SECTOR: Final = 512
_BLOCK: Final = 16
_BLOCKS: Final = SECTOR // _BLOCK
_WORDS: Final = SECTOR // 8
_RUN: Final = 64
"""How many sectors go through at once: as much as the processor's cache holds along with what they need."""
_BITS: Final = 8 * _BLOCK
_STEP: Final = _BITS + 1
"""By so many bits is the next block's tweak further on."""
_LAST: Final = (_BLOCKS - 1) * _STEP - _BITS
"""By so many is what leaves the last block, when it comes back into it."""

IvGenerator = Callable[[int, int], bytes]
"""From the number of the first sector and how many there are: their IVs, 16 bytes each, one behind the other."""


def make_iv_generator(name: str, key: bytes, iv_hash: str | None = None) -> IvGenerator:
    """``plain`` (32 bits of the sector's number), ``plain64``, or ``essiv`` (that, encrypted with the key's hash).

    UnsupportedFeature for another name, and for a hash that makes no AES key.
    """
    if name == "plain64":
        return _plain64
    if name == "plain":
        return lambda first, count: b"".join(
            [(sector & 0xFFFFFFFF).to_bytes(_BLOCK, "little") for sector in range(first, first + count)]
        )
    if name != "essiv":
        raise UnsupportedFeature(f"IV generator '{name}' not supported")
    digest = hashlib.new(iv_hash or "sha256", key).digest()
    if len(digest) not in (16, 24, 32):
        raise UnsupportedFeature(f"IV generator hash '{iv_hash}' not supported: no cipher has such keys")
    blocks = _Blocks(digest)
    return lambda first, count: blocks.encrypt(_plain64(first, count))


def _plain64(first: int, count: int) -> bytes:
    return b"".join([sector.to_bytes(_BLOCK, "little") for sector in range(first, first + count)])


class SectorCipher:
    """AES in one mode with one key. Used from any thread: nothing in it changes.

    *mode* is ``xts`` (the key is two keys), ``cbc``, ``ctr`` or ``ecb``. UnsupportedFeature for another.
    """

    __slots__ = ("_blocks", "_decrypt_run", "_encrypt_run", "_key", "_make_ivs", "_tweak_blocks")

    def __init__(self, mode: str, key: bytes, make_ivs: IvGenerator) -> None:
        runs: dict[str, tuple[Callable[[bytes, int], bytes], Callable[[bytes, int], bytes]]] = {
            "xts": (self._xts_encrypt, self._xts_decrypt),
            "cbc": (self._cbc_encrypt, self._cbc_decrypt),
            "ctr": (self._ctr, self._ctr),
            "ecb": (self._ecb_encrypt, self._ecb_decrypt),
        }
        if mode not in runs:
            raise UnsupportedFeature(f"Cipher mode '{mode}' not supported")
        self._encrypt_run, self._decrypt_run = runs[mode]
        self._make_ivs = make_ivs
        half = len(key) // 2 if mode == "xts" else len(key)
        self._key = key[:half]
        self._blocks = _Blocks(self._key)
        self._tweak_blocks = _Blocks(key[half:] or self._key)

    def __repr__(self) -> str:
        return "<SectorCipher>"

    def encrypt(self, data: Buffer, sector: int) -> bytearray:
        """*data*, whole sectors of which the first has that number, encrypted."""
        return _in_runs(self._encrypt_run, data, sector)

    def decrypt(self, data: Buffer, sector: int) -> bytearray:
        """*data*, whole sectors of which the first has that number, in the clear."""
        return _in_runs(self._decrypt_run, data, sector)

    # -- one run

    def _xts_encrypt(self, data: bytes, sector: int) -> bytes:
        return self._xts(data, sector, self._blocks.encrypt)

    def _xts_decrypt(self, data: bytes, sector: int) -> bytes:
        return self._xts(data, sector, self._blocks.decrypt)

    def _xts(self, data: bytes, sector: int, aes: Callable[[bytes], bytes]) -> bytes:
        nbytes = len(data)
        tweaks = self._tweaks(sector, nbytes // SECTOR)
        masked = (int.from_bytes(data, "little") ^ tweaks).to_bytes(nbytes, "little")
        return (int.from_bytes(aes(masked), "little") ^ tweaks).to_bytes(nbytes, "little")

    def _tweaks(self, sector: int, count: int) -> int:
        """The tweaks of all blocks of *count* sectors, as one number of as many bytes.

        Block j's is the sector's first one times x^j: shifted by j bits, and what leaves the block so comes back into
        it as x^7 + x^2 + x + 1. All blocks of a sector are had by doubling: what there is, shifted by as many blocks,
        and as many bits more. What leaves a block is then in the lowest bits of the next one, which has none of its own
        there; but for the last block, which has no next one.
        """
        first = memoryview(self._tweak_blocks.encrypt(self._make_ivs(sector, count))).cast("Q")
        spread = bytearray(count * SECTOR)
        words = memoryview(spread).cast("Q")
        words[::_WORDS], words[1::_WORDS] = first[::2], first[1::2]
        masks = _masks(count)
        start = _number(spread)
        tweaks = start | start << _STEP
        tweaks |= tweaks << 2 * _STEP
        tweaks |= tweaks << 4 * _STEP
        tweaks |= tweaks << 8 * _STEP
        tweaks |= (tweaks & masks.stays) << 16 * _STEP
        left = tweaks & masks.left
        back = left >> _BITS | (start & masks.last) << _LAST
        return tweaks ^ left ^ back ^ back << 1 ^ back << 2 ^ back << 7

    def _cbc_encrypt(self, data: bytes, sector: int) -> bytes:
        _, _, modes = _cryptography()
        ivs = self._make_ivs(sector, len(data) // SECTOR)
        chain = _cipher(self._key, modes.CBC(bytes(_BLOCK))).encryptor().update
        done = []
        carried = 0
        for at in range(0, len(data), SECTOR):
            iv = ivs[at // _BLOCKS : at // _BLOCKS + _BLOCK]
            block = _number(data[at : at + _BLOCK]) ^ _number(iv) ^ carried
            done.append(chain(block.to_bytes(_BLOCK, "little") + data[at + _BLOCK : at + SECTOR]))
            carried = _number(done[-1][-_BLOCK:])
        return b"".join(done)

    def _cbc_decrypt(self, data: bytes, sector: int) -> bytes:
        nbytes = len(data)
        before = bytearray(b"\0" * _BLOCK + data[:-_BLOCK])
        words = memoryview(before).cast("Q")
        ivs = memoryview(self._make_ivs(sector, nbytes // SECTOR)).cast("Q")
        words[::_WORDS] = ivs[::2]
        words[1::_WORDS] = ivs[1::2]
        plain = int.from_bytes(self._blocks.decrypt(data), "little")
        return (plain ^ int.from_bytes(before, "little")).to_bytes(nbytes, "little")

    def _ctr(self, data: bytes, sector: int) -> bytes:
        _, _, modes = _cryptography()
        ivs = self._make_ivs(sector, len(data) // SECTOR)
        counter = _cipher(self._key, modes.CTR(bytes(_BLOCK))).encryptor()
        done = []
        for at in range(0, len(data), SECTOR):
            counter.reset_nonce(ivs[at // _BLOCKS : at // _BLOCKS + _BLOCK])
            done.append(counter.update(data[at : at + SECTOR]))
        return b"".join(done)

    def _ecb_encrypt(self, data: bytes, sector: int) -> bytes:
        return self._blocks.encrypt(data)

    def _ecb_decrypt(self, data: bytes, sector: int) -> bytes:
        return self._blocks.decrypt(data)


class _Blocks(threading.local):
    """AES of whole blocks, each by itself. Setting it up costs as much as kilobytes of data, so each thread keeps one.

    It remembers nothing from one call to the next, for there is never half a block.
    """

    def __init__(self, key: bytes) -> None:
        _, _, modes = _cryptography()
        cipher = _cipher(key, modes.ECB())
        self.encrypt: Callable[[bytes], bytes] = cipher.encryptor().update
        self.decrypt: Callable[[bytes], bytes] = cipher.decryptor().update


def _number(block: bytes | bytearray) -> int:
    return int.from_bytes(block, "little")


def _in_runs(work: Callable[[bytes, int], bytes], data: Buffer, sector: int) -> bytearray:
    source = memoryview(data)
    if source.nbytes % SECTOR:
        raise ValueError(f"{source.nbytes} bytes are no whole sectors")
    result = bytearray(source.nbytes)
    for at in range(0, source.nbytes, _RUN * SECTOR):
        part = bytes(source[at : at + _RUN * SECTOR])
        result[at : at + len(part)] = work(part, sector + at // SECTOR)
    return result


class _Masks(NamedTuple):
    """For ``_tweaks`` of so many sectors; the same for each of them."""

    left: int
    """What leaves a block: the lowest j bits of the block behind block j, but for the last one."""
    last: int
    """What leaves the last block, while it is not shifted yet."""
    stays: int
    """All of the first 16 blocks but what would leave the last one, when they are shifted there."""


@lru_cache(maxsize=_RUN)
def _masks(count: int) -> _Masks:
    top = _BLOCKS - 1
    left = sum(_ones(block) << _BITS * (block + 1) for block in range(top))
    last = _ones(top) << _BITS - top
    stays = _ones(8 * SECTOR) ^ last << _STEP * (top // 2)
    return _Masks(*(_number(mask.to_bytes(SECTOR, "little") * count) for mask in (left, last, stays)))


def _ones(count: int) -> int:
    return (1 << count) - 1


def _cryptography() -> tuple[Any, Any, Any]:
    # only encrypted images need it, and it takes long to load
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher, algorithms, modes


def _cipher(key: bytes, mode: Any) -> Any:
    cipher, algorithms, _ = _cryptography()
    return cipher(algorithms.AES(key), mode)
