"""``bitmap``: add, remove, clear, enable, disable and merge the bitmaps that an image keeps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.given import read
from blockio.cli.img.tool import ImageChoice, fail, read_size
from blockio.img.bitmapping import BitmapAction, BitmapOperation, bitmap

if TYPE_CHECKING:
    from blockio.cli.img.given import Reader
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    name: str
    actions: list[BitmapAction]
    source: Image | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    steps: list[tuple[BitmapOperation, str]] = []

    def step(operation: BitmapOperation, value: str) -> None:
        steps.append((operation, value))

    readers: dict[str, Reader] = {operation.value: partial(step, operation) for operation in BitmapOperation}
    given = read("bitmap", args, output, {**readers, "granularity": partial(read_size, output, "granularity")})
    if given is None:
        return None
    asked = {operation for operation, _ in steps}
    source: str | None = given.get("source")
    granularity: int = given.get("granularity", 0)
    if not steps:
        fail(output, "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    if granularity and BitmapOperation.ADD not in asked:
        fail(output, "granularity only supported with --add")
    if "source-format" in given and source is None:
        fail(output, "-F only supported with -b")
    if source is not None and BitmapOperation.MERGE not in asked:
        fail(output, "Merge bitmap source file only supported with --merge")
    if len(given.operands) != 2:
        fail(output, "Expecting filename and bitmap name")
    filename, name = given.operands
    # The number is one of 32 bits to the tool that scripts know.
    size = granularity % 2**32 if granularity else None
    return _Plan(
        image=given.choice().image(filename, given.get("format")),
        name=name,
        actions=[BitmapAction(operation, size, value) for operation, value in steps],
        source=None if source is None else ImageChoice(output).image(source, given.get("source-format")),
    )


async def execute(plan: _Plan, output: Output) -> int:
    """Do it, in the order of the options; nothing is said about a success."""
    await bitmap(plan.image, plan.name, plan.actions, source=plan.source)
    return 0
