"""``resize``: a longer or shorter disk."""

from __future__ import annotations

from collections.abc import Callable

from blockio.errors import OptionError
from blockio.img.opening import ImageLike, opened, sectors_up
from blockio.img.results import ResizeResult
from blockio.types import OpenFlags, PreallocMode

__all__ = ["ShrinkRefused", "resize"]


class ShrinkRefused(OptionError):
    """The disk would become shorter, and the caller did not say that this is meant. Nothing was changed."""


async def resize(
    image: ImageLike,
    size: int | Callable[[int], int],
    *,
    shrink: bool = False,
    prealloc: PreallocMode = PreallocMode.OFF,
) -> ResizeResult:
    """Set *image*'s length to *size* bytes, or to what *size* makes of the present length.

    Without *shrink* a shorter disk is refused (ShrinkRefused). *prealloc* says how the new room is provided; it can
    only be given for growing. OptionError for lengths of
    zero and less; what opening and the format raise. Cancelled, the disk has one length or the other.
    """
    async with opened(image, OpenFlags(), resize=True) as blk:
        old = sectors_up(await blk.co_getlength())
        new = size if isinstance(size, int) else size(old)
        if new <= 0:
            raise OptionError("New image size must be positive")
        if new <= old and prealloc is not PreallocMode.OFF:
            raise OptionError("Preallocation can only be used for growing images")
        if new < old and not shrink:
            raise ShrinkRefused(
                "Use the --shrink option to perform a shrink operation.",
                hint="Shrinking an image will delete all data beyond the shrunken image's end. Before performing such "
                "an operation, make sure there is no important data there.",
            )
        await blk.co_truncate(new, exact=True, prealloc=prealloc)
        return ResizeResult(old, new)
