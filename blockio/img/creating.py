"""``create``: new images.

What can be said about the image is decided before anything is touched: the format and the protocol exist and can
create, the options are theirs, the backing file can be opened and says how long the disk is. Then the image is written.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.registry import find_driver, find_protocol
from blockio.errors import BlockError, LimitExceeded, OptionError, UnsupportedFeature
from blockio.graph.create import create_image
from blockio.img.opening import Image, Pipe, full_backing_name, opened, sectors_up
from blockio.img.options import CreateOption, known_options, merged, typed
from blockio.img.results import CreateResult
from blockio.io import NodeIO
from blockio.types import Limits, OpenFlags, PreallocMode

if TYPE_CHECKING:
    from blockio.driver.base import BlockDriver
    from blockio.driver.gate import OpenGate

__all__ = ["CreatePlan", "create", "find_target_protocol", "option_pairs", "plan_create"]

_HINTS: Final = frozenset(("nocow", "extent_size_hint"))
"""Wishes that a file system may or may not follow: no error where the storage cannot pass them on."""


class CreatePlan(msgspec.Struct):
    """A new image that can be written, as far as its options go: ``values`` are typed, ``texts`` as given."""

    filename: str
    driver: Any
    """The format's class (``type[BlockDriver]``; msgspec need not look into it)."""
    protocol: Any
    known: dict[str, CreateOption]
    texts: dict[str, str]
    values: dict[str, Any]

    def set(self, name: str, value: str | int, otherwise: str = "") -> None:
        """Give an option once more; what was given before is forgotten. OptionError where the format has none of that
        name, in the words of *otherwise* if there are any."""
        option = self.known.get(name)
        if option is None:
            raise OptionError(otherwise or f"Invalid parameter '{name}'")
        self.texts[name] = str(value)
        self.values[name] = typed(option, str(value))

    def get(self, name: str) -> Any:
        """The typed value of an option, or None."""
        return self.values.get(name)

    def result(self) -> CreateResult:
        """All options that are given or have a default, in the table's order, as the tools print them."""
        shown: dict[str, str] = {}
        for name, option in self.known.items():
            if name not in self.values:
                if option.default is not None:
                    shown[name] = option.default
                continue
            value = self.values[name]
            if option.kind in ("size", "num"):
                # Printed as a signed number of 64 bits, whatever was given.
                shown[name] = str((value + (1 << 63)) % (1 << 64) - (1 << 63))
            else:
                shown[name] = self.texts[name]
        return CreateResult(self.filename, self.driver.name, self.values.get("size", 0), shown)

    async def write(self, *, trust: Limits | None = None, onto: str | None = None) -> list[str]:
        """Write the image, under the name *onto* if there is one. What the storage does not know it is not told.

        Returns what ``create_image`` does.
        """
        options, file_options = self._sorted()
        return await create_image(
            self.driver.name,
            self.filename if onto is None else onto,
            options,
            file_options=file_options,
            trust=trust,
            path_factory=NodeIO,
        )

    def too_large(self) -> LimitExceeded:
        """What there is to say when the image could not be made that large."""
        hint = " (try using a larger cluster size)" if "cluster_size" in self.known else ""
        return LimitExceeded(f"The image size is too large for file format '{self.driver.name}'{hint}")

    def _sorted(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options for the format, and those for the storage below it."""
        mine = _fields(self.driver)
        below = frozenset() if self.protocol is self.driver else _fields(self.protocol)
        options: dict[str, Any] = {}
        # The format gives its file the length it needs; a raw disk is its storage, and a device must be long enough.
        whole = self.driver.name == "raw" and self.protocol.name != "file"
        file_options: dict[str, Any] = {"size": self.values.get("size", 0) if whole else 0} if "size" in below else {}
        for name, value in self.values.items():
            if name == "preallocation" and self.driver.name != "qcow2":
                _must_be_mode(value)
            if name.partition(".")[0] in mine:
                options[name] = value
            elif name in below:
                file_options[name] = value
            elif value is not False and name not in _HINTS:
                raise UnsupportedFeature(f"Option '{name}' of format '{self.driver.name}' is not supported yet")
        if self.driver is self.protocol and "size" in options:
            options["size"] = sectors_up(options["size"])
        return options, file_options


def _must_be_mode(value: str) -> None:
    """For storage's own option; formats have their own words."""
    if value not in [mode.value for mode in PreallocMode]:
        raise OptionError(f"invalid parameter value: {value}")


def _fields(cls: type[BlockDriver]) -> frozenset[str]:
    return frozenset() if cls.CreateOptions is None else frozenset(cls.CreateOptions.__struct_encode_fields__)


def plan_create(filename: str, format: str, pairs: Iterable[tuple[str, str]]) -> CreatePlan:
    """Find format and protocol and read the options; nothing is opened. OptionError, UnsupportedFeature."""
    try:
        driver = find_driver(format)
    except OptionError as error:
        raise OptionError(f"Unknown file format '{format}'", error.errno) from error
    formats = known_options(driver)
    protocol, protocols = find_target_protocol(filename, formats)
    if formats is None:
        raise UnsupportedFeature(f"Format driver '{format}' does not support image creation")
    plan = CreatePlan(filename, driver, protocol, merged(formats, protocols), {}, {})
    for name, text in pairs:
        plan.set(name, text)
    return plan


def find_target_protocol(
    filename: str, formats: Sequence[CreateOption] | None = ()
) -> tuple[type[BlockDriver], tuple[CreateOption, ...]]:
    """The protocol that will store *filename*, and its create options.

    OptionError (``Unknown protocol 'x'``; also for a ``json:`` name, under which nothing can be created), and
    UnsupportedFeature where it cannot create anything. With *formats* None a protocol without options is let pass: the
    format's fault is told first.
    """
    protocol = find_protocol(filename, is_device=_is_device(filename))
    options = known_options(protocol)
    if options is None and formats is not None:
        raise UnsupportedFeature(f"Protocol driver '{protocol.name}' does not support image creation")
    return protocol, options or ()


def _is_device(filename: str) -> bool:
    try:
        mode = os.stat(filename).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


def option_pairs(options: Mapping[str, Any] | Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Options of a program (values) or a command line (text) as text."""
    if not isinstance(options, Mapping):
        return list(options)
    return [(name, _text(value)) for name, value in options.items() if value is not None]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


async def create(
    filename: str | Pipe,
    format: str = "raw",
    *,
    size: int | None = None,
    options: Mapping[str, Any] | Iterable[tuple[str, str]] = (),
    backing_file: str | None = None,
    backing_format: str | None = None,
    open_backing: bool = True,
    gate: OpenGate | None = None,
    trust: Limits | None = None,
    on_formatting: Callable[[CreateResult], object] | None = None,
) -> CreateResult:
    """Create the image *filename*, which may be a ``Pipe``, *size* bytes long or as long as its backing file.

    *options* are the format's and the protocol's, by the names ``-o`` has for them. *open_backing* False takes the
    backing file's name unseen. *on_formatting* is told what will be written before it is. OptionError for options that
    do not exist or contradict each other; what opening the backing file, the storage and the format raise. An image
    that could not be written is removed again, where it is a file that was not there before.
    """
    pipe = filename if isinstance(filename, Pipe) else None
    plan = plan_create("" if isinstance(filename, Pipe) else filename, format, option_pairs(options))
    if plan.get("size") is None:
        if size is not None:
            plan.set("size", size)
    elif size is not None:
        raise OptionError("The image size must be specified only once")
    if backing_file is not None:
        plan.set("backing_file", backing_file, f"Backing file not supported for file format '{format}'")
    if backing_format is not None:
        plan.set("backing_fmt", backing_format, f"Backing file format not supported for file format '{format}'")
    backing = plan.get("backing_file")
    if backing is not None:
        if backing == filename:
            raise OptionError("Error: Trying to create an image with the same filename as the backing file")
        if not backing:
            raise OptionError("Expected backing file name, got empty string")
        if open_backing:
            length = await _open_backing(plan, backing, gate, trust)
            if plan.get("size") is None:
                plan.set("size", length)
        elif plan.get("backing_fmt") is None:
            raise OptionError("Backing file specified without backing format")
    if plan.get("size") is None:
        raise OptionError("Image creation needs a size parameter")
    result = plan.result()
    if on_formatting is not None:
        on_formatting(result)
    try:
        if pipe is None:
            await plan.write(trust=trust)
        else:
            from blockio.img.streaming import stream_empty  # few images go into a pipe

            await stream_empty(pipe, plan.driver, plan.values)
    except BlockError as error:
        if error.errno != errno.EFBIG or not error.message.startswith("Could not "):
            raise
        raise plan.too_large() from error
    return result


async def _open_backing(plan: CreatePlan, backing: str, gate: OpenGate | None, trust: Limits | None) -> int:
    """See that the backing file can be opened; its length."""
    format = plan.get("backing_fmt")
    image = Image(filename=full_backing_name(plan.filename, backing), format=format, gate=gate, trust=trust)
    async with AsyncExitStack() as stack:
        try:
            # Its data is not looked at, so that an encrypted one needs no secret.
            blk = await stack.enter_async_context(opened(image, OpenFlags(read_only=True, no_io=True), prefix=""))
        except BlockError as error:
            hint = f"{error.hint}\n" if error.hint else ""
            raise type(error)(error.message, error.errno, hint=f"{hint}Could not open backing image.") from error
        node = blk.bs
        assert node is not None
        if format is None:
            raise OptionError(
                "Backing file specified without backing format", hint=f"Detected format of {node.driver_class.name}."
            )
        return sectors_up(node.length)
