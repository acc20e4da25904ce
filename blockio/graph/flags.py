"""The options that every node has, and what children inherit of them.

QEMU's bdrv_runtime_opts and bdrv_inherited_options: how a child is opened when its own options do not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from blockio.driver.options import parse_bool, refuse_both_ways
from blockio.errors import OptionError
from blockio.types import DetectZeroes, OpenFlags, Role

__all__ = ["NodeOptions", "inherit", "may_probe", "take_node_options"]


class NodeOptions(msgspec.Struct, frozen=True):
    """What a node's options say that is not the driver's business; ``rest`` is what is."""

    flags: OpenFlags
    driver: str | None = None
    node_name: str | None = None
    explicit: frozenset[str] = frozenset()
    """The names of the flags that the options set; these do not follow the parent when it is reopened."""
    detect_zeroes: DetectZeroes = DetectZeroes.OFF
    rest: dict[str, Any] = msgspec.field(default_factory=dict)


def inherit(flags: OpenFlags, role: Role, *, parent_is_format: bool) -> OpenFlags:
    """The flags of a child in *role* of a parent opened with *flags*, before the child's own options.

    A backing file is read-only whatever the parent is. What a format stores is discarded and flushed as the format
    says, so below it ``discard`` is always on. Whoever needs the metadata reads it even where no I/O is wanted.
    """
    if role & Role.COW:
        return flags.with_(read_only=True, auto_read_only=False, no_backing=False)
    return flags.with_(
        no_backing=False,
        no_io=flags.no_io and not role & Role.METADATA,
        unmap=flags.unmap or parent_is_format,
    )


def may_probe(role: Role, *, parent_is_format: bool) -> bool:
    """Whether a child in *role* whose options name no driver is an image of some format rather than plain storage."""
    if role & Role.METADATA:
        return False
    if role & Role.COW:
        return True
    return not parent_is_format


def take_node_options(options: Mapping[str, Any], flags: OpenFlags) -> NodeOptions:
    """Split *options* into what is common to all nodes, on top of inherited *flags*, and the rest. OptionError."""
    refuse_both_ways(options)
    rest = dict(options)
    driver = rest.pop("driver", None)
    if driver is not None and not isinstance(driver, str):
        raise OptionError("Invalid parameter type for 'driver', expected: string")
    node_name = rest.pop("node-name", None)
    if node_name is not None and not isinstance(node_name, str):
        raise OptionError("Invalid parameter type for 'node-name', expected: string")
    changes: dict[str, bool] = {}
    for name, flag in (
        ("read-only", "read_only"),
        ("auto-read-only", "auto_read_only"),
        ("force-share", "force_share"),
    ):
        if name in rest:
            changes[flag] = _switch(rest.pop(name), name)
    changes.update(_cache(rest))
    if "discard" in rest:
        changes["unmap"] = _discard(rest.pop("discard"))
    flags = flags.with_(**changes)
    detect_zeroes = _detect_zeroes(rest.pop("detect-zeroes", "off"), flags)
    if flags.force_share and not flags.read_only:
        raise OptionError("force-share=on can only be used with read-only images")
    return NodeOptions(flags, driver, node_name, frozenset(changes), detect_zeroes, rest)


def _switch(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return parse_bool(value, name)
    raise OptionError(f"Parameter '{name}' expects 'on' or 'off'")


def _cache(rest: dict[str, Any]) -> dict[str, bool]:
    """Take ``cache.direct`` and ``cache.no-flush``; anything else under ``cache`` stays, to be refused as unknown."""
    cache = rest.get("cache")
    if not isinstance(cache, Mapping):
        return {}
    left = dict(cache)
    found = {
        flag: _switch(left.pop(name), f"cache.{name}")
        for name, flag in (("direct", "cache_direct"), ("no-flush", "cache_no_flush"))
        if name in left
    }
    if left:
        rest["cache"] = left
    else:
        del rest["cache"]
    return found


def _discard(value: object) -> bool:
    if value in ("unmap", "on", True):
        return True
    if value in ("ignore", "off", False):
        return False
    raise OptionError("Invalid discard option")


def _detect_zeroes(value: Any, flags: OpenFlags) -> DetectZeroes:
    try:
        mode = DetectZeroes("off" if value is False else "on" if value is True else value)
    except ValueError:
        raise OptionError(f"invalid parameter value: {value}") from None
    if mode is DetectZeroes.UNMAP and not flags.unmap:
        raise OptionError("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    return mode
