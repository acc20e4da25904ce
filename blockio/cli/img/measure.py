"""``measure``: how large a new image would get."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.given import read
from blockio.cli.img.newimage import OptionList
from blockio.cli.img.tool import fail, json_mode, read_size
from blockio.cli.output import json_pretty
from blockio.errors import OptionError
from blockio.img.measuring import measure

if TYPE_CHECKING:
    from blockio.cli.img.given import Reader
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]


class _Plan(msgspec.Struct, frozen=True):
    image: Image | None
    format: str
    size: int | None
    pairs: list[tuple[str, str]]
    snapshot: str | None
    json: bool


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    options = OptionList(output)
    readers: dict[str, Reader] = {
        "options": options.add,
        "size": partial(read_size, output, "image size"),
        "output": partial(json_mode, output),
    }
    given = read("measure", args, output, readers)
    if given is None:
        return None
    if len(given.operands) > 1:
        fail(output, "At most one filename argument is allowed.")
    filename = given.operands[0] if given.operands else None
    size: int | None = given.get("size")
    if filename is None and any(key in given for key in ("image-opts", "format", "snapshot")):
        fail(output, "--image-opts, -f, and -l require a filename argument.")
    if filename is None and size is None:
        fail(output, "Either --size N or one filename must be specified.")
    if filename is not None and size is not None:
        fail(output, "--size N cannot be used together with a filename.")
    return _Plan(
        image=None if filename is None else given.image(),
        format=given.get("target-format", "raw"),
        size=size,
        pairs=options.pairs(),
        snapshot=given.get("snapshot"),
        json=given.get("output", False),
    )


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
