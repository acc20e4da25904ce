"""Those who want to be told: before a root goes, after one came, and when the backend's nodes change thread.

Stands on the system *notifiers* of the reference document.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from blockio.backend.core import BackendCore
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.node import BlockNode

__all__ = ["Notifiers"]

Notify: TypeAlias = Callable[[], object]
AioNotifier: TypeAlias = "tuple[Callable[[AioContext], object], Callable[[], object]]"


class Notifiers(BackendCore):
    """The three lists.

    Invariant: each pair in ``_aio_notifiers`` is registered once on the root node while there is one.
    """

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """Nobody is told anything."""
        super().__init__(perm, shared, context)
        self._remove_bs_notifiers: list[Notify] = []
        self._insert_bs_notifiers: list[Notify] = []
        self._aio_notifiers: list[AioNotifier] = []

    def add_remove_bs_notifier(self, notify: Notify) -> Callable[[], None]:
        """Call *notify* before each removal of a root, while it can still be used; returns what takes that back.

        Taking it back twice is a RuntimeError. What it raises stops the removal.
        """
        return self._add(self._remove_bs_notifiers, notify)

    def add_insert_bs_notifier(self, notify: Notify) -> Callable[[], None]:
        """Call *notify* after each insertion of a root; returns what takes that back, once."""
        return self._add(self._insert_bs_notifiers, notify)

    def _add(self, notifiers: list[Notify], notify: Notify) -> Callable[[], None]:
        entry = partial(notify)  # an object of its own, so that one notifier may be added twice
        notifiers.append(entry)

        def remove() -> None:
            if entry not in notifiers:
                raise RuntimeError(f"this notifier of {self._describe()} was removed already")
            notifiers.remove(entry)

        return remove

    def add_aio_context_notifier(self, attached: Callable[[AioContext], object], detach: Callable[[], object]) -> None:
        """When the nodes move: call *detach* in the old context, then *attached* with the new one, there.

        Follows the root: whoever registers once is told whatever is inserted later.
        """
        self._aio_notifiers.insert(0, (attached, detach))
        if self.bs is not None:
            self.bs.add_aio_context_notifier(attached, detach)

    def remove_aio_context_notifier(
        self, attached: Callable[[AioContext], object], detach: Callable[[], object]
    ) -> None:
        """Call them no more. ValueError where this pair was never added, or was removed."""
        try:
            self._aio_notifiers.remove((attached, detach))
        except ValueError:
            raise ValueError(
                f"{self._describe()} has no such AioContext notifier; pass the two functions it was added with"
            ) from None
        if self.bs is not None:
            self.bs.remove_aio_context_notifier(attached, detach)

    def _notifiers_attach(self, node: BlockNode) -> None:
        """*node* is the root now (``blk_root_attach``)."""
        for attached, detach in self._aio_notifiers:
            node.add_aio_context_notifier(attached, detach)

    def _notifiers_detach(self, node: BlockNode) -> None:
        """*node* is the root no longer (``blk_root_detach``)."""
        for attached, detach in self._aio_notifiers:
            node.remove_aio_context_notifier(attached, detach)

    def _has_notifiers(self) -> bool:
        return bool(self._remove_bs_notifiers or self._insert_bs_notifiers or self._aio_notifiers)

    def _forget_notifiers(self) -> None:
        self._remove_bs_notifiers.clear()
        self._insert_bs_notifiers.clear()
        self._aio_notifiers.clear()
