"""``-o``: the options of a new image, for ``create`` and ``convert``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.cli.img.tool import fail, printed
from blockio.driver.registry import find_driver
from blockio.errors import BlockError, UnsupportedFeature
from blockio.img.creating import find_target_protocol
from blockio.img.options import help_lines, is_option_list, known_options, merged, split_options

if TYPE_CHECKING:
    from blockio.cli.output import Output

__all__ = ["OptionList", "print_option_help"]


class OptionList:
    """What all the ``-o`` of a command line say together."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._text: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._text)

    def add(self, text: str) -> None:
        """One more ``-o``; ends the command where it is no list."""
        if not is_option_list(text):
            fail(self._output, f"Invalid option list: {text}")
        self._text.append(text)

    @property
    def asks_for_help(self) -> bool:
        """Whether ``help`` or ``?`` is among them."""
        parts = ",".join(self._text).replace(",,", "\0").split(",")
        return any(part in ("help", "?") for part in parts)

    def pairs(self) -> list[tuple[str, str]]:
        """Names and values, in order."""
        return split_options(",".join(self._text))


def print_option_help(output: Output, filename: str | None, format: str) -> int:
    """List what can be said about new images of *format*, with *filename*'s protocol if there is one."""
    try:
        driver = find_driver(format)
    except BlockError:
        fail(output, f"Unknown file format '{format}'")
    known = known_options(driver)
    if known is None:
        fail(output, f"Format driver '{format}' does not support image creation")
    tables = [known]
    if filename is not None:
        try:
            tables.append(find_target_protocol(filename)[1])
        except (BlockError, UnsupportedFeature) as error:
            fail(output, printed(error))
    output.out(f"Supported {format} options:\n" if filename is None else "Supported options:\n")
    output.out("".join(f"{line}\n" for line in help_lines(merged(*tables))))
    if filename is None:
        output.out(
            "\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n"
        )
    return 0
