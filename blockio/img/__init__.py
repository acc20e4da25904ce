"""The image commands as a library: what ``blockio img`` stands on.

>>> from blockio import img
>>> await img.create("disk.qcow2", "qcow2", size=10 << 30)
>>> (await img.info("disk.qcow2")).virtual_size
10737418240

Images are named by a path or by an ``Image``, which also says format, cache mode and what the image may open. All
results are frozen. Long operations take an ``observer`` that is told of ``Progress``, and can be cancelled.
Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockio.driver.base import CheckFix, CheckResult
    from blockio.driver.inspection import Finding, FindingKind
    from blockio.driver.snapshots import SnapshotInfo
    from blockio.img.amending import amend
    from blockio.img.benching import bench
    from blockio.img.bitmapping import BitmapAction, BitmapOperation, bitmap
    from blockio.img.checking import check
    from blockio.img.committing import commit
    from blockio.img.comparing import compare
    from blockio.img.converting import convert
    from blockio.img.creating import create
    from blockio.img.describing import info, info_chain
    from blockio.img.digesting import digest
    from blockio.img.drawing import Picture, draw, picture
    from blockio.img.excerpting import dd
    from blockio.img.inspecting import Inspection, Opening, inspect
    from blockio.img.limiting import RateLimit
    from blockio.img.mapping import map_image as map
    from blockio.img.measuring import measure
    from blockio.img.opening import Image, Pipe
    from blockio.img.rebasing import rebase
    from blockio.img.resizing import resize
    from blockio.img.results import (
        AmendResult,
        BenchResult,
        CheckReport,
        CommitResult,
        Comparison,
        ConvertResult,
        CreateResult,
        Difference,
        DigestResult,
        ImageInfo,
        MapEntry,
        Observer,
        Progress,
        RebaseResult,
        ResizeResult,
        Side,
    )
    from blockio.img.snapshots import (
        snapshot_apply,
        snapshot_create,
        snapshot_delete,
        snapshot_list,
        snapshot_rename,
    )

_HOME = {
    "blockio.driver.base": ("CheckFix", "CheckResult"),
    "blockio.driver.inspection": ("Finding", "FindingKind"),
    "blockio.driver.snapshots": ("SnapshotInfo",),
    "blockio.img.amending": ("amend",),
    "blockio.img.benching": ("bench",),
    "blockio.img.bitmapping": ("BitmapAction", "BitmapOperation", "bitmap"),
    "blockio.img.checking": ("check",),
    "blockio.img.committing": ("commit",),
    "blockio.img.comparing": ("compare",),
    "blockio.img.converting": ("convert",),
    "blockio.img.creating": ("create",),
    "blockio.img.excerpting": ("dd",),
    "blockio.img.describing": ("info", "info_chain"),
    "blockio.img.digesting": ("digest",),
    "blockio.img.drawing": ("Picture", "draw", "picture"),
    "blockio.img.inspecting": ("Inspection", "Opening", "inspect"),
    "blockio.img.limiting": ("RateLimit",),
    "blockio.img.mapping": ("map_image",),
    "blockio.img.measuring": ("measure",),
    "blockio.img.opening": ("Image", "Pipe"),
    "blockio.img.rebasing": ("rebase",),
    "blockio.img.resizing": ("resize",),
    "blockio.img.results": (
        "AmendResult",
        "BenchResult",
        "CheckReport",
        "CommitResult",
        "Comparison",
        "ConvertResult",
        "CreateResult",
        "Difference",
        "DigestResult",
        "ImageInfo",
        "MapEntry",
        "Observer",
        "Progress",
        "RebaseResult",
        "ResizeResult",
        "Side",
    ),
    "blockio.img.snapshots": (
        "snapshot_apply",
        "snapshot_create",
        "snapshot_delete",
        "snapshot_list",
        "snapshot_rename",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AmendResult",
    "BenchResult",
    "BitmapAction",
    "BitmapOperation",
    "CheckFix",
    "CheckReport",
    "CheckResult",
    "CommitResult",
    "Comparison",
    "ConvertResult",
    "CreateResult",
    "Difference",
    "DigestResult",
    "Finding",
    "FindingKind",
    "Image",
    "ImageInfo",
    "Inspection",
    "MapEntry",
    "Observer",
    "Opening",
    "Picture",
    "Pipe",
    "Progress",
    "RateLimit",
    "RebaseResult",
    "ResizeResult",
    "Side",
    "SnapshotInfo",
    "amend",
    "bench",
    "bitmap",
    "check",
    "commit",
    "compare",
    "convert",
    "create",
    "dd",
    "digest",
    "draw",
    "info",
    "info_chain",
    "inspect",
    "map",
    "measure",
    "picture",
    "rebase",
    "resize",
    "snapshot_apply",
    "snapshot_create",
    "snapshot_delete",
    "snapshot_list",
    "snapshot_rename",
]


def __getattr__(name: str) -> Any:
    # Inside, the function must not hide the builtin.
    actual = "map_image" if name == "map" else name
    module = _MODULE_OF.get(actual)
    if module is None:
        raise AttributeError(f"module 'blockio.img' has no attribute {name!r}")
    value = getattr(import_module(module), actual)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
