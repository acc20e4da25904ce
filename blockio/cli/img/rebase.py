"""``rebase``: another backing file below an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.getopt import UsageError
from blockio.cli.img.given import read
from blockio.cli.img.tool import source_cache
from blockio.cli.progress import watcher
from blockio.img.opening import cache_flags
from blockio.img.rebasing import rebase
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]

_LEAST_STEP = 1.0


class _Plan(msgspec.Struct, frozen=True):
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
    given = read("rebase", args, output)
    if given is None:
        return None
    name = given.name
    if "unsafe" not in given and "backing" not in given:
        raise UsageError("Must specify backing file (-b) or use unsafe mode (-u)")
    return _Plan(
        image=given.choice(given.get("cache", "writeback"), force_share=False).image(name, given.get("format")),
        backing=given.get("backing"),
        backing_format=given.get("backing-format"),
        backing_cache=given.get("source-cache", "writeback"),
        share="force-share" in given,
        unsafe="unsafe" in given,
        quiet=given.quiet,
        percent=given.percent,
        style=given.style,
    )


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
