"""The way into a command, and out of it."""

from __future__ import annotations

import asyncio
import errno
from importlib import import_module

from blockio.cli.img.commands import COMMANDS, MAIN_OPTIONS
from blockio.cli.img.getopt import CommandLine, UsageError
from blockio.cli.img.tool import Failure, printed
from blockio.cli.output import Output

__all__ = ["run"]


def run(argv: list[str], prog: str) -> int:
    """Run the tool; see ``blockio.cli.img.main``."""
    output = Output(prog)
    try:
        return _run(argv, output)
    except UsageError as error:
        output.report(f"{prog}: {error}\nTry '{prog} --help' for more information\n")
        return 1
    except Failure as failure:
        return failure.status
    except OSError as error:
        # A command that knows better catches it itself.
        output.error(printed(error))
        return 1
    except MemoryError:
        output.error(f"{printed(OSError(errno.ENOMEM, ''))}")
        return 1
    finally:
        output.end()


def _run(argv: list[str], output: Output) -> int:
    if not argv:
        raise UsageError("Not enough arguments")
    line = CommandLine(MAIN_OPTIONS, output.prog, argv, in_front=True)
    for key, value in line:
        if key != "trace":
            return _tell(key, output)
        from blockio.cli.tracing import accept_trace  # few lines have it

        if (ending := accept_trace(value, output)) is not None:
            return ending
    if not line.operands:
        raise UsageError("Not enough arguments")
    name, *rest = line.operands
    command = COMMANDS.get(name)
    if command is None or (command.own and not output.own_name):
        raise UsageError(f"Command not found: {name}")
    module = import_module(f"blockio.cli.img.{command.module}")
    plan = module.prepare(rest, output)
    if plan is None:
        return _tell("help", output, name)
    if isinstance(plan, int):
        return plan
    from blockio.cli.warnings import show_warnings  # now that there is something to be opened

    show_warnings(output)
    run = getattr(module, "run", asyncio.run)
    status: int = run(module.execute(plan, output))
    return status


def _tell(what: str, output: Output, command: str | None = None) -> int:
    from blockio.cli.img.help import print_command_help, print_help, print_version  # few runs need it

    if what == "version":
        print_version(output)
    elif command is not None and output.own_name:
        print_command_help(output, command)
    else:
        print_help(output)
    return 0
