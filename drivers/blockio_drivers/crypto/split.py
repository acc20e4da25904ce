"""The anti-forensic splitter (LUKS1 on-disk format 1.2, section 2.4): a key spread over many stripes.

Whoever misses one bit of the stripes has nothing of the key, so that destroying a small part of the disk destroys it.
Pure arithmetic, in the hash that the header names.
"""

from __future__ import annotations

import hashlib
import os

__all__ = ["merge", "split"]


def split(key: bytes, stripes: int, hash_name: str) -> bytes:
    """*key* as ``stripes`` stripes of its length; all but the last are random."""
    material = os.urandom(len(key) * (stripes - 1))
    return material + _xor(_folded(material, len(key), hash_name), key)


def merge(material: bytes, stripes: int, hash_name: str) -> bytes:
    """The key that was split into *material*."""
    nbytes = len(material) // stripes
    before = material[: nbytes * (stripes - 1)]
    return _xor(_folded(before, nbytes, hash_name), material[nbytes * (stripes - 1) :])


def _folded(material: bytes, nbytes: int, hash_name: str) -> bytes:
    """All stripes in one: each is xored with what those before came to, and diffused.

    Diffused is: each piece of the hash's length is replaced by the hash of its number and itself.
    """
    step = hashlib.new(hash_name).digest_size
    pieces = [
        (hashlib.new(hash_name, number.to_bytes(4, "big")).copy, at, at + step)
        for number, at in enumerate(range(0, nbytes, step))
    ]
    state = bytes(nbytes)
    for start in range(0, len(material), nbytes):
        block = _xor(state, material[start : start + nbytes])
        digests = []
        for begin, at, end in pieces:
            digest = begin()
            digest.update(block[at:end])
            digests.append(digest.digest())
        state = b"".join(digests)[:nbytes]
    return state


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")
