"""``dd``: a part of a disk as another image, counted in blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.aio.threads import in_worker
from blockio.errors import BlockError, OptionError
from blockio.img.copying import Copier, Source
from blockio.img.creating import option_pairs, plan_create
from blockio.img.opening import Image, ImageLike, image_of, nodes_of, opened, sectors_up
from blockio.img.placing import Place
from blockio.img.progress import Meter
from blockio.img.results import ConvertResult, Observer
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.driver.gate import OpenGate
    from blockio.img.limiting import RateLimit
    from blockio.types import Limits

__all__ = ["MAX_BLOCK_SIZE", "dd"]

MAX_BLOCK_SIZE: Final = 2**31 - 1
_LARGEST: Final = 2**63 - 1


async def dd(
    source: ImageLike,
    target: ImageLike,
    format: str = "raw",
    *,
    block_size: int = 512,
    count: int | None = None,
    skip: int = 0,
    options: Mapping[str, Any] | Iterable[tuple[str, str]] = (),
    limit: RateLimit | None = None,
    gate: OpenGate | None = None,
    trust: Limits | None = None,
    observer: Observer | None = None,
    on_warning: Callable[[str], object] | None = None,
) -> ConvertResult:
    """Copy the blocks from number *skip* up to number *count* (None: to the end) of *source* to a new image.

    Blocks are *block_size* bytes, which says what is copied, not how: the transfers are as large as a conversion's. As
    with QEMU's tool *count* includes the blocks that are skipped. Skipping past the end makes an empty image, of which
    *on_warning* is told. Everything is written, zeroes too.

    Raises BlockError (``error while reading from input image file: …``), OptionError where *target* is *source*; a
    failed or cancelled copy leaves no half-written file that was not there before.
    """
    if not 1 <= block_size <= MAX_BLOCK_SIZE:
        raise ValueError(f"blocks of {block_size} bytes: 1 to {MAX_BLOCK_SIZE} can be")
    if skip < 0 or (count is not None and count < 0):
        raise ValueError("skip and count are numbers of blocks, not negative ones")
    image = image_of(source)
    output = target if isinstance(target, Image) else Image(filename=target, format=format, gate=gate, trust=trust)
    if output.filename is None:
        raise ValueError("a new image needs a file name")
    async with AsyncExitStack() as outer, AsyncExitStack() as stack:
        blk = await stack.enter_async_context(opened(image, OpenFlags(read_only=True)))
        plan = plan_create(output.filename, format, option_pairs(options))
        end = sectors_up(await blk.co_getlength())
        if count is not None:
            end = min(end, count * block_size)
        first = skip * block_size
        if first > end:
            if on_warning is not None:
                on_warning(f"{image.name}: cannot skip to specified offset")
            first = end
        assert blk.bs is not None
        await in_worker(_refuse_itself, [node.filename for node in nodes_of(blk.bs)], output)
        plan.set("size", end - first)
        place = Place(output, plan, trust, "error while creating output image")
        await outer.enter_async_context(place)
        disk = await stack.enter_async_context(opened(msgspec.structs.replace(place.image, format=format), OpenFlags()))
        meter = Meter(observer, end - first)
        copier = Copier(
            [Source(blk, 0, skip=first, size=end - first)],
            disk,
            meter,
            sparse=0,
            cluster_size=(await disk.co_get_info()).cluster_size,
            limit=limit,
        )
        try:
            await copier.run()
        except BlockError as error:
            what = "writing to output" if error.message.startswith("error while writing") else "reading from input"
            raise BlockError(f"error while {what} image file: {os.strerror(error.errno or 0)}", error.errno) from error
    meter.finish()
    return ConvertResult(output.name, format, end - first, copier.copied, copier.zeroed)


def _refuse_itself(files: list[str], output: Image) -> None:
    """Making the new image would empty the old one, or what that stands on, before it is read."""
    if output.filename is None:
        return
    for name in files:
        same = False
        with suppress(OSError):
            same = os.path.samefile(name, output.filename)
        if same:
            raise OptionError(f"input and output file are the same: '{output.name}'")
