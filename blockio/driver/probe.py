"""Which format is this?

Every driver's ``probe`` looks at the first bytes and says how sure it is; the surest wins, and ``raw`` is what is
left when nobody speaks up. That is a guess, and a guest that owns a raw disk can make it wrong: see
``DriverHost.probed``.
"""

from __future__ import annotations

from typing import Final, Protocol

from blockio.buffers import IoVector
from blockio.driver.registry import driver_names, find_driver, loadable, own_names
from blockio.errors import BlockError

__all__ = ["PROBE_BYTES", "guess_format", "probe_format"]

PROBE_BYTES: Final = 2048
"""How much of an image drivers may look at (VMDK and VHD footers apart, which no probe needs)."""

_CERTAIN: Final = 100

_HINTS: Final = {
    b"QFI\xfb": "qcow2",
    b"LUKS\xba\xbe": "luks",
    b"QED\0": "qed",
    b"KDMV": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
}
"""Which driver to ask first. Only a hint: it spares loading the others when that one is certain."""

_ALWAYS_BEGIN_SO: Final = frozenset(("luks", "qcow2", "qed", "vhdx"))
"""Formats none of whose images is without its mark: without it their drivers need not be loaded to be asked."""


class Reader(Protocol):
    """What probing needs of a node or child."""

    @property
    def length(self) -> int:
        """Bytes there are."""

    async def co_preadv(self, offset: int, iov: IoVector, flags: int = 0) -> None:
        """Read."""


def guess_format(head: bytes, filename: str = "") -> str:
    """The name of the format that *head* (the first ``PROBE_BYTES`` bytes, or all there are) looks most like.

    Broken plugins have no say. Between equally sure drivers the first in alphabetical order wins.
    """
    best, surest = "raw", 0
    for magic, name in _HINTS.items():
        if head.startswith(magic):
            try:
                score = find_driver(name).probe(head, filename)
            except BlockError:
                continue  # not installed: whoever is may know better
            if score >= _CERTAIN:
                return name
            if score > surest:
                best, surest = name, score
    # Of this project's own drivers only the formats above have something to say; its protocols and filters do not.
    silent = own_names() - set(_HINTS.values()) - {"raw"} | _ALWAYS_BEGIN_SO
    for name, cls in loadable(name for name in driver_names() if name not in silent):
        score = cls.probe(head, filename)
        if score > surest:
            best, surest = name, score
    return best


async def probe_format(reader: Reader, filename: str) -> str:
    """Read the beginning of *reader* and guess. Whatever the read raises goes on, prefixed."""
    nbytes = min(PROBE_BYTES, reader.length)
    head = bytearray(nbytes)
    if nbytes:
        try:
            await reader.co_preadv(0, IoVector.of(head))
        except BlockError as error:
            raise error.prefixed("Could not read image for determining its format: ") from error
    return guess_format(bytes(head), filename)
