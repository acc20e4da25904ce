"""``--help`` and ``--version``, made from the table of commands.

By the name of the QEMU tool, ``--help`` shows the same behind a command as before it, as that does; by blockio's own
the command's options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.cli.img.commands import COMMANDS, MAIN_OPTIONS

if TYPE_CHECKING:
    from blockio.cli.output import Output

__all__ = ["print_command_help", "print_help", "print_version"]


def print_version(output: Output) -> None:
    """One line with the tool's name and blockio's version."""
    from importlib.metadata import version  # slow, and nothing else needs it

    output.out(f"{output.prog} version {version('blockio')} (blockio)\n")


def print_command_help(output: Output, name: str) -> None:
    """How the command *name* is called, what it does and which options it has."""
    from textwrap import fill

    command = COMMANDS[name]
    usage = f"usage: {output.prog} {name} {command.synopsis(own=True)}"
    output.out(fill(usage, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))
    output.out(f"\n\n{command.summary[:1].upper()}{command.summary[1:]}.\n\n")
    for option in command.options:
        output.out(f"  {option.synopsis():<30} {option.help}\n")
    output.out(f"\n'{output.prog} --help' lists all commands, cache modes and formats.\n")


def print_help(output: Output) -> None:
    """The version, all commands with their arguments, all options with what they mean, all formats."""
    from blockio.driver.registry import driver_names

    print_version(output)
    output.out(f"usage: {output.prog} [standard options] command [command options]\nDisk image utility\n\n")
    for option in MAIN_OPTIONS:
        names = ", ".join(f"'{name}'" for name in option.names)
        output.out(f"    {names:<21}{option.help}\n")
    output.out("\nCommand syntax:\n")
    own = output.own_name
    shown = [(name, command) for name, command in sorted(COMMANDS.items()) if own or not command.own]
    for name, command in shown:
        output.out(f"  {name} {command.synopsis(own=own)}\n")
    for name, command in shown:
        output.out(f"\nOptions of {name} ({command.summary}):\n")
        for option in command.known(own=own):
            output.out(f"  {option.synopsis():<30} {option.help}\n")
    output.out("\nSizes are in bytes; the suffixes k, M, G, T, P and E multiply by powers of 1024.\n")
    output.out("Cache modes: none, writeback, writethrough, directsync, unsafe.\n")
    output.out(f"\nSupported formats: {' '.join(driver_names())}\n")
