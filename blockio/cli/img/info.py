"""``info``: what an image is."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from blockio.cli.img.given import read
from blockio.cli.img.snapshots import shown, snapshot_lines
from blockio.cli.img.tool import fail, printed
from blockio.cli.output import human_size, json_pretty
from blockio.cli.specific import ordered_specific, specific_lines
from blockio.img.describing import info, info_chain, walk_chain

if TYPE_CHECKING:
    from blockio.cli.img.given import Given
    from blockio.cli.img.inspect import Plan as Stranger
    from blockio.cli.output import Output
    from blockio.driver.snapshots import SnapshotInfo
    from blockio.img.opening import Image
    from blockio.img.results import ImageInfo

__all__ = ["execute", "prepare"]


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    json: bool
    chain: bool
    tree: bool


def prepare(args: list[str], output: Output) -> _Plan | Stranger | None:
    """Read the command line; None asks for help."""
    given = read("info", args, output)
    if given is None:
        return None
    name = given.name
    as_json = given.json
    tree = "tree" in given
    chain = tree or "backing-chain" in given
    if "untrusted" in given:
        return _stranger(name, given, as_json, output, chain=chain)
    return _Plan(given.image(), as_json, chain, tree)


def _stranger(name: str, given: Given, as_json: bool, output: Output, *, chain: bool) -> Stranger:
    # only --untrusted needs it
    from blockio.cli.img.inspect import Plan

    if chain or "image-opts" in given:
        fail(output, "--untrusted opens one file and nothing else: it goes with no chain and no --image-opts")
    return Plan(name, given.get("format"), as_json, "force-share" in given)


async def execute(plan: _Plan | Stranger, output: Output) -> int:
    """Describe the image, or the whole chain."""
    if not isinstance(plan, _Plan):
        from blockio.cli.img.inspect import execute as inspect

        return await inspect(plan, output)
    if plan.tree and not plan.json:
        return await _show_tree(plan.image, output)
    images = await info_chain(plan.image) if plan.chain else [await info(plan.image)]
    if plan.json:
        members = [_members(image) for image in images]
        output.out(json_pretty(members if plan.chain else members[0]) + "\n")
    else:
        output.out("\n".join(_text(image) for image in images))
    return 0


# -- JSON


def _members(image: ImageInfo) -> dict[str, Any]:
    members: dict[str, Any] = {
        "backing-filename-format": image.backing_filename_format,
        "snapshots": [_snapshot_members(snapshot) for snapshot in image.snapshots] or None,
        "virtual-size": image.virtual_size,
        "filename": image.filename,
        "cluster-size": image.cluster_size,
        "format": image.format,
        "actual-size": image.actual_size,
        "format-specific": ordered_specific(image.format_specific),
        "full-backing-filename": image.full_backing_filename,
        "encrypted": image.encrypted or None,
        "backing-filename": image.backing_filename,
        "dirty-flag": image.dirty_flag,
    }
    return {name: value for name, value in members.items() if value is not None}


def _snapshot_members(snapshot: SnapshotInfo) -> dict[str, Any]:
    members = {
        "icount": snapshot.icount,
        "vm-clock-nsec": snapshot.vm_clock_nsec % 10**9,
        "name": shown(snapshot.name),
        "date-sec": snapshot.date_sec,
        "date-nsec": snapshot.date_nsec,
        "vm-clock-sec": snapshot.vm_clock_nsec // 10**9,
        "id": snapshot.id,
        "vm-state-size": snapshot.vm_state_size,
    }
    return {name: value for name, value in members.items() if value is not None}


# -- text


async def _show_tree(image: Image, output: Output) -> int:
    """The chain as a tree, as far down as it can be opened."""
    missing: str | None = None
    depth = 0
    try:
        async with aclosing(walk_chain(image)) as images:
            async for described in images:
                output.out(_branch(depth, described))
                missing = described.full_backing_filename
                depth += 1
    except OSError as error:
        if missing is not None:
            output.out(f"{_stem(depth)}{missing} (not opened)\n")
        fail(output, printed(error))
    return 0


def _stem(depth: int, mark: str = "└──") -> str:
    return "    " * (depth - 1) + f"{mark} " if depth else ""


def _branch(depth: int, image: ImageInfo) -> str:
    """One image of the chain as a line of a tree, and its data file as one below it."""
    stored = "" if image.actual_size is None else f", {human_size(image.actual_size)} on disk"
    kept = f", {len(image.snapshots)} snapshots" if image.snapshots else ""
    line = f"{_stem(depth)}{image.filename} ({image.format}, {human_size(image.virtual_size)}{stored}{kept})\n"
    data_file = (image.format_specific or {}).get("data", {}).get("data-file")
    if data_file is None:
        return line
    mark = "└──" if image.full_backing_filename is None else "├──"
    return f"{line}{_stem(depth + 1, mark)}{data_file} (data file)\n"


def _text(image: ImageInfo) -> str:
    lines = [
        f"image: {image.filename}",
        f"file format: {image.format}",
        f"virtual size: {human_size(image.virtual_size)} ({image.virtual_size} bytes)",
        f"disk size: {'unavailable' if image.actual_size is None else human_size(image.actual_size)}",
    ]
    if image.encrypted:
        lines.append("encrypted: yes")
    if image.cluster_size is not None:
        lines.append(f"cluster_size: {image.cluster_size}")
    if image.dirty_flag:
        lines.append("cleanly shut down: no")
    if image.backing_filename is not None:
        where = ""
        if image.full_backing_filename is None:
            where = " (cannot determine actual path)"
        elif image.full_backing_filename != image.backing_filename:
            where = f" (actual path: {image.full_backing_filename})"
        lines.append(f"backing file: {image.backing_filename}{where}")
        if image.backing_filename_format is not None:
            lines.append(f"backing file format: {image.backing_filename_format}")
    if image.snapshots:
        lines += snapshot_lines(image.snapshots)
    if image.format_specific is not None:
        lines.append("Format specific information:")
        lines += specific_lines(image.format_specific)
    return "\n".join(lines) + "\n"
