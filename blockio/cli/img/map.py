"""``map``: where the bytes of a disk are."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.given import read
from blockio.cli.img.tool import fail, read_size
from blockio.img.mapping import map_batches

if TYPE_CHECKING:
    from blockio.cli.img.given import Reader
    from blockio.cli.output import Output
    from blockio.img.mapping import MapRuns
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    json: bool
    start: int
    length: int | None
    picture: str | None
    """The file to draw into, empty for standard output; None: no picture."""


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    readers: dict[str, Reader] = {
        "start": partial(read_size, output, "start offset"),
        "length": partial(read_size, output, "max length"),
    }
    given = read("map", args, output, readers)
    if given is None:
        return None
    name = given.name
    as_json = given.json
    picture: str | None = given.get("picture")
    if picture is not None and as_json:
        fail(output, "--picture and --output=json are mutually exclusive")
    if picture and not picture.endswith((".svg", ".png")):
        fail(output, f"'{picture}' ends in neither .svg nor .png, which is what --picture draws into")
    return _Plan(
        image=given.choice().image(name, given.get("format")),
        json=as_json,
        start=given.get("start", 0),
        length=given.get("length"),
        picture=picture,
    )


async def execute(plan: _Plan, output: Output) -> int:
    """Print one line for each run, or draw them."""
    if plan.picture is not None:
        return await _draw(plan, plan.picture, output)
    first = True
    async with aclosing(map_batches(plan.image, start=plan.start, length=plan.length, compression=False)) as batches:
        async for batch in batches:
            if plan.json:
                output.out(("[" if first else ",\n") + ",\n".join(map(_members, batch)))
            else:
                if first:
                    output.out(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n")
                for runs in batch:
                    if runs.data:
                        _print_rows(runs, output)
            first = False
        if plan.json:
            output.out("]\n")
    return 0


async def _draw(plan: _Plan, path: str, output: Output) -> int:
    # only --picture needs it
    from blockio.aio.threads import in_worker
    from blockio.img.drawing import LEGEND, draw

    drawn = await draw(plan.image, start=plan.start, length=plan.length, rows=16)
    if not path:
        output.out(f"{drawn.text()}\n{LEGEND}\n")
        return 0
    try:
        await in_worker(_write, path, drawn.png() if path.endswith(".png") else drawn.svg().encode())
    except OSError as error:
        fail(output, f"Could not write '{path}': {error.strerror}")
    return 0


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _members(runs: MapRuns) -> str:
    # Spelled out, because scripts have been seen to match these lines; all of them in one step, as there may be many.
    starts = accumulate(runs.lengths, initial=runs.start)
    columns, place = [starts, runs.lengths], ""
    if runs.offsets is not None:
        columns, place = [*columns, runs.offsets], ', "offset": %d'
    line = (
        f'{{ "start": %d, "length": %d, "depth": {runs.depth}, "present": {_word(runs.present)}, '
        f'"zero": {_word(runs.zero)}, "data": {_word(runs.data)}{place}}}'
    )
    return ",\n".join(repeat(line, len(runs.lengths))) % tuple(chain.from_iterable(zip(*columns, strict=False)))


def _word(flag: bool) -> str:
    return "true" if flag else "false"


def _print_rows(runs: MapRuns, output: Output) -> None:
    if runs.offsets is None:
        fail(output, "File contains external, encrypted or compressed clusters.")
    if runs.zero:
        return
    starts = accumulate(runs.lengths, initial=runs.start)
    numbers = tuple(chain.from_iterable(zip(starts, runs.lengths, runs.offsets, strict=False)))
    name = (runs.filename or "").replace("%", "%%")
    if all(numbers):
        output.out(f"%-#16x%-#16x%-#16x{name}\n" * len(runs.lengths) % numbers)
    else:  # the only number written without 0x is 0
        output.out(f"%-16s%-16s%-16s{name}\n" * len(runs.lengths) % tuple(map(_hex, numbers)))


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"
