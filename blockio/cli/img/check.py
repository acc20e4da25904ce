"""``check``: is an image consistent, and can it be mended?

Exit status: 0 clean, 1 the check failed, 2 corrupt, 3 leaks only, 63 the format has no check.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.cli.img.getopt import UsageError
from blockio.cli.img.given import read
from blockio.cli.img.tool import fail, source_cache
from blockio.cli.output import json_pretty
from blockio.cli.progress import own_watcher
from blockio.driver.base import CheckFix
from blockio.errors import UnsupportedFeature
from blockio.img.checking import CheckFailed, check

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.driver.base import CheckResult
    from blockio.img.opening import Image
    from blockio.img.results import CheckReport

__all__ = ["execute", "prepare"]

_NOT_SUPPORTED: Final = 63


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    json: bool
    fix: CheckFix
    quiet: bool
    style: str | None


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    given = read("check", args, output, {"repair": _fix})
    if given is None:
        return None
    name = given.name
    as_json = given.json
    cache = source_cache(output, given.get("source-cache", "writeback"))
    return _Plan(
        image=given.choice(cache).image(name, given.get("format")),
        json=as_json,
        fix=given.get("repair", CheckFix.NONE),
        quiet=given.quiet,
        style=given.style,
    )


def _fix(text: str) -> CheckFix:
    if text not in ("leaks", "all"):
        raise UsageError(f"Unknown option value for -r (expecting 'leaks' or 'all'): {text}")
    return CheckFix(text)


async def execute(plan: _Plan, output: Output) -> int:
    """Check, print what was found, and say it by the exit status."""
    output.quiet = plan.quiet

    def repaired(result: CheckResult) -> None:
        if not plan.json:
            output.say(
                "The following inconsistencies were found and repaired:\n\n"
                f"    {result.leaks_fixed} leaked clusters\n    {result.corruptions_fixed} corruptions\n\n"
                "Double checking the fixed image now..."
            )

    try:
        with own_watcher(output, "check", plan.style) as watch:
            report = await check(
                plan.image,
                fix=plan.fix,
                on_message=lambda message: output.report(message + "\n"),
                on_repaired=repaired,
                observer=None if watch is None else watch.listener,
            )
    except CheckFailed as failure:
        if isinstance(failure.error, UnsupportedFeature):
            fail(output, "This image format does not support checks", _NOT_SUPPORTED)
        fail(output, f"Check failed: {os.strerror(failure.error.errno or errno.EIO)}")
    if plan.json:
        output.say(json_pretty(_members(report, plan.image.name)))
    else:
        output.say(_text(report.result))
    result = report.result
    if result.check_errors:
        fail(output, "Check failed")
    return 2 if result.corruptions else 3 if result.leaks else 0


def _members(report: CheckReport, name: str) -> dict[str, Any]:
    result = report.result
    members: dict[str, Any] = {
        "image-end-offset": result.image_end_offset or None,
        "compressed-clusters": result.compressed_clusters or None,
        "total-clusters": result.total_clusters or None,
        "corruptions": result.corruptions or None,
        "corruptions-fixed": result.corruptions_fixed or None,
        "check-errors": result.check_errors,
        "leaks": result.leaks or None,
        "leaks-fixed": result.leaks_fixed or None,
        "allocated-clusters": result.allocated_clusters or None,
        "filename": name,
        "format": report.format,
        "fragmented-clusters": result.fragmented_clusters or None,
    }
    return {key: value for key, value in members.items() if value is not None}


def _text(result: CheckResult) -> str:
    lines: list[str] = []
    if not (result.corruptions or result.leaks or result.check_errors):
        lines.append("No errors were found on the image.")
    if result.corruptions:
        lines.append(
            f"\n{result.corruptions} errors were found on the image.\n"
            "Data may be corrupted, or further writes to the image may corrupt it."
        )
    if result.leaks:
        lines.append(
            f"\n{result.leaks} leaked clusters were found on the image.\n"
            "This means waste of disk space, but no harm to data."
        )
    if result.check_errors:
        lines.append(f"\n{result.check_errors} internal errors have occurred during the check.")
    if result.total_clusters and result.allocated_clusters:
        allocated = result.allocated_clusters
        lines.append(
            f"{allocated}/{result.total_clusters} = {allocated * 100.0 / result.total_clusters:.2f}% allocated, "
            f"{result.fragmented_clusters * 100.0 / allocated:.2f}% fragmented, "
            f"{result.compressed_clusters * 100.0 / allocated:.2f}% compressed clusters"
        )
    if result.image_end_offset:
        lines.append(f"Image end offset: {result.image_end_offset}")
    return "\n".join(lines)
