"""What a node tells those who watch it: typed events, delivered to plain callables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode

__all__ = ["ImageCorrupted", "Listener", "NodeEvent", "Reported", "Warned", "watchers"]


class ImageCorrupted(msgspec.Struct, frozen=True):
    """A node found its image contradicting itself (QEMU's BLOCK_IMAGE_CORRUPTED)."""

    node_name: str
    message: str
    offset: int = -1
    """Where, in bytes; -1 where no place can be named."""
    size: int = -1
    fatal: bool = True
    """The node was shut down to save what is left; its I/O fails with NoMedium."""


class Reported(msgspec.Struct, frozen=True):
    """One line for the person at the tool."""

    node_name: str
    message: str


class Warned(msgspec.Struct, frozen=True):
    """Something about the image that its user should know, although it can be used."""

    node_name: str
    message: str
    hint: str = ""


NodeEvent: TypeAlias = ImageCorrupted | Reported | Warned
Listener: TypeAlias = Callable[[NodeEvent], object]

watchers: Final[list[Callable[[BlockNode, NodeEvent], object]]] = []
"""Called with every event of every node, in its thread: how rooms to the right pass on what concerns them."""
