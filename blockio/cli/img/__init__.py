"""``blockio img``: the commands of qemu-img.

``dispatch.py`` reads the options in front of the command and runs it. ``commands.py`` is the table of commands and
their options, ``getopt.py`` reads a line by it, ``help.py`` prints it. Each command has a file of its own, which turns
its options into a call of ``blockio.img`` and the result into what qemu-img prints; ``tool.py`` is what they share.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str], prog: str = "qemu-img") -> int:
    """Run the tool with the arguments *argv* (without the program's name); messages begin with *prog*.

    Returns the exit status of qemu-img in the same case. An interrupt goes on as KeyboardInterrupt after everything was
    cleaned up.
    """
    from blockio.cli.img.dispatch import run  # whoever only imports us needs none of it

    return run(list(argv), prog)
