"""The manual: every option is in it, it is well-formed, and what it shows as examples works."""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from types import CodeType

import pytest

from blockio import img
from blockio.cli.bench.arguments import parser as bench_parser
from blockio.cli.img.commands import COMMANDS
from blockio.cli.io.language import commands as io_commands
from blockio.cli.io.options import OPTIONS as IO_OPTIONS
from blockio.cli.main import main
from blockio.cli.manual import files
from blockio.cli.manual.__main__ import main as write_manual
from blockio.cli.manual.prose import PROSE
from tests.support.qemu import qemu_img

DOCS = Path(__file__).parents[2] / "docs"


def test_every_command_and_option_is_told_of() -> None:
    pages = files()
    roff = {name: text.replace("\\-", "-") for name, text in pages.items() if name.startswith("man/")}
    for name, command in COMMANDS.items():
        assert command.summary, name
        assert PROSE[name].about, name
        page = pages[f"commands/img-{name}.md"]
        for option in command.options:
            assert f"| `{option.synopsis()}` |" in page, (name, option.names)
            assert f"\\fB{option.synopsis()}\\fR" in roff["man/blockio-img.1"], (name, option.names)
    for option in IO_OPTIONS:
        assert f"| `{option.synopsis()}` |" in pages["commands/io.md"]
    for io_command in io_commands():
        assert f"### {io_command.name}\n" in pages["commands/io.md"]
        assert f'.SS "{io_command.name}"\n' in roff["man/blockio-io.1"]
    for action in bench_parser("blockio bench")._actions:
        for name in action.option_strings:
            assert name in pages["commands/bench.md"]
            assert name in roff["man/blockio-bench.1"]


def test_whoever_makes_the_manual_finds_all_of_it_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "gone.md").write_text("a command that no longer is")
    (tmp_path / "other.md").write_text("not ours")
    write_manual(tmp_path)
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {*files(), "other.md"}


@pytest.mark.peer("groff")
@pytest.mark.parametrize("path", sorted((DOCS / "man").glob("*.1")), ids=lambda path: path.name)
def test_a_manual_page_is_good_roff(path: Path) -> None:
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    name = path.stem
    assert f"{name.upper()}(1)" in done.stdout
    assert f"{name} - " in " ".join(re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace("\u2010", "-").split())


def commands_of(text: str) -> Iterator[str]:
    for line in text.strip().splitlines():
        assert line.startswith(("blockio ", "qemu-img ")), line
        yield line


def run_line(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    status = main(shlex.split(line))
    shown = capfd.readouterr()
    assert status == 0, f"{line}\n{shown.out}{shown.err}"


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("page", sorted(name for name in files() if name.startswith("commands/")))
def test_the_examples_of_a_page_work(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "disk.qcow2", "4M")
    for block in re.findall(r"```sh\n(.*?)```", files()[page], re.DOTALL):
        for line in commands_of(block):
            run_line(line, capfd)


def compiled(code: str, where: str) -> CodeType:
    # As at a prompt of asyncio's: await stands at the top.
    made = compile(code, where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(made, CodeType)
    return made


def run_python(code: str, names: dict[str, object]) -> None:
    answer = eval(compiled(code, f"{code[:20]}…"), names)
    if isinstance(answer, Coroutine):
        asyncio.run(answer)


def test_the_calls_that_pages_show_are_calls_that_exist() -> None:
    for page, text in files().items():
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            for name in re.findall(r"\bimg\.(\w+)", block):
                assert hasattr(img, name), (page, name)
            compiled(block, page)


def test_the_page_for_users_of_qemu_img_holds_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "from-qemu-img.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "sh":
            for line in commands_of(block):
                run_line(line, capfd)
        elif language == "python":
            run_python(block, names)
    missing = [name for name, command in COMMANDS.items() if not command.own and f"`qemu-img {name}`" not in text]
    assert not missing, f"docs/from-qemu-img.md is silent about {missing}"
