"""Options of a command line, read as ``getopt_long`` of the C library reads them for the QEMU tools.

That is: options may follow operands and be gathered (``-qf raw``), long ones may be shortened as far as they stay
unique, ``--`` ends them, and POSIXLY_CORRECT ends them at the first operand. A wrong one is named in the words the
QEMU tools have for it, which depend on where the C library's index stands at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from blockio.cli.definitions import Option

__all__ = ["CommandLine", "UsageError"]


class UsageError(Exception):
    """The command line is wrong; the text says how, without the program's name."""


_SHORT: Final = 2


class CommandLine:
    """Iterate for (key, argument) in the order they are given; ``operands`` are complete when that ends.

    Raises UsageError when it comes to a wrong one: commands act on options one by one, and an earlier complaint of
    theirs wins. *table* has the options that *command* knows; with *in_front* they end at the first operand.
    """

    def __init__(self, table: Sequence[Option], command: str, args: Sequence[str], *, in_front: bool = False) -> None:
        self._command = command
        self._args = args
        self._in_front = in_front or "POSIXLY_CORRECT" in os.environ
        self._short = {name[1]: option for option in table for name in option.names if len(name) == _SHORT}
        self._long = {name[2:]: option for option in table for name in option.names if len(name) > _SHORT}
        self.operands: list[str] = []

    def __iter__(self) -> Iterator[tuple[str, str]]:
        args, index = self._args, 0
        while index < len(args):
            word = args[index]
            index += 1
            if word == "--":
                self.operands += args[index:]
                return
            if not word.startswith("-") or word == "-":
                self.operands.append(word)
                if self._in_front:
                    self.operands += args[index:]
                    return
                continue
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                option = self._find_long(name, word)
                if not option.metavar:
                    if equals:
                        raise _unrecognized(word)
                elif not equals and not option.optional:
                    if index == len(args):
                        raise _missing(word)
                    value = args[index]
                    index += 1
                yield option.key, value
                continue
            at = 1
            while at < len(word):
                option = self._find_short(word, at, index)
                at += 1
                value = ""
                if option.metavar:
                    value = word[at:]
                    at = len(word)
                    if not value:
                        if index == len(args):
                            raise _missing(word)
                        value = args[index]
                        index += 1
                yield option.key, value

    def _find_short(self, word: str, at: int, index: int) -> Option:
        option = self._short.get(word[at])
        if option is not None:
            return option
        if at == len(word) - 1:
            raise _unrecognized(word)
        # The C library has not stepped past this word yet, so it is the one before that is named, as the words stand
        # after operands were moved behind options.
        if self.operands:
            raise _unrecognized(self.operands[-1])
        raise _unrecognized(self._args[index - 2] if index >= _SHORT else self._command)

    def _find_long(self, name: str, word: str) -> Option:
        exact = self._long.get(name)
        if exact is not None:
            return exact
        # The same option by two long names is not ambiguous.
        matches = {option.key: option for full, option in self._long.items() if full.startswith(name)}
        if len(matches) != 1:
            raise _unrecognized(word)
        return next(iter(matches.values()))


def _unrecognized(word: str) -> UsageError:
    return UsageError(f"unrecognized option '{word}'")


def _missing(word: str) -> UsageError:
    return UsageError(f"missing argument for option '{word}'")
