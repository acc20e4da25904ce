"""Whole sectors in XTS and CBC with Python's long integers, which need nothing to be loaded.

In runs that the processor's cache holds along with what they need, because one integer does for a run. What costs is
making integers of bytes and bytes of integers; the arithmetic between is a tenth of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

__all__ = ["BLOCK", "BLOCKS", "SECTOR", "cbc_decrypt", "cbc_encrypt", "xts"]

SECTOR: Final = 512
BLOCK: Final = 16
BLOCKS: Final = SECTOR // BLOCK
"""In a sector."""
_WORDS: Final = SECTOR // 8
_RUN: Final = 64
"""Sectors in a run."""
_BITS: Final = 8 * BLOCK
_STEP: Final = _BITS + 1
"""By so many bits is the next block's tweak further on."""
_LAST: Final = (BLOCKS - 1) * _STEP - _BITS
"""By so many is what leaves the last block, when it comes back into it."""


def xts(memory: memoryview, firsts: bytes, aes: CipherContext) -> None:
    """Encrypt or decrypt, as *aes* does, whole sectors in place. *firsts* are the tweaks of their first blocks."""
    for at in range(0, memory.nbytes, _RUN * SECTOR):
        run = memory[at : at + _RUN * SECTOR]
        tweaks = _tweaks(firsts[at // BLOCKS : at // BLOCKS + _RUN * BLOCK])
        masked = (_number(run) ^ tweaks).to_bytes(run.nbytes, "little")
        run[:] = (_number(aes.update(masked)) ^ tweaks).to_bytes(run.nbytes, "little")


def _tweaks(firsts: bytes) -> int:
    """The tweaks of all blocks of the sectors whose first blocks have *firsts*, as one number of as many bytes.

    Block j's is the sector's first one times x^j: shifted by j bits, and what leaves the block so comes back into
    it as x^7 + x^2 + x + 1. All blocks of a sector are had by doubling: what there is, shifted by as many blocks,
    and as many bits more. What leaves a block is then in the lowest bits of the next one, which has none of its own
    there; but for the last block, which has no next one.
    """
    count = len(firsts) // BLOCK
    first = memoryview(firsts).cast("Q")
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


def cbc_encrypt(memory: memoryview, ivs: bytes, chain: CipherContext) -> None:
    """Encrypt whole sectors in place; *chain* is one CBC chain that began with an IV of zeroes.

    One chain does for all: what it carries into a sector's first block is taken out of that block beforehand, and the
    IV put in its place.
    """
    carried = 0
    for at in range(0, memory.nbytes, SECTOR):
        sector = memory[at : at + SECTOR]
        first = _number(sector[:BLOCK]) ^ _number(ivs[at // BLOCKS : at // BLOCKS + BLOCK]) ^ carried
        sector[:BLOCK] = first.to_bytes(BLOCK, "little")
        sector[:] = chain.update(sector)
        carried = _number(sector[-BLOCK:])


def cbc_decrypt(memory: memoryview, ivs: bytes, aes: CipherContext) -> None:
    """Decrypt whole sectors in place: *aes* decrypts blocks, and each is xored with the ciphertext before it."""
    for at in range(0, memory.nbytes, _RUN * SECTOR):
        run = memory[at : at + _RUN * SECTOR]
        before = bytearray(BLOCK) + run[:-BLOCK]
        words = memoryview(before).cast("Q")
        first = memoryview(ivs[at // BLOCKS : at // BLOCKS + _RUN * BLOCK]).cast("Q")
        words[::_WORDS], words[1::_WORDS] = first[::2], first[1::2]
        run[:] = (_number(aes.update(run)) ^ _number(before)).to_bytes(run.nbytes, "little")


def _number(data: bytes | bytearray | memoryview) -> int:
    return int.from_bytes(data, "little")


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
    top = BLOCKS - 1
    left = sum(_ones(block) << _BITS * (block + 1) for block in range(top))
    last = _ones(top) << _BITS - top
    stays = _ones(8 * SECTOR) ^ last << _STEP * (top // 2)
    return _Masks(*(_number(mask.to_bytes(SECTOR, "little") * count) for mask in (left, last, stays)))


def _ones(count: int) -> int:
    return (1 << count) - 1
