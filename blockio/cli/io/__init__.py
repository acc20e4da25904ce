"""``blockio io``: the command language of qemu-io.

``tool.py`` reads the tool's own options and runs commands from ``-c`` or from a prompt. ``language.py`` holds the table
of commands and dispatches a line to one. ``requests.py``, ``queued.py`` and ``image.py`` are the commands,
``session.py`` is what they work on. ``figures.py`` and ``getopt.py`` turn text into values and back.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str], prog: str = "qemu-io") -> int:
    """Run the tool with the arguments *argv* (without the program's name); messages begin with *prog*.

    Returns the exit status: 0, or 1 when the image could not be opened or any command failed.
    """
    import asyncio  # --help and --version need no loop

    from blockio.cli.io.tool import Ending, prepare, run

    try:
        plan = prepare(list(argv), prog)
    except Ending as ending:
        return ending.status
    return asyncio.run(run(plan))
