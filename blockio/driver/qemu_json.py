"""JSON as QEMU's tools read it from a command line: RFC 8259, and strings in single quotes as well.

What is plain JSON never comes here further than ``msgspec``; the reader below is for all else, to take it or to say
what is wrong with it in the words that users of the tools know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

__all__ = ["JsonError", "read_json"]

_DEEPEST: Final = 256
_LONGEST_INT: Final = len(str(-(2**63)))
_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*(?:
    (?P<mark>[{}\[\]:,])
    |(?P<text>"(?:[^"\\\x00-\x1f]|\\.)*"|'(?:[^'\\\x00-\x1f]|\\.)*')
    |(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![0-9.eE]))
    |(?P<word>[a-z]+)
    |(?P<end>\Z)
    |(?P<stray>["'].*|-?0[0-9]|-?(?:0|[1-9][0-9]*)?\.?.)
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS: Final = {"true": True, "false": False, "null": None}


class JsonError(ValueError):
    """The text is no JSON; the message says why."""


def read_json(text: str) -> Any:
    """The value that *text* holds. Raises JsonError."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return _Reader(text).read()


class _Token(NamedTuple):
    kind: str
    text: str


def _tokens(text: str) -> Iterator[_Token]:
    at, kind = 0, ""
    while kind != "end":
        found = _TOKEN.match(text, at)
        assert found is not None  # whatever it is, it is stray
        kind = found.lastgroup or ""
        yield _Token(kind, found[kind])
        at = found.end()


class _Reader:
    """Reads one text. Invariant: ``_next`` is the token that comes next."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = next(self._tokens)

    def read(self) -> Any:
        if self._next.kind == "end":
            raise JsonError("Expecting a JSON value")
        value = self._value(0)
        if self._next.kind != "end":
            raise JsonError("Expecting at most one JSON value")
        return value

    def _take(self) -> _Token:
        token = self._next
        if token.kind == "end":
            raise _wrong("premature EOI")
        if token.kind == "stray":
            raise _wrong(f"stray '{token.text}'")
        self._next = next(self._tokens)
        return token

    def _value(self, depth: int) -> Any:
        if depth == _DEEPEST:
            raise _wrong("it is nested too deeply")
        kind, text = self._take()
        if kind == "text":
            return _unquoted(text)
        if kind == "number":
            # What no 64 bits hold is a number of QEMU's that is not exact either.
            return int(text) if text.lstrip("-").isdigit() and len(text) <= _LONGEST_INT else float(text)
        if kind == "word":
            if text not in _WORDS:
                raise _wrong(f"invalid keyword '{text}'")
            return _WORDS[text]
        if text == "{":
            return dict(self._members(depth))
        if text == "[":
            return list(self._elements(depth))
        raise _wrong("expecting value")

    def _members(self, depth: int) -> Iterator[tuple[str, Any]]:
        if self._is_empty("}"):
            return
        while True:
            key = self._value(depth + 1)
            if not isinstance(key, str):
                raise _wrong("key is not a string in object")
            if self._take().text != ":":
                raise _wrong("missing : in object pair")
            yield key, self._value(depth + 1)
            if self._ends("}", "dict"):
                return

    def _elements(self, depth: int) -> Iterator[Any]:
        if self._is_empty("]"):
            return
        while True:
            yield self._value(depth + 1)
            if self._ends("]", "list"):
                return

    def _is_empty(self, end: str) -> bool:
        if self._next != ("mark", end):
            return False
        self._take()
        return True

    def _ends(self, end: str, what: str) -> bool:
        """Take what stands behind a part of something; whether it is its end."""
        token = self._take()
        if token.text not in (",", end):
            raise _wrong(f"expected separator in {what}")
        return token.text == end


def _unquoted(text: str) -> str:
    body = re.sub(r"""\\.|["]""", _for_double_quotes, text[1:-1], flags=re.DOTALL)
    try:
        return msgspec.json.decode(f'"{body}"', type=str)
    except (msgspec.DecodeError, UnicodeError):
        raise _wrong("invalid escape sequence in string") from None


def _for_double_quotes(found: re.Match[str]) -> str:
    return {'"': '\\"', "\\'": "'"}.get(found[0], found[0])


def _wrong(what: str) -> JsonError:
    return JsonError(f"JSON parse error, {what}")
