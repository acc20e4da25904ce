"""What a page of the manual consists of, whatever it is written as.

Text is prose in which ``code`` stands between backquotes; nothing else is marked up.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

__all__ = ["Block", "Code", "Page", "Section", "Term", "Terms", "Text"]


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Lines as they are typed or printed."""

    text: str
    language: str = "sh"


class Term(NamedTuple):
    """Something that is typed, with what it means; ``link`` is the file of the page that tells more."""

    term: str
    meaning: str
    link: str = ""


class Terms(NamedTuple):
    """A table of what may be typed."""

    terms: list[Term]
    heading: str = "option"


Block: TypeAlias = Text | Code | Terms


class Section(NamedTuple):
    """A part of a page with a title, a level deeper than another or not."""

    title: str
    blocks: list[Block]
    deeper: bool = False


class Page(NamedTuple):
    """One page: the name of its file without an ending, what it is about, and its sections."""

    file: str
    name: str
    summary: str
    sections: list[Section]
