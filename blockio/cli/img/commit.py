"""``commit``: an overlay's content into its backing file."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blockio.cli.img.commands import command_line
from blockio.cli.img.getopt import UsageError
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, read_size
from blockio.cli.progress import check_style, watcher
from blockio.img.committing import commit
from blockio.img.limiting import RateLimit
from blockio.img.opening import cache_flags
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]

_LEAST_STEP = 1.0


class _Plan(NamedTuple):
    image: Image
    base: str | None
    drop: bool
    rate: int
    quiet: bool
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output)
    format: str | None = None
    base: str | None = None
    drop = quiet = percent = False
    style: str | None = None
    rate = 0
    line = command_line("commit", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key == "format":
            format = value
        elif key == "cache":
            choice.cache = value
        elif key == "base":
            base = value
        elif key == "drop":
            drop = True
        elif key == "p":
            percent = True
        elif key == "progress":
            style = check_style(output, value)
        elif key == "rate":
            rate = read_size(output, "rate limit", value)
        elif key == "quiet":
            quiet = True
        elif key == "object":
            define_object(value, output)
        elif key == "image-opts":
            choice.image_opts = True
    if len(line.operands) != 1:
        raise UsageError("Expecting one image file name")
    cache_flags(choice.cache, OpenFlags())
    return _Plan(choice.image(line.operands[0], format), base, drop, rate, quiet, percent and not quiet, style)


async def execute(plan: _Plan, output: Output) -> int:
    """Commit, and say so."""
    output.quiet = plan.quiet
    with watcher(output, "commit", percent=plan.percent, style=plan.style, least_step=_LEAST_STEP, begin=True) as watch:
        await commit(
            plan.image,
            plan.base,
            drop=plan.drop,
            limit=RateLimit(plan.rate) if plan.rate else None,
            observer=watch.listener,
        )
    output.say("Image committed.")
    return 0
