"""The command language: the table of commands, and the way from a line to one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from blockio.cli.io.figures import FigureError
from blockio.cli.io.getopt import OptionMistake
from blockio.cli.io.session import CommandFailed, Spoken, Usage
from blockio.errors import BlockError
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.cli.io.session import Session

__all__ = ["ANY", "Command", "Words", "commands", "find", "perform", "register", "usage"]

ANY: Final = -1
"""For ``Command.most``: as many arguments as one likes."""

Words: TypeAlias = list[str]


@dataclass(frozen=True, slots=True)
class Command:
    """One command: how it is called, what it needs, what it does.

    ``run`` gets the words behind the name. It raises CommandFailed or one below it, or lets FigureError,
    OptionMistake and the BlockError of a permission or an open go: ``perform`` says what they mean to users.
    """

    name: str
    run: Callable[[Session, Words], Awaitable[None]]
    summary: str
    args: str | None = None
    least: int = 0
    most: int = 0
    alias: str = ""
    needs_image: bool = True
    perm: Perm = Perm.NONE
    """What the backend must be allowed before the command runs; it stays allowed."""
    details: str = ""


_COMMANDS: Final[dict[str, Command]] = {}


def register(command: Command) -> None:
    """Add *command* to the language."""
    for name in (command.name, command.alias):
        if name in _COMMANDS:
            raise ValueError(f"two commands called {name}")
        if name:
            _COMMANDS[name] = command


def commands() -> Iterator[Command]:
    """All commands, by name."""
    return iter(sorted({id(c): c for c in _COMMANDS.values()}.values(), key=lambda command: command.name))


def find(name: str) -> Command | None:
    """The command called *name*, or with that alias."""
    return _COMMANDS.get(name)


def usage(command: Command, name: str = "") -> str:
    """``name arguments -- what it does``."""
    arguments = "" if command.args is None else f"{command.args} "
    return f"{name or command.name} {arguments}-- {command.summary}\n"


async def perform(session: Session, line: str) -> bool:
    """Run the command on *line*; whether it succeeded. Words are parted by blanks alone, and nothing quotes them."""
    words = [word for word in line.split(" ") if word]
    if not words:
        return True
    name, *args = words
    output = session.output
    command = find(name)
    if command is None:
        output.report(f'command "{name}" not found\n')
        return False
    if command.needs_image and session.blk is None:
        output.report("no file open, try 'help open'\n")
        return False
    if len(args) < command.least or (command.most != ANY and len(args) > command.most):
        output.report(f"bad argument count {len(args)} to {name}, expected {_expected(command)} arguments\n")
        return False
    try:
        _permit(session, command.perm)
        await command.run(session, args)
    except (FigureError, Spoken) as failure:
        output.out(f"{failure}\n")
    except OptionMistake as mistake:
        output.report(f"{name}: {mistake}\n")
        output.out(usage(command))
    except Usage:
        output.out(usage(command))
    except CommandFailed:
        pass
    except BlockError as error:
        output.error(str(error))
    else:
        return True
    return False


def _expected(command: Command) -> str:
    if command.most == ANY:
        return f"at least {command.least}"
    if command.least == command.most:
        return str(command.least)
    return f"between {command.least} and {command.most}"


def _permit(session: Session, perm: Perm) -> None:
    if not perm:
        return
    blk = session.image
    held, shared = blk.get_perm()
    if perm & ~held:
        blk.set_perm(held | perm, shared)
