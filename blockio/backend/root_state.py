"""What is remembered of the root while there is none, and how it is opened while there is one.

Stands on the system *root-state-flags* of the reference document. Whoever inserts the next medium opens it as the last
one was opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blockio.backend.core import BackendCore
from blockio.types import DetectZeroes, OpenFlags, Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext

__all__ = ["RootState", "RootStateKeeping"]


class RootState(msgspec.Struct):
    """How the last root was opened (``BlockBackendRootState``)."""

    open_flags: OpenFlags = msgspec.field(default_factory=OpenFlags)
    read_only: bool = False
    """Apart from the flags: whoever changes a drive's medium may ask for another mode than the last one had."""
    detect_zeroes: DetectZeroes = DetectZeroes.OFF


class RootStateKeeping(BackendCore):
    """``root_state`` and the questions that it answers while there is no root."""

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """Nothing is known of a root: writable, nothing detected."""
        super().__init__(perm, shared, context)
        self.root_state = RootState()
        """How the last root was opened; what it says of a present root is what was last taken down."""

    def update_root_state(self) -> None:
        """Take down how the root is opened. ``remove_bs`` does so. RuntimeError without a root."""
        node = self.bs
        if node is None:
            raise RuntimeError(f"{self._describe()} has no root whose state could be taken down; insert_bs() first")
        self.root_state.open_flags = node.flags
        self.root_state.read_only = node.flags.read_only
        self.root_state.detect_zeroes = node.detect_zeroes

    def get_root_state(self) -> RootState:
        """``root_state`` itself: what is changed in it is what the next medium gets."""
        return self.root_state

    def get_detect_zeroes_from_root_state(self) -> bool:
        """Whether the last root detected zeroes. As in the document ``unmap`` counts as on; the state knows which."""
        return self.root_state.detect_zeroes is not DetectZeroes.OFF

    def get_open_flags_from_root_state(self) -> OpenFlags:
        """The flags to open the next medium with."""
        return self.root_state.open_flags.with_(read_only=self.root_state.read_only)

    def get_flags(self) -> OpenFlags:
        """How the root is opened; while empty, how the last one was."""
        node = self.bs
        return self.root_state.open_flags if node is None else node.flags

    def supports_write_perm(self) -> bool:
        """Whether the root can be written to: it is not read-only. While empty, what the root state says."""
        node = self.bs
        return not (self.root_state.read_only if node is None else node.read_only)

    def is_sg(self) -> bool:
        """Whether the root passes SCSI commands through to a device. False while empty."""
        node = self.bs
        return node is not None and node.driver is not None and node.driver.sg
