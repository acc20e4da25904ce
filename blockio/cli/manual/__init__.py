"""The manual, made from what the tools parse their command lines by.

``pages.py`` turns the tables of commands and options, and the prose of ``prose.py``, into pages; ``markdown.py`` and
``roff.py`` write them down. ``python -m blockio.cli.manual FOLDER`` (``make docs``) writes all of them below FOLDER.
"""

from __future__ import annotations

__all__ = ["files"]


def files() -> dict[str, str]:
    """The whole manual: file names, relative to the folder it is written to, and what is in them."""
    from blockio.cli.manual import markdown, pages, roff  # no tool needs them

    found = {f"commands/{page.file}.md": markdown.written(page) for page in pages.web_pages()}
    return found | {f"man/{page.file}.1": roff.written(page) for page in pages.man_pages()}
