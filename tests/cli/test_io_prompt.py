"""The prompt: the same conversation with ours and with the real tool, through a pipe and on a terminal."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from blockio.cli.io.tool import PROMPT, prepare, run
from tests.support.qemu import without_timing

_CODE = "import sys; sys.argv[0] = 'qemu-io'; from blockio.cli.main import main; sys.exit(main())"
OURS = (sys.executable, "-c", _CODE)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"A" * 4096 + bytes(60 * 1024))
    return path


def _converse(program: tuple[str, ...], disk: Path, text: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [*program, "-f", "raw", disk], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, without_timing(done.stdout), done.stderr


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "length\nquit\nlength\n",
        "length",
        "read 0 9M\n",
        "read -P 65 0 512\nread -P 66 0 512\nlength\n",
        "bogus\nlength\n",
        "close\nlength\nopen -o driver=raw nowhere\nlength\n",
        "write -P 5 0 4k\naio_flush\nread -vP 5 10 4\nq\n",
        "length\r\n",
        " length \n",
    ],
)
def test_a_piped_conversation_is_the_same(text: str, disk: Path) -> None:
    theirs = _converse(("qemu-io",), disk, text)
    assert _converse(OURS, disk, text) == theirs


async def test_queued_requests_end_while_the_prompt_waits(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []

    async def lines() -> str | None:
        shown.append(capfd.readouterr().out)
        return {1: "aio_write -P 7 0 64k", 2: "aio_flush", 3: "read -P 7 0 64k"}.get(len(shown))

    assert await run(prepare(["-f", "raw", str(disk)], "qemu-io"), lines) == 0
    assert [without_timing(text).partition("\n")[0] for text in shown] == [
        "",
        "",
        "wrote 65536/65536 bytes at offset 0",
        "read 65536/65536 bytes at offset 0",
    ]


def _read_until(terminal: int, end: str) -> str:
    text = b""
    while not text.decode(errors="replace").endswith(end):
        try:
            text += os.read(terminal, 1000)
        except OSError as error:
            if error.errno == errno.EIO:  # how a terminal says that nobody is on the other side
                break
            raise
    return text.decode()


def test_on_a_terminal_lines_are_edited(disk: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*OURS, "-f", "raw", disk], stdin=theirs, stdout=theirs, stderr=theirs) as tool:
        os.close(theirs)
        assert _read_until(ours, PROMPT).endswith(PROMPT)
        os.write(ours, b"lengtx\x7fh\n")
        assert "64 KiB\r\n" in _read_until(ours, f"\r\n{PROMPT}")
        os.write(ours, b"\x10\n")  # the line before, from the history
        assert "64 KiB\r\n" in _read_until(ours, f"\r\n{PROMPT}")
        os.write(ours, b"\x04")
        assert tool.wait(60) == 0
    os.close(ours)
