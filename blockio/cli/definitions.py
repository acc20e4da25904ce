"""How the command lines of the tools are described: once, for parsing, ``--help`` and the manual."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["AIO_MODES", "Option", "stronger_aio"]

AIO_MODES: Final = ("threads", "io_uring", "native")
"""How requests reach the kernel; of several on one line the last in this order counts, as the QEMU tools have it."""


class Option(msgspec.Struct, frozen=True):
    """One option: its ``key`` for the command, its letters and long names, and whether it takes an argument."""

    key: str
    names: tuple[str, ...]
    """``("-f",)``, ``("-U", "--force-share")`` …"""
    metavar: str = ""
    """What the argument is called; empty for a switch."""
    help: str = ""
    own: bool = False
    """The QEMU tool has none of it: known only to whoever calls the tool by blockio's name."""
    optional: bool = False
    """The argument may be left out; given, it follows a ``=``."""

    def spelled(self, between: str = " ") -> str:
        """``-f fmt`` or ``--output=ofmt``, by its last name."""
        name = self.names[-1]
        if not self.metavar:
            return name
        if self.optional:
            return f"{name}[={self.metavar}]"
        return f"{name}{between if name.startswith('--') else ' '}{self.metavar}"

    def synopsis(self) -> str:
        """``-g, --granularity granularity``."""
        names = ", ".join(self.names)
        if self.optional:
            return f"{names}[={self.metavar}]"
        return f"{names} {self.metavar}" if self.metavar else names


def stronger_aio(before: str | None, mode: str) -> str:
    """What *mode*, one of ``AIO_MODES``, makes of the mode that was asked for before."""
    return mode if before is None else max(before, mode, key=AIO_MODES.index)
