"""``snapshot``: copies of a disk inside its image, listed, made, applied and deleted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.getopt import UsageError
from blockio.cli.img.given import read
from blockio.cli.img.snapshots import shown, snapshot_lines
from blockio.cli.img.tool import printed
from blockio.errors import UnsupportedFeature
from blockio.img.opening import opened
from blockio.img.snapshots import snapshot_apply, snapshot_create, snapshot_delete, snapshot_list
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["execute", "prepare"]

_ACTIONS = {"list", "apply", "create", "delete"}


class _Plan(msgspec.Struct, frozen=True):
    image: Image
    action: str
    name: str
    quiet: bool


def prepare(args: list[str], output: Output) -> _Plan | None:
    """Read the command line; None asks for help."""
    asked: list[tuple[str, str]] = []

    def ask(action: str, name: str) -> None:
        if asked:
            raise UsageError("Cannot mix '-l', '-a', '-c', '-d'")
        asked.append((action, name))

    given = read("snapshot", args, output, {action: partial(ask, action) for action in _ACTIONS})
    if given is None:
        return None
    action, name = asked[0] if asked else ("", "")
    return _Plan(given.image(), action, name, given.quiet)


async def execute(plan: _Plan, output: Output) -> int:
    """Do it, or say why not."""
    output.quiet = plan.quiet
    try:
        if plan.action == "list":
            await _list(plan, output)
        elif plan.action == "create":
            await snapshot_create(plan.image, shown(plan.name))
        elif plan.action == "apply":
            await snapshot_apply(plan.image, plan.name)
        elif plan.action == "delete":
            await snapshot_delete(plan.image, plan.name)
        else:
            async with opened(plan.image, OpenFlags(unmap=True)):
                pass  # as the QEMU tool has it: whether it can be opened for that
    except OSError as error:
        output.error(printed(error))
        return 1
    return 0


async def _list(plan: _Plan, output: Output) -> None:
    try:
        snapshots = await snapshot_list(plan.image)
    except UnsupportedFeature:
        return  # no snapshots, no list
    if snapshots:
        for line in snapshot_lines(snapshots):
            output.out(f"{line}\n")  # -q is not for what was asked for
