"""``bench``: how fast an image answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.cli.definitions import AIO_MODES, stronger_aio
from blockio.cli.img.given import read
from blockio.cli.img.tool import fail, read_size
from blockio.errors import OptionError
from blockio.img.benching import bench
from blockio.img.opening import cache_flags
from blockio.types import INT_MAX, OpenFlags

if TYPE_CHECKING:
    from blockio.cli.img.given import Reader
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


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    numbers: dict[str, int]
    write: bool
    drain: bool
    aio: str | None


def run(work: Coroutine[Any, Any, int]) -> int:
    """On the fastest loop there is: what is measured here is the block layer."""
    try:
        import uvloop  # the other commands gain nothing by it
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    modes: list[str] = []
    readers: dict[str, Reader] = {
        **{key: partial(_count, output, *rest) for key, rest in _COUNTS.items()},
        **{key: partial(_size, output, *rest) for key, rest in _SIZES.items()},
        "aio": lambda text: modes.append(_aio(output, text)),
        "native": lambda _: modes.append("native"),
        "cache": partial(_cache, output),
    }
    given = read("bench", args, output, readers)
    if given is None:
        return None
    name = given.name
    output.quiet = given.quiet
    numbers = {key: given.get(key) for key in (*_COUNTS, *_SIZES) if key in given}
    write = "write" in given
    _refuse_contradictions(numbers, write, output)
    return _Plan(
        image=given.choice(given.get("cache", "writeback")).image(name, given.get("format")),
        numbers=numbers,
        write=write,
        drain="no-drain" not in given,
        aio=reduce(stronger_aio, modes) if modes else None,
    )


def _size(output: Output, what: str, largest: int, text: str) -> int:
    return read_size(output, what, text, largest)


def _aio(output: Output, text: str) -> str:
    if text not in AIO_MODES:
        fail(output, f"Invalid aio option: {text}")
    return text


def _cache(output: Output, text: str) -> str:
    try:
        cache_flags(text, OpenFlags())
    except OptionError:
        fail(output, "Invalid cache mode")
    return text


def _count(output: Output, what: str, least: int, largest: int, text: str) -> int:
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
