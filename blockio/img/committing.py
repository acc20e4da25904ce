"""``commit``: what an overlay holds becomes its backing file's."""

from __future__ import annotations

import os
import posixpath
from typing import TYPE_CHECKING

from blockio.aio.threads import in_worker
from blockio.backend.commit import commit as commit_node
from blockio.driver.base import DriverKind
from blockio.driver.options import split_protocol
from blockio.errors import OptionError, UnsupportedFeature
from blockio.img.opening import ImageLike, full_backing_name, image_of, opened
from blockio.img.progress import Meter
from blockio.img.results import CommitResult, Observer
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockio.graph.node import BlockNode
    from blockio.img.limiting import RateLimit

__all__ = ["commit", "find_backing"]


async def commit(
    image: ImageLike,
    base: str | None = None,
    *,
    drop: bool = False,
    limit: RateLimit | None = None,
    observer: Observer | None = None,
) -> CommitResult:
    """Write what *image* holds into its backing file, or what all layers above *base* hold into that.

    *base* is named as the image above it names it, or by its path. Afterwards *image* is emptied, unless *drop* says
    that it will not be used any more; with *base*, which leaves the layers between as they were, it never is. The gate
    of *image* decides what of its chain is opened.

    UnsupportedFeature without a backing file; OptionError for a *base* that is not in the chain; what
    ``blockio.backend.commit.commit`` raises. Failed or cancelled, *image* reads as before and can be committed again.
    """
    image = image_of(image)
    async with opened(image, OpenFlags(unmap=True)) as blk:
        node = blk.bs
        assert node is not None
        if node.backing is None:
            raise UnsupportedFeature("Image does not have a backing file")
        target = node.backing.node if base is None else await in_worker(find_backing, node, base)
        if target is None:
            raise OptionError(f"Did not find '{base}' in the backing chain of '{image.name}'")
        meter = Meter(observer, node.length)
        await commit_node(
            node,
            target,
            empty=base is None and not drop,
            pace=None if limit is None else limit.take,
            progress=lambda done, total: meter.reach(done),
        )
        meter.finish()
        return CommitResult(image.name, target.filename, node.length)


def find_backing(node: BlockNode, name: str) -> BlockNode | None:
    """The node below *node* that *name* means (QEMU's bdrv_find_backing_image)."""
    for above, below in _links(node):
        reference = None if above.driver is None else above.driver.backing_reference()
        written = below.filename if reference is None else reference[0]
        if name == written:
            return below
        # A path counts from the folder of the image that names it, as the names inside images do.
        if split_protocol(name) is None and split_protocol(below.filename) is None:
            seen = full_backing_name(_path(above), name)
            if os.path.realpath(seen) == os.path.realpath(below.filename):
                return below
    return None


def _links(node: BlockNode) -> Iterator[tuple[BlockNode, BlockNode]]:
    """Each image of the chain with the one it stands on; filters are looked through."""
    above = node
    edge = node.backing
    while edge is not None:
        if edge.node.driver_class.kind is DriverKind.FILTER:
            edge = edge.node.primary
            continue
        yield above, edge.node
        above, edge = edge.node, edge.node.backing


def _path(node: BlockNode) -> str:
    return posixpath.abspath(node.filename) if split_protocol(node.filename) is None else node.filename
