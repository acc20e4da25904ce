"""``inspect``: a verdict on an image from a stranger, before anything is trusted.

The image's file is opened, read-only and as plain bytes, and nothing else, whatever is in it: not what it names, not by
a protocol that its name seems to have. No more than ``INSPECT_BYTES`` of it are read, so that memory and time are
bounded for any content. What only a walk through all of the metadata shows is for ``check`` to find, afterwards.
"""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.gate import ReferenceKind
from blockio.driver.inspection import Finding, FindingKind, HeaderReport, Naming
from blockio.driver.options import flatten, parse_json_name, split_protocol
from blockio.driver.probe import PROBE_BYTES, guess_format
from blockio.driver.registry import driver_names, find_driver
from blockio.errors import BlockError, CorruptImage, LimitExceeded
from blockio.graph.open import is_device
from blockio.img.marks import IMAGE_FORMATS, NAMED_FOR, TAIL_BYTES, marks
from blockio.img.opening import Image, full_backing_name, opened
from blockio.types import Limits, OpenFlags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockio.backend import BlockBackend

__all__ = ["INSPECT_BYTES", "Inspection", "Opening", "inspect"]

INSPECT_BYTES: Final = 4 << 20
"""The most that is read of an image: the largest header there is, and as much again."""

_BLOCK: Final = 64 << 10
_SYSTEM: Final = ("/dev/", "/proc/", "/sys/", "/run/", "/etc/")
_MOST_VALUES: Final = 64


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """Something that opening the image would open too. All strings come from the image."""

    kind: ReferenceKind
    name: str
    """As the image has it."""
    target: str
    """What would be opened: seen from the image's folder, protocols and ``json:`` as they are. Nobody has looked."""
    format: str | None = None
    """The format that the image claims for it. None: the first bytes of the target would decide."""
    protocol: str | None = None
    """``json``, or the prefix that makes it more than a path."""
    options: tuple[str, ...] = ()
    """What a ``json:`` name holds, as ``key=value``: all files, hosts and drivers in it, at any depth."""
    remarks: tuple[str, ...] = ()
    """What is remarkable about it."""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. Harmless: it opens nothing else, keeps all limits, is consistent, and is what it is said to be."""

    filename: str
    format: str
    """What opening it would take it for."""
    claimed_format: str | None = None
    """What the caller was told it is."""
    named_format: str | None = None
    """What its name promises."""
    marks: tuple[str, ...] = ()
    """All formats whose marks it bears, those of archives included."""
    file_size: int
    virtual_size: int | None = None
    openings: tuple[Opening, ...] = ()
    findings: tuple[Finding, ...] = ()
    facts: dict[str, Any] = msgspec.field(default_factory=dict)
    """Some values of its header, as the image has them."""

    @property
    def opens_others(self) -> bool:
        """It names something that would be opened with it."""
        return bool(self.openings)

    @property
    def broken(self) -> bool:
        """It breaks a limit, contradicts itself, or needs what there is not."""
        reasons = {FindingKind.LIMIT, FindingKind.CORRUPT, FindingKind.UNSUPPORTED}
        return any(finding.kind in reasons for finding in self.findings)

    @property
    def disguised(self) -> bool:
        """It is not, or not only, what it is said to be."""
        return any(finding.kind is FindingKind.DISGUISE for finding in self.findings)

    @property
    def harmless(self) -> bool:
        """There is nothing to say against it but notes."""
        return not (self.opens_others or self.broken or self.disguised)


async def inspect(
    path: str, *, claimed_format: str | None = None, force_share: bool = False, trust: Limits | None = None
) -> Inspection:
    """Judge the image at *path*, which is a path and never a protocol's or ``json:`` name.

    *claimed_format* is what somebody said it is; *trust* are the limits that it shall keep. Raises BlockError where the
    file cannot be opened or read; whatever its bytes are is a finding. Cancelling leaves nothing open.
    """
    driver = "host_device" if is_device(path) else "file"
    image = Image(options={"driver": driver, "filename": path}, label=path, force_share=force_share)
    async with opened(image, OpenFlags(read_only=True)) as blk:
        return await _judge(_Source(blk), path, claimed_format, trust or Limits())


class _Source:
    """The ``InspectSource``: counts what is read, a block at a time, of which it keeps the last."""

    def __init__(self, blk: BlockBackend) -> None:
        self._blk = blk
        self.length = blk.getlength()
        self._left = INSPECT_BYTES
        self._start = 0
        self._block = b""

    async def read(self, offset: int, nbytes: int) -> bytearray:
        if offset + nbytes > self.length:
            raise CorruptImage(f"Something at byte {offset} reaches past the end of the file")
        found = bytearray()
        while nbytes:
            if not self._start <= offset < self._start + len(self._block):
                await self._load(offset // _BLOCK * _BLOCK)
            part = self._block[offset - self._start :][:nbytes]
            found += part
            offset += len(part)
            nbytes -= len(part)
        return found

    async def _load(self, start: int) -> None:
        memory = bytearray(min(_BLOCK, self.length - start))
        if self._left < len(memory):
            raise LimitExceeded(f"There is more to look at than the {INSPECT_BYTES} bytes that an inspection reads")
        self._left -= len(memory)
        await self._blk.co_preadv(start, memory)
        self._start, self._block = start, bytes(memory)


async def _judge(source: _Source, path: str, claimed: str | None, trust: Limits) -> Inspection:
    head = bytes(await source.read(0, min(PROBE_BYTES, source.length)))
    tail_bytes = min(TAIL_BYTES, source.length)
    tail = bytes(await source.read(source.length - tail_bytes, tail_bytes))
    format = guess_format(head, path)
    try:
        report = await find_driver(format).co_inspect(source, trust)
    except BlockError as error:
        # A driver that does not keep its promise, or the disk itself: the latter is not the image's fault.
        if not isinstance(error, (CorruptImage, LimitExceeded)):
            raise
        report = HeaderReport(findings=(Finding.of(error),))
    borne = marks(head, tail)
    named = NAMED_FOR.get(posixpath.splitext(path)[1].lstrip(".").lower())
    return Inspection(
        filename=path,
        format=format,
        claimed_format=claimed,
        named_format=named,
        marks=borne,
        file_size=source.length,
        virtual_size=report.virtual_size,
        openings=tuple(_opening(path, naming) for naming in report.namings),
        findings=(*_doubts(format, claimed, named, borne), *report.findings),
        facts=report.facts,
    )


def _doubts(format: str, claimed: str | None, named: str | None, borne: tuple[str, ...]) -> Iterator[Finding]:
    """What speaks against its being *format* and nothing else."""
    images = [mark for mark in borne if mark in IMAGE_FORMATS]
    # What it is to somebody who has all drivers.
    real = images[0] if format == "raw" and images else format
    if claimed is not None and claimed != real:
        yield Finding(FindingKind.DISGUISE, f"It is said to be {claimed}, but looks like {real}")
    if named is not None and named != real:
        yield Finding(FindingKind.DISGUISE, f"Its name promises {named}, but it looks like {real}")
    others = [mark for mark in images if mark != real]
    if others:
        yield Finding(
            FindingKind.DISGUISE, f"It also bears the mark of {', '.join(others)}: others may take it for that"
        )
    if real not in driver_names():
        yield Finding(FindingKind.UNSUPPORTED, f"There is no driver for {real} here: it would be opened as {format}")
    for mark in borne:
        if mark not in IMAGE_FORMATS:
            yield Finding(FindingKind.NOTE, f"It begins as a {mark} file does")


def _opening(image: str, naming: Naming) -> Opening:
    """What *naming* comes to. Only strings are looked at: even asking whether a file exists would touch it."""
    name = naming.name
    protocol = split_protocol(name)
    target = full_backing_name(image, name)
    remarks: list[str] = []
    options: tuple[str, ...] = ()
    if protocol == "json":
        options, remarks = _options_in(name)
    elif protocol is not None and protocol != "file":
        remarks.append(f"the protocol '{protocol}' decides what it is")
    else:
        remarks += _about_path(image, target)
    if naming.format is None and protocol != "json":
        remarks.append("no format is said: its first bytes would decide")
    return Opening(
        kind=naming.kind,
        name=name,
        target=target,
        format=naming.format,
        protocol=protocol,
        options=options,
        remarks=tuple(remarks),
    )


def _options_in(name: str) -> tuple[tuple[str, ...], list[str]]:
    try:
        found = flatten(parse_json_name(name))
    except BlockError as error:
        return (), [error.message]
    except TypeError:
        return (), ["it holds what no option can be"]
    return tuple(f"{key}={value}" for key, value in found.items())[:_MOST_VALUES], [
        "it brings drivers and options along"
    ]


def _about_path(image: str, target: str) -> Iterator[str]:
    path, here = posixpath.normpath(target.removeprefix("file:")), posixpath.normpath(image)
    folder = posixpath.dirname(here)
    if path == here:
        yield "the image itself"
    elif path.startswith(_SYSTEM):
        yield "a place of the system"
    elif posixpath.isabs(path) and not posixpath.isabs(here):
        yield "an absolute path"
    elif path.startswith("../") if not folder else not path.startswith(folder.rstrip("/") + "/"):
        yield "outside the image's folder"
