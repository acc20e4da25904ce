"""``--trace``, which both tools take for the sake of scripts that have it: there are no trace events here.

So a pattern matches nothing, a plain name is one of no event, ``help`` lists none and the file for the events stays
empty; mistakes are told as the QEMU tools tell them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from blockio.cli.output import Output

__all__ = ["accept_trace"]

_KEYS: Final = ("enable", "events", "file")


def accept_trace(text: str, output: Output) -> int | None:
    """Take the argument of ``--trace``: in it, a comma that is meant is written twice.

    A number is the exit status that the tool ends with now.
    """
    given: dict[str, str] = {}
    for place, part in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = part.replace("\0", ",").partition("=")
        if not equals:
            if key in ("help", "?"):
                return 0
            if place:
                output.warn(f"short-form boolean option '{key}' deprecated\nPlease use {key}=on instead")
            else:
                key, value = "enable", key
        if key not in _KEYS:
            output.error(f"Invalid parameter '{key}'")
            return 1
        given[key] = value
    try:
        _enable(given.get("enable", ""), "", output)
        if (events := given.get("events")) is not None:
            _enable_all(events, output)
        if (log := given.get("file")) is not None:
            _make(log, output)
    except OSError:
        return 1
    return None


def _enable(pattern: str, place: str, output: Output) -> None:
    event = pattern.removeprefix("-")
    if event and "*" not in event:
        output.report(f"{output.prog}:{place} warning: trace event '{event}' does not exist\n")


def _enable_all(path: str, output: Output) -> None:
    """What a file lists: a pattern a line, and remarks behind ``#``."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError as error:
        output.report(f"{output.prog}:{path}: {os.strerror(error.errno or 0)}\n")
        raise
    for number, line in enumerate(lines, 1):
        if not line.startswith("#"):
            _enable(line, f"{path}:{number}:", output)


def _make(path: str, output: Output) -> None:
    try:
        open(path, "wb").close()
    except OSError as error:
        output.error(f"Error opening logfile {path}: {os.strerror(error.errno or 0)}")
        raise
