"""``--object`` among a command's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.cli import objects
from blockio.cli.img.tool import Failure, fail
from blockio.errors import OptionError

if TYPE_CHECKING:
    from blockio.cli.output import Output

__all__ = ["define_object"]


def define_object(text: str, output: Output, status: int = 1) -> None:
    """Make the object that *text* defines; ends the command where it is wrong (with *status*), and after ``help``."""
    try:
        if not objects.define_object(text, output):
            raise Failure(0)
    except OptionError as error:
        fail(output, str(error), status)
