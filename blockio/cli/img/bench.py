"""``bench``: how fast an image answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blockio.cli.img.commands import command_line
from blockio.cli.img.getopt import UsageError
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, fail, read_size
from blockio.errors import OptionError
from blockio.img.benching import AIO_MODES, bench
from blockio.img.opening import cache_flags
from blockio.types import INT_MAX, OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare", "run"]

_COUNTS: Final = {
    "count": ("request count", 0, INT_MAX),
    "depth": ("queue depth", 1, INT_MAX),
    "flush-interval": ("flush interval", 0, INT_MAX),
    "pattern": ("pattern byte", 0, 0xFF),
}
_SIZES: Final = {
    "offset": ("offset", 2**63 - 1),
    "size": ("buffer size", INT_MAX),
    "step": ("step_size", INT_MAX),
}


class _Plan(NamedTuple):
    image: Image
    numbers: dict[str, int]
    write: bool
    drain: bool
    aio: str | None


def run(work: Coroutine[Any, Any, int]) -> int:
    """On the fastest loop there is: what is measured here is the block layer."""
    try:
        import uvloop  # noqa: PLC0415  # the other commands gain nothing by it
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output)
    format: str | None = None
    aio: str | None = None
    write = False
    drain = True
    numbers: dict[str, int] = {}
    line = command_line("bench", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key in _COUNTS:
            numbers[key] = _count(output, value, *_COUNTS[key])
        elif key in _SIZES:
            what, largest = _SIZES[key]
            numbers[key] = read_size(output, what, value, largest)
        elif key == "format":
            format = value
        elif key == "aio":
            if value not in AIO_MODES:
                fail(output, f"Invalid aio option: {value}")
            aio = value
        elif key == "native":
            aio = "native"
        elif key == "no-drain":
            drain = False
        elif key == "quiet":
            output.quiet = True
        elif key == "cache":
            try:
                cache_flags(value, OpenFlags())
            except OptionError:
                fail(output, "Invalid cache mode")
            choice.cache = value
        elif key == "write":
            write = True
        elif key == "force-share":
            choice.force_share = True
        elif key == "object":
            define_object(value, output)
        elif key == "image-opts":
            choice.image_opts = True
    if len(line.operands) != 1:
        raise UsageError("Expecting one image file name")
    _refuse_contradictions(numbers, write, output)
    return _Plan(choice.image(line.operands[0], format), numbers, write, drain, aio)


def _count(output: Output, text: str, what: str, least: int, largest: int) -> int:
    try:
        # As C's strtol reads numbers: with a sign, in base 8, 10 or 16.
        number = int(text, 8) if text.strip().lstrip("0").isdigit() and text.strip().startswith("0") else int(text, 0)
    except ValueError:
        number = -1
    if not least <= number <= largest:
        fail(output, f"Invalid {what} specified")
    return number


def _refuse_contradictions(numbers: dict[str, int], write: bool, output: Output) -> None:
    interval = numbers.get("flush-interval", 0)
    if interval and not write:
        fail(output, "--flush-interval is only available in write tests")
    if interval and interval < numbers.get("depth", 64):
        fail(output, "Flush interval can't be smaller than depth")


async def execute(plan: _Plan, output: Output) -> int:
    """Send the requests, and say how long they took."""
    numbers = plan.numbers
    count, depth = numbers.get("count", 75_000), numbers.get("depth", 64)
    size, offset, interval = numbers.get("size", 4096), numbers.get("offset", 0), numbers.get("flush-interval", 0)
    step = numbers.get("step", 0) or size
    kind = "write" if plan.write else "read"

    def tell() -> None:
        output.out(
            f"Sending {count} {kind} requests, {size} bytes each, {depth} in parallel "
            f"(starting at offset {offset}, step size {step})\n"
        )
        if interval:
            output.out(f"Sending flush every {interval} requests\n")
        output.flush()

    result = await bench(
        plan.image,
        count=count,
        depth=depth,
        offset=offset,
        buffer_size=size,
        step=step,
        write=plan.write,
        pattern=numbers.get("pattern", 0),
        flush_interval=interval,
        drain_on_flush=plan.drain,
        aio=plan.aio,
        on_start=tell,
    )
    output.out(f"Run completed in {result.seconds:3.3f} seconds.\n")
    return 0
