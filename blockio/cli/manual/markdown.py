"""Pages as Markdown, for readers of the repository."""

from __future__ import annotations

from blockio.cli.manual.model import Block, Code, Page, Term, Terms, Text

__all__ = ["written"]


def written(page: Page) -> str:
    """*page* as a file."""
    parts = [
        "<!-- Made by `make docs` from the definitions that the tool itself uses: change those. -->\n",
        f"# {page.name}\n",
        f"{page.summary[:1].upper()}{page.summary[1:]}.\n",
    ]
    for section in page.sections:
        parts.append(f"{'###' if section.deeper else '##'} {section.title}\n")
        parts += [_block(block) for block in section.blocks]
    return "\n".join(parts)


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"{text}\n"
        case Code(text, language):
            return f"```{language}\n{text}\n```\n"
        case Terms(terms, heading):
            return f"| {heading} | |\n|---|---|\n" + "".join(f"{_row(term)}\n" for term in terms)


def _row(term: Term) -> str:
    # A bar ends a cell, even in code.
    shown, meaning = (text.replace("|", "\\|") for text in (f"`{term.term}`", term.meaning))
    if term.link:
        shown = f"[{shown}]({term.link}.md)"
    return f"| {shown} | {meaning} |"
