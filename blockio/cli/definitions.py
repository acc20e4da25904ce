"""How the command lines of the tools are described: once, for parsing, ``--help`` and the manual."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Option"]


class Option(NamedTuple):
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
