"""How a long command ends when it does not end well, with real processes: signals, full disks, nobody who listens."""

from __future__ import annotations

import json
import os
import pty
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.support.full_disk import small_file_system
from tests.support.qemu import QemuIo, assert_clean, qemu_img

MIB = 1 << 20
OURS = [sys.executable, "-c", "import sys\nfrom blockio.cli.main import main\nsys.exit(main(sys.argv[1:]))"]
THEIRS = ["qemu-img"]

# At one byte a second the first piece passes at once and the second never does: the command is caught in the middle.
CRAWLING = ["convert", "-f", "raw", "-r", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "big.raw").write_bytes(random.Random(8).randbytes(8 * MIB))
    return tmp_path


@contextmanager
def crawling(folder: Path, words: list[str], prog: str = "blockio-img") -> Iterator[subprocess.Popen[bytes]]:
    """A command that has begun to copy, and will not end by itself."""
    with subprocess.Popen(
        [*OURS, prog, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def begun(stream: IO[bytes] | None) -> None:
    """Wait until the command has told of its first piece."""
    assert stream is not None
    assert json.loads(stream.readline())["done"] > 0


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_signal_leaves_nothing_half_written(folder: Path, format: str, number: signal.Signals) -> None:
    with crawling(folder, [*CRAWLING, "--progress=jsonl", "-O", format, "big.raw", "new"]) as process:
        begun(process.stderr)
        process.send_signal(number)
        assert process.wait(60) == -number
    assert names_in(folder) == ["big.raw"]


def test_a_signal_leaves_nothing_of_an_existing_file_that_was_begun(folder: Path) -> None:
    (folder / "new").write_bytes(b"old")
    with crawling(folder, [*CRAWLING, "--progress=jsonl", "big.raw", "new"]) as process:
        begun(process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    assert names_in(folder) == ["big.raw"]


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_may_be_resumed_stays_when_a_signal_comes(folder: Path, number: signal.Signals) -> None:
    words = ["--resume", "--progress=jsonl", "-O", "qcow2", "big.raw", "new"]
    with crawling(folder, [*CRAWLING, *words]) as process:
        begun(process.stderr)
        process.send_signal(number)
        assert process.wait(60) == -number
    journal, part, *others = names_in(folder)
    assert others == ["big.raw"]
    refused, resumed = (
        subprocess.run([*OURS, "blockio-img", "convert", "-f", "raw", *more, *words],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        for more in (["-c"], [])
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr == (
        "blockio-img: An interrupted conversion to 'new' has other options (compress)\n"
        f"Remove '{part}' and '{journal}' to give it up.\n"
    )
    assert (resumed.returncode, resumed.stdout) == (0, "")
    assert json.loads(resumed.stderr.splitlines()[-1])["done"] == 8 * MIB
    assert names_in(folder) == ["big.raw", "new"]
    qemu_img("compare", "-f", "raw", "-F", "qcow2", "big.raw", "new", cwd=folder)
    assert_clean(folder / "new")


def test_what_must_exist_stays_when_a_signal_comes(folder: Path) -> None:
    (folder / "new").write_bytes(bytes(8 * MIB))
    with crawling(folder, [*CRAWLING, "--progress=jsonl", "-n", "-O", "raw", "big.raw", "new"]) as process:
        begun(process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
    assert names_in(folder) == ["big.raw", "new"]


@pytest.mark.peer("qemu-img")
def test_a_command_in_the_background_is_deaf_to_ctrl_c_and_ends_by_sigterm(folder: Path) -> None:
    """A shell starts ``command &`` with SIGINT ignored; a SIGTERM cleans up as always."""
    for name, command in (("theirs", THEIRS), ("ours", [*OURS, "qemu-img"])):
        words = [*command, *CRAWLING, "-p", "-O", "raw", "big.raw", name]
        with subprocess.Popen(
            ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *words], cwd=folder, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.read(15) == b"    (0.00/100%)"
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM
    assert "ours" not in names_in(folder)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("percent", [False, True], ids=["quiet", "-p"])
def test_sigusr1_is_no_reason_to_end(folder: Path, percent: bool) -> None:
    """Both tools go on, until a signal comes that ends them."""
    shown = {}
    for name, command in (("theirs", THEIRS), ("ours", [*OURS, "qemu-img"])):
        words = [*command, *CRAWLING, *(["-p"] if percent else []), "-O", "raw", "big.raw", name]
        with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            if percent:
                assert process.stdout.read(15) == b"    (0.00/100%)"
            else:
                wait_for_file(process, folder)
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGTERM)
            shown[name] = process.wait(60)
    assert shown == {"theirs": -signal.SIGTERM, "ours": -signal.SIGTERM}


def wait_for_file(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until the command has its target open: it is in the middle then."""
    links = Path(f"/proc/{process.pid}/fd")
    while process.poll() is None:
        for link in links.iterdir():
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith(str(folder)) and not target.endswith("big.raw"):
                return
    raise AssertionError("it ended")


@pytest.mark.parametrize("words", [["-O", "raw"], ["-O", "qcow2"], ["-O", "qcow2", "-c"]], ids=" ".join)
def test_a_full_disk_is_told_and_leaves_nothing(folder: Path, words: list[str]) -> None:
    with small_file_system(folder, 2 * MIB) as small:
        done = subprocess.run(
            [*OURS, "blockio-img", "convert", "-f", "raw", *words, "big.raw", small / "new"],
            cwd=folder, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("blockio-img: error while writing at byte ")
        assert done.stderr.endswith(": No space left on device\n")
        assert names_in(small) == []


def test_a_file_that_may_not_grow_is_told_and_removed(folder: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

    done = subprocess.run(
        [*OURS, "blockio-img", "convert", "-f", "raw", "-O", "qcow2", "big.raw", "new"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit,  # no thread runs here
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith(": File too large\n")
    assert names_in(folder) == ["big.raw"]


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("options", [[], ["-U"]], ids=["", "-U"])
def test_a_disk_that_another_is_writing_is_not_converted(folder: Path, options: list[str]) -> None:
    words = ["convert", "-f", "raw", *options, "-O", "raw", "big.raw", "new"]
    with QemuIo(folder / "big.raw", format="raw"):
        theirs = qemu_img(*words, check=False, cwd=folder)
        ours = subprocess.run(
            [*OURS, "qemu-img", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert ours.returncode == (0 if options else 1)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    "words",
    [
        ["-O", "raw", "big.raw", "big.raw"],
        ["-O", "qcow2", "big.raw", "big.raw"],
        ["-O", "raw", "big.raw", "hard.raw"],
        ["-O", "raw", "soft.raw", "big.raw"],
        ["-n", "-O", "raw", "big.raw", "big.raw"],
        ["-O", "raw", "big.raw", "/dev/full"],
        ["-n", "-O", "raw", "big.raw", "/dev/full"],
    ],
    ids=" ".join,
)
def test_a_disk_is_not_converted_onto_itself_nor_onto_what_takes_nothing(folder: Path, words: list[str]) -> None:
    os.link(folder / "big.raw", folder / "hard.raw")
    (folder / "soft.raw").symlink_to("big.raw")
    before = (folder / "big.raw").read_bytes()
    theirs = qemu_img("convert", "-f", "raw", *words, check=False, cwd=folder)
    ours = subprocess.run(
        [*OURS, "qemu-img", "convert", "-f", "raw", *words],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
    assert theirs.returncode == 1
    assert (folder / "big.raw").read_bytes() == before


def test_nobody_who_reads_the_progress_is_no_reason_to_fail(folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for words in (["-p"], ["--progress=jsonl"]):
            done = subprocess.run(
                [*OURS, "blockio-img", "convert", *words, "-f", "raw", "-O", "qcow2", "big.raw", "new"],
                cwd=folder, stdout=writing, stderr=writing, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0
    finally:
        os.close(writing)
    assert names_in(folder) == ["big.raw", "new"]


def test_a_terminal_that_is_closed_ends_the_command_cleanly(folder: Path) -> None:
    """Its hangup ends the process by SIGHUP, as it ends every other; nothing half-written is left."""
    ours, theirs = pty.openpty()
    reading, writing = os.pipe()
    with subprocess.Popen(
        [*OURS, "blockio-img", *CRAWLING, "--progress=jsonl", "-O", "raw", "big.raw", "new"],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=writing, start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509  # no thread runs here
    ) as process:  # fmt: skip
        os.close(theirs)
        os.close(writing)
        with open(reading, "rb") as stream:
            begun(stream)
            os.close(ours)
            assert process.wait(60) == -signal.SIGHUP
    assert names_in(folder) == ["big.raw"]


def take_terminal() -> None:
    import fcntl  # in the child alone
    import termios

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
