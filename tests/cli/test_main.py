"""The commands people call: which tool answers to which name, and how a tool ends."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blockio.cli import main as cli

_RUN = "import sys; from blockio.cli.main import main; sys.exit(main())"


def test_help_names_the_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["blockio", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "img " in shown
    assert "io " in shown


def test_without_a_tool_help_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["blockio"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: blockio TOOL")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["blockio", "--version"]) == 0
    assert capsys.readouterr().out.startswith("blockio version ")


def test_an_unknown_tool(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["blockio", "nbd"]) == 1
    assert capsys.readouterr().err.startswith("blockio: unknown tool 'nbd'\n")


@pytest.mark.parametrize(
    ("argv", "prog"),
    [
        (["/usr/bin/blockio", "io"], "blockio io"),
        (["/somewhere/qemu-io"], "qemu-io"),
        (["blockio-io"], "blockio-io"),
    ],
)
def test_messages_begin_with_the_name_we_were_called_by(
    argv: list[str], prog: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert cli.main([*argv, str(missing), "-c", "length"]) == 1
    assert capfd.readouterr().err == (
        f"{prog}: can't open device {missing}: Could not open '{missing}': No such file or directory\n"
    )


def test_a_link_is_the_tool_it_is_named_after(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("blockio")
    link = tmp_path / "qemu-io"
    link.symlink_to(command)
    done = subprocess.run([link, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("qemu-io version ")


def test_the_process_ends_with_its_status_though_standard_output_was_closed() -> None:
    code = "import sys; from blockio.cli.main import _leave; sys.stdout.close(); _leave(3)"
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (3, b"")


@pytest.mark.parametrize("module", ["blockio.cli.main", "blockio.cli.img.dispatch", "blockio.cli.img.info"])
def test_an_interrupt_while_modules_are_loaded_ends_the_process_without_a_word(module: str) -> None:
    code = (
        "import signal, sys\nfrom blockio.cli import command\n"
        "class Interrupt:\n"
        "    def find_spec(name, path, target=None):\n"
        f"        if name == {module!r}: signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt)\n"
        "sys.argv = ['blockio', 'img', 'info', 'none']\n"
        "command.command()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize("thread", [True, False])
def test_the_process_ends_at_once_unless_somebody_still_works(thread: bool) -> None:
    code = (
        "import atexit, sys, threading; from blockio.cli.main import _leave;"
        "atexit.register(print, 'taken apart');"
        "late = lambda: (threading.main_thread().join(), sys.stdout.write('late '));"
        # One write for each word, or they may come one inside the other.
        f"{thread} and threading.Thread(target=late).start();"
        "sys.stdout.write('said '); _leave(3)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert sorted(done.stdout.split()) == (["apart", "late", "said", "taken"] if thread else ["said"])


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_image_takes_the_place_of_a_closed_descriptor(closed: str, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 4096)
    io = f"{shlex.quote(sys.executable)} -c 'from blockio.cli.main import command_io; command_io()'"
    commands = (
        f"{io} -f raw disk.raw -c length -c bogus {closed}",
        f"{io} -f raw disk.raw {closed}" if "<&-" in closed else f"echo length | {io} -f raw disk.raw {closed}",
        f"{io} --version {closed}",
    )
    for command, status in zip(commands, (1, 0, 0), strict=True):
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert "Traceback" not in done.stderr
    assert (tmp_path / "disk.raw").read_bytes() == b"x" * 4096


def test_only_the_tool_that_is_called_is_imported() -> None:
    code = "import sys; from blockio.cli import main; print(*sorted(n for n in sys.modules if n.startswith('blockio')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["blockio", "blockio.cli", "blockio.cli.main"]


def test_io_imports_nothing_heavy(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(512))
    code = (
        "import sys; from blockio.cli.main import main_io;"
        f"main_io(['qemu-io', '-f', 'raw', {str(image)!r}, '-c', 'length']);"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"rich", "numpy", "cryptography", "uvloop", "isal", "zstandard", "anyio", "aiofiles", "readline"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_tool_after_it_has_cleaned_up(tmp_path: Path, number: signal.Signals) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(512))
    code = f"import sys; sys.argv[0] = 'qemu-io'; {_RUN}"
    tool = subprocess.Popen(
        [sys.executable, "-c", code, "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with tool:
        assert tool.stdout is not None
        assert tool.stdin is not None
        assert os.read(tool.stdout.fileno(), 100) == b"qemu-io> "
        tool.stdin.write(b"sleep 100000\n")
        tool.stdin.flush()
        tool.send_signal(number)
        assert tool.wait(60) == -number


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(1 << 20))
    code = f"import sys; sys.argv[0] = 'qemu-io'; {_RUN}"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code, "-f", "raw", image, "-c", "read -v 0 1M"],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_img_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main_img(["blockio-img", "bogus-command"]) == 1
    assert "bogus-command" in capfd.readouterr().err
