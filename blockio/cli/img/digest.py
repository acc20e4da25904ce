"""``digest``: a checksum of what a guest sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blockio.cli.img.commands import command_line
from blockio.cli.img.getopt import UsageError
from blockio.cli.img.objects import define_object
from blockio.cli.img.tool import ImageChoice, fail, json_mode, read_size, source_cache
from blockio.cli.output import json_pretty
from blockio.cli.progress import check_style, watcher
from blockio.img.checksums import ALGORITHMS, DEFAULT
from blockio.img.digesting import digest
from blockio.img.limiting import RateLimit

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image
    from blockio.img.results import DigestResult

__all__ = ["check_algorithm", "digest_line", "execute", "prepare"]

_LEAST_STEP = 1.0


class _Plan(NamedTuple):
    image: Image
    algorithm: str
    json: bool
    rate: int
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    choice = ImageChoice(output)
    format: str | None = None
    algorithm, ofmt, cache = DEFAULT, "", "writeback"
    rate = 0
    percent = False
    style: str | None = None
    line = command_line("digest", args, output)
    for key, value in line:
        if key == "help":
            return None
        if key == "format":
            format = value
        elif key == "algorithm":
            algorithm = check_algorithm(output, value)
        elif key == "output":
            ofmt = value
        elif key == "source-cache":
            cache = value
        elif key == "rate":
            rate = read_size(output, "rate limit", value)
        elif key == "p":
            percent = True
        elif key == "progress":
            style = check_style(output, value)
        elif key == "object":
            define_object(value, output)
        elif key == "image-opts":
            choice.image_opts = True
        elif key == "force-share":
            choice.force_share = True
    if len(line.operands) != 1:
        raise UsageError("Expecting one image file name")
    as_json = bool(ofmt) and json_mode(output, ofmt)
    choice.cache = source_cache(output, cache)
    return _Plan(choice.image(line.operands[0], format), algorithm, as_json, rate, percent, style)


def check_algorithm(output: Output, name: str) -> str:
    """*name*, or the usual one where that is empty; ends the command where there is no such algorithm."""
    name = name or DEFAULT
    if name not in ALGORITHMS:
        fail(output, f"Unknown digest algorithm '{name}': there are {', '.join(ALGORITHMS)}")
    return name


async def execute(plan: _Plan, output: Output) -> int:
    """Print one line as ``sha256sum`` does, or JSON."""
    with watcher(output, "digest", percent=plan.percent, style=plan.style, least_step=_LEAST_STEP) as watch:
        found = await digest(
            plan.image,
            plan.algorithm,
            limit=RateLimit(plan.rate) if plan.rate else None,
            observer=watch.listener,
        )
    if plan.json:
        members = {
            "filename": found.filename,
            "algorithm": found.algorithm,
            "digest": found.digest,
            "size": found.size,
        }
        output.out(json_pretty(members) + "\n")
    else:
        output.out(digest_line(found))
    return 0


def digest_line(found: DigestResult) -> str:
    """As ``sha256sum`` prints it."""
    return f"{found.digest}  {found.filename}\n"
