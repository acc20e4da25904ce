"""``create``: new images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.getopt import UsageError
from blockio.cli.img.given import read
from blockio.cli.img.newimage import OptionList, print_option_help
from blockio.cli.img.tool import pipe_target, printed, read_size, reader_gone
from blockio.cli.output import quote_commas
from blockio.driver.gate import AllowAll
from blockio.img.creating import create

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.results import CreateResult

__all__ = ["execute", "prepare"]


class _Plan(msgspec.Struct, frozen=True):
    filename: str
    format: str
    size: int | None
    pairs: list[tuple[str, str]]
    backing: str | None
    backing_format: str | None
    unsafe: bool
    quiet: bool


def prepare(args: list[str], output: Output) -> _Plan | int | None:
    """Read the command line; None asks for help, a number is the exit status already."""
    options = OptionList(output)
    given = read("create", args, output, {"options": options.add})
    if given is None:
        return None
    filename = given.operands[0] if given.operands else None
    rest = given.operands[1:]
    format = given.get("format", "raw")
    if options.asks_for_help:
        return print_option_help(output, filename, format)
    if filename is None:
        raise UsageError("Expecting image file name")
    size = read_size(output, "image size", rest[0]) if rest else None
    if len(rest) > 1:
        raise UsageError(f"Unexpected argument: {rest[1]}")
    return _Plan(
        filename=filename,
        format=format,
        size=size,
        pairs=options.pairs(),
        backing=given.get("backing"),
        backing_format=given.get("backing-format"),
        unsafe="unsafe" in given,
        quiet=given.quiet,
    )


async def execute(plan: _Plan, output: Output) -> int:
    """Create the image; errors begin with its name."""

    def formatting(result: CreateResult) -> None:
        options = " ".join(f"{name}={quote_commas(value)}" for name, value in result.options.items())
        output.say(f"Formatting '{plan.filename}', fmt={plan.format} {options}")

    output.quiet = plan.quiet
    target = pipe_target(output, plan.filename)
    try:
        await create(
            target or plan.filename,
            plan.format,
            size=plan.size,
            options=plan.pairs,
            backing_file=plan.backing,
            backing_format=plan.backing_format,
            open_backing=not plan.unsafe,
            gate=AllowAll(),
            on_formatting=formatting,
        )
    except OSError as error:
        reader_gone(error, target)
        text = f"{output.prog}: {plan.filename}: {printed(error)}"
        # That one hint ends without a line of its own in the tool people know.
        output.report(text if "\nDetected format of " in text else text + "\n")
        return 1
    return 0
