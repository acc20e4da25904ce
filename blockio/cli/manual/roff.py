"""Pages as manual pages, in the macros of man(7)."""

from __future__ import annotations

import re
from typing import Final

from blockio.cli.manual.model import Block, Code, Page, Term, Terms, Text

__all__ = ["written"]

_CODE: Final = re.compile(r"`([^`]*)`")


def written(page: Page) -> str:
    """*page* as a file of section 1."""
    lines = [
        '.\\" Made by "make docs" from the definitions that the tool itself uses: change those.',
        f'.TH {page.file.upper()} 1 "" "blockio" "blockio manual"',
        ".SH NAME",
        f"{_plain(page.file)} \\- {_plain(page.summary)}",
    ]
    for section in page.sections:
        lines.append(f'.{"SS" if section.deeper else "SH"} "{_quoted(section.title, upper=not section.deeper)}"')
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines) + "\n"


def _block(block: Block) -> list[str]:
    match block:
        case Text(text):
            return [".PP", _prose(text)]
        case Code(text):
            return [".PP", ".RS 4", ".EX", *(_line(_plain(line)) for line in text.split("\n")), ".EE", ".RE"]
        case Terms(terms):
            return [line for term in terms for line in _term(term)]


def _term(term: Term) -> list[str]:
    return [".TP", f"\\fB{_plain(term.term)}\\fR", _prose(term.meaning)]


def _prose(text: str) -> str:
    parts = _CODE.split(text)
    marked = (
        f"\\fB{_plain(part)}\\fR" if index % 2 else _plain(part, dashes=False) for index, part in enumerate(parts)
    )
    # One sentence a line: that is how roff spaces them.
    return "\n".join(_line(line) for line in "".join(marked).replace(". ", ".\n").split("\n"))


def _plain(text: str, *, dashes: bool = True) -> str:
    """*text* with nothing in it that means anything to roff; dashes can be copied where they are typed."""
    text = text.replace("\\", "\\e").replace("…", "...").replace("'", "\\(aq")
    return text.replace("-", "\\-") if dashes else text


def _line(text: str) -> str:
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _quoted(title: str, *, upper: bool) -> str:
    return _plain(title.upper() if upper else title).replace('"', '""')
