"""Each command of ``blockio io`` and each of its letters is compared with qemu-io where it works and where it fails.

The cases are those of ``test_io_differential``, which runs both; here only ours runs, until each has been seen.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockio.cli.io import main, tool
from blockio.cli.io.getopt import GetOpt, OptionMistake
from blockio.cli.io.language import Command, commands, find
from tests.cli.test_io_differential import CASES
from tests.support.iotool import Case, copy_images, make_images

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

assert tool.PROMPT  # importing it fills the table of commands

NEVER_WORKS = {("abort", ""), ("read", "a")}
"""The first by its nature, the other because the usage of the real tool names a letter that it does not take."""
NEVER_FAILS = {("quit", "")}

Point = tuple[str, str]
"""A command and one of its letters, or the command alone."""


def _letters(command: Command) -> dict[str, bool]:
    """The letters in a command's usage, and whether each takes an argument."""
    words = re.findall(r"(?<![\w-])-([A-Za-z]+)( \w+)?", command.args or "")
    return {letter: bool(argument) for letters, argument in words for letter in letters}


def _points(line: str) -> Iterator[Point]:
    """What *line* shows."""
    name, *words = line.split()
    command = find(name)
    assert command is not None
    yield command.name, ""
    letters = _letters(command)
    options = GetOpt(words, "".join(f"{letter}:" if takes else letter for letter, takes in letters.items()))
    try:
        for letter, _ in options:
            yield command.name, letter
    except OptionMistake:
        return


def _known(case: Case) -> bool:
    return bool(case.commands) and all(line.split() and find(line.split()[0]) for line in case.commands)


def test_every_command_and_letter_is_seen_to_work_and_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    every = {(command.name, letter) for command in commands() for letter in ("", *_letters(command))}
    wanted = {True: every - NEVER_WORKS, False: every - NEVER_FAILS}
    images = tmp_path / "images"
    images.mkdir()
    make_images(images)
    for number, case in enumerate(filter(_known, CASES)):
        # Where one of several commands failed, it is not known which.
        shows = {True: {point for line in case.commands for point in _points(line)}}
        shows[False] = shows[True] if len(case.commands) == 1 else set()
        if any(shows[works] & wanted[works] for works in wanted):
            folder = tmp_path / str(number)
            copy_images(case.words, images, folder)
            monkeypatch.chdir(folder)
            works = main(case.words, "qemu-io") == 0
            wanted[works] -= shows[works]
    capfd.readouterr()
    for works, points in wanted.items():
        assert not sorted(points), works


def test_help_of_a_command_begins_with_the_real_usage_and_speaks_of_the_same_letters(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert len(list(commands())) == 26
    for command in commands():
        real = subprocess.run(
            ["qemu-io", "-c", f"help {command.name}"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert main(["-c", f"help {command.name}"], "qemu-io") == 0
        mine = capfd.readouterr().out.splitlines()
        assert mine[0] == real[0]
        assert bool(mine[1:]) == bool(real[1:])
        described = {line[:3] for line in real[1:] if re.match(r" -\w, ", line)}
        assert described <= {line[:3] for line in mine[1:]}


@pytest.mark.parametrize("command", ["abort", f"sigraise {signal.SIGTERM:d}", f"sigraise {signal.SIGKILL:d}"])
def test_the_tool_ends_by_the_same_signal(command: str) -> None:
    ends = []
    for program in (["qemu-io"], [sys.executable, "-c", "from blockio.cli.main import main_io; main_io()"]):
        done = subprocess.run([*program, "-c", command], capture_output=True, check=False)
        ends.append((done.returncode, done.stdout, done.stderr))
    assert ends[0] == ends[1]
    assert ends[0][0] < 0
