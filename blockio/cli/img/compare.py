"""``compare``: does a guest see the same on two disks?

Exit status: 0 the same, 1 different, 2 not opened, 3 not told what is where, 4 not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.getopt import UsageError
from blockio.cli.img.given import read
from blockio.cli.img.tool import fail, printed, source_cache
from blockio.cli.progress import Watcher, watcher
from blockio.img.comparing import ReadFailed, StatusFailed, compare

if TYPE_CHECKING:
    from blockio.cli.img.given import Given
    from blockio.cli.output import Output
    from blockio.img.results import Comparison

__all__ = ["execute", "prepare"]

_OPEN, _STATUS, _READ = 2, 3, 4
_LEAST_STEP = 2.0


class _Plan(msgspec.Struct, frozen=True):
    given: Given
    strict: bool
    quiet: bool
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    given = read("compare", args, output, status=_OPEN)
    if given is None:
        return None
    if len(given.operands) != 2:
        raise UsageError("Expecting two image file names")
    return _Plan(
        given=given,
        strict="strict" in given,
        quiet=given.quiet,
        percent=given.percent,
        style=given.style,
    )


async def execute(plan: _Plan, output: Output) -> int:
    """Compare, and say what came of it."""
    output.quiet = plan.quiet
    with watcher(output, "compare", percent=plan.percent, style=plan.style, least_step=_LEAST_STEP) as watch:
        return await _compare(plan, output, watch)


async def _compare(plan: _Plan, output: Output, watch: Watcher) -> int:
    given = plan.given
    choice = given.choice(source_cache(output, given.get("source-cache", "writeback"), _OPEN))
    one, two = given.operands
    try:
        outcome = await compare(
            choice.image(one, given.get("format")),
            choice.image(two, given.get("second-format")),
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
