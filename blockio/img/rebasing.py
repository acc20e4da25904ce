"""``rebase``: another backing file below an image."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from blockio.aio.threads import in_worker
from blockio.backend.rebase import rebase as rebase_node
from blockio.backend.rebase import rename_backing
from blockio.driver.base import DriverKind
from blockio.driver.registry import find_driver
from blockio.errors import BlockError, OptionError
from blockio.img.committing import find_backing
from blockio.img.opening import Image, ImageLike, full_backing_name, image_of, opened
from blockio.img.progress import Meter
from blockio.img.results import Observer, RebaseResult
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode
    from blockio.img.limiting import RateLimit

__all__ = ["rebase"]


async def rebase(
    image: ImageLike,
    backing: str | None,
    backing_format: str | None = None,
    *,
    unsafe: bool = False,
    backing_cache: str = "writeback",
    backing_force_share: bool = False,
    limit: RateLimit | None = None,
    observer: Observer | None = None,
) -> RebaseResult:
    """Let *backing* be the backing file of *image*, seen from its folder, in *backing_format*; None: it has none.

    The disk stays the same: where the old and the new backing file differ, *image* gets the old content. *unsafe*
    changes the name alone, without opening either; the caller knows that they hold the same, or where they went.
    *backing* is opened read-only with the cache mode *backing_cache*, *backing_force_share* even while somebody writes
    it, unless it is part of the chain already; *image*'s gate says what it may open.

    OptionError for an unknown format; BlockError EINVAL for a *backing* without a format; what opening and
    ``blockio.backend.rebase.rebase`` raise. Failed or cancelled, *image* names the old backing file, or if the
    cancellation came too late the new one, and its disk is the same.
    """
    image = image_of(image)
    async with AsyncExitStack() as stack:
        blk = await stack.enter_async_context(opened(image, OpenFlags(no_backing=unsafe)))
        assert blk.bs is not None
        node = _unfiltered(blk.bs)
        if backing_format is not None:
            _require_format(backing_format)
        meter = Meter(observer, node.length)
        if unsafe:
            await rename_backing(node, backing, backing_format)
        else:
            new = None
            if backing:
                path = full_backing_name(node.filename, backing)
                wanted = Image(
                    filename=path,
                    format=backing_format,
                    label=backing,
                    cache=backing_cache,
                    force_share=backing_force_share,
                    gate=image.gate,
                    trust=image.trust,
                )
                new = await _find(stack, node, wanted)
            await rebase_node(
                node,
                new,
                backing,
                backing_format,
                pace=None if limit is None else limit.take,
                progress=lambda done, total: meter.reach(done),
            )
        meter.finish()
        return RebaseResult(image.name, backing or None, backing_format if backing else None, node.length)


def _unfiltered(node: BlockNode) -> BlockNode:
    """The image itself, below the filters that its options put on it."""
    while node.driver_class.kind is DriverKind.FILTER and node.primary is not None:
        node = node.primary.node
    return node


def _require_format(name: str) -> None:
    try:
        find_driver(name)
    except BlockError as error:
        raise OptionError(f"Invalid format name: '{name}'") from error


async def _find(stack: AsyncExitStack, node: BlockNode, wanted: Image) -> BlockNode:
    """The node of *wanted*: a layer of the present chain, or opened until *stack* ends."""
    assert wanted.filename is not None
    found = await in_worker(find_backing, node, wanted.filename)
    if found is not None:
        return found
    where = "Could not open new backing file '{}': "
    blk = await stack.enter_async_context(opened(wanted, OpenFlags(read_only=True), prefix=where))
    assert blk.bs is not None
    return blk.bs
