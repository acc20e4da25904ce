"""Completion, by the shells that do it."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from blockio.cli.completion import main
from blockio.cli.img.commands import COMMANDS
from blockio.cli.io.options import OPTIONS
from blockio.cli.main import main as blockio
from blockio.driver.registry import driver_names


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Path:
    """What ``blockio completion`` prints for the shell that is the test's parameter."""
    assert blockio(["blockio", "completion", request.param]) == 0
    path = tmp_path / "completion"
    path.write_text(capsys.readouterr().out)
    return path


def ask_bash(script: Path, *lines: list[str]) -> list[list[str]]:
    """What bash proposes for the last word of each line; words are split as bash splits them, at ``=`` too."""
    calls = "".join(
        f'COMP_WORDS=({shlex.join(line)}) COMP_CWORD={len(line) - 1}; _blockio; echo "${{COMPREPLY[*]}}"\n'
        for line in lines
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", f"source {shlex.quote(str(script))}\n{calls}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.peer("bash")
@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes(script: Path) -> None:
    questions = {
        "blockio|": ["img", "io", "bench", "completion"],
        "blockio|i": ["img", "io"],
        "blockio|--v": ["--version"],
        "blockio|img|co": ["commit", "compare", "convert"],
        "/usr/bin/blockio-img|inf": ["info"],
        "blockio|img|-V": ["-V"],
        "blockio|img|convert|-O|q": ["qcow2"],
        "blockio|img|-T|x": [],
        "blockio|img|convert|disk|": [],
        "blockio|img|convert|-f|raw|--dig": ["--digest"],
        "blockio|img|convert|--digest|=|sha512": ["sha512", "sha512-64k"],
        "blockio|img|convert|--digest|=": ["blake2b", "blake2b-64k", "blake2s", "md5", "sha1", "sha224", "sha256",
                                          "sha256-64k", "sha3-256", "sha3-512", "sha384", "sha512", "sha512-64k"],
        "blockio|img|convert|--digest|": [],
        "blockio|img|info|--output|=|j": ["json"],
        "blockio|img|info|--output|": ["human", "json"],
        "blockio-io|-t|wr": ["writeback", "writethrough"],
        "blockio|io|--read": ["--read-only"],
        "blockio|bench|--lane|f": ["fast"],
        "blockio|completion|": ["bash", "fish", "zsh"],
        "blockio|nothing|-": [],
    }  # fmt: skip
    answers = ask_bash(script, *(question.split("|") for question in questions))
    assert dict(zip(questions, answers, strict=True)) == questions


@pytest.mark.peer("bash")
@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_knows_every_option_of_every_command(script: Path) -> None:
    lines = [["blockio", "img", name, "-"] for name in COMMANDS]
    for answer, command in zip(ask_bash(script, *lines), COMMANDS.values(), strict=True):
        assert answer == [name for option in command.options for name in option.names]
    io, formats = ask_bash(script, ["blockio", "io", "-"], ["blockio", "io", "-f", ""])
    assert io == [name for option in OPTIONS for name in option.names]
    assert formats == driver_names()


@pytest.mark.peer("fish")
@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes(script: Path, tmp_path: Path) -> None:
    questions = {
        "blockio i": ["img", "io"],
        "blockio img co": ["commit", "compare", "convert"],
        "blockio img convert -O q": ["qcow2"],
        "blockio img convert --dig": ["--digest"],
        "blockio-img map --pic": ["--picture"],
        "blockio img info --output=": ["--output=human", "--output=json"],
        "blockio completion ": ["bash", "fish", "zsh"],
    }
    asked = "".join(f"complete -C {shlex.quote(question)}; echo ---\n" for question in questions)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {shlex.quote(str(script))}\n{asked}"],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    *answers, _ = done.stdout.split("---\n")
    shown = [sorted(line.partition("\t")[0] for line in answer.splitlines()) for answer in answers]
    assert dict(zip(questions, shown, strict=True)) == questions


# Completion happens only while a line is edited: so each prompt finds a question on its line, writes down what is
# proposed for it, and goes on to the next one.
_ZSHRC = """
PS1= PS2=
autoload -Uz compinit; compinit -u -D
source $SCRIPT
exec 9>$ANSWERS
compadd() {
    # With one of these it only sorts out words for its caller.
    local first=${@[(i)-[OAD]*]} last=${@[(i)(-|--)]}
    if (( first <= $# && first < last )); then builtin compadd "$@"; return; fi
    local -a hits
    builtin compadd -O hits "$@"
    (( $#hits )) && print -rl -u9 -- $hits
    builtin compadd "$@"
}
zle -C ask complete-word _ask
_ask() { _main_complete "$@"; compstate[insert]="" compstate[list]="" }
questions=("${(@f)QUESTIONS}")
zle-line-init() {
    if (( $#questions )); then
        BUFFER=$questions[1] CURSOR=$#questions[1]
        shift questions
        zle ask
        print -u9 -- ---
        BUFFER=
    else
        BUFFER=exit
    fi
    zle accept-line
}
zle -N zle-line-init
"""


@pytest.mark.peer("zsh")
@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_completes(script: Path, tmp_path: Path) -> None:
    questions = {
        "blockio ": ["bench", "completion", "img", "io"],
        "blockio i": ["img", "io"],
        "blockio --v": ["--version"],
        "blockio img co": ["commit", "compare", "convert"],
        "blockio img convert -O q": ["qcow2"],
        "blockio img convert -Or": ["raw"],
        "blockio img convert -f raw --dig": ["--digest"],
        "blockio img convert --digest=sha512": ["sha512", "sha512-64k"],
        "blockio img info --output=": ["human", "json"],
        "blockio img info --output j": ["json"],
        "blockio img info scr": ["script"],
        "/usr/bin/blockio-img map --pic": ["--picture"],
        "blockio-io -t wr": ["writeback", "writethrough"],
        "blockio bench --lane f": ["fast"],
        "blockio completion ": ["bash", "fish", "zsh"],
    }
    (tmp_path / ".zshrc").write_text(_ZSHRC)
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "script").touch()
    answers = tmp_path / "answers"
    environment = {"HOME": tmp_path, "PATH": "/usr/bin:/bin", "TERM": "dumb", "SCRIPT": script, "ANSWERS": answers}
    shown = _on_a_terminal(["zsh", "-d", "-i"], folder, environment | {"QUESTIONS": "\n".join(questions)})
    *found, _ = answers.read_text().split("---\n")
    assert dict(zip(questions, (sorted(set(answer.split())) for answer in found), strict=True)) == questions, shown


def _on_a_terminal(argv: list[str], folder: Path, environment: dict[str, Any]) -> bytes:
    """Run *argv* to its end; what it showed."""
    ours, theirs = pty.openpty()
    shown = b""
    with subprocess.Popen(
        argv, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as shell:
        os.close(theirs)
        patience = threading.Timer(60, shell.kill)  # whatever it would wait for then will not come
        patience.start()
        # EIO is how a terminal says that nobody is on the other side.
        with suppress(OSError):
            while chunk := os.read(ours, 4096):
                shown += chunk
        patience.cancel()
        assert shell.wait() == 0, shown
    os.close(ours)
    return shown


def test_other_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["tcsh"], ["bash", "fish"]):
        assert main(words, "blockio completion") == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("Usage: blockio completion bash | fish | zsh\n")
    assert main(["--help"], "blockio completion") == 0
    assert capsys.readouterr().out.startswith("Usage: blockio completion bash | fish | zsh\n")
