"""``amend``: other options for an image that there is already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.getopt import UsageError
from blockio.cli.img.given import read
from blockio.cli.img.newimage import OptionList
from blockio.cli.img.tool import ImageChoice, fail, printed
from blockio.cli.progress import watcher
from blockio.driver.registry import find_driver
from blockio.errors import BlockError
from blockio.img.amending import amend
from blockio.img.opening import cache_flags, opened
from blockio.img.options import amend_options, help_lines, merged
from blockio.img.results import Progress
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.cli.progress import Watcher

__all__ = ["execute", "prepare"]

_LEAST_STEP = 1.0


class _Plan(msgspec.Struct, frozen=True):
    choice: ImageChoice
    names: list[str]
    format: str | None
    options: OptionList
    force: bool
    quiet: bool
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    options = OptionList(output)
    given = read("amend", args, output, {"options": options.add})
    if given is None:
        return None
    if not options:
        raise UsageError("Must specify options (-o)")
    return _Plan(
        choice=given.choice(given.get("cache", "writeback")),
        names=given.operands,
        format=given.get("format"),
        options=options,
        force="force" in given,
        quiet=given.quiet,
        percent=given.percent,
        style=given.style,
    )


def _print_help(output: Output, format: str) -> int:
    try:
        driver = find_driver(format)
    except BlockError:
        fail(output, f"Unknown file format '{format}'")
    try:
        known = amend_options(driver)
    except BlockError as error:
        fail(output, printed(error))
    output.out(f"Amend options for '{format}':\n")
    output.out("".join(f"{line}\n" for line in help_lines(merged(known))))
    return 0


async def execute(plan: _Plan, output: Output) -> int:
    """Amend, without a word."""
    output.quiet = plan.quiet
    with watcher(output, "amend", percent=plan.percent, style=plan.style, least_step=_LEAST_STEP) as watch:
        if plan.format is not None and plan.options.asks_for_help:
            return _print_help(output, plan.format)
        if len(plan.names) != 1:
            fail(output, "Expecting one image file name")
        cache_flags(plan.choice.cache, OpenFlags())
        image = plan.choice.image(plan.names[0], plan.format)
        if plan.options.asks_for_help:
            async with opened(image, OpenFlags(), resize=True) as blk:
                assert blk.bs is not None
                return _print_help(output, blk.bs.driver_class.name)
        seen = _Started(watch)
        try:
            await amend(image, plan.options.pairs(), force=plan.force, observer=seen.observer)
        except BlockError:
            if seen.started:
                watch.observer(Progress(1, 1))  # it is over, as the tool people know shows it
            raise
    return 0


class _Started:
    """Knows whether there was any progress."""

    def __init__(self, watch: Watcher) -> None:
        self._watch = watch
        self.started = False

    def observer(self, progress: Progress) -> None:
        """See ``Watcher``."""
        self.started = True
        self._watch.observer(progress)
