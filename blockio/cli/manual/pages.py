"""The pages: a web page for each command, a manual page for each tool, out of the same sections."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from blockio.cli.bench.arguments import parser as bench_parser
from blockio.cli.img.commands import COMMANDS, MAIN_OPTIONS, Command
from blockio.cli.io import options as io_options
from blockio.cli.io import tool as _io  # noqa: F401  # importing it fills the table of its commands
from blockio.cli.io.language import commands as io_commands
from blockio.cli.main import TOOLS
from blockio.cli.manual.model import Block, Code, Page, Section, Term, Terms, Text
from blockio.cli.manual.prose import CACHE_MODES, IO_ABOUT, PROSE, STATUS, Prose
from blockio.driver.registry import find_driver, own_names
from blockio.img.options import known_options

if TYPE_CHECKING:
    from blockio.cli.definitions import Option
    from blockio.cli.io.language import Command as IoCommand

__all__ = ["man_pages", "web_pages"]

_NAMES: Final = (
    "Called through a link named `qemu-img` or `qemu-io`, the program is that tool, by that name; what is marked as "
    "blockio's alone is then unknown here, too."
)
_NOTHING: Final = Prose(())


def web_pages() -> list[Page]:
    """One page for all tools, one for each, one for each command of ``blockio img``."""
    tools = [Term(f"blockio {name}", tool.summary, name) for name, tool in TOOLS.items()]
    return [
        Page(
            "README",
            "blockio",
            "the tools, and where they are described",
            [Section("Tools", [Terms(tools, "tool"), Text(_NAMES)])],
        ),
        Page("img", "blockio img", TOOLS["img"].summary, _img_in_general(links=True)),
        *(_command_page(name, command) for name, command in sorted(COMMANDS.items())),
        Page("io", "blockio io", TOOLS["io"].summary, _io_sections()),
        Page("bench", "blockio bench", TOOLS["bench"].summary, _bench_sections()),
    ]


def man_pages() -> list[Page]:
    """One manual page for each tool, with all of its commands."""
    tools = [Term(name, tool.summary) for name, tool in TOOLS.items()]
    also = Section("See also", [Text("`blockio`(1), `blockio-img`(1), `blockio-io`(1), `blockio-bench`(1)")])
    img = [Section("Synopsis", [Code("blockio img [standard options] command [command options]")]), *_img_in_general()]
    for name, command in sorted(COMMANDS.items()):
        first, *rest = _command_sections(name, command)
        img.append(Section(name, [Text(f"{_sentence(command.summary)}"), *first.blocks], deeper=True))
        for section in rest:
            img[-1].blocks.append(Text(f"{section.title}:"))
            img[-1].blocks.extend(section.blocks)
    return [
        Page(
            "blockio",
            "blockio",
            "disk images: the tools of a block layer",
            [
                Section("Synopsis", [Code("blockio TOOL [ARGUMENTS]")]),
                Section("Tools", [Terms(tools), Text(_NAMES)]),
                also,
            ],
        ),
        Page("blockio-img", "blockio-img", TOOLS["img"].summary, [*img, also]),
        Page("blockio-io", "blockio-io", TOOLS["io"].summary, [*_io_sections(), also]),
        Page("blockio-bench", "blockio-bench", TOOLS["bench"].summary, [*_bench_sections(), also]),
    ]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _option_terms(options: Iterable[Option]) -> Terms:
    terms = []
    for option in options:
        terms.append(Term(option.synopsis(), f"{option.help}{' (blockio only)' if option.own else ''}"))
    return Terms(terms)


def _img_in_general(*, links: bool = False) -> list[Section]:
    commands: list[Block] = []
    if links:
        rows = [Term(name, command.summary, f"img-{name}") for name, command in sorted(COMMANDS.items())]
        commands = [Terms(rows, "command")]
    about: list[Block] = [
        Text(
            "Options, output, JSON and exit codes are those of `qemu-img`. `--help` prints all commands with their "
            "options, behind a command those of that one. Sizes are in bytes; the suffixes k, M, G, T, P and E "
            "multiply by powers of 1024."
        ),
        Text(_NAMES),
    ]
    return [
        Section("In general", about),
        Section("Standard options", [_option_terms(MAIN_OPTIONS)]),
        Section("Cache modes", [Terms([Term(*row) for row in CACHE_MODES], "mode")]),
        Section("Commands", commands or [Text("Each takes the options that follow its name.")]),
    ]


def _command_page(name: str, command: Command) -> Page:
    return Page(f"img-{name}", f"blockio img {name}", command.summary, _command_sections(name, command))


def _command_sections(name: str, command: Command) -> list[Section]:
    prose = PROSE.get(name, _NOTHING)
    synopsis = Code(_folded(f"blockio img {name}", command.synopsis(own=True)), "text")
    sections = [
        Section("Synopsis", [synopsis, *(Text(text) for text in prose.about)]),
        Section("Options", [_option_terms(command.options)]),
    ]
    if name == "create":
        sections += _format_options()
    if prose.examples:
        sections.append(Section("Examples", [Code("\n".join(f"blockio {line}" for line in prose.examples))]))
    if prose.library:
        sections.append(Section("In a program", [Code(f"from blockio import img\n\n{prose.library}", "python")]))
    sections.append(Section("Exit status", [Terms([Term(*row) for row in prose.status or STATUS], "status")]))
    return sections


def _folded(start: str, usage: str, width: int = 78) -> str:
    """*start* and *usage* on lines that can be read: broken between options, never inside brackets."""
    lines, depth = [start], 0
    for word in usage.split(" "):
        if depth == 0 and len(lines[-1]) + 1 + len(word) > width:
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
        depth += word.count("[") + word.count("(") - word.count("]") - word.count(")")
    return "\n".join(lines)


def _format_options() -> list[Section]:
    sections = []
    for name in sorted(own_names()):
        known = known_options(find_driver(name))
        if known and name not in ("host_device",):
            rows = [
                Term(
                    f"{option.name}=<{option.kind}>",
                    option.help + (f" (default {option.default})" if option.default else ""),
                )
                for option in known
            ]
            title = "of files" if name == "file" else f"of {name}"
            sections.append(Section(f"Options {title} for -o", [Terms(rows)]))
    return sections


def _io_sections() -> list[Section]:
    sections = [
        Section(
            "Synopsis",
            [Code("blockio io [OPTIONS]... [-c STRING]... [file]", "text"), *(Text(text) for text in IO_ABOUT)],
        ),
        Section("Options", [_option_terms(io_options.OPTIONS)]),
        Section("Commands", [Text("`help` lists them in the tool, and `help command` tells about one.")]),
    ]
    sections += [_io_command(command) for command in io_commands()]
    examples = ("io -f qcow2 -c 'write -P 65 0 64k' -c 'read -P 65 0 64k' disk.qcow2", "io -r -c map disk.qcow2")
    sections.append(Section("Examples", [Code("\n".join(f"blockio {line}" for line in examples))]))
    return sections


def _io_command(command: IoCommand) -> Section:
    words = [command.name, *([command.args] if command.args else [])]
    also = f" Also called `{command.alias}`." if command.alias else ""
    blocks: list[Block] = [Code(" ".join(words), "text"), Text(_sentence(command.summary) + also)]
    if command.details:
        blocks.append(Code(command.details.strip("\n"), "text"))
    return Section(command.name, blocks, deeper=True)


def _bench_sections() -> list[Section]:
    parser = bench_parser("blockio bench")
    sections = [
        Section(
            "Synopsis", [Code("blockio bench [OPTIONS] [IMAGE]", "text"), Text(" ".join(str(parser.epilog).split()))]
        )
    ]
    # argparse has no public way to ask which arguments there are.
    for group in parser._action_groups:
        rows = [Term(_argument(action), action.help or "") for action in group._group_actions]
        if rows:
            sections.append(Section(str(group.title).capitalize(), [Terms(rows)]))
    return sections


def _argument(action: argparse.Action) -> str:
    """How an argument of argparse's is written."""
    value = action.metavar or (
        "|".join(map(str, action.choices)) if action.choices else action.dest.upper().replace("-", "_")
    )
    names = ", ".join(action.option_strings)
    if not names:
        return str(value)
    return names if action.nargs == 0 else f"{names} {value}"
