"""The commands that stop requests at debug events and let them go on, and those that end the tool badly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from blockio.cli.io.figures import number
from blockio.cli.io.language import Command, Words, register
from blockio.cli.io.session import Session, Spoken
from blockio.driver.debug import DebugDriver
from blockio.errors import BlockError
from blockio.graph.debug import debug_breakpoint, debug_remove_breakpoint, debug_resume, debug_wait
from blockio.graph.events import NodeEvent, Reported, watchers

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.graph.node import BlockNode

__all__ = ["show_suspensions"]


def show_suspensions(output: Output) -> None:
    """Print it when a request is suspended or resumed, from now on until the run ends."""

    def watch(node: BlockNode, event: NodeEvent) -> None:
        if isinstance(event, Reported) and isinstance(node.driver, DebugDriver):
            output.out(f"{event.message}\n")

    watchers.append(watch)
    output.cleanups.append(lambda: watchers.remove(watch))


def _node(session: Session) -> BlockNode:
    node = session.image.bs
    assert node is not None  # the session's image always has a root
    return node


def _attempt(failure: str, action: Callable[..., None], *arguments: object) -> None:
    try:
        action(*arguments)
    except BlockError as error:
        raise Spoken(f"{failure}: {os.strerror(error.errno or 5)}") from error


async def _break(session: Session, words: Words) -> None:
    _attempt("Could not set breakpoint", debug_breakpoint, _node(session), *words)


async def _remove_break(session: Session, words: Words) -> None:
    _attempt(f"Could not remove breakpoint {words[0]}", debug_remove_breakpoint, _node(session), words[0])


async def _resume(session: Session, words: Words) -> None:
    _attempt("Could not resume request", debug_resume, _node(session), words[0])


async def _wait_break(session: Session, words: Words) -> None:
    session.output.flush()
    await debug_wait(_node(session), words[0])


async def _abort(session: Session, words: Words) -> None:
    os.abort()  # what was printed and not yet written is lost, as in the real tool


async def _sigraise(session: Session, words: Words) -> None:
    which = number(words[0])
    if which > signal.NSIG:
        raise Spoken(f"signal argument '{words[0]}' is too large to be a valid signal")
    session.output.flush()
    # reason: there is no signal of this number; the real tool says nothing either
    with suppress(OSError, ValueError):
        signal.raise_signal(which)


register(
    Command("break", _break, "sets a breakpoint on event and tags the stopped request as tag", "event tag", 2, 2),
)
register(Command("remove_break", _remove_break, "remove a breakpoint by tag", "tag", 1, 1))
register(Command("resume", _resume, "resumes the request tagged as tag", "tag", 1, 1))
register(Command("wait_break", _wait_break, "waits for the suspension of a request", "tag", 1, 1))
register(Command("abort", _abort, "simulate a program crash using abort(3)", None, 0, 0, needs_image=False))
register(
    Command(
        "sigraise",
        _sigraise,
        "raises a signal",
        "signal",
        1,
        1,
        needs_image=False,
        details="""\
Raise the signal with this number in the tool itself.

Example:
  sigraise 15    end by SIGTERM
""",
    )
)
