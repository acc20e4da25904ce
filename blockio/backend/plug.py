"""Plug and unplug: several requests handed over together.

Stands on the system *plug-unplug* of the reference document. Between the two the ring holds its submissions back and
gives the kernel all of them in one call, neighbours on the disk as one request. A turn of the loop is a batch anyway;
this is for who knows better.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blockio.backend.buffers import Buffers
from blockio.graph.node import BlockNode

__all__ = ["Plug"]


class Plug(Buffers):
    """``io_plug`` and ``io_unplug``, or better ``with blk.plugged():``.

    Invariant: ``_plugged`` has, for each plug that is in, the nodes it was put into.
    """

    _plugged: list[list[BlockNode]] | None = None

    def io_plug(self) -> None:
        """Hold back what is sent from now on until ``io_unplug``. Nests. Does nothing while empty.

        Nothing that was held back completes before, so do not await it in between.
        """
        self._must_be_home("io_plug", "await blk.context.run(...) something that calls it")
        nodes = [node for node in self._nodes() if node.driver is not None]
        for node in nodes:
            if node.driver is not None:
                node.driver.io_plug()
        self._plugged = [*(self._plugged or []), nodes]

    def io_unplug(self) -> None:
        """Undo one ``io_plug``, whatever became of the root meanwhile. RuntimeError where none is in."""
        self._must_be_home("io_unplug", "await blk.context.run(...) something that calls it")
        if not self._plugged:
            raise RuntimeError(f"{self._describe()} is not plugged")
        for node in self._plugged.pop():
            if node.driver is not None:
                node.driver.io_unplug()

    @contextmanager
    def plugged(self) -> Iterator[None]:
        """``with blk.plugged():`` what is started inside goes together at its end."""
        self.io_plug()
        try:
            yield
        finally:
            self.io_unplug()
