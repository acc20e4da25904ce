"""What the commands work on: the open image, requests under way, and where text goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.buffers import aligned_buffer

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockio.backend import BlockBackend
    from blockio.cli.output import Output

__all__ = ["CommandFailed", "Session", "Spoken", "Usage", "differs", "fill"]

_PIECE: Final = 1 << 20
_MISALIGNMENT: Final = 16


class CommandFailed(Exception):
    """The command failed and has said so already."""


class Spoken(CommandFailed):
    """The command failed; the text goes to standard output as it is, with a line's end."""


class Usage(CommandFailed):
    """The command was called in a way that its usage line answers."""


class Session:
    """One run of the tool.

    ``queued`` counts the requests of ``aio_`` commands that have not called back: each prints its own end, and
    closing the image waits for them.
    """

    def __init__(self, output: Output, *, misalign: bool = False) -> None:
        self.output = output
        self.blk: BlockBackend | None = None
        self.misalign = misalign
        self.quitting = False
        self.queued = 0
        self._on_close: list[Callable[[], object]] = []

    @property
    def image(self) -> BlockBackend:
        """The open image. Commands that need none open do not ask."""
        if self.blk is None:
            raise RuntimeError("no image is open")
        return self.blk

    def out(self, text: str) -> None:
        """Print *text* to standard output."""
        self.output.out(text)

    def buffer(self, nbytes: int, byte: int) -> memoryview:
        """*nbytes* bytes of memory full of *byte*; page-aligned, unless the tool was asked to misalign (``-m``)."""
        skip = _MISALIGNMENT if self.misalign else 0
        view = aligned_buffer(nbytes + skip)[skip:]
        fill(view, bytes((byte,)))
        return view

    def at_close(self, action: Callable[[], object]) -> None:
        """Call *action* when the image has been closed."""
        self._on_close.append(action)

    async def close(self) -> None:
        """Let requests end and close the image, if one is open. Raises what closing raises; it is closed then too."""
        blk, self.blk = self.blk, None
        if blk is None:
            return
        try:
            await blk.close()
        finally:
            actions, self._on_close = self._on_close, []
            for action in actions:
                action()


def fill(view: memoryview, pattern: bytes) -> None:
    """Repeat *pattern* over all of *view*, its last time cut where it does not fit."""
    piece = pattern * max(1, min(view.nbytes, _PIECE) // len(pattern))
    for at in range(0, view.nbytes, len(piece)):
        part = view[at : at + len(piece)]
        part[:] = piece[: part.nbytes]


def differs(view: memoryview, byte: int) -> bool:
    """Whether any byte of *view* is not *byte*."""
    piece = bytes((byte,)) * min(view.nbytes, _PIECE)
    # bytes.startswith compares with memcmp; comparing memoryviews goes item by item.
    return any(not piece.startswith(view[at : at + _PIECE]) for at in range(0, view.nbytes, _PIECE))
