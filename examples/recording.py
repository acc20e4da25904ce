"""``make docs``: the recording in the README. Real commands in a scratch folder, and what they print, as an SVG.

The commands are such that they print the same wherever they run: no dates, no rates, names without a folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.text import Text

TARGET: Final = Path(__file__).parents[1] / "docs" / "recording.svg"
COLUMNS: Final = 104
COMMANDS: Final = """
blockio img create -q -f qcow2 disk.qcow2 256M
blockio io -f qcow2 -c 'write -q -P 65 0 32M' -c 'write -q -P 66 128M 16M' disk.qcow2
blockio img create -q -f qcow2 -b disk.qcow2 -F qcow2 today.qcow2
blockio io -f qcow2 -c 'write -q -P 67 16M 25M' -c 'write -q -z 128M 8M' -c map today.qcow2
blockio img info --tree today.qcow2
blockio img map --picture today.qcow2
blockio img convert -c -O qcow2 --digest today.qcow2 small.qcow2
blockio img digest today.qcow2
blockio img compare today.qcow2 small.qcow2
blockio img check -r all today.qcow2
blockio img inspect small.qcow2
"""


class Entry(NamedTuple):
    """A command, and what it printed."""

    command: str
    printed: str


def record() -> Iterator[Entry]:
    """Run the commands one after the other in a folder of their own; each must succeed."""
    tools = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', '')}", "LC_ALL": "C.UTF-8"}
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS.strip().splitlines():
            done = subprocess.run(
                [tools / command.split()[0], *shlex.split(command)[1:]],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
            )
            yield Entry(command, done.stdout)


def picture(entries: Iterator[Entry]) -> str:
    """The SVG of a terminal that shows *entries*. It asks for no font from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    for command, printed in entries:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        if printed:
            console.print(Text(printed.rstrip("\n")))
    drawn = console.export_svg(title="blockio", unique_id="blockio")
    return re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)


if __name__ == "__main__":
    TARGET.write_text(picture(record()), encoding="utf-8")
