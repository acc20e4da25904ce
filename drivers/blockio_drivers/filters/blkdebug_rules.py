"""The rules of blkdebug: how they are written, which are active, and the states they know. No I/O.

Rules come from a configuration file in QEMU's ini form and from options::

    [inject-error]
    event = "l2_load"
    errno = "5"

An *event* makes its rules act, if they are for the current *state* or for any. An ``inject-error`` rule becomes active:
from then on it fails the requests it is for, until the next event that has ``inject-error`` rules replaces the active
ones. A ``set-state`` rule changes the state once all rules of the event have acted. A breakpoint suspends the request.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

from blockio.driver.debug import EVENTS
from blockio.driver.options import parse_bool
from blockio.errors import OptionError

__all__ = ["Breakpoint", "InjectError", "IoType", "Rules", "SetState", "parse_config", "rules_of_options"]

IoType: TypeAlias = Literal["read", "write", "write-zeroes", "discard", "flush", "block-status"]

_IO_TYPES: Final[frozenset[str]] = frozenset(("read", "write", "write-zeroes", "discard", "flush", "block-status"))
_USUAL_IO_TYPES: Final = _IO_TYPES - {"block-status"}
_SECTOR: Final = 512
_NUMBERS: Final = {
    "inject-error": frozenset(("state", "errno", "sector")),
    "set-state": frozenset(("state", "new_state")),
}
_KEYS: Final = {
    "inject-error": frozenset(("event", "state", "errno", "sector", "iotype", "once", "immediately")),
    "set-state": frozenset(("event", "state", "new_state")),
}
_NUMBER: Final = re.compile(r"\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)\Z")
_NAMED_SECTION: Final = re.compile(r'\[\s*(\S{1,63}) "([^"]{1,63})')
_SECTION: Final = re.compile(r"\[([^]]{1,63})")
_VALUE: Final = re.compile(r'\s*(\S{1,63}+)\s*=\s*"([^"]{1,1023})')
_KEY: Final = re.compile(r"\s*(\S{1,63})")
_IDENTIFIER: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*\Z")


class InjectError(msgspec.Struct, eq=False):
    """Fail requests of ``iotypes`` with ``errno`` (0: let them pass, and look at no later rule)."""

    event: str
    state: int
    errno: int
    offset: int
    """Only requests that touch this byte; -1: all."""
    iotypes: frozenset[str]
    once: bool
    immediately: bool
    """In the call itself, and not a turn of the loop later."""

    def is_for(self, iotype: IoType, offset: int, nbytes: int) -> bool:
        """Whether a request is one that this rule fails."""
        return (self.offset < 0 or offset <= self.offset < offset + nbytes) and iotype in self.iotypes


class SetState(msgspec.Struct, eq=False):
    """Go to ``new_state``."""

    event: str
    state: int
    new_state: int


class Breakpoint(msgspec.Struct, eq=False):
    """Suspend one request as ``tag``."""

    event: str
    tag: str


Rule: TypeAlias = InjectError | SetState | Breakpoint


class Rules:
    """All rules of one node and the state they are in.

    Invariant: ``_active`` is some of the ``inject-error`` rules in ``_rules``; the first of them that fits a request
    decides.
    """

    def __init__(self) -> None:
        self.state = 1
        self._rules: dict[str, list[Rule]] = {}
        self._active: list[InjectError] = []

    def add(self, rule: Rule) -> None:
        """A later rule acts before an earlier one for the same event."""
        self._rules.setdefault(rule.event, []).insert(0, rule)

    def happens(self, event: str) -> list[str]:
        """*event*'s rules act: the tags of the breakpoints that were hit. They are gone, a breakpoint works once."""
        rules = self._rules.get(event)
        if not rules:
            return []
        tags: list[str] = []
        errors: list[InjectError] = []
        new_state: int | None = None
        for rule in tuple(rules):
            if isinstance(rule, Breakpoint):
                rules.remove(rule)
                tags.append(rule.tag)
            elif rule.state in {0, self.state}:
                if isinstance(rule, InjectError):
                    errors.insert(0, rule)
                elif new_state is None:
                    new_state = rule.new_state
        if errors:
            self._active = errors
        if new_state is not None:
            self.state = new_state
        return tags

    def verdict(self, iotype: IoType, offset: int, nbytes: int) -> InjectError | None:
        """The rule by which this request fails, if any. A rule with ``once`` has done its work by that."""
        rule = next((rule for rule in self._active if rule.is_for(iotype, offset, nbytes)), None)
        if rule is None or not rule.errno:
            return None
        if rule.once:
            self._active.remove(rule)
            self._rules[rule.event].remove(rule)
        return rule

    def remove_breakpoints(self, tag: str) -> bool:
        """Forget the breakpoints called *tag*; whether there were any."""
        found = False
        for rules in self._rules.values():
            for rule in tuple(rules):
                if isinstance(rule, Breakpoint) and rule.tag == tag:
                    rules.remove(rule)
                    found = True
        return found


# -- from text


def parse_config(text: str) -> list[Rule]:
    """The rules of a configuration file. OptionError in QEMU's words for what is none.

    QEMU reads it with ``sscanf``, so what stands behind a value or a section's name does not matter, and a line that
    has no value sets its first word to nothing.
    """
    sections: list[tuple[str, dict[str, str]]] = []
    for line in text.splitlines(keepends=True):
        if line in {"\n", "\r\n"} or line.startswith("#"):
            continue
        if line.startswith("["):
            if named := _NAMED_SECTION.match(line):
                sections.append((named[1], {"id": named[2]}))
                continue
            if plain := _SECTION.match(line):
                sections.append((plain[1], {}))
                continue
        key = _KEY.match(line)
        if key is None:
            raise OptionError("parse error")
        if not sections:
            raise OptionError("no group defined")
        value = _VALUE.match(line)
        name, given = (value[1], value[2]) if value else (key[1], "")
        sections[-1][1][name] = given
    _check_sections(sections)
    rules = [_rule(section, given) for section, given in sections if section == "inject-error"]
    return rules + [_rule(section, given) for section, given in sections if section == "set-state"]


def _check_sections(sections: list[tuple[str, dict[str, str]]]) -> None:
    names: set[tuple[str, str]] = set()
    for section, given in sections:
        if section not in _KEYS:
            raise OptionError(f"There is no option group '{section}'")
        name = given.pop("id", None)
        if name is not None:
            if not _IDENTIFIER.match(name):
                raise OptionError(
                    "Parameter 'id' expects an identifier",
                    hint="Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
                )
            if (section, name) in names:
                raise OptionError(f"Duplicate ID '{name}' for {section}")
            names.add((section, name))
        for key in given:
            if key not in _KEYS[section]:
                raise OptionError(f"Invalid parameter '{key}'")
        _converted(section, given)


def rules_of_options(section: str, given: Any) -> list[Rule]:
    """The rules that the nested option *section* stands for: one mapping, or a list of them. OptionError."""
    if isinstance(given, Mapping):
        if not any(key in _KEYS[section] for key in given):
            raise _unused(section, given)
        for key, value in given.items():
            if key not in _KEYS[section]:
                name = f"{key}.{next(iter(value), '')}" if isinstance(value, Mapping) else key
                raise OptionError(f"Unknown option '{name}' for [{section}]")
        return [_rule(section, given)]
    if not isinstance(given, (list, tuple)):
        raise OptionError(f"Block protocol 'blkdebug' doesn't support the option '{section}'")
    rules = []
    for index, one in enumerate(given):
        if not isinstance(one, Mapping):
            raise OptionError(f"[{section}] section (index {index}) does not consist of keys")
        for key in one:
            if key not in _KEYS[section]:
                raise OptionError(f"[{section}] section doesn't support the option '{key}'")
        rules.append(_rule(section, one))
    return rules


def _unused(section: str, given: Mapping[str, Any]) -> OptionError:
    """For ``0`` and ``2`` without ``1`` between them, and for names that are neither numbers nor keys."""
    at = 0
    while str(at) in given:
        at += 1
    name, value = next(((k, v) for k, v in given.items() if not k.isdecimal() or int(k) > at), ("", None))
    inner = next(iter(value), None) if isinstance(value, Mapping) else None
    return OptionError(f"Unused option '{name if inner is None else f'{name}.{inner}'}' for [{section}]")


def _converted(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key in _NUMBERS[section]:
            values[key] = _number(key, value)
        elif key in {"once", "immediately"}:
            values[key] = value if isinstance(value, bool) else parse_bool(str(value), key)
        else:
            values[key] = str(value)
    return values


def _number(name: str, value: Any) -> int:
    """As QEMU's numbers: unsigned, of 64 bits, in C's notations; a minus sign wraps round. Seen as signed here."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        found = _NUMBER.match(str(value))
        if found is None:
            raise OptionError(f"Parameter '{name}' expects a number")
        sign, digits = found.groups()
        octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
        try:
            number = int(digits, 8 if octal else 0)
        except ValueError:
            raise OptionError(f"Parameter '{name}' expects a number") from None
        if number >= 1 << 64:
            raise OptionError(f"Value '{value}' is too large for parameter '{name}'", errno.ERANGE)
        number = -number if sign == "-" else number
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _rule(section: str, given: Mapping[str, Any]) -> Rule:
    values = _converted(section, given)
    event = values.get("event")
    if event is None:
        raise OptionError("Missing event name for rule")
    if event not in EVENTS:
        raise OptionError(f"invalid parameter value: {event}")
    state = values.get("state", 0)
    if section == "set-state":
        return SetState(event, state, values.get("new_state", 0))
    iotype = values.get("iotype")
    if iotype is not None and iotype not in _IO_TYPES:
        raise OptionError(f"invalid parameter value: {iotype}")
    sector = values.get("sector", -1)
    return InjectError(
        event,
        state,
        abs(values.get("errno", errno.EIO)),
        -1 if sector < 0 else sector * _SECTOR,
        _USUAL_IO_TYPES if iotype is None else frozenset((iotype,)),
        values.get("once", False),
        values.get("immediately", False),
    )
