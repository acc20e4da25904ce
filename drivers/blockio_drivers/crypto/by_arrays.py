"""Whole sectors in XTS and CBC with numpy: what ``by_numbers`` does, at the speed of memory and beside other threads.

Loading numpy takes as long as some MiB done with integers, so ``ciphers`` imports this module when that much went
through, and does without where numpy is missing. In runs that the processor's cache holds along with what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from blockio_drivers.crypto.by_numbers import BLOCK, BLOCKS, SECTOR

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

    Words = np.ndarray[Any, np.dtype[np.uint64]]

__all__ = ["cbc_decrypt", "cbc_encrypt", "xts"]

_RUN: Final = 256
"""Sectors in a run."""
_WORD: Final = np.dtype("<u8")
_AHEAD: Final = np.tile(np.arange(BLOCKS, dtype=_WORD), _RUN)
"""By so many bits is each block's tweak further on than its sector's first one."""
_LEFT: Final = np.uint64(64) - _AHEAD
"""By so many bits goes down what leaves a word so."""


def xts(memory: memoryview, firsts: bytes, aes: CipherContext) -> None:
    """Encrypt or decrypt, as *aes* does, whole sectors in place. *firsts* are the tweaks of their first blocks."""
    room = _Room(min(_RUN * SECTOR, memory.nbytes))
    for run, first in _runs(memory, firsts):
        tweaks = _tweaks(first)
        source = room.source[: len(run)]
        np.bitwise_xor(run, tweaks, out=source)
        np.bitwise_xor(room.through(aes, source), tweaks, out=run)


def _tweaks(first: Words) -> Words:
    """The tweaks of all blocks of the sectors whose first blocks have *first*: two words each, the lower one first.

    Block j's is the sector's first one times x^j: shifted by j bits, and what leaves the upper word so comes back into
    the lower one as x^7 + x^2 + x + 1. Shifted by 64 bits, nothing is left of a word.
    """
    low, high = first[::2].repeat(BLOCKS), first[1::2].repeat(BLOCKS)
    ahead, left = _AHEAD[: len(low)], _LEFT[: len(low)]
    tweaks = np.empty((len(low), 2), _WORD)
    back = high >> left
    words = low << ahead
    words ^= back
    for further in (1, 1, 5):
        back <<= np.uint64(further)
        words ^= back
    tweaks[:, 0] = words
    high <<= ahead
    low >>= left
    np.bitwise_xor(high, low, out=tweaks[:, 1])
    return tweaks.reshape(-1)


def cbc_encrypt(memory: memoryview, ivs: bytes, aes: CipherContext) -> None:
    """Encrypt whole sectors in place; *aes* encrypts blocks. The chains of all sectors go on side by side."""
    blocks = _words(memory).reshape(-1, BLOCKS, 2)
    room = _Room(len(ivs))
    before = _words(ivs)
    for number in range(BLOCKS):
        np.bitwise_xor(blocks[:, number], before.reshape(-1, 2), out=room.source.reshape(-1, 2))
        before = room.through(aes, room.source)
        blocks[:, number] = before.reshape(-1, 2)


def cbc_decrypt(memory: memoryview, ivs: bytes, aes: CipherContext) -> None:
    """Decrypt whole sectors in place: *aes* decrypts blocks, and each is xored with the ciphertext before it."""
    room = _Room(min(_RUN * SECTOR, memory.nbytes))
    for run, first in _runs(memory, ivs):
        plain = room.through(aes, run)
        before = room.source[: len(run)]
        before[2:] = run[:-2]
        before.reshape(-1, BLOCKS, 2)[:, 0] = first.reshape(-1, 2)
        np.bitwise_xor(plain, before, out=run)


class _Room:
    """Memory for *nbytes* before and behind AES, made once for all runs of a request and let go with it."""

    def __init__(self, nbytes: int) -> None:
        self.source = np.empty(nbytes // 8, _WORD)
        self._result = np.empty((nbytes + BLOCK) // 8, _WORD)  # ``update_into`` asks for almost a block more

    def through(self, aes: CipherContext, words: Words) -> Words:
        """*words*, whole blocks, through *aes*. They are in force until the next call."""
        aes.update_into(words.view(np.uint8).data, self._result.view(np.uint8).data)
        return self._result[: len(words)]


def _words(data: bytes | memoryview) -> Words:
    return np.frombuffer(data, _WORD)


def _runs(memory: memoryview, firsts: bytes) -> Iterator[tuple[Words, Words]]:
    """The words of each run, and of what belongs to its sectors."""
    for at in range(0, memory.nbytes, _RUN * SECTOR):
        yield _words(memory[at : at + _RUN * SECTOR]), _words(firsts[at // BLOCKS : at // BLOCKS + _RUN * BLOCK])
