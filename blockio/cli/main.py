"""The commands people call: ``blockio img``, ``io`` and ``bench``, and the names they know the tools by.

Called through a link named ``qemu-img`` or ``qemu-io`` (or as ``blockio-img``, ``blockio-io``) this is that tool, and
messages begin with that name. Only the tool that is called is imported.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final, NoReturn, TypeAlias

__all__ = ["TOOLS", "command", "command_img", "command_io", "main", "main_img", "main_io"]

Run: TypeAlias = Callable[[list[str], str], int]
Load: TypeAlias = Callable[[], Run]


_GARBAGE: Final = 100_000
"""How many objects more than were freed let Python look for garbage while a tool runs (its default: 700).

A start makes 43,000 of them and keeps most: looking through them takes 20 to 30 ms, a tenth of a short command.
"""

_USUAL: Final = gc.get_threshold()


class Tool:
    """One of the tools."""

    def __init__(self, load: Load, summary: str) -> None:
        self.load = load
        self.summary = summary


_HELP: Final = """\
Usage: {prog} TOOL [ARGUMENTS]

{tools}
  --help      print this and exit
  --version   print the version and exit

'{prog} TOOL --help' tells about a tool.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The ``blockio`` command. Returns the exit status."""
    name, words = _called(argv)
    if name in _LINKS:
        return _run(_LINKS[name], words, name)
    if not words:
        sys.stderr.write(_help(name))
        return 1
    first, *rest = words
    if first in ("--help", "-h", "help"):
        sys.stdout.write(_help(name))
        return 0
    if first in ("--version", "-V"):
        from importlib.metadata import version  # slow, and only --version needs it

        sys.stdout.write(f"{name} version {version('blockio')}\n")
        return 0
    tool = TOOLS.get(first)
    if tool is None:
        sys.stderr.write(f"{name}: unknown tool '{first}'\nTry '{name} --help' for more information\n")
        return 1
    return _run(tool.load, rest, f"{name} {first}")


def main_img(argv: Sequence[str] | None = None) -> int:
    """The ``blockio-img`` command. Returns the exit status."""
    name, words = _called(argv)
    return _run(_img, words, name)


def main_io(argv: Sequence[str] | None = None) -> int:
    """The ``blockio-io`` command. Returns the exit status."""
    name, words = _called(argv)
    return _run(_io, words, name)


def command() -> NoReturn:
    """The console script ``blockio``."""
    _begin()
    _leave(main())


def command_img() -> NoReturn:
    """The console script ``blockio-img``."""
    _begin()
    _leave(main_img())


def command_io() -> NoReturn:
    """The console script ``blockio-io``."""
    _begin()
    _leave(main_io())


def _begin() -> None:
    """What only a process that is all ours may do: before anything large is imported."""
    gc.set_threshold(_GARBAGE, *_USUAL[1:])
    _settle_descriptors()


def _settle_descriptors() -> None:
    """Give the numbers of standard descriptors that are closed to nothing at all.

    Else an image that is opened may get one of them, and with it the messages.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one. Whoever uses it finds out that it was closed: EBADF.
            os.open(os.devnull, os.O_WRONLY if name == "stdin" else os.O_RDONLY)
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115  # to the end
            setattr(sys, name, stream)


def _leave(status: int) -> NoReturn:
    """End the process, without the 30 to 50 ms in which Python takes apart what the system takes back anyway.

    Where threads still work, or standard output does not take what is left for it, it ends as every Python does.
    """
    if threading.active_count() > 1:
        sys.exit(status)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # a stream that a program of ours closed is a ValueError
        sys.exit(status)
    os._exit(status)


def _img() -> Run:
    from blockio.cli.img.dispatch import run  # only the tool that is called

    return run


def _io() -> Run:
    from blockio.cli.io import main  # only the tool that is called

    return main


def _bench() -> Run:
    from blockio.cli.bench import main  # only the tool that is called

    gc.set_threshold(*_USUAL)  # what is measured runs as it would in a program of its user's
    return main


def _completion() -> Run:
    from blockio.cli.completion import main  # only the tool that is called

    return main


TOOLS: Final[dict[str, Tool]] = {
    "img": Tool(_img, "create, inspect, check, convert, compare and resize disk images (as qemu-img)"),
    "io": Tool(_io, "read, write and map an image by commands (as qemu-io)"),
    "bench": Tool(_bench, "measure workloads beside qemu-img, fio and others"),
    "completion": Tool(_completion, "print what a shell needs to complete these command lines"),
}
_LINKS: Final[dict[str, Load]] = {"qemu-img": _img, "qemu-io": _io, "blockio-img": _img, "blockio-io": _io}


def _help(prog: str) -> str:
    tools = "".join(f"  {name:<10}  {tool.summary}\n" for name, tool in TOOLS.items())
    return _HELP.format(prog=prog, tools=tools)


def _called(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """The name we were called by, without its folder, and the other words."""
    name, *words = sys.argv if argv is None else argv
    return os.path.basename(name) or "blockio", list(words)


def _run(load: Load, words: list[str], prog: str) -> int:
    """Load a tool and run it; SIGINT, SIGTERM and SIGHUP cancel what it does, so that it cleans up, and then end the
    process as usual."""
    tool = load()
    ending = signal.SIGINT

    def terminate(signum: int, frame: FrameType | None) -> None:
        nonlocal ending
        ending = signal.Signals(signum)
        # asyncio.run turns SIGINT into a cancellation of the main task; all of them shall do that.
        signal.raise_signal(signal.SIGINT)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPT)

    before = {number: signal.signal(number, terminate) for number in _ENDINGS if _ends_us(number)}
    deaf = not _ends_us(signal.SIGINT)
    quiet = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # see ``blockio.cli.command``
    if deaf:
        # A shell starts ``command &`` with SIGINT ignored. It shall stay deaf to Ctrl-C, but asyncio.run must have its
        # hand on the signal, which ``terminate`` needs: block it instead.
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return tool(words, prog)
    except KeyboardInterrupt:
        # Die of the signal itself: the shell, or whoever started us, sees what happened.
        signal.signal(ending, signal.SIG_DFL)
        signal.raise_signal(ending)
        return 128 + ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # which also forgets those that came meanwhile
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPT)
        if quiet:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP)
_INTERRUPT: Final = (signal.SIGINT,)


def _ends_us(number: signal.Signals) -> bool:
    """Whether the signal would end the process: under nohup, a hangup does not, nor Ctrl-C in the background."""
    return signal.getsignal(number) is not signal.SIG_IGN
