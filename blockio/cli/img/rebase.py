"""``rebase``: another backing file below an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blockio.cli.img.commands import command_line
from blockio.cli.img.getopt import UsageError
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, source_cache
from blockio.cli.progress import check_style, watcher
from blockio.img.opening import cache_flags
from blockio.img.rebasing import rebase
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]

_LEAST_STEP = 1.0


class _Plan(NamedTuple):
    image: Image
    backing: str | None
    backing_format: str | None
    backing_cache: str
    share: bool
    unsafe: bool
    quiet: bool
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output)
    format: str | None = None
    backing: str | None = None
    backing_format: str | None = None
    backing_cache = "writeback"
    unsafe = share = quiet = percent = False
    style: str | None = None
    line = command_line("rebase", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key == "format":
            format = value
        elif key == "backing-format":
            backing_format = value
        elif key == "backing":
            backing = value
        elif key == "unsafe":
            unsafe = True
        elif key == "p":
            percent = True
        elif key == "progress":
            style = check_style(output, value)
        elif key == "cache":
            choice.cache = value
        elif key == "source-cache":
            backing_cache = value
        elif key == "quiet":
            quiet = True
        elif key == "object":
            define_object(value, output)
        elif key == "image-opts":
            choice.image_opts = True
        elif key == "force-share":
            share = True
    if len(line.operands) != 1:
        raise UsageError("Expecting one image file name")
    if not unsafe and backing is None:
        raise UsageError("Must specify backing file (-b) or use unsafe mode (-u)")
    image = choice.image(line.operands[0], format)
    return _Plan(image, backing, backing_format, backing_cache, share, unsafe, quiet, percent and not quiet, style)


async def execute(plan: _Plan, output: Output) -> int:
    """Rebase, without a word."""
    output.quiet = plan.quiet
    with watcher(output, "rebase", percent=plan.percent, style=plan.style, least_step=_LEAST_STEP, begin=True) as watch:
        cache_flags(plan.image.cache, OpenFlags())
        source_cache(output, plan.backing_cache)
        await rebase(
            plan.image,
            plan.backing,
            plan.backing_format,
            unsafe=plan.unsafe,
            backing_cache=plan.backing_cache,
            backing_force_share=plan.share,
            observer=watch.observer,
        )
    return 0
