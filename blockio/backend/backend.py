"""BlockBackend: the systems of the reference document put together, and its life from creation to close."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from blockio.backend.aio import AioForms
from blockio.backend.context_move import ContextMove
from blockio.backend.error_action import ErrorHandling
from blockio.backend.names import all_backends as _all_backends
from blockio.backend.names import by_name as _by_name
from blockio.backend.names import enlist
from blockio.backend.names import named_backends as _named_backends
from blockio.backend.sync import SyncForms
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.types import OpenFlags, Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.backend.throttling import BackendThrottle
    from blockio.driver.gate import OpenGate
    from blockio.graph.node import BlockNode
    from blockio.types import Limits

__all__ = ["BlockBackend"]


class BlockBackend(ContextMove, ErrorHandling, AioForms, SyncForms):
    """A disk as its user sees it: a root node that may come and go, requests, permissions, drained sections.

    ``BlockBackend(perm, shared)`` is empty (``blk_new``): all requests are NoMedium until ``insert_bs``.
    ``await BlockBackend.new_open(…)`` opens an image. It lives in one context (the running loop's unless told); its
    ``co_`` methods may be awaited from any loop, the plain ones (``pread`` …) are for threads without one, everything
    else belongs into its own loop. ``async with`` closes it.
    """

    def __init__(self, perm: Perm = Perm.NONE, shared: Perm = Perm.ALL, context: AioContext | None = None) -> None:
        """An empty backend that will need *perm* of its root and share *shared*. RuntimeError without a loop."""
        super().__init__(perm, shared, context)
        enlist(self)

    @classmethod
    async def new_with_bs(cls, node: BlockNode, perm: Perm, shared: Perm) -> BlockBackend:
        """A backend in *node*'s context with *node* as its root; errors as ``insert_bs`` (``blk_new_with_bs``)."""
        return await cls._new_with_bs(node, perm, shared)

    @classmethod
    async def _new_with_bs(cls, node: BlockNode, perm: Perm, shared: Perm, *, asleep: bool = False) -> BlockBackend:
        blk = cls(perm, shared, node.context)
        blk._disable_perm = asleep
        try:
            await blk.insert_bs(node)
        except BaseException:
            await blk.close()
            raise
        return blk

    @classmethod
    async def new_open(
        cls,
        filename: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        flags: OpenFlags | None = None,
        gate: OpenGate | None = None,
        trust: Limits | None = None,
        resize: bool = False,
        shared: Perm = Perm.ALL,
        node_name: str | None = None,
        context: AioContext | None = None,
    ) -> BlockBackend:
        """Open *filename* and/or what *options* describe and put a backend on it (``blk_new_open``).

        It needs CONSISTENT_READ (not with ``no_io``), WRITE (not with ``read_only``) and, with *resize*, RESIZE, and
        lets others have what *shared* says. What the image itself refers to is asked of *gate*, which denies by
        default. *trust* bounds what the image may cost. With *context* everything is opened and lives there. A failed
        or cancelled open leaves nothing open. With ``inactive`` in *flags* nothing is taken until ``invalidate_cache``
        says that the image is ours: the disk of a machine that is still running elsewhere.
        """
        flags = flags or OpenFlags()
        perm = Perm.NONE
        if not flags.no_io:
            perm |= Perm.CONSISTENT_READ
            if not flags.read_only:
                perm |= Perm.WRITE
        if resize:
            perm |= Perm.RESIZE

        async def opened() -> BlockBackend:
            node = await open_node(
                filename,
                options=options,
                flags=flags,
                gate=gate,
                trust=trust,
                path_factory=NodeIO,
                node_name=node_name,
            )
            try:
                return await cls._new_with_bs(node, perm, shared, asleep=node.flags.inactive)
            finally:
                await node.unref()

        return await (opened() if context is None else context.run(opened()))

    async def __aenter__(self) -> BlockBackend:
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if not self._closed and not self._given_back:
            await self.close()

    def __del__(self) -> None:
        if getattr(self, "_root", None) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        root = "closed" if self._closed else "empty" if self._root is None else f"root={self._root.node_name!r}"
        return f"<BlockBackend {self._name + ' ' if self._name else ''}{root}>"

    @staticmethod
    async def remove_all_bs() -> None:
        """Take the root out of every backend that has one, hidden ones too: the end of the program.

        One after the other; errors of closing images are raised as one ExceptionGroup when all are out.
        """
        errors: list[Exception] = []
        for blk in _all_backends():
            try:
                if blk.root is not None:
                    await blk.remove_bs()
            except Exception as error:  # the other images must be closed nevertheless; raised below
                errors.append(error)
        if errors:
            raise ExceptionGroup("some images could not be closed properly", errors)

    # -- the public part

    def get_public(self) -> BackendThrottle:
        """The part that others may hold by itself: the membership in a throttle group, ``blk.throttle``."""
        return self.throttle

    @staticmethod
    def by_public(public: BackendThrottle) -> BlockBackend:
        """The backend whose part *public* is."""
        blk = public._blk
        assert isinstance(blk, BlockBackend)
        return blk

    # -- the lists (document order: by_name, next, all_next)

    @staticmethod
    def by_name(name: str) -> BlockBackend | None:
        """The backend that the monitor knows as *name*, or None."""
        return _by_name(name)

    @staticmethod
    def next(blk: BlockBackend | None = None) -> BlockBackend | None:
        """The named backend after *blk*, the first one for None, None behind the last."""
        return _after(_named_backends(), blk)

    @staticmethod
    def all_next(blk: BlockBackend | None = None) -> BlockBackend | None:
        """As ``next``, over all backends, the nameless ones too."""
        return _after(_all_backends(), blk)


def _after(backends: list[BlockBackend], blk: BlockBackend | None) -> BlockBackend | None:
    if blk is None:
        return backends[0] if backends else None
    try:
        at = backends.index(blk)
    except ValueError:
        raise ValueError(f"{blk!r} is not on the list") from None
    return backends[at + 1] if at + 1 < len(backends) else None
