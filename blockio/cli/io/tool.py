"""The tool around the language: its options, the commands of ``-c``, the prompt."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from blockio.cli.io import image, queued, requests  # noqa: F401  # importing them fills the table of commands
from blockio.cli.io.breakpoints import show_suspensions
from blockio.cli.io.getopt import GetOpt, OptionMistake
from blockio.cli.io.image import option_list
from blockio.cli.io.language import perform
from blockio.cli.io.opening import Opening, open_image, set_aio, set_cache, set_discard
from blockio.cli.io.options import LETTERS, NAMES, usage
from blockio.cli.io.session import Session
from blockio.cli.output import Output
from blockio.cli.tracing import accept_trace
from blockio.cli.warnings import show_warnings
from blockio.errors import BlockError, OptionError

__all__ = ["PROMPT", "Ending", "LineSource", "Plan", "prepare", "run"]

PROMPT: Final = "qemu-io> "
"""Programs that drive the real tool wait for this, so it does not follow the name the tool was called by."""

LineSource: TypeAlias = Callable[[], Awaitable[str | None]]
"""Gives the next line of input without its end; None where there is no more."""


class Ending(Exception):
    """The tool has said what there was to say and ends with this status."""

    def __init__(self, status: int) -> None:
        self.status = status


@dataclass(slots=True)
class Plan:
    """What a command line asks for."""

    output: Output
    commands: list[str] = field(default_factory=list)
    opening: Opening | None = None
    misalign: bool = False


def prepare(argv: list[str], prog: str) -> Plan:
    """Read the tool's options. Raises Ending for ``--help``, ``--version`` and mistakes, which have been explained."""
    output = Output(prog)
    try:
        return _prepare(argv, output)
    except OptionMistake as mistake:
        output.report(f"{prog}: {mistake}\n")
        output.out(usage(prog))
    except BlockError as error:
        output.error(str(error))
    except Ending:
        output.end()
        raise
    output.end()
    raise Ending(1)


def _prepare(argv: list[str], output: Output) -> Plan:
    plan = Plan(output)
    opening = Opening()
    driver: str | None = None
    image_opts = False
    options = GetOpt(argv, LETTERS, NAMES)
    for option, argument in options:
        match option:
            case "h":
                output.out(usage(output.prog))
                raise Ending(0)
            case "V":
                output.out(_version(output.prog))
                raise Ending(0)
            case "c":
                plan.commands.append(argument)
            case "f":
                driver = argument
            case "r":
                opening.flags = opening.flags.with_(read_only=True)
            case "s":
                opening.snapshot = True
            case "n":
                set_cache(opening, "none")
            case "C":
                opening.copy_on_read = True
            case "m":
                plan.misalign = True
            case "k":
                set_aio(opening, "native")
            case "i":
                set_aio(opening, argument)
            case "t":
                set_cache(opening, argument)
            case "d":
                set_discard(opening, argument)
            case "T":
                if (status := accept_trace(argument, output)) is not None:
                    raise Ending(status)
            case "U":
                opening.flags = opening.flags.with_(force_share=True)
            case "object":
                if not define_object(argument, output):
                    raise Ending(0)
            case "image-opts":
                image_opts = True
    if len(options.operands) > 1:
        output.out(usage(output.prog))
        raise Ending(1)
    if driver is not None and image_opts:
        raise OptionError("--image-opts and -f are mutually exclusive")
    if options.operands:
        if image_opts:
            opening.options = option_list(output, options.operands[0])
        else:
            opening.filename = options.operands[0]
        if driver is not None:
            opening.options["driver"] = driver
        plan.opening = opening
    return plan


def define_object(text: str, output: Output) -> bool:
    """See ``blockio.cli.objects``."""
    from blockio.cli import objects  # few command lines define any

    return objects.define_object(text, output)


def _version(prog: str) -> str:
    from importlib.metadata import version  # slow, and only --version needs it

    return f"{prog} version {version('blockio')}\n"


async def run(plan: Plan, lines: LineSource | None = None) -> int:
    """Do what *plan* says; *lines* replaces standard input. The exit status: 0 where everything succeeded, else 1."""
    output = plan.output
    session = Session(output, misalign=plan.misalign)
    show_warnings(output)
    show_suspensions(output)
    status = 0
    try:
        if plan.opening is not None:
            await open_image(session, plan.opening)
        for command in plan.commands:
            if not session.quitting and not await perform(session, command):
                status = 1
        if not plan.commands:
            status = await _converse(session, lines or _standard_input())
    except BlockError as error:
        output.error(str(error))
        status = 1
    finally:
        try:
            await session.close()
        except BlockError as error:
            output.error(str(error))
            status = 1
        output.end()
    return status


async def _converse(session: Session, lines: LineSource) -> int:
    """Prompt, read a line, perform it, until there are no more."""
    status = 0
    while not session.quitting:
        session.output.flush()
        line = await lines()
        if line is None:
            break
        if not await perform(session, line):
            status = 1
    return status


def _standard_input() -> LineSource:
    """Lines from standard input behind a prompt; on a terminal with editing and history.

    Each line is waited for in a thread of its own, so that queued requests go on and end meanwhile. It is a daemon:
    nobody can wake a thread that waits for a key, so leaving the tool must not wait for it.
    """
    read = _read_edited if sys.stdin.isatty() and sys.stdout.isatty() else _read_plain

    async def next_line() -> str | None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str | None] = loop.create_future()

        def deliver(line: str | None) -> None:
            if not answer.done():
                answer.set_result(line)

        def wait() -> None:
            line = read()
            try:
                loop.call_soon_threadsafe(deliver, line)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        threading.Thread(target=wait, name="blockio-io-input", daemon=True).start()
        return await answer

    return next_line


def _read_edited() -> str | None:
    import readline  # noqa: F401  # input() edits lines when it is there, and only then is it needed

    try:
        return input(PROMPT)
    except EOFError:
        return None


def _read_plain() -> str | None:
    with suppress(OSError):  # nobody reads it
        os.write(1, PROMPT.encode())
    line = sys.stdin.buffer.readline()
    return os.fsdecode(line).removesuffix("\n") if line else None
