"""Checksums of what a guest sees, of the same disk the same in every format.

``ALGORITHMS`` has two kinds:

* an algorithm's name (``sha256``): that algorithm over all bytes of the disk, in order. Of a raw image of whole
  sectors this is what ``sha256sum`` says of the file. Zeroes that are stored nowhere must be hashed all the same,
  though nothing is read for them: a disk of a terabyte takes a quarter of an hour however empty it is.
* its name and ``-64k`` (``sha256-64k``): the algorithm over the digests that it gives for each 64 KiB of the disk, the
  last shorter if need be. Blocks of zeroes all have one digest, so an empty terabyte takes a second. Of a raw image::

      split -b 64k --filter='sha256sum | cut -d" " -f1 | xxd -r -p' disk.raw | sha256sum
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Protocol

from blockio.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ALGORITHMS", "BLOCK", "DEFAULT", "Checksum", "checksum"]

DEFAULT: Final = "sha256"
BLOCK: Final = 64 << 10
"""What the algorithms with ``-64k`` in their name hash one by one."""

_PLAIN: Final = ("blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha3-256", "sha3-512", "sha512")
_BY_BLOCKS: Final = {f"{name}-64k": name for name in ("blake2b", "sha256", "sha512")}
ALGORITHMS: Final = tuple(sorted((*_PLAIN, *_BY_BLOCKS)))
"""All names there are."""

_ZEROES: Final = bytes(1 << 20)


class Checksum(Protocol):
    """A digest of bytes that are told of in order. The calls take their time and let other threads run meanwhile."""

    at_once: int
    """So many zeroes are hashed in some tens of milliseconds."""

    def update(self, data: memoryview) -> None:
        """*data* comes next."""

    def zeroes(self, nbytes: int) -> None:
        """So many zeroes come next."""

    def hexdigest(self) -> str:
        """The digest of all that has come, in hexadecimal. The last call."""


def checksum(algorithm: str) -> Checksum:
    """A new one. OptionError where there is no *algorithm* of that name."""
    if algorithm in _PLAIN:
        return _Plain(algorithm)
    if algorithm in _BY_BLOCKS:
        return _ByBlocks(_BY_BLOCKS[algorithm])
    raise OptionError(f"Unknown digest algorithm '{algorithm}': there are {', '.join(ALGORITHMS)}")


def _hash(name: str) -> Callable[..., hashlib._Hash]:
    found: Callable[..., hashlib._Hash] = getattr(hashlib, name.replace("-", "_"))
    return found


class _Plain:
    """All bytes in order."""

    at_once = 64 << 20

    def __init__(self, name: str) -> None:
        self._hash = _hash(name)(usedforsecurity=False)
        self.update = self._hash.update
        self.hexdigest = self._hash.hexdigest

    def zeroes(self, nbytes: int) -> None:
        whole, rest = divmod(nbytes, len(_ZEROES))
        for _ in range(whole):
            self._hash.update(_ZEROES)
        self._hash.update(memoryview(_ZEROES)[:rest])


class _ByBlocks:
    """The digests of blocks. Invariant: ``_block`` has taken ``_filled`` bytes, less than a block."""

    at_once = 64 << 30

    def __init__(self, name: str) -> None:
        self._new = _hash(name)
        self._outer = self._new(usedforsecurity=False)
        self._block = self._new(usedforsecurity=False)
        self._filled = 0
        digest = self._new(bytes(BLOCK), usedforsecurity=False).digest()
        self._digests_of_zeroes = digest * (len(_ZEROES) // len(digest))
        self._digest_size = len(digest)

    def update(self, data: memoryview) -> None:
        at = 0
        while at < data.nbytes:
            at += self._take(data[at : at + BLOCK - self._filled])

    def _take(self, part: memoryview) -> int:
        self._block.update(part)
        self._filled += part.nbytes
        if self._filled == BLOCK:
            self._end_block()
        return part.nbytes

    def _end_block(self) -> None:
        self._outer.update(self._block.digest())
        self._block = self._new(usedforsecurity=False)
        self._filled = 0

    def zeroes(self, nbytes: int) -> None:
        view = memoryview(_ZEROES)
        if self._filled:
            nbytes -= self._take(view[: min(nbytes, BLOCK - self._filled)])
        blocks, rest = divmod(nbytes, BLOCK)
        known = self._digests_of_zeroes
        at_once = len(known) // self._digest_size
        for _ in range(blocks // at_once):
            self._outer.update(known)
        self._outer.update(memoryview(known)[: blocks % at_once * self._digest_size])
        if rest:
            self._take(view[:rest])

    def hexdigest(self) -> str:
        if self._filled:
            self._end_block()
        return self._outer.hexdigest()
