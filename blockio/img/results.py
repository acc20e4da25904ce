"""What the image commands answer and tell on the way: frozen values, sizes and offsets in bytes."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from blockio.driver.base import CheckResult
from blockio.driver.snapshots import SnapshotInfo

__all__ = [
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
]


class Side(StrEnum):
    """What a long operation mostly waits for."""

    SOURCE = "source"
    """What is read; of two disks that are compared, the first."""
    TARGET = "target"
    """What is written; of two disks that are compared, the second."""
    WORK = "work"
    """The work between: this process has its hands full, or the data is in memory already."""
    LIMIT = "limit"
    """The rate limit."""


class Progress(msgspec.Struct, frozen=True):
    """How far a long operation is. ``total`` may shrink while the operation finds out that less is to be done."""

    done: int
    total: int
    rate: float = 0.0
    """Bytes per second since the beginning."""
    remaining: float | None = None
    """Seconds to the end at that rate; None while nobody can say."""
    bottleneck: Side | None = None
    """What it waited for lately, in the last event altogether; None while nobody can say, or nobody looks."""

    @property
    def fraction(self) -> float:
        """0.0 to 1.0."""
        return 1.0 if self.done >= self.total else self.done / self.total


Observer: TypeAlias = Callable[[Progress], object]
"""Called in the operation's loop, often; must not block. What it raises ends the operation."""


class ImageInfo(msgspec.Struct, frozen=True):
    """One image of a chain. What is None the image or its storage does not have or say."""

    filename: str
    format: str
    virtual_size: int
    """The disk's length, in whole sectors of 512 bytes."""
    actual_size: int | None = None
    """What it takes of its storage."""
    cluster_size: int | None = None
    dirty_flag: bool | None = None
    encrypted: bool = False
    compressed: bool = False
    snapshots: tuple[SnapshotInfo, ...] = ()
    backing_filename: str | None = None
    """As the image holds it."""
    full_backing_filename: str | None = None
    """Seen from the image's folder."""
    backing_filename_format: str | None = None
    format_specific: dict[str, Any] | None = None
    """``{"type": …, "data": {…}}`` in QEMU's words."""


class AmendResult(msgspec.Struct, frozen=True):
    """A finished amendment."""

    filename: str
    format: str
    options: dict[str, Any]
    """What was asked for, by the names that ``-o`` has."""


class CreateResult(msgspec.Struct, frozen=True):
    """A new image: its name, format and all options that were given or have a default, as text."""

    filename: str
    format: str
    size: int
    options: dict[str, str]


class CheckReport(msgspec.Struct, frozen=True):
    """The outcome of a check, after repair where one was asked for."""

    filename: str
    format: str
    result: CheckResult
    """Counts of the last pass; what was mended is in ``corruptions_fixed`` and ``leaks_fixed``."""
    messages: tuple[str, ...] = ()
    """The lines of all passes, where no listener took them."""

    @property
    def clean(self) -> bool:
        """No corruption, no leak, and the check itself went through."""
        return not (self.result.corruptions or self.result.leaks or self.result.check_errors)


class Difference(msgspec.Struct, frozen=True):
    """Where two images stop being the same."""

    kind: str
    """``content``, ``status`` (strict: one is allocated, the other not) or ``size`` (strict)."""
    offset: int = 0


class Comparison(msgspec.Struct, frozen=True):
    """The outcome of a comparison."""

    difference: Difference | None
    sizes: tuple[int, int]

    @property
    def identical(self) -> bool:
        """The guest sees the same, zeroes past the end of the shorter one aside."""
        return self.difference is None

    @property
    def same_size(self) -> bool:
        """Both disks are equally long."""
        return self.sizes[0] == self.sizes[1]


class MapEntry(msgspec.Struct, frozen=True):
    """A run of guest bytes of one kind."""

    start: int
    length: int
    depth: int
    """0 for the image itself, 1 for its backing file …"""
    present: bool
    """The layer at ``depth`` says what is here; False: none does."""
    zero: bool
    """Reads as zeroes."""
    data: bool
    """Bytes are stored for it."""
    compressed: bool = False
    offset: int | None = None
    """Where in ``filename``, if it is in one place."""
    filename: str | None = None


class ConvertResult(msgspec.Struct, frozen=True):
    """A finished conversion."""

    filename: str
    format: str | None
    """None where the target was opened by options of its own."""
    size: int
    copied: int
    """Bytes of data that were read."""
    zeroed: int
    """Bytes of the disk that read as zeroes in the source or turned out to, and that take no space if possible."""
    salvaged: int = 0
    """Bytes that could not be read and were made zero (``salvage``)."""
    digest: DigestResult | None = None
    """The checksum of what was written, where one was asked for."""
    resumed: int = 0
    """Bytes of the disk that an interrupted run had done before (``resume``); the other counts are this run's."""


class DigestResult(msgspec.Struct, frozen=True):
    """The checksum of a disk."""

    filename: str
    algorithm: str
    digest: str
    """In hexadecimal."""
    size: int
    """How many bytes that is of: the disk's length in whole sectors of 512 bytes."""


class BenchResult(msgspec.Struct, frozen=True):
    """How long requests took together."""

    requests: int
    nbytes: int
    seconds: float


class CommitResult(msgspec.Struct, frozen=True):
    """A finished commit."""

    filename: str
    base: str
    """The image that was written to."""
    size: int
    """How long the disk is, and the base now at least."""


class RebaseResult(msgspec.Struct, frozen=True):
    """A finished rebase."""

    filename: str
    backing_filename: str | None
    """As the image names it now; None: it has no backing file any more."""
    backing_format: str | None
    size: int


class ResizeResult(msgspec.Struct, frozen=True):
    """A disk's length before and after."""

    old_size: int
    new_size: int
