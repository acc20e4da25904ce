"""Options as the C library's getopt reads them, and complaints in its words.

Options may stand behind operands, be gathered (``-qP1``) and, the long ones, be shortened while they stay unique;
``--`` ends them. What comes before a mistake has been handled when the mistake is found, as in a C program's loop: so
options are read one by one, by iterating.

"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["GetOpt", "OptionMistake"]


class OptionMistake(Exception):
    """An option that does not exist, lacks its argument or has one too many; the text is getopt's, without the name."""


class GetOpt:
    """Iterate once, to the end, for ``(option, argument)`` in order; then ``operands`` is what was no option.

    *letters* is getopt's string (``"qP:"``). *names* maps long names to the letter (or own key) they stand for; a
    trailing ``=`` in the name says that it takes an argument. Iterating raises OptionMistake.
    """

    def __init__(self, words: Sequence[str], letters: str, names: Mapping[str, str] | None = None) -> None:
        self.operands: list[str] = []
        self._words = words
        self._at = 0
        self._letters = letters
        self._names = names

    def __iter__(self) -> Iterator[tuple[str, str]]:
        while self._at < len(self._words):
            word = self._words[self._at]
            self._at += 1
            if word == "--":
                self.operands += self._words[self._at :]
                return
            if word.startswith("--") and self._names is not None:
                yield self._long(word, self._names)
            elif word.startswith("-") and word != "-":
                yield from self._short(word)
            else:
                self.operands.append(word)

    def _short(self, word: str) -> Iterator[tuple[str, str]]:
        for at, letter in enumerate(word[1:], 2):
            where = self._letters.find(letter) if letter != ":" else -1
            if where < 0:
                raise OptionMistake(f"invalid option -- '{letter}'")
            if not self._letters.startswith(":", where + 1):
                yield letter, ""
                continue
            yield letter, word[at:] or self._next(f"option requires an argument -- '{letter}'")
            return

    def _next(self, complaint: str) -> str:
        if self._at == len(self._words):
            raise OptionMistake(complaint)
        self._at += 1
        return self._words[self._at - 1]

    def _long(self, word: str, names: Mapping[str, str]) -> tuple[str, str]:
        given, equals, argument = word[2:].partition("=")
        declared = {name.removesuffix("="): name for name in names}
        matches = [given] if given in declared else [name for name in declared if name.startswith(given)]
        if not matches:
            raise OptionMistake(f"unrecognized option '{word}'")
        if len({names[declared[name]] for name in matches}) > 1:
            choices = "".join(f" '--{name}'" for name in matches)
            raise OptionMistake(f"option '{word}' is ambiguous; possibilities:{choices}")
        name = matches[0]
        if declared[name].endswith("="):
            if not equals:
                argument = self._next(f"option '--{name}' requires an argument")
        elif equals:
            raise OptionMistake(f"option '--{name}' doesn't allow an argument")
        return names[declared[name]], argument
