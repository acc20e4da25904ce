"""``amend``: other options for an image that there is already."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from blockio.errors import OptionError
from blockio.graph.drain import drained
from blockio.img.creating import option_pairs
from blockio.img.opening import ImageLike, image_of, opened
from blockio.img.options import CreateOption, amend_options, known_options, merged, typed
from blockio.img.progress import Meter
from blockio.img.results import AmendResult, Observer
from blockio.io.driver_calls import amend as amend_node
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.driver.base import BlockDriver

__all__ = ["amend"]


async def amend(
    image: ImageLike,
    options: Mapping[str, Any] | Iterable[tuple[str, str]],
    *,
    force: bool = False,
    observer: Observer | None = None,
) -> AmendResult:
    """Change *options* of *image*, by the names that ``-o`` has for them: ``{"compat": "0.10"}``.

    *force* allows what may lose data, such as to erase the last passphrase. OptionError for options that do not exist,
    are only for new images, or contradict the image; UnsupportedFeature for a format, or an image, that cannot do it;
    what opening raises. Failed or cancelled, *image* is whole and holds the same disk; a part of the changes may be
    made.
    """
    image = image_of(image)
    pairs = option_pairs(options)
    async with opened(image, OpenFlags(), resize=True) as blk:
        node = blk.bs
        assert node is not None
        cls = node.driver_class
        values = _values(cls, pairs)
        meter = Meter(observer, 1)
        meter.start()

        def progress(done: int, total: int) -> None:
            meter.total = max(total, 1)
            meter.reach(min(done, meter.total))

        assert cls.AmendOptions is not None  # ``_values`` looked
        async with drained(node):
            await amend_node(node, msgspec.convert(values, cls.AmendOptions), force=force, progress=progress)
        meter.finish()
        return AmendResult(image.name, cls.name, values)


def _values(cls: type[BlockDriver], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """*pairs* as the driver wants them."""
    known = amend_options(cls)
    try:
        return _typed(merged(known), pairs)
    except OptionError as error:
        try:
            _typed(merged(known, known_options(cls) or ()), pairs)
        except OptionError:
            raise error from None
        raise OptionError(error.message, hint="This option is only supported for image creation") from None


def _typed(known: Mapping[str, CreateOption], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    values = {}
    for name, text in pairs:
        if name not in known:
            raise OptionError(f"Invalid parameter '{name}'")
        values[name] = typed(known[name], text)
    return values
