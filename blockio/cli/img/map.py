"""``map``: where the bytes of a disk are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from blockio.cli.img.commands import command_line
from blockio.cli.img.getopt import UsageError
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, fail, json_mode, read_size
from blockio.img.mapping import map_batches

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image
    from blockio.img.results import MapEntry

__all__ = ["execute", "prepare"]


class _Plan(NamedTuple):
    image: Image
    json: bool
    start: int
    length: int | None
    picture: str | None
    """The file to draw into, empty for standard output; None: no picture."""


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output)
    format: str | None = None
    as_json = False
    ofmt = ""
    picture: str | None = None
    start, length = 0, None
    line = command_line("map", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key == "format":
            format = value
        elif key == "force-share":
            choice.force_share = True
        elif key == "output":
            ofmt = value
        elif key == "start":
            start = read_size(output, "start offset", value)
        elif key == "length":
            length = read_size(output, "max length", value)
        elif key == "picture":
            picture = value
        elif key == "object":
            define_object(value, output)
        elif key == "image-opts":
            choice.image_opts = True
    if len(line.operands) != 1:
        raise UsageError("Expecting one image file name")
    if ofmt:
        as_json = json_mode(output, ofmt)
    if picture is not None and as_json:
        fail(output, "--picture and --output=json are mutually exclusive")
    if picture and not picture.endswith(".svg"):
        fail(output, f"'{picture}' does not end in .svg, which is what --picture draws into")
    return _Plan(choice.image(line.operands[0], format), as_json, start, length, picture)


async def execute(plan: _Plan, output: Output) -> int:
    """Print one line for each run, or draw them."""
    if plan.picture is not None:
        return await _draw(plan, plan.picture, output)
    first = True
    async with aclosing(map_batches(plan.image, start=plan.start, length=plan.length)) as batches:
        async for batch in _as_told(batches):
            if plan.json and batch:
                output.out(("[" if first else ",\n") + ",\n".join(map(_member, batch)))
            elif batch:
                if first:
                    output.out(f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n")
                for entry in batch:
                    if entry.data:
                        _print_row(entry, output)
            first = first and not batch
        if plan.json:
            output.out("]\n")
    return 0


async def _draw(plan: _Plan, path: str, output: Output) -> int:
    # reason: only --picture needs it
    from blockio.aio.threads import in_worker  # noqa: PLC0415
    from blockio.img.drawing import LEGEND, draw  # noqa: PLC0415

    drawn = await draw(plan.image, start=plan.start, length=plan.length, rows=16)
    if not path:
        output.out(f"{drawn.text()}\n{LEGEND}\n")
        return 0
    try:
        await in_worker(_write, path, drawn.svg())
    except OSError as error:
        fail(output, f"Could not write '{path}': {error.strerror}")
    return 0


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


async def _as_told(batches: AsyncIterator[list[MapEntry]]) -> AsyncIterator[list[MapEntry]]:
    """The same with those joined that read alike: nothing is said of compression."""
    pending: MapEntry | None = None
    async for batch in batches:
        told = []
        for entry in batch:
            if pending is not None and _tells_on(pending, entry):
                pending = msgspec.structs.replace(pending, length=pending.length + entry.length)
                continue
            if pending is not None:
                told.append(pending)
            pending = entry
        yield told
    yield [] if pending is None else [pending]


def _tells_on(one: MapEntry, other: MapEntry) -> bool:
    if one.compressed is other.compressed or one.offset is not None or other.offset is not None:
        return False
    return msgspec.structs.replace(one, start=0, length=0, compressed=False) == msgspec.structs.replace(
        other, start=0, length=0, compressed=False
    )


def _member(entry: MapEntry) -> str:
    # Spelled out, because scripts have been seen to match these lines.
    text = (
        f'{{ "start": {entry.start}, "length": {entry.length}, "depth": {entry.depth}, '
        f'"present": {_word(entry.present)}, "zero": {_word(entry.zero)}, "data": {_word(entry.data)}'
    )
    return text + ("}" if entry.offset is None else f', "offset": {entry.offset}}}')


def _word(flag: bool) -> str:
    return "true" if flag else "false"


def _print_row(entry: MapEntry, output: Output) -> None:
    if entry.offset is None:
        fail(output, "File contains external, encrypted or compressed clusters.")
    if not entry.zero:
        numbers = "".join(f"{_hex(number):<16}" for number in (entry.start, entry.length, entry.offset))
        output.out(f"{numbers}{entry.filename or ''}\n")


def _hex(number: int) -> str:
    return f"{number:#x}" if number else "0"
