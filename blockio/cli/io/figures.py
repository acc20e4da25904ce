"""Numbers and bytes as qemu-io reads and prints them. Pure functions."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from blockio.driver.options import parse_size
from blockio.errors import OptionError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "MAX_LENGTH",
    "FigureError",
    "dump",
    "lengths",
    "number",
    "pattern_byte",
    "report",
    "size_text",
    "time_text",
]

MAX_LENGTH: Final = 2**31 - 512
"""The longest request the language lets one command make, in bytes (QEMU's BDRV_REQUEST_MAX_BYTES)."""

_UNITS: Final = ((60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB"))
_SHOWN: Final = bytes(byte if byte < 128 and chr(byte).isalnum() else ord(".") for byte in range(256))
"""What ``dump`` shows of a byte: C's isalnum; anything else, the blank too, is a dot."""
_DECIMAL: Final = re.compile(r"[ \t]*\+?[0-9]")
_STRTOL: Final = re.compile(r"[ \t]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")


class FigureError(Exception):
    """An argument is no number, or not one that fits; the text is qemu-io's."""


def number(text: str) -> int:
    """A byte count such as ``4096``, ``0x1000`` or ``1.5k``. FigureError.

    ``0x1k`` is 1024 too; the real tool warns that it may not be so for ever.
    """
    try:
        if not _DECIMAL.match(text):
            raise OptionError
        value = parse_size(text)
    except OptionError as error:
        if error.errno != errno.ERANGE:
            raise FigureError(
                f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
            ) from None
        value = 1 << 64
    if value >= 1 << 63:
        raise FigureError(f"Parsing error: argument too large -- {text}")
    return value


def lengths(words: Sequence[str]) -> list[int]:
    """The lengths of a vector's parts. FigureError for one too long, alone or together."""
    parts: list[int] = []
    for word in words:
        part = number(word)
        if part > MAX_LENGTH:
            raise FigureError(f"Argument '{word}' exceeds maximum size {MAX_LENGTH}")
        if sum(parts) + part > MAX_LENGTH:
            raise FigureError(f"The total number of bytes exceed the maximum size {MAX_LENGTH}")
        parts.append(part)
    return parts


def strtol(text: str) -> int | None:
    """*text* as C's ``strtol(text, …, 0)`` reads it, or None where anything is left over."""
    found = _STRTOL.fullmatch(text)
    if found is None:
        return None
    sign, hexadecimal, octal, decimal = found.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    return -value if sign == "-" else value


def pattern_byte(text: str) -> int:
    """The byte of ``-P``: 0..255, also hexadecimal or octal as in C. FigureError."""
    value = strtol(text)
    if value is None or not 0 <= value <= 255:
        raise FigureError(f"{text} is not a valid pattern byte")
    return value


def size_text(value: float) -> str:
    """``1.500 KiB``: three digits behind the point, none where they are zeroes."""
    for shift, name in _UNITS:
        if value >= 1 << shift:
            text, suffix = f"{value / (1 << shift):.3f}", name
            break
    else:
        text, suffix = f"{value:f}", "bytes"
    return f"{text.partition('.000')[0]} {suffix}"


def time_text(seconds: float, *, fixed: bool = False) -> str:
    """``00.25 sec``, from a minute on (and *fixed*, for programs, always) ``0:01:02.25``. Cut, not rounded."""
    hundredths = int(seconds * 100)
    whole, hundredths = divmod(hundredths, 100)
    if not fixed and whole < 60:
        return f"{whole:02}.{hundredths:02} sec"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}.{hundredths:02}"


def report(op: str, seconds: float, offset: int, done: int, total: int, *, machine: bool = False) -> str:
    """The lines about one finished request: what was done and how fast. *machine* gives ``-C``'s one line."""
    # A clock too coarse to see the request must not divide by nothing.
    seconds = max(seconds, 1e-9)
    if machine:
        return f"{total},1,{time_text(seconds, fixed=True)},{total / seconds:.3f},{1 / seconds:.3f}\n"
    rate = f"{size_text(total / seconds)}/sec and {1 / seconds:.4f} ops/sec"
    return f"{op} {done}/{total} bytes at offset {offset}\n{size_text(total)}, 1 ops; {time_text(seconds)} ({rate})\n"


def dump(data: Buffer, offset: int) -> str:
    """*data* as lines of sixteen bytes with their *offset*, in hexadecimal and as characters."""
    view = memoryview(data).cast("B")
    lines = []
    for at in range(0, view.nbytes, 16):
        row = view[at : at + 16]
        lines.append(f"{offset + at:08x}:  {row.hex(' ')}  {row.tobytes().translate(_SHOWN).decode()}\n")
    return "".join(lines)
