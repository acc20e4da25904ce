"""``blockio completion SHELL``: what a shell needs to complete the tools' command lines, made from their own tables.

Load it with ``source <(blockio completion bash)``, in zsh alike, or ``blockio completion fish | source``.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from blockio.cli.definitions import Option

__all__ = ["SHELLS", "main"]

SHELLS: Final = ("bash", "fish", "zsh")

_HELP: Final = """\
Usage: {prog} bash | fish | zsh

Prints what the shell needs to complete the command lines of blockio:

  source <(blockio completion bash)
  blockio completion fish | source
  source <(blockio completion zsh)     (after compinit)
"""


def main(words: Sequence[str], prog: str) -> int:
    """Print the script for the shell that is named. Returns the exit status."""
    if list(words) in (["-h"], ["--help"]):
        sys.stdout.write(_HELP.format(prog=prog))
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        sys.stderr.write(_HELP.format(prog=prog))
        return 1
    write: dict[str, Callable[[list[_Place]], str]] = {"bash": _bash, "fish": _fish, "zsh": _zsh}
    sys.stdout.write(write[words[0]](list(_places())))
    return 0


class _Choice(NamedTuple):
    """An option as a shell needs it."""

    names: tuple[str, ...]
    takes: bool
    """An argument."""
    values: tuple[str, ...]
    """What the argument may be; empty: anything, such as a file."""
    help: str
    metavar: str = ""
    attached: bool = False
    """The argument can only follow a ``=``, and may be left out."""


class _Place(NamedTuple):
    """Where on a command line one may be: behind the words *path*."""

    path: str
    """``""``, ``img``, ``img convert`` …"""
    words: tuple[tuple[str, str], ...]
    """What may follow as a word, with what it means; empty: files."""
    options: tuple[_Choice, ...]


def _places() -> Iterator[_Place]:
    from blockio.cli.bench.arguments import parser  # no other tool needs all of the tools
    from blockio.cli.img.commands import COMMANDS, MAIN_OPTIONS
    from blockio.cli.io.options import OPTIONS
    from blockio.cli.main import TOOLS

    tools = tuple((name, tool.summary) for name, tool in TOOLS.items())
    top = tuple(_Choice((name,), False, (), text) for name, text in (("--help", "help"), ("--version", "version")))
    yield _Place("", tools, top)
    commands = tuple((name, command.summary) for name, command in sorted(COMMANDS.items()))
    values = _values()
    yield _Place("img", commands, tuple(_choice(option, values) for option in MAIN_OPTIONS))
    for name, command in sorted(COMMANDS.items()):
        yield _Place(f"img {name}", (), tuple(_choice(option, values) for option in command.options))
    yield _Place("io", (), tuple(_choice(option, values) for option in OPTIONS))
    yield _Place(
        "bench",
        (),
        tuple(
            _Choice(
                tuple(action.option_strings),
                action.nargs != 0,
                tuple(map(str, action.choices or ())),
                action.help or "",
                str(action.metavar or action.dest),
            )
            for action in parser("blockio bench")._actions
            if action.option_strings
        ),
    )
    yield _Place("completion", tuple((shell, f"for {shell}") for shell in SHELLS), ())


def _values() -> dict[str, tuple[str, ...]]:
    """What arguments may be, by what they are called, or by the option's key where that says more."""
    from blockio.cli.manual.prose import CACHE_MODES
    from blockio.cli.progress import STYLES
    from blockio.driver.registry import driver_names
    from blockio.img.checksums import ALGORITHMS

    formats = tuple(driver_names())
    modes = tuple(mode for mode, _ in CACHE_MODES)
    return {
        **dict.fromkeys(("fmt", "FMT", "output_fmt", "backing_fmt", "source_fmt"), formats),
        **dict.fromkeys(("cache", "src_cache", "t"), modes),
        **dict.fromkeys(("aio", "i"), ("threads", "native", "io_uring")),
        **dict.fromkeys(("algorithm",), ALGORITHMS),
        "d": ("ignore", "unmap"),
        "how": STYLES,
        "ofmt": ("human", "json"),
        "prealloc": ("off", "metadata", "falloc", "full"),
        "repair": ("leaks", "all"),
    }


def _choice(option: Option, values: dict[str, tuple[str, ...]]) -> _Choice:
    found: tuple[str, ...] = ()
    if option.metavar:
        found = values.get(option.metavar) or values.get(option.key, ())
    return _Choice(option.names, bool(option.metavar), found, option.help, option.metavar, option.optional)


# -- bash

_BASH: Final = """\
# Completion of blockio's command lines for bash: source <(blockio completion bash)
_blockio() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev="" path="" at=1 words="" options="" values="" word joined=""
    (( COMP_CWORD > 0 )) && prev=${{COMP_WORDS[COMP_CWORD-1]}}
    # An equals sign is a word of its own.
    if [[ $cur == = ]]; then
        cur="" joined="="
    elif [[ $prev == = ]]; then
        prev=${{COMP_WORDS[COMP_CWORD-2]}} joined="="
    fi
    case ${{COMP_WORDS[0]##*/}} in
        blockio-img) path=img ;;
        blockio-io) path=io ;;
        *) if (( COMP_CWORD > 1 )); then path=${{COMP_WORDS[1]}}; at=2; fi ;;
    esac
    if [[ $path == img ]]; then
        for word in "${{COMP_WORDS[@]:at:COMP_CWORD-at}}"; do
            if [[ $word != -* ]]; then path="img $word"; break; fi
        done
    fi
    case $path in
{places}
    esac
    case "$path $prev $joined" in
{values}
    esac
    COMPREPLY=()
    if [[ -n $values ]]; then
        [[ $values == - ]] || COMPREPLY=($(compgen -W "$values" -- "$cur"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
}}
complete -o default -o bashdefault -F _blockio blockio blockio-img blockio-io
"""


def _bash(places: list[_Place]) -> str:
    cases, values = [], []
    for place in places:
        names = " ".join(name for option in place.options for name in option.names)
        words = " ".join(word for word, _ in place.words)
        cases.append(f"        {shlex.quote(place.path)}) words={shlex.quote(words)} options={shlex.quote(names)} ;;")
        for option in place.options:
            if option.takes:
                end = " =" if option.attached else " "
                any_end = "" if option.attached else "*"
                patterns = "|".join(shlex.quote(f"{place.path} {name}{end}") + any_end for name in option.names)
                # A dash stands for what only files can complete.
                known = " ".join(option.values) or "-"
                values.append(f"        {patterns}) values={shlex.quote(known)} ;;")
    return _BASH.format(places="\n".join(cases), values="\n".join(values))


# -- fish

_FISH: Final = """\
# Completion of blockio's command lines for fish: blockio completion fish | source
function __blockio_at
    set -l words (commandline -opc)
    set -l path
    switch (basename -- $words[1])
        case blockio-img
            set path img
        case blockio-io
            set path io
    end
    for word in $words[2..]
        if not string match -q -- '-*' $word
            if test -z "$path"; or test "$path" = img
                set -a path $word
            end
        end
    end
    test "$path" = "$argv"
end
"""


def _fish(places: list[_Place]) -> str:
    return _FISH + "".join(line for place in places for line in _fish_lines(place))


def _fish_lines(place: _Place) -> Iterable[str]:
    condition = f"__blockio_at {place.path}".strip()
    for program in ("blockio", "blockio-img", "blockio-io"):
        start = f"complete -c {program} -n {_fished(condition)}"
        for word, text in place.words:
            yield f"{start} -f -a {_fished(word)} -d {_fished(text)}\n"
        for option in place.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            argument = ""
            if option.takes and not option.attached:
                argument = f" -x -a {_fished(' '.join(option.values))}" if option.values else " -r"
            yield f"{start} {names}{argument} -d {_fished(option.help)}\n"


def _fished(text: str) -> str:
    """*text* as one word of fish, in quotes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# -- zsh

_ZSH: Final = """\
#compdef blockio blockio-img blockio-io
# Completion of blockio's command lines for zsh: source <(blockio completion zsh)
_blockio() {{
    local place="" word
    local -i at=1 next
    local -a specs
    case ${{words[1]:t}} in
        blockio-img) place=img ;;
        blockio-io) place=io ;;
        *) if (( CURRENT > 2 )); then place=${{words[2]}}; at=2; fi ;;
    esac
    if [[ $place == img ]]; then
        for (( next = at + 1; next < CURRENT; next++ )); do
            if [[ ${{words[next]}} != -* ]]; then place="img ${{words[next]}}"; at=next; break; fi
        done
    fi
    words=("${{(@)words[at,-1]}}")
    (( CURRENT -= at - 1 ))
    case $place in
{places}
        *) specs=('*: :_default') ;;
    esac
    _arguments -s : $specs
}}
if [[ $funcstack[1] == _blockio ]]; then
    _blockio "$@"
else
    compdef _blockio blockio blockio-img blockio-io
fi
"""


def _zsh(places: list[_Place]) -> str:
    cases = []
    for place in places:
        specs = " ".join(map(_zsh_quoted, _zsh_specs(place)))
        cases.append(f"        {_zsh_quoted(place.path)}) specs=({specs}) ;;")
    return _ZSH.format(places="\n".join(cases))


def _zsh_specs(place: _Place) -> Iterator[str]:
    """What ``_arguments`` is told: options, and then words or files."""
    for option in place.options:
        for name in option.names:
            end, argument = "", ""
            if option.takes:
                end = "=-" if option.attached else "=" if name.startswith("--") else "+"
                action = f"({' '.join(option.values)})" if option.values else "_files"
                argument = f"{'::' if option.attached else ':'}{_zsh_escaped(option.metavar)}:{action}"
            yield f"*{name}{end}[{_zsh_escaped(option.help)}]{argument}"
    if place.words:
        words = " ".join(f"{word}\\:{shlex.quote(_zsh_escaped(text))}" for word, text in place.words)
        yield f"1: :(({words}))"
    else:
        yield "*:file:_files"


def _zsh_escaped(text: str) -> str:
    """*text* as a part of one of those, between colons or brackets."""
    return "".join(f"\\{letter}" if letter in "\\:[]" else letter for letter in text)


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
