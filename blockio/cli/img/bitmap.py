"""``bitmap``: add, remove, clear, enable, disable and merge the bitmaps that an image keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blockio.cli.img.commands import command_line
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, fail, read_size
from blockio.img.bitmapping import BitmapAction, BitmapOperation, bitmap

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]


class _Plan(NamedTuple):
    image: Image
    name: str
    actions: list[BitmapAction]
    source: Image | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output)
    steps: list[tuple[BitmapOperation, str]] = []
    format: str | None = None
    source: str | None = None
    source_format: str | None = None
    granularity = 0
    line = command_line("bitmap", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key == "format":
            format = value
        elif key == "source":
            source = value
        elif key == "source-format":
            source_format = value
        elif key == "granularity":
            granularity = read_size(output, "granularity", value)
        elif key == "object":
            define_object(value, output)
        elif key == "image-opts":
            choice.image_opts = True
        else:
            steps.append((BitmapOperation(key), value))
    asked = {operation for operation, _ in steps}
    if not steps:
        fail(output, "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    if granularity and BitmapOperation.ADD not in asked:
        fail(output, "granularity only supported with --add")
    if source_format is not None and source is None:
        fail(output, "-F only supported with -b")
    if source is not None and BitmapOperation.MERGE not in asked:
        fail(output, "Merge bitmap source file only supported with --merge")
    if len(line.operands) != 2:
        fail(output, "Expecting filename and bitmap name")
    filename, name = line.operands
    # The number is one of 32 bits to the tool that scripts know.
    size = granularity % 2**32 if granularity else None
    actions = [BitmapAction(operation, size, value) for operation, value in steps]
    return _Plan(
        choice.image(filename, format),
        name,
        actions,
        None if source is None else ImageChoice(output).image(source, source_format),
    )


async def execute(plan: _Plan, output: Output) -> int:
    """Do it, in the order of the options; nothing is said about a success."""
    await bitmap(plan.image, plan.name, plan.actions, source=plan.source)
    return 0
