"""``inspect``, and ``info --untrusted``: a verdict on an image from a stranger.

The exit status is 0 for an image that is harmless as far as its header shows, 1 where the file cannot be read, else the
sum of what is said against it: 2, it would open something else; 4, it breaks a limit, contradicts itself or needs what
there is not; 8, it is not, or not only, the format that it is said to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from blockio.cli.img.given import read
from blockio.cli.output import human_size, json_pretty
from blockio.cli.specific import specific_lines
from blockio.img.inspecting import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockio.cli.output import Output
    from blockio.img.inspecting import Inspection, Opening

__all__ = ["BROKEN", "DISGUISED", "OPENS_OTHERS", "Plan", "execute", "prepare"]

OPENS_OTHERS = 2
BROKEN = 4
DISGUISED = 8


class Plan(msgspec.Struct, frozen=True):
    """What is to be inspected, and how that is told."""

    path: str
    format: str | None
    json: bool
    force_share: bool


def prepare(args: list[str], output: Output) -> Plan | None:
    """Read the command line; None asks for help."""
    given = read("inspect", args, output)
    if given is None:
        return None
    name = given.name
    return Plan(name, given.get("format"), given.json, "force-share" in given)


async def execute(plan: Plan, output: Output) -> int:
    """Tell what there is to say about the image."""
    found = await inspect(plan.path, claimed_format=plan.format, force_share=plan.force_share)
    output.out((json_pretty(_members(found)) if plan.json else "\n".join(_text(found))) + "\n")
    return OPENS_OTHERS * found.opens_others + BROKEN * found.broken + DISGUISED * found.disguised


def _members(found: Inspection) -> dict[str, Any]:
    members = {
        "filename": found.filename,
        "format": found.format,
        "claimed-format": found.claimed_format,
        "named-format": found.named_format,
        "marks": list(found.marks),
        "file-size": found.file_size,
        "virtual-size": found.virtual_size,
        "harmless": found.harmless,
        "opens-others": found.opens_others,
        "broken": found.broken,
        "disguised": found.disguised,
        "openings": [_opening_members(opening) for opening in found.openings],
        "findings": [{"kind": finding.kind.value, "message": finding.message} for finding in found.findings],
        "facts": found.facts,
    }
    return {name: value for name, value in members.items() if value is not None}


def _opening_members(opening: Opening) -> dict[str, Any]:
    members = {
        "kind": opening.kind.value.replace(" ", "-"),
        "name": opening.name,
        "target": opening.target,
        "format": opening.format,
        "protocol": opening.protocol,
        "options": list(opening.options) or None,
        "remarks": list(opening.remarks),
    }
    return {name: value for name, value in members.items() if value is not None}


def _text(found: Inspection) -> Iterator[str]:
    yield f"image: {_shown(found.filename)}"
    yield f"file format: {found.format}"
    yield f"file size: {human_size(found.file_size)} ({found.file_size} bytes)"
    if found.virtual_size is not None:
        yield f"virtual size: {human_size(found.virtual_size)} ({found.virtual_size} bytes)"
    for opening in found.openings:
        yield f"would open: {opening.kind.value} '{_shown(opening.name)}'"
        if opening.target != opening.name:
            yield f"    that is: {_shown(opening.target)}"
        if opening.format is not None:
            yield f"    format: {_shown(opening.format)}"
        for option in opening.options:
            yield f"    option: {_shown(option)}"
        for remark in opening.remarks:
            yield f"    remark: {_shown(remark)}"
    for finding in found.findings:
        yield f"{finding.kind.value}: {_shown(finding.message)}"
    if found.facts:
        yield "header:"
        yield from map(_shown, specific_lines({"type": found.format, "data": found.facts}))
    yield f"verdict: {_verdict(found)}"


def _verdict(found: Inspection) -> str:
    reasons = []
    if found.opens_others:
        reasons.append("it would open something else")
    if found.broken:
        reasons.append("it breaks limits or rules")
    if found.disguised:
        reasons.append("it is not what it is said to be")
    return "; ".join(reasons) or "harmless, as far as its header shows"


def _shown(text: str) -> str:
    """*text* of a stranger, with nothing in it that a terminal would obey."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
