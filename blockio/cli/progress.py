"""Showing how far a long command is.

* ``-p``: the percentages of the QEMU tools on standard output, ``    (12.34/100%)`` and a carriage return, whoever
  reads them, because scripts do.
* ``--progress=bar``: a bar on standard error, with rate and remaining time; ``jsonl``: one JSON object a line there.
* ``--progress=auto``, the default when called by blockio's own name: a bar where standard error is a terminal.
* ``--progress=none``, the default when called by another name.

A bar appears only when the command has taken a moment: short ones do not pay for loading it. Without ``-p``, SIGUSR1
makes the command print its percentage on standard error.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from blockio.cli.output import json_compact_line

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.img.results import Observer, Progress

__all__ = ["STYLES", "Watcher", "check_style", "own_watcher", "watcher"]

STYLES: Final = ("auto", "bar", "jsonl", "none")

_BAR_AFTER: Final = 0.5
_BAR_EVERY: Final = 0.1
_WIDE: Final = 80
"""In so many columns a bar has room for rates and amounts, too."""
_JSON_EVERY: Final = 0.2


def check_style(output: Output, style: str) -> str:
    """*style*, where there is one of that name; ends the command where not."""
    if style not in STYLES:
        from blockio.cli.img.tool import fail  # only a wrong command line comes here

        fail(output, f"--progress must be used with {', '.join(STYLES[:-1])} or {STYLES[-1]} as argument.")
    return style


class Watcher:
    """Shows progress; ``listener`` is what the library calls. This one shows nothing but what SIGUSR1 asks for."""

    shows_bottleneck = False

    def __init__(self, output: Output) -> None:
        self._output = output
        self.asked = False

    @property
    def listener(self) -> Observer:
        """``observer`` for the library, which need not find out what nobody is shown."""
        if self.shows_bottleneck:
            return self.observer
        from blockio.img.progress import Counting  # whoever comes here has loaded it

        return Counting(self.observer)

    def observer(self, progress: Progress) -> None:
        """Take note of *progress*."""
        if self.asked:
            self.asked = False
            self._output.report(_percent(progress.fraction * 100))

    def begin(self) -> None:
        """Before anything is done."""

    def end(self) -> None:
        """The command is over, whatever came of it."""


def _percent(current: float) -> str:
    return f"    ({current:3.2f}/100%)\r"


class PercentLines(Watcher):
    """The QEMU tools' own: a new percentage when it grew by more than *least_step*."""

    def __init__(self, output: Output, least_step: float) -> None:
        super().__init__(output)
        self._least_step = least_step
        self._last = 0.0

    def begin(self) -> None:
        self._show(0.0)

    def observer(self, progress: Progress) -> None:
        current = min(100.0, progress.fraction * 100)
        if current > self._last + self._least_step or current < self._last or current in (0.0, 100.0):
            self._show(current)

    def _show(self, current: float) -> None:
        self._last = current
        self._output.out(_percent(current))
        self._output.flush()

    def end(self) -> None:
        self._output.out("\n")


class JsonLines(Watcher):
    """For programs: one object a line on standard error, a few times a second, the last one with all done."""

    shows_bottleneck = True

    def __init__(self, output: Output, what: str) -> None:
        super().__init__(output)
        self._what = what
        self._next = 0.0
        self._latest: Progress | None = None
        self._shown: Progress | None = None

    def observer(self, progress: Progress) -> None:
        self._latest = progress
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _JSON_EVERY
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        self._shown = progress
        values: dict[str, Any] = {
            "event": "progress",
            "command": self._what,
            "done": progress.done,
            "total": progress.total,
            "rate": round(progress.rate),
            "remaining": None if progress.remaining is None else round(progress.remaining, 3),
            "bottleneck": progress.bottleneck,
        }
        self._output.report(json_compact_line(values) + "\n")

    def end(self) -> None:
        if self._latest is not None and self._latest is not self._shown:
            self._show(self._latest)


class Bar(Watcher):
    """For people: a bar on the terminal, once the command has taken a moment, with what it waits for behind it."""

    shows_bottleneck = True

    def __init__(self, output: Output, what: str) -> None:
        super().__init__(output)
        self._what = what
        self._next = time.monotonic() + _BAR_AFTER
        self._bar: Any = None
        self._task: Any = None

    def observer(self, progress: Progress) -> None:
        now = time.monotonic()
        if now < self._next and progress.done < progress.total:
            return
        if self._bar is None:
            if now < self._next:
                return  # done before anybody wondered
            self._bar, self._task = _rich_bar(self._what)
        self._next = now + _BAR_EVERY
        waits = "" if progress.bottleneck is None else progress.bottleneck.value
        self._bar.update(self._task, completed=progress.done, total=progress.total, waits=waits, refresh=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _rich_bar(what: str) -> tuple[Any, Any]:
    # Loading rich takes longer than most commands do.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    wide = console.width >= _WIDE
    amounts = [DownloadColumn(binary_units=True), TransferSpeedColumn()] if wide else []
    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(max(10, min(40, console.width - _WIDE + 10))),
        TaskProgressColumn(),
        *amounts,
        TimeRemainingColumn(),
        *([TextColumn("{task.fields[waits]}")] if wide else []),
        console=console,
        auto_refresh=False,
    )
    bar.start()
    return bar, bar.add_task(what, total=None, waits="")


@contextmanager
def watcher(
    output: Output, what: str, *, percent: bool, style: str | None, least_step: float, begin: bool = False
) -> Iterator[Watcher]:
    """The watcher that the command line asks for. *begin*: show a zero before anything is opened."""
    shown = _choose(output, what, percent, style, least_step)
    with _asked_by_signal(shown):
        if begin:
            shown.begin()
        try:
            yield shown
        finally:
            shown.end()


@contextmanager
def own_watcher(output: Output, what: str, style: str | None) -> Iterator[Watcher | None]:
    """The watcher of a command whose progress the QEMU tool does not show; None by that tool's name."""
    if not output.own_name:
        yield None
        return
    with watcher(output, what, percent=False, style=style, least_step=1.0) as watch:
        yield watch


def _choose(output: Output, what: str, percent: bool, style: str | None, least_step: float) -> Watcher:
    if style is None:
        if percent:
            return PercentLines(output, least_step)
        ours = output.own_name and not output.quiet
        style = "auto" if ours else "none"
    if style == "auto":
        style = "bar" if os.isatty(2) else "none"
    if style == "bar":
        return Bar(output, what)
    return JsonLines(output, what) if style == "jsonl" else Watcher(output)


@contextmanager
def _asked_by_signal(shown: Watcher) -> Iterator[None]:
    """While inside, SIGUSR1 asks for the percentage instead of ending the process."""

    def ask(_signum: int, _frame: object) -> None:
        shown.asked = True

    try:
        before = signal.signal(signal.SIGUSR1, ask)
    except ValueError:  # not in the main thread, where signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
