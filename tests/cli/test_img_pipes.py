"""``-``: standard input and output in the place of images, with real processes."""

from __future__ import annotations

import hashlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.qemu import assert_clean, pattern, qemu_img

MIB = 1 << 20
OURS = [sys.executable, "-c", "import sys\nfrom blockio.cli.main import main\nsys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "big.raw").write_bytes(pattern(3 * MIB))
    os.truncate(tmp_path / "big.raw", 8 * MIB)
    return tmp_path


def img(folder: Path, *words: str, prog: str = "blockio-img", data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*OURS, prog, *words], cwd=folder, input=data, capture_output=True, timeout=60, check=False)


@pytest.mark.peer("qemu-img")
def test_an_image_goes_from_command_to_command(folder: Path) -> None:
    streamed = img(folder, "convert", "-f", "raw", "-O", "qcow2", "--digest", "big.raw", "-")
    digest = hashlib.sha256((folder / "big.raw").read_bytes()).hexdigest()
    assert (streamed.returncode, streamed.stderr.decode()) == (0, f"{digest}  -\n")
    (folder / "x.qcow2").write_bytes(streamed.stdout)
    assert_clean(folder / "x.qcow2")
    back = img(folder, "convert", "-f", "qcow2", "-O", "raw", "-", "-", data=streamed.stdout)
    assert (back.returncode, back.stderr) == (0, b"")
    assert back.stdout == (folder / "big.raw").read_bytes()
    new = img(folder, "create", "-f", "qcow2", "-", "1G")
    (folder / "new.qcow2").write_bytes(new.stdout)
    assert_clean(folder / "new.qcow2")


@pytest.mark.peer("qemu-img")
def test_what_comes_from_a_pipe_goes_into_a_data_file_too(folder: Path) -> None:
    content = (folder / "big.raw").read_bytes()
    words = ["convert", "-f", "raw", "-O", "qcow2", "-o", f"data_file={folder}/new.data", "-", "new.qcow2"]
    assert img(folder, *words, "--spool-limit=1k", data=content).returncode == 1
    assert [path.name for path in folder.iterdir()] == ["big.raw"]
    assert img(folder, *words, data=content).returncode == 0
    assert_clean(folder / "new.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", folder / "big.raw", folder / "new.qcow2")


def test_by_the_name_of_the_other_tool_it_is_a_file_like_any_other(folder: Path) -> None:
    said = img(folder, "convert", "-f", "raw", "big.raw", "-", prog="qemu-img")
    assert (said.returncode, said.stdout) == (0, b"")
    assert (folder / "-").read_bytes() == (folder / "big.raw").read_bytes()
    assert img(folder, "create", "-f", "raw", "-", "1M", prog="qemu-img").stdout == (
        b"Formatting '-', fmt=raw size=1048576\n"
    )


def test_what_makes_no_sense_is_said(folder: Path) -> None:
    for words, message in (
        (["convert", "-p", "big.raw", "-"], "--progress shows progress on standard error"),
        (["convert", "-", "-", "x"], "Standard input can be read only once"),
        (["convert", "-c", "-O", "qcow2", "big.raw", "-"], "Compression cannot be had"),
        (["convert", "-f", "raw", "--spool-limit=1k", "-", "x"], "More than 1024 bytes came out of the pipe"),
        (["convert", "--spool-limit=1x", "-", "x"], "Invalid spool limit specified"),
    ):
        said = img(folder, *words, data=bytes(4096))
        assert said.returncode == 1
        assert message in said.stderr.decode()
        assert said.stdout == b""
    assert [path.name for path in folder.iterdir()] == ["big.raw"]


def test_an_image_is_not_thrown_at_a_terminal(folder: Path) -> None:
    near, far = pty.openpty()
    try:
        done = subprocess.run(
            [*OURS, "blockio-img", "convert", "big.raw", "-"],
            cwd=folder, stdout=far, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(near)
        os.close(far)
    assert done.returncode == 1
    assert done.stderr == b"blockio-img: Standard output is a terminal, which is no place for an image\n"


@pytest.mark.parametrize("words", [["convert", "-f", "raw", "-O", "qcow2", "big.raw", "-"], ["create", "-", "1G"]])
def test_a_reader_who_leaves_ends_the_command_as_every_other(folder: Path, words: list[str]) -> None:
    with subprocess.Popen(
        [*OURS, "blockio-img", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.wait(60) == -signal.SIGPIPE
        assert process.stderr.read() == b""


def test_a_signal_ends_a_command_whose_reader_sleeps(folder: Path) -> None:
    with subprocess.Popen([*OURS, "blockio-img", "convert", "big.raw", "-"], cwd=folder, stdout=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stdout.read(1)
        it.send_signal(signal.SIGTERM)
        assert it.wait(60) == -signal.SIGTERM


def test_a_signal_ends_a_command_whose_writer_sleeps(folder: Path) -> None:
    out, into = os.pipe()
    temporary = folder / "tmp"
    temporary.mkdir()
    try:
        with subprocess.Popen(
            [*OURS, "blockio-img", "convert", "-f", "raw", "-", "new"],
            cwd=folder, stdin=out, env={**os.environ, "TMPDIR": str(temporary)},
        ) as process:  # fmt: skip
            os.close(out)
            os.write(into, bytes(4096))
            wait_for_room(into)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM
    finally:
        os.close(into)
    assert [path.name for path in temporary.iterdir()] == []
    assert sorted(path.name for path in folder.iterdir()) == ["big.raw", "tmp"]


def wait_for_room(fd: int) -> None:
    """Until the other end has begun to read: more goes in than a pipe holds."""
    for _ in range(64):
        os.write(fd, bytes(65536))
