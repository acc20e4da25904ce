"""PNG files of few colours: the PNG specification, sections 5 (chunks), 7.2 (scanlines) and 11.2 (what is in them)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

__all__ = ["encode"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_BITS, _INDEXED, _UNFILTERED = 8, 3, b"\0"


def encode(lines: Sequence[bytes], colours: Sequence[str]) -> bytes:
    """A picture of *lines*, from the top, each a byte per pixel: which of *colours* (``#rrggbb``, up to 256) it has.

    Raises ValueError where there is no pixel, or lines differ in length.
    """
    width = len(lines[0]) if lines else 0
    if not width or any(len(line) != width for line in lines):
        raise ValueError("a PNG has lines of equal length and at least one pixel")
    header = struct.pack(">IIBBBBB", width, len(lines), _BITS, _INDEXED, 0, 0, 0)
    palette = b"".join(bytes.fromhex(colour.removeprefix("#")) for colour in colours)
    pixels = zlib.compress(b"".join(_UNFILTERED + line for line in lines), 9)
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
