"""``check``: is an image's metadata consistent, and can it be mended?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from blockio.driver.base import CheckFix, CheckResult
from blockio.errors import BlockError, NoMedium, message_of
from blockio.img.opening import ImageLike, opened
from blockio.img.progress import Meter
from blockio.img.results import CheckReport, Observer, Side
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.graph.events import NodeEvent
    from blockio.graph.node import BlockNode

__all__ = ["CheckFailed", "check"]


class CheckFailed(BlockError):
    """The check of an opened image could not be carried through; ``error`` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"Check failed: {message_of(error)}", error.errno)
        self.error = error

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.error,))


async def check(
    image: ImageLike,
    *,
    fix: CheckFix = CheckFix.NONE,
    on_message: Callable[[str], object] | None = None,
    on_repaired: Callable[[CheckResult], object] | None = None,
    observer: Observer | None = None,
) -> CheckReport:
    """Check *image*; with *fix* repair leaks, or all, and check again what came of it.

    *on_message* gets each line as it is found (``Leaked cluster 9 refcount=1 reference=0``); without it they are in
    the report. *on_repaired* is told what was mended, before the second pass. *observer*'s progress counts the
    driver's own units. CheckFailed when the check itself fails, also because the format has none (``error`` is then
    UnsupportedFeature). Cancelling a repair leaves an image that a new repair can take up.
    """
    kept: list[str] = []
    take = kept.append if on_message is None else on_message

    def listen(event: NodeEvent) -> None:
        take(event.message)

    flags = OpenFlags(read_only=fix is CheckFix.NONE, check=True)
    async with opened(image, flags) as blk:
        node = blk.bs
        assert node is not None
        stop = node.listen(listen)
        try:
            result = await _pass(node, fix, observer)
            if result.corruptions_fixed or result.leaks_fixed:
                mended = result
                if on_repaired is not None:
                    on_repaired(mended)
                result = replace(
                    await _pass(node, CheckFix.NONE, observer),
                    corruptions_fixed=mended.corruptions_fixed,
                    leaks_fixed=mended.leaks_fixed,
                )
            return CheckReport(node.filename, node.driver_class.name, result, tuple(kept))
        finally:
            stop()


async def _pass(node: BlockNode, fix: CheckFix, observer: Observer | None) -> CheckResult:
    driver = node.driver
    if driver is None:
        raise CheckFailed(NoMedium())
    meter = Meter(observer, 0, otherwise=Side.SOURCE)

    def progress(done: int, total: int) -> None:
        meter.total = total
        meter.advance(done - meter.done)

    try:
        result = await driver.co_check(fix, progress if observer is not None else None)
    except OSError as error:
        raise CheckFailed(error) from error
    meter.finish()
    return result
