"""``dd``: a part of a disk, by the operands that Unix's own ``dd`` has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.cli.img.given import read
from blockio.cli.img.tool import Failure, ImageChoice, fail, printed, read_size
from blockio.cli.progress import own_watcher
from blockio.driver.registry import find_driver
from blockio.errors import BlockError
from blockio.img.excerpting import MAX_BLOCK_SIZE, dd

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]

_NUMBERS: Final = ("bs", "count", "skip")


class _Plan(msgspec.Struct, frozen=True):
    source: Image
    target: str
    format: str
    numbers: dict[str, int]
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    given = read("dd", args, output)
    if given is None:
        return None
    values: dict[str, Any] = {}
    for operand in given.operands:
        name, equals, value = operand.partition("=")
        if name in ("if", "of") and equals:
            values[name] = value
        elif name in _NUMBERS and equals:
            least, largest = (1, MAX_BLOCK_SIZE) if name == "bs" else (0, 2**63 - 1)
            values[name] = read_size(output, name, value, largest, least=least)
        else:
            fail(output, f"unrecognized operand {name}")
    if "if" not in values or "of" not in values:
        fail(output, "Must specify both input and output files")
    return _Plan(
        source=given.choice().image(values.pop("if"), given.get("format")),
        target=values.pop("of"),
        format=given.get("target-format", "raw"),
        numbers=values,
        style=given.style,
    )


async def execute(plan: _Plan, output: Output) -> int:
    """Copy; nothing is said about a success."""
    try:
        find_driver(plan.format)
    except BlockError:
        fail(output, "Unknown file format")
    target = ImageChoice(output).image(plan.target, plan.format)
    try:
        with own_watcher(output, "dd", plan.style) as watch:
            await dd(
                plan.source,
                target,
                plan.format,
                block_size=plan.numbers.get("bs", 512),
                count=plan.numbers.get("count"),
                skip=plan.numbers.get("skip", 0),
                observer=None if watch is None else watch.listener,
                on_warning=output.error,
            )
    except OSError as error:
        output.error(printed(error))
        raise Failure from None
    return 0
