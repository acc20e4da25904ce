"""What the commands share: how they end, how they read sizes, formats and caches, and how they name images."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING, Any, Final, NoReturn

from blockio.driver.gate import AllowAll
from blockio.driver.options import parse_image_opts, parse_size
from blockio.errors import BlockError, OptionError
from blockio.img.opening import Image, Pipe, cache_flags
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.output import Output

__all__ = [
    "Failure",
    "ImageChoice",
    "fail",
    "json_mode",
    "pipe_target",
    "printed",
    "read_size",
    "reader_gone",
    "source_cache",
]

_LARGEST: Final = 2**63 - 1


class Failure(Exception):
    """The command has ended with ``status``; what there was to say has been said."""

    def __init__(self, status: int = 1) -> None:
        super().__init__(status)
        self.status = status


def fail(output: Output, message: str, status: int = 1) -> NoReturn:
    """Print *message* and end the command."""
    output.error(message)
    raise Failure(status)


def printed(error: OSError) -> str:
    """What a tool says of *error*: its message, and its hint on lines of their own."""
    if isinstance(error, BlockError):
        return str(error)
    return os.strerror(error.errno) if error.errno else str(error)


def read_size(output: Output, what: str, text: str, largest: int = _LARGEST, *, least: int = 0) -> int:
    """A number of bytes, with or without a suffix; ends the command where *text* is none."""
    try:
        if text != text.rstrip():
            raise OptionError
        value = parse_size(text, what)
    except OptionError as error:
        if "out of range" not in error.message:
            output.error(f"Invalid {what} specified. You may use k, M, G, T, P or E suffixes for")
            fail(output, "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.")
        value = largest + 1
    if not least <= value <= largest:
        fail(output, f"Invalid {what} specified. Must be between {least} and {largest}.")
    if text.strip().lower().startswith(("0x", "+0x")) and text[-1:].lower() in "kmgtp":
        output.warn(f"Using a multiplier suffix on hex numbers is deprecated: {text}")
    return value


def json_mode(output: Output, text: str) -> bool:
    """Whether ``--output`` says json; ends the command where it says neither that nor human."""
    if text not in ("json", "human"):
        fail(output, "--output must be used with human or json as argument.")
    return text == "json"


def source_cache(output: Output, mode: str, status: int = 1) -> str:
    """A cache mode for reading; ends the command where there is none of that name."""
    try:
        cache_flags(mode, OpenFlags())
    except OptionError:
        fail(output, f"Invalid source cache option: {mode}", status)
    return mode


class ImageChoice:
    """How the command line wants images to be opened; ``image`` makes one of a name."""

    def __init__(self, output: Output, status: int = 1) -> None:
        self._output = output
        self._status = status
        self.image_opts = False
        self.force_share = False
        self.cache = "writeback"

    def image(self, name: str, format: str | None = None) -> Image:
        """The image called *name*: a file name, or options where ``--image-opts`` says so."""
        options: dict[str, Any] | None = None
        filename: str | None = name
        if self.image_opts:
            if format is not None:
                fail(self._output, "--image-opts and --format are mutually exclusive", self._status)
            try:
                options, filename = parse_image_opts(name), None
            except OptionError as error:
                fail(self._output, printed(error), self._status)
        return Image(
            filename=filename,
            format=format,
            options=options,
            label=name,
            cache=self.cache,
            force_share=self.force_share,
            gate=AllowAll(),
            on_guess=self._warn,
        )

    def _warn(self, filename: str) -> None:
        self._output.report(
            f"WARNING: Image format was not specified for '{filename}' and probing guessed raw.\n"
            "         Automatically detecting the format is dangerous for raw images, write operations on block 0 will "
            "be restricted.\n"
            "         Specify the 'raw' format explicitly to remove the restrictions.\n"
        )


def pipe_target(output: Output, name: str) -> Pipe | None:
    """Standard output, where *name* means that: the image goes there, and nothing else does."""
    if name != "-" or not output.own_name:
        return None
    if os.isatty(1):
        fail(output, "Standard output is a terminal, which is no place for an image")
    output.quiet = True
    return Pipe(fd=1)


def reader_gone(error: OSError, target: object) -> None:
    """Where *error* says that nobody reads the pipe *target* any more: end as every tool does then, by SIGPIPE."""
    if error.errno == errno.EPIPE and isinstance(target, Pipe):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)
