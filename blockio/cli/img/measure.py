"""``measure``: how large a new image would get."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blockio.cli.img.commands import command_line
from blockio.cli.img.newimage import OptionList
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, fail, json_mode, read_size
from blockio.cli.output import json_pretty
from blockio.errors import OptionError
from blockio.img.measuring import measure

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]


class _Plan(NamedTuple):
    image: Image | None
    format: str
    size: int | None
    pairs: list[tuple[str, str]]
    snapshot: str | None
    json: bool


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output)
    format: str | None = None
    target = "raw"
    size: int | None = None
    snapshot: str | None = None
    json = False
    options = OptionList(output)
    line = command_line("measure", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key == "format":
            format = value
        elif key == "target-format":
            target = value
        elif key == "options":
            options.add(value)
        elif key == "snapshot":
            snapshot = value
        elif key == "size":
            size = read_size(output, "image size", value)
        elif key == "output":
            json = json_mode(output, value)
        elif key == "object":
            define_object(value, output)
        elif key == "image-opts":
            choice.image_opts = True
        elif key == "force-share":
            choice.force_share = True
    if len(line.operands) > 1:
        fail(output, "At most one filename argument is allowed.")
    filename = line.operands[0] if line.operands else None
    if filename is None and (choice.image_opts or format is not None or snapshot is not None):
        fail(output, "--image-opts, -f, and -l require a filename argument.")
    if filename is None and size is None:
        fail(output, "Either --size N or one filename must be specified.")
    if filename is not None and size is not None:
        fail(output, "--size N cannot be used together with a filename.")
    image = None if filename is None else choice.image(filename, format)
    return _Plan(image, target, size, options.pairs(), snapshot, json)


async def execute(plan: _Plan, output: Output) -> int:
    """Measure, and print it."""
    try:
        found = await measure(plan.image, plan.format, size=plan.size, options=plan.pairs, snapshot=plan.snapshot)
    except OptionError as error:
        if not error.hint.startswith("Invalid options for file format"):
            raise
        output.error(error.message)
        fail(output, error.hint)
    if plan.json:
        values = {} if found.bitmaps is None else {"bitmaps": found.bitmaps}
        output.out(json_pretty({**values, "required": found.required, "fully-allocated": found.fully_allocated}) + "\n")
        return 0
    output.out(f"required size: {found.required}\nfully allocated size: {found.fully_allocated}\n")
    if found.bitmaps is not None:
        output.out(f"bitmaps size: {found.bitmaps}\n")
    return 0
