"""``commit``: an overlay's content into its backing file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.given import read
from blockio.cli.progress import watcher
from blockio.img.committing import commit
from blockio.img.limiting import RateLimit
from blockio.img.opening import cache_flags
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]

_LEAST_STEP = 1.0


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    base: str | None
    drop: bool
    rate: int
    quiet: bool
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    given = read("commit", args, output)
    if given is None:
        return None
    name, cache = given.name, given.get("cache", "writeback")
    cache_flags(cache, OpenFlags())
    return _Plan(
        image=given.choice(cache).image(name, given.get("format")),
        base=given.get("base"),
        drop="drop" in given,
        rate=given.get("rate", 0),
        quiet=given.quiet,
        percent=given.percent,
        style=given.style,
    )


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
