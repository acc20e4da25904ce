"""docs/blockbackend.md against the code: every function of the reference document, where it lives, what shows it."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from blockio.backend import BlockBackend

PAGE: Final = Path(__file__).parents[2] / "docs" / "blockbackend.md"
ROOT: Final = Path(__file__).parents[2]
NOT_YET: Final = "not yet"

SYSTEMS: Final = {
    "lifecycle-refcount": 9,
    "naming-monitor-list": 9,
    "bds-iteration": 8,
    "root-insert-remove": 9,
    "root-state-flags": 13,
    "permissions": 2,
    "migration-activation": 6,
    "device-attach-devops": 7,
    "tray-media": 11,
    "iostatus": 6,
    "error-policy": 5,
    "request-checks": 3,
    "drain-queue": 9,
    "co-read-write": 5,
    "sync-wrappers": 5,
    "aio-callbacks": 14,
    "ioctl": 5,
    "discard": 6,
    "flush": 6,
    "zeroes-compressed": 5,
    "truncate-empty-commit": 3,
    "vmstate": 2,
    "probes-limits": 6,
    "aio-context": 6,
    "notifiers": 4,
    "plug-unplug": 2,
    "accounting": 1,
    "op-blockers": 4,
    "throttle-groups": 4,
    "buffers": 4,
    "copy-range": 1,
}
"""The systems of the reference document, in its order, and how many functions each has."""


class Row(NamedTuple):
    """One line of the table."""

    system: str
    function: str
    kind: str
    here: str
    shown_by: str

    @property
    def built(self) -> bool:
        return NOT_YET not in (self.here, self.shown_by)


def _rows() -> list[Row]:
    rows = []
    system = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("### "):
            system = line[4:].strip()
        elif match := re.fullmatch(r"\| `(\w+)` \| (public|static) \| (.+) \| (.+) \|", line):
            rows.append(Row(system, *(cell.strip("`") for cell in match.groups())))
    return rows


ROWS: Final = _rows()


def test_every_function_once() -> None:
    counts: dict[str, int] = {}
    for row in ROWS:
        counts[row.system] = counts.get(row.system, 0) + 1
    assert counts == SYSTEMS
    assert list(counts) == list(SYSTEMS)
    assert len({row.function for row in ROWS}) == len(ROWS) == 180


def test_what_is_not_built_is_said() -> None:
    missing = [row.function for row in ROWS if not row.built]
    names = ", ".join(f"`{name}`" for name in missing) or "none"
    line = f"Not built yet: {len(missing)} of {len(ROWS)} ({names})."
    assert line in PAGE.read_text(), f"the page should say: {line}"


@pytest.mark.parametrize("row", [row for row in ROWS if row.built], ids=lambda row: row.function)
def test_the_links_are_alive(row: Row) -> None:
    module, _, attribute = row.here.partition(":")
    found: object = import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    path, _, test = row.shown_by.partition("::")
    assert test in _tests(path), f"{row.function}: there is no {row.shown_by}"


MISTAKES: Final = re.findall(r"^\| .+ \| .+ \| `(tests/\S+)` \|$", PAGE.read_text(), re.MULTILINE)


def test_the_mistakes_are_shown() -> None:
    table = [link for link in MISTAKES if link not in {row.shown_by for row in ROWS}]
    assert len(table) >= 8
    for link in MISTAKES:
        path, _, test = link.partition("::")
        assert test in _tests(path), f"there is no {link}"


@cache
def _tests(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


ELSEWHERE: Final = {
    # What is made or ended, not called; what belongs to no single backend; what a part of one does.
    "blk_new": "__init__",
    "blk_delete": "_delete",
    "blk_pread": "pread_into",
    "blk_drain_all": "drain_all",
    "blk_commit_all": "commit_all",
    "blk_aio_cancel": "cancel",
    "blk_aio_cancel_async": "cancel_async",
    "blk_aio_get": "AioRequest",
    "blk_get_aio_context": "context",
    "blk_get_stats": "stats",
    "bdrv_next": "next",
    "bdrv_first": "first",
    "bdrv_next_cleanup": "cleanup",
    "bdrv_has_blk": "has_blk",
    "bdrv_is_root_node": "is_root_node",
    "blk_set_io_limits": "set_io_limits",
    "blk_io_limits_disable": "io_limits_disable",
    "blk_io_limits_enable": "io_limits_enable",
    "blk_io_limits_update_group": "io_limits_update_group",
}
"""The public functions that are not methods of a backend by their own name, and the name that they have."""


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.built and row.kind == "public"], ids=lambda row: row.function
)
def test_public_functions_keep_their_names(row: Row) -> None:
    name = row.here.rpartition(":")[2].rpartition(".")[2]
    expected = ELSEWHERE.get(row.function, row.function.removeprefix("blk_"))
    assert name == expected
    if row.function not in ELSEWHERE:
        assert hasattr(BlockBackend, name)
