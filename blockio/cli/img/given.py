"""What a command line gives: its options, read by the table of commands, and its operands.

Options are taken one by one, as they stand on the line, and what is wrong with one is said before the next is looked
at; what is wrong with all of them together is the command's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from blockio.cli.img.commands import COMMANDS
from blockio.cli.img.getopt import CommandLine, UsageError
from blockio.cli.img.tool import Failure, ImageChoice, fail, json_mode, read_size
from blockio.errors import OptionError

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.opening import Image

__all__ = ["Given", "Reader", "read"]

Reader: TypeAlias = Callable[[str], Any]
"""Makes an option's value of its argument; ends the command where it is wrong."""


class Given:
    """The options of one line, by key, as their readers made them, and its operands. The last of a kind counts."""

    def __init__(self, output: Output, values: Mapping[str, Any], operands: list[str], status: int) -> None:
        self._output = output
        self._values = values
        self._status = status
        self.operands: Final = operands

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The value of the option *key*."""
        return self._values.get(key, default)

    @property
    def quiet(self) -> bool:
        """``-q``."""
        return "quiet" in self

    @property
    def percent(self) -> bool:
        """``-p``, which ``-q`` outdoes."""
        return "p" in self and not self.quiet

    @property
    def style(self) -> str | None:
        """``--progress``."""
        style: str | None = self.get("progress")
        return style

    @property
    def json(self) -> bool:
        """Whether ``--output`` says so; ends the command where it says something else, but for nothing at all."""
        text = self.get("output")
        return bool(text) and json_mode(self._output, text)

    def choice(self, cache: str = "writeback", *, force_share: bool | None = None) -> ImageChoice:
        """How the images are to be opened that the line names: by default with the ``-U`` it has."""
        choice = ImageChoice(self._output, self._status)
        choice.image_opts = "image-opts" in self
        choice.force_share = "force-share" in self if force_share is None else force_share
        choice.cache = cache
        return choice

    @property
    def name(self) -> str:
        """The only operand; raises UsageError where there is none, or are more."""
        if len(self.operands) != 1:
            raise UsageError("Expecting one image file name")
        return self.operands[0]

    def image(self, cache: str = "writeback") -> Image:
        """The image that is the only operand, of the format that ``-f`` says. Raises UsageError as ``name``."""
        name = self.name
        return self.choice(cache).image(name, self.get("format"))


def read(
    command: str, args: list[str], output: Output, readers: Mapping[str, Reader] | None = None, *, status: int = 1
) -> Given | None:
    """The line *args* of *command*, for whoever called it; None where it asks for help.

    *readers* has those of this command's own options, by key. An option without one is True, or its argument as it is.
    *status* is what a wrong ``--object`` or ``--image-opts`` ends the command with. Raises UsageError.
    """
    known: dict[str, Reader] = {
        "object": partial(_define_object, output, status),
        "progress": partial(_style, output),
        "rate": partial(read_size, output, "rate limit"),
        **(readers or {}),
    }
    options = COMMANDS[command].known(own=output.own_name)
    switches = {option.key for option in options if not option.metavar}
    line = CommandLine(options, command, args)
    values: dict[str, Any] = {}
    for key, value in line:
        if key == "help":
            return None
        reader = known.get(key)
        values[key] = reader(value) if reader is not None else True if key in switches else value
    return Given(output, values, line.operands, status)


def _style(output: Output, text: str) -> str:
    from blockio.cli.progress import check_style  # few lines ask for one

    return check_style(output, text)


def _define_object(output: Output, status: int, text: str) -> None:
    """Make the object that *text* defines; ends the command where it is wrong, and after ``help``."""
    try:
        from blockio.cli.objects import define_object  # few command lines define any

        if not define_object(text, output):
            raise Failure(0)
    except OptionError as error:
        fail(output, str(error), status)
