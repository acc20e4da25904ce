"""``resize``: a longer or shorter disk."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.getopt import UsageError
from blockio.cli.img.given import read
from blockio.cli.img.tool import Failure, fail, printed
from blockio.driver.options import parse_size
from blockio.errors import OptionError
from blockio.img.resizing import ShrinkRefused, resize
from blockio.types import PreallocMode

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    sign: int
    """+1 or -1 for a change by ``size``, 0 where it is the new length itself."""
    size: int
    prealloc: PreallocMode
    shrink: bool
    quiet: bool


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    if output.own_name and args in (["-h"], ["--help"]):
        return None  # the QEMU tool misses an argument
    if len(args) < 2:
        raise UsageError("Not enough arguments")
    # The size is taken off first, because a negative one looks like an option.
    *args, text = args
    given = read("resize", args, output, {"preallocation": partial(_preallocation, output)})
    if given is None:
        return None
    if len(given.operands) != 1:
        raise UsageError("Expecting image file name and size")
    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    try:
        size = parse_size(text[1:] if sign else text)
    except OptionError as error:
        output.error(printed(error))
        raise Failure from None
    return _Plan(
        image=given.image(),
        sign=sign,
        size=size,
        prealloc=given.get("preallocation", PreallocMode.OFF),
        shrink="shrink" in given,
        quiet=given.quiet,
    )


def _preallocation(output: Output, text: str) -> PreallocMode:
    try:
        return PreallocMode(text)
    except ValueError:
        fail(output, f"Invalid preallocation mode '{text}'")


async def execute(plan: _Plan, output: Output) -> int:
    """Resize, or say why not."""
    output.quiet = plan.quiet

    def length(present: int) -> int:
        # 64 bits with a sign, as scripts that overflow them have come to know it.
        new = present + plan.sign * plan.size if plan.sign else plan.size
        return (new + (1 << 63)) % (1 << 64) - (1 << 63)

    try:
        await resize(plan.image, length, shrink=plan.shrink, prealloc=plan.prealloc)
    except ShrinkRefused as error:
        output.error(error.message)
        output.warn(error.hint)
        return 1
    output.say("Image resized.")
    return 0
