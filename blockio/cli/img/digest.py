"""``digest``: a checksum of what a guest sees."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.given import read
from blockio.cli.img.tool import fail, source_cache
from blockio.cli.output import json_pretty
from blockio.cli.progress import watcher
from blockio.img.checksums import ALGORITHMS, DEFAULT
from blockio.img.digesting import digest
from blockio.img.limiting import RateLimit

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image
    from blockio.img.results import DigestResult

__all__ = ["check_algorithm", "digest_line", "execute", "prepare"]

_LEAST_STEP = 1.0


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    algorithm: str
    json: bool
    rate: int
    percent: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    given = read("digest", args, output, {"algorithm": partial(check_algorithm, output)})
    if given is None:
        return None
    name = given.name
    as_json = given.json
    cache = source_cache(output, given.get("source-cache", "writeback"))
    return _Plan(
        image=given.choice(cache).image(name, given.get("format")),
        algorithm=given.get("algorithm", DEFAULT),
        json=as_json,
        rate=given.get("rate", 0),
        percent=given.percent,
        style=given.style,
    )


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
