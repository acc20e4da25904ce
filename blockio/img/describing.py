"""``info``: what an image is, without touching its data."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from blockio.errors import BlockError, CorruptImage, UnsupportedFeature
from blockio.img.opening import Image, ImageLike, full_backing_name, image_of, opened, sectors_up
from blockio.img.results import ImageInfo
from blockio.io.snapshots import snapshot_list
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.driver.snapshots import SnapshotInfo
    from blockio.graph.node import BlockNode

__all__ = ["allocated_size", "info", "info_chain", "node_info", "walk_chain"]

_FLAGS = OpenFlags(read_only=True, no_backing=True, no_io=True)


async def info(image: ImageLike) -> ImageInfo:
    """Describe *image*; its backing file is named but not opened. Raises BlockError."""
    async with opened(image, _FLAGS) as blk:
        node = blk.bs
        assert node is not None
        return await node_info(node)


async def info_chain(image: ImageLike) -> list[ImageInfo]:
    """Describe *image*, its backing file, and so on to the last; see ``walk_chain``."""
    async with aclosing(walk_chain(image)) as images:
        return [described async for described in images]


async def walk_chain(image: ImageLike) -> AsyncGenerator[ImageInfo, None]:
    """Describe *image*, its backing file, and so on, one after the other; nothing is open in between.

    Each image is opened by itself under ``image.gate``'s eyes: a name that an image holds is opened only if the gate
    allows it. Raises BlockError where one cannot be opened, CorruptImage for a chain that comes back to itself.
    """
    here = image_of(image)
    seen: set[str] = set()
    trust = here.trust
    while True:
        if here.filename is not None and here.filename in seen:
            raise CorruptImage(f"Backing file '{here.filename}' creates an infinite loop.")
        seen.add(here.filename or f"{len(seen)}: no name")
        described = await info(here)
        yield described
        target = described.full_backing_filename
        if target is None:
            return
        if trust is not None and len(seen) > trust.max_chain_depth:
            raise CorruptImage(f"The chain is longer than {trust.max_chain_depth} images")
        here = await _next(here, described, target)


async def _next(image: Image, above: ImageInfo, target: str) -> Image:
    """The image below, if the gate lets it be opened."""
    # Imported late: only chains need it, and the gate's classes are dataclasses, which take time to make.
    from blockio.driver.gate import Allow, Deny, DenyAll, Reference, ReferenceKind
    from blockio.errors import OpenDenied

    reference = Reference(ReferenceKind.BACKING, above.filename, target, above.backing_filename_format)
    decision = await (image.gate or DenyAll())(reference)
    options: dict[str, Any] | None = None
    filename: str | None = target
    format = above.backing_filename_format
    if isinstance(decision, Deny):
        raise OpenDenied(f"Could not open '{target}': {decision.reason or 'not allowed by the open gate'}")
    if not isinstance(decision, Allow):
        options, filename, format = dict(decision.options), None, None
    return msgspec.structs.replace(image, filename=filename, format=format, options=options, label=target)


async def node_info(node: BlockNode) -> ImageInfo:
    """Describe an open node."""
    driver = node.driver
    if driver is None:
        raise BlockError(f"'{node.filename}' was closed after a fatal corruption")
    details = await node.path.co_get_info()
    reference = driver.backing_reference()
    backing, backing_format = reference if reference is not None else (None, None)
    specific = driver.specific_info()
    data: dict[str, Any] = dict(specific["data"]) if specific is not None else {}
    snapshots: tuple[SnapshotInfo, ...] = ()
    with suppress(UnsupportedFeature):
        snapshots = await snapshot_list(node)
    return ImageInfo(
        filename=node.filename,
        format=driver.name,
        virtual_size=sectors_up(node.length),
        actual_size=await allocated_size(node),
        cluster_size=details.cluster_size or None,
        dirty_flag=details.is_dirty,
        encrypted="encrypt" in data or driver.name == "luks",
        snapshots=snapshots,
        backing_filename=backing,
        full_backing_filename=None if backing is None else full_backing_name(node.filename, backing),
        backing_filename_format=backing_format,
        format_specific=None if specific is None else {"type": specific["type"], "data": data},
    )


async def allocated_size(node: BlockNode) -> int | None:
    """What *node* and what stores it take of their storage; None where somebody cannot tell.

    Backing files do not count.
    """
    driver = node.driver
    try:
        own = None if driver is None else await driver.co_get_allocated_file_size()
    except UnsupportedFeature:
        return None
    if own is not None:
        return own
    total = 0
    children = [edge for edge in node.children.values() if edge is not node.backing]
    for edge in children:
        size = await allocated_size(edge.node)
        if size is None:
            return None
        total += size
    return total if children else None
