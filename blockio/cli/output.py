"""What the tools print, in the shapes that scripts parse: messages, sizes, JSON.

Names and images hold arbitrary bytes, so nothing here goes through ``sys.stdout``, which would refuse some of them:
text is encoded as the operating system's names are (``os.fsencode``) and written to the descriptor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import frexp
from typing import Any, Final

__all__ = ["Output", "human_size", "json_compact_line", "json_pretty", "json_string", "quote_commas"]

_UNITS: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_FLUSH_AT: Final = 1 << 16


class Output:
    """The standard output and error of one run of a tool, whose messages begin with the name it was called by.

    Standard output is gathered and written when it is large, when something else is to be shown first, and by
    ``flush``. A reader that has gone away (EPIPE) is no error: what is left to say is dropped, as the QEMU tools do.

    ``cleanups`` is what the run owes its process: called by ``end``, the last one first.
    """

    __slots__ = ("_buffer", "_dead", "cleanups", "prog", "quiet")

    def __init__(self, prog: str, *, quiet: bool = False) -> None:
        self.prog = prog
        self.quiet = quiet
        self.cleanups: list[Callable[[], object]] = []
        self._buffer = bytearray()
        self._dead: set[int] = set()

    @property
    def own_name(self) -> bool:
        """Whether the tool was called by a name of blockio's, not by that of the tool it stands in for."""
        return self.prog.startswith("blockio")

    def out(self, text: str) -> None:
        """Print *text*, as it is, to standard output."""
        self._buffer += _encoded(text)
        if len(self._buffer) > _FLUSH_AT:
            self.flush()

    def say(self, text: str) -> None:
        """Print the line *text* to standard output, unless the tool was asked to be quiet."""
        if not self.quiet:
            self.out(text + "\n")

    def report(self, text: str) -> None:
        """Print *text*, as it is, to standard error."""
        self.flush()
        self._write(2, _encoded(text))

    def error(self, message: str) -> None:
        """Print ``NAME: message`` to standard error."""
        self.report(f"{self.prog}: {message}\n")

    def warn(self, message: str) -> None:
        """Print ``NAME: warning: message`` to standard error."""
        self.report(f"{self.prog}: warning: {message}\n")

    def end(self) -> None:
        """The run is over: write what was gathered, and clean up."""
        self.flush()
        while self.cleanups:
            self.cleanups.pop()()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._write(1, data)

    def _write(self, fd: int, data: bytes) -> None:
        if fd in self._dead:
            return
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            # Nobody listens (EPIPE), the descriptor was closed before us (EBADF) or its disk is full: a tool that
            # cannot even complain has nothing better to do than to go on.
            self._dead.add(fd)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def human_size(nbytes: int) -> str:
    """``1.32 MiB``: three significant digits, in the unit in which the number is below 1000."""
    # 1000/1024: 1000 KiB are shown as 0.977 MiB, so that three digits always are enough.
    _, exponent = frexp(nbytes / (1000.0 / 1024.0))
    unit = max(0, min((exponent - 1) // 10, len(_UNITS) - 1))
    return f"{nbytes / (1 << (unit * 10)):.3g} {_UNITS[unit]}B"


def quote_commas(value: str) -> str:
    """*value* as it is written in a list of options: commas doubled."""
    return value.replace(",", ",,")


def json_string(text: str) -> str:
    """*text* as a JSON string in pure ASCII; bytes that are no UTF-8 become U+FFFD."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    parts = ['"']
    for char in _encoded(text).decode("utf-8", "replace"):
        code = ord(char)
        if char in _ESCAPES:
            parts.append(_ESCAPES[char])
        elif 0x20 <= code < 0x7F:
            parts.append(char)
        elif code < 0x10000:
            parts.append(f"\\u{code:04X}")
        else:
            code -= 0x10000
            parts.append(f"\\u{0xD800 + (code >> 10):04X}\\u{0xDC00 + (code & 0x3FF):04X}")
    parts.append('"')
    return "".join(parts)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return json_string(value)
    return repr(value)


def json_pretty(value: Any, indent: int = 0) -> str:
    """*value* over several lines, four spaces a level, as the QEMU tools lay JSON out."""
    pad = "    " * (indent + 1)
    if isinstance(value, Mapping):
        items = [f"{pad}{json_string(key)}: {json_pretty(item, indent + 1)}" for key, item in value.items()]
        brackets = "{}"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        items = [pad + json_pretty(item, indent + 1) for item in value]
        brackets = "[]"
    else:
        return _scalar(value)
    body = ",\n".join(items)
    return f"{brackets[0]}\n{body}{chr(10) if items else ''}{'    ' * indent}{brackets[1]}"


def json_compact_line(values: Mapping[str, Any]) -> str:
    """One line of JSON, for programs that read events as they come."""
    return "{" + ", ".join(f"{json_string(key)}: {_scalar(item)}" for key, item in values.items()) + "}"
