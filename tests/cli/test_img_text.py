"""The pure parts of ``blockio img``: reading options, laying out text; and what it loads, catches and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blockio.cli.definitions import Option
from blockio.cli.img.commands import COMMANDS
from blockio.cli.img.getopt import CommandLine, UsageError
from blockio.cli.output import Output, human_size, json_pretty, json_string
from blockio.cli.progress import Bar, JsonLines, PercentLines, Watcher, _rich_bar, watcher
from blockio.img import Progress
from tests.support.imgtool import capture

TABLE = (
    Option("quiet", ("-q",)),
    Option("format", ("-f", "--format"), "fmt"),
    Option("force", ("--force",)),
    Option("output", ("--output",), "ofmt"),
)


def read(*words: str, in_front: bool = False) -> tuple[list[tuple[str, str]], list[str]]:
    line = CommandLine(TABLE, "info", words, in_front=in_front)
    return list(line), line.operands


@pytest.mark.parametrize(
    ("words", "options", "operands"),
    [
        (["-qf", "raw", "x"], [("quiet", ""), ("format", "raw")], ["x"]),
        (["-fraw", "x"], [("format", "raw")], ["x"]),
        (["x", "-q", "y"], [("quiet", "")], ["x", "y"]),
        (["--form=raw"], [("format", "raw")], []),
        (["--out", "json"], [("output", "json")], []),
        (["--", "-q"], [], ["-q"]),
        (["-"], [], ["-"]),
        (["-f", "--"], [("format", "--")], []),
    ],
)
def test_words_are_options_and_operands(words: list[str], options: list[tuple[str, str]], operands: list[str]) -> None:
    assert read(*words) == (options, operands)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-z"], "unrecognized option '-z'"),
        (["-zq"], "unrecognized option 'info'"),
        (["a", "-zq"], "unrecognized option 'a'"),
        (["-q", "-zq"], "unrecognized option '-q'"),
        (["-qz"], "unrecognized option '-qz'"),
        (["--fo"], "unrecognized option '--fo'"),
        (["--force=1"], "unrecognized option '--force=1'"),
        (["-qf"], "missing argument for option '-qf'"),
        (["--format"], "missing argument for option '--format'"),
    ],
)
def test_wrong_words_are_named_as_the_c_library_stands_at_them(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*words)
    assert str(caught.value) == complaint


def test_options_may_have_to_stand_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read("x", "-q", in_front=True) == ([], ["x", "-q"])
    monkeypatch.setenv("POSIXLY_CORRECT", "1")
    assert read("x", "-q") == ([], ["x", "-q"])


def test_no_two_options_of_a_command_share_a_name() -> None:
    for name, command in COMMANDS.items():
        names = [spelling for option in command.options for spelling in option.names]
        assert len(names) == len(set(names)), name
        for option in command.options:
            spelled = any(spelling in command.synopsis(own=True) for spelling in option.names)
            assert spelled or option.key == "help", f"the usage of {name} is silent about {option.names}"


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (1024000, "0.977 MiB"), (1 << 40, "1 TiB")],
)
def test_sizes_have_three_digits(nbytes: int, text: str) -> None:
    assert human_size(nbytes) == text


def test_json_is_ascii_and_takes_any_bytes() -> None:
    name = '\u00e9\x01\x7f"\\' + os.fsdecode(b"\xff") + "\U0001f600"
    assert json_string(name) == '"\\u00E9\\u0001\\u007F\\"\\\\\\uFFFD\\uD83D\\uDE00"'


def test_json_is_laid_out_as_people_know_it() -> None:
    value = {"a": 1, "list": [True, None], "empty": [], "map": {"b": "c"}}
    text = json_pretty(value)
    assert json.loads(text) == value
    assert text.splitlines()[:4] == ["{", '    "a": 1,', '    "list": [', "        true,"]
    assert '    "empty": [\n    ],' in text


# -- progress


def shown(kind: type[Watcher], steps: list[Progress], tmp_path: Path) -> tuple[str, str]:
    """What a watcher prints to (standard output, standard error) for *steps*."""
    out, err = tmp_path / "out", tmp_path / "err"
    kept = [os.dup(1), os.dup(2)]
    try:
        for fd, path in ((1, out), (2, err)):
            with path.open("wb") as file:
                os.dup2(file.fileno(), fd)
        output = Output("tool")
        # reason: the watchers are made of different things, which type[Watcher] cannot tell
        watch = PercentLines(output, 1.0) if kind is PercentLines else kind(output, "convert")  # type: ignore[call-arg]
        watch.begin()
        for step in steps:
            watch.observer(step)
        watch.end()
        output.flush()
    finally:
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
            os.close(old)
    return out.read_bytes().decode(), err.read_bytes().decode()


STEPS = [Progress(done, 200) for done in (1, 2, 3, 100, 101, 200)]


def test_percentages_are_those_scripts_wait_for(tmp_path: Path) -> None:
    out, err = shown(PercentLines, STEPS, tmp_path)
    parts = ("0.00", "1.50", "50.00", "100.00")
    assert out == "".join(f"    ({part}/100%)\r" for part in parts) + "\n"
    assert err == ""


def test_json_lines_tell_programs_how_it_goes_and_how_it_ended(tmp_path: Path) -> None:
    out, err = shown(JsonLines, STEPS, tmp_path)
    events = [json.loads(line) for line in err.splitlines()]
    assert out == ""
    assert events[0]["done"] == 1
    assert events[-1] == {
        "event": "progress",
        "command": "convert",
        "done": 200,
        "total": 200,
        "rate": 0,
        "remaining": None,
        "bottleneck": None,
    }


def test_a_bar_does_not_appear_for_what_is_done_at_once(tmp_path: Path) -> None:
    assert shown(Bar, STEPS, tmp_path) == ("", "")


def test_a_signal_asks_for_the_percentage(tmp_path: Path) -> None:
    err = tmp_path / "err"
    kept = os.dup(2)
    try:
        with err.open("wb") as file:
            os.dup2(file.fileno(), 2)
        with watcher(Output("qemu-img"), "convert", percent=False, style=None, least_step=1.0) as watch:
            watch.observer(Progress(1, 4))
            signal.raise_signal(signal.SIGUSR1)
            watch.observer(Progress(2, 4))
            watch.observer(Progress(3, 4))
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert err.read_bytes() == b"    (50.00/100%)\r"


# -- the process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an image in it, and one beside it for what is printed."""
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "aside").mkdir()
    said = capture(["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"], work, tmp_path / "aside")
    assert said == (0, "", "")
    return work


def test_messages_begin_with_the_name_the_tool_was_called_by(folder: Path) -> None:
    for prog in ("blockio img", "qemu-img"):
        said = capture(["info", "nope"], folder, folder.parent / "aside", prog)
        assert said.err == f"{prog}: Could not open 'nope': Could not open 'nope': No such file or directory\n"


def test_help_names_every_command_and_option(folder: Path) -> None:
    said = capture(["--help"], folder, folder.parent / "aside", "blockio img")
    assert said.status == 0
    for name, command in COMMANDS.items():
        assert f"\n  {name} {command.synopsis(own=True)}\n" in said.out
        assert command.summary in said.out
        assert all(", ".join(option.names) in said.out for option in command.options)
    aside = folder.parent / "aside"
    theirs = capture(["--help"], folder, aside, "qemu-img")
    assert capture(["info", "-h"], folder, aside, "qemu-img") == theirs


def test_by_our_own_name_the_help_of_a_command_is_about_that_command(folder: Path) -> None:
    for name, command in COMMANDS.items():
        said = capture([name, "--help"], folder, folder.parent / "aside", "blockio img")
        assert (said.status, said.err) == (0, "")
        usage, what, options, _ = said.out.split("\n\n")
        assert " ".join(usage.split()) == f"usage: blockio img {name} {command.synopsis(own=True)}"
        assert what[1:] == f"{command.summary[1:]}."
        for line, option in zip(options.splitlines(), command.options, strict=True):
            assert line == f"  {option.synopsis():<30} {option.help}"


def test_by_the_name_of_the_other_tool_there_is_nothing_of_our_own(folder: Path) -> None:
    aside = folder.parent / "aside"
    shown = capture(["--help"], folder, aside, "qemu-img").out
    for name, command in COMMANDS.items():
        if command.own:
            assert capture([name], folder, aside, "qemu-img").err.startswith(f"qemu-img: Command not found: {name}\n")
            continue
        for option in command.options:
            if option.own:
                said = capture([name, option.names[-1], "x", "a", "b"], folder, aside, "qemu-img")
                assert (said.status, said.err.splitlines()[0]) == (
                    1,
                    f"qemu-img: unrecognized option '{option.names[-1]}'",
                )
                described = shown.partition(f"\nOptions of {name} ")[2].partition("\n\n")[0]
                assert option.names[-1] not in command.synopsis(own=False) + described
    assert "{own}" not in shown


def test_a_style_of_progress_that_nobody_has_is_refused(folder: Path) -> None:
    said = capture(["convert", "--progress=loud", "a", "b"], folder, folder.parent / "aside", "blockio img")
    assert said.status == 1
    assert said.err == "blockio img: --progress must be used with auto, bar, jsonl or none as argument.\n"


@pytest.mark.parametrize(("columns", "rate"), [(40, False), (80, True), (200, True)])
def test_a_bar_fits_on_one_line_of_the_terminal(columns: int, rate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    bar, task = _rich_bar("convert")
    bar.update(task, completed=123 << 30, total=456 << 30, waits="source")
    table = bar.make_tasks_table(bar.tasks)
    lines = ["".join(segment.text for segment in line) for line in bar.console.render_lines(table)]
    bar.stop()
    assert len(lines) == 1
    assert "…" not in lines[0]
    assert ("GiB" in lines[0]) is rate
    assert "27%" in lines[0]


def test_progress_for_programs_goes_to_standard_error(folder: Path) -> None:
    said = capture(
        ["convert", "--progress=jsonl", "disk.qcow2", "disk.raw"], folder, folder.parent / "aside", "blockio img"
    )
    assert said.out == ""
    last = json.loads(said.err.splitlines()[-1])
    assert last["done"] == last["total"]


def run_python(code: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, capture_output=True, text=True, check=False)


HEAVY = (
    "rich",
    "uvloop",
    "anyio",
    "argparse",
    "importlib.metadata",
    "email",
    "numpy",
    "hypothesis",
    "zstandard",
    "isal",
)


@pytest.mark.parametrize("line", ["info disk.qcow2", "info --output=json disk.qcow2", "map disk.qcow2", "--help"])
def test_a_command_loads_only_what_it_needs(line: str, folder: Path) -> None:
    code = (
        "import sys\nfrom blockio.cli.img import main\n"
        "status = main(sys.argv[1:], 'x')\nsys.stderr.write(' '.join(sys.modules))\nsys.exit(status)\n"
    )
    done = run_python(code, *line.split(), cwd=folder)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    allowed = {"importlib.metadata", "email"} if line == "--help" else set()
    assert not loaded & (set(HEAVY) - allowed)
    if line.startswith("info"):
        assert not any(name.startswith(("blockio.img.copying", "blockio.img.comparing")) for name in loaded)


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    code = (
        "import os, sys\nfrom blockio.cli.img import main\n"
        "r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        "sys.exit(main(['info', 'disk.qcow2'], 'x'))\n"
    )
    done = run_python(code, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_cleans_up_and_ends_the_process_by_its_signal(folder: Path) -> None:
    # A rate that never lets the second piece through: the interrupt comes while the copy waits.
    with (folder / "big.raw").open("wb") as file:
        file.write(b"x" * (8 << 20))
    code = "from blockio.cli.main import main\nimport sys\nsys.exit(main(['blockio-img', *sys.argv[1:]]))\n"
    words = ["convert", "-f", "raw", "--progress=jsonl", "-r", "1", "big.raw", "target.raw"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stderr is not None
        assert b'"event"' in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT
    assert sorted(path.name for path in folder.iterdir()) == ["big.raw", "disk.qcow2"]
