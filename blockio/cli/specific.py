"""What a format tells of its image beyond what all do, as both tools print it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["ordered_specific", "specific_lines"]

# The order in which qemu-img prints these members; readers of JSON do not mind, differences of texts do.
_SPECIFIC_ORDER: Final = (
    "compat",
    "compression-type",
    "lazy-refcounts",
    "bitmaps",
    "refcount-bits",
    "data-file",
    "encrypt",
    "data-file-raw",
    "corrupt",
    "extended-l2",
)


def ordered_specific(specific: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """*specific*, a driver's ``specific_info()``, with its members in the tools' order."""
    if specific is None:
        return None
    data = specific["data"]
    known = {name: data[name] for name in _SPECIFIC_ORDER if name in data}
    return {"type": specific["type"], "data": known | {name: data[name] for name in data if name not in known}}


def specific_lines(specific: Mapping[str, Any]) -> list[str]:
    """*specific* as a tree of lines, without a headline."""
    ordered = ordered_specific(specific)
    assert ordered is not None
    return _indented(ordered["data"], 1)


def _indented(value: Mapping[str, Any] | list[Any], level: int) -> list[str]:
    """A tree as lines; names have spaces where JSON has hyphens."""
    pad = "    " * level
    if isinstance(value, Mapping):
        items = [(name.replace("-", " "), item) for name, item in value.items()]
    else:
        items = [(f"[{index}]", item) for index, item in enumerate(value)]
    lines: list[str] = []
    for name, item in items:
        if isinstance(item, (Mapping, list, tuple)):
            lines.append(f"{pad}{name}:")
            lines += _indented(item if isinstance(item, Mapping) else list(item), level + 1)
        else:
            shown = ("true" if item else "false") if isinstance(item, bool) else str(item)
            lines.append(f"{pad}{name}: {shown}")
    return lines
