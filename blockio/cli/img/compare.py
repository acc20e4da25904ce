"""``compare``: does a guest see the same on two disks?

Exit status: 0 the same, 1 different, 2 not opened, 3 not told what is where, 4 not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blockio.cli.img.commands import command_line
from blockio.cli.img.getopt import UsageError
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, fail, printed, source_cache
from blockio.cli.progress import Watcher, check_style, watcher
from blockio.img.comparing import ReadFailed, StatusFailed, compare

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image
    from blockio.img.results import Comparison

__all__ = ["execute", "prepare"]

_OPEN, _STATUS, _READ = 2, 3, 4
_LEAST_STEP = 2.0


class _Plan(NamedTuple):
    first: Image
    second: Image
    strict: bool
    quiet: bool
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output, _OPEN)
    first: str | None = None
    second: str | None = None
    cache = "writeback"
    strict = quiet = percent = False
    style: str | None = None
    line = command_line("compare", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key == "format":
            first = value
        elif key == "second-format":
            second = value
        elif key == "source-cache":
            cache = value
        elif key == "p":
            percent = True
        elif key == "progress":
            style = check_style(output, value)
        elif key == "quiet":
            quiet = True
        elif key == "strict":
            strict = True
        elif key == "object":
            define_object(value, output, 2)
        elif key == "image-opts":
            choice.image_opts = True
        elif key == "force-share":
            choice.force_share = True
    if len(line.operands) != 2:
        raise UsageError("Expecting two image file names")
    choice.cache = source_cache(output, cache, _OPEN)
    one, two = line.operands
    return _Plan(choice.image(one, first), choice.image(two, second), strict, quiet, percent and not quiet, style)


async def execute(plan: _Plan, output: Output) -> int:
    """Compare, and say what came of it."""
    output.quiet = plan.quiet
    with watcher(output, "compare", percent=plan.percent, style=plan.style, least_step=_LEAST_STEP) as watch:
        return await _compare(plan, output, watch)


async def _compare(plan: _Plan, output: Output, watch: Watcher) -> int:
    try:
        outcome = await compare(
            plan.first,
            plan.second,
            strict=plan.strict,
            observer=watch.listener,
            on_size_mismatch=lambda: output.say("Warning: Image size mismatch!"),
        )
    except ReadFailed as error:
        fail(output, printed(error), _READ)
    except StatusFailed as error:
        fail(output, printed(error), _STATUS)
    except OSError as error:
        fail(output, printed(error), _OPEN)
    output.say(_verdict(outcome))
    return 0 if outcome.identical else 1


def _verdict(outcome: Comparison) -> str:
    difference = outcome.difference
    if difference is None:
        return "Images are identical."
    if difference.kind == "size":
        return "Strict mode: Image size mismatch!"
    if difference.kind == "status":
        return f"Strict mode: Offset {difference.offset} block status mismatch!"
    return f"Content mismatch at offset {difference.offset}!"
