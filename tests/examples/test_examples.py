"""The examples run, and what they show as drivers keeps the promises of drivers."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from blockio.driver.registry import register, unregister
from blockio.testing.conformance import MakeDisk, Traits, check_driver
from tests.support.qemu import assert_clean, qemu_img_json

EXAMPLES = Path(__file__).parents[2] / "examples"
PLUGIN = EXAMPLES / "plugin_driver"


def run(*argv: object, path: Path | None = None) -> str:
    """What a Python program prints; *path* is importable for it."""
    environment = {"PYTHONPATH": str(path)} if path else {}
    words = [sys.executable, *map(str, argv)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(path: Path, name: str) -> ModuleType:
    """The module in the file *path*."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def concat() -> Iterator[None]:
    """The plugin's driver, as a program that does not install it would use it."""
    driver = load(PLUGIN / "blockio_concat" / "__init__.py", "blockio_concat").ConcatDriver
    register(driver)
    yield
    unregister(driver)


@pytest.fixture
def xor() -> Iterator[None]:
    driver = load(EXAMPLES / "xor_filter.py", "xor_filter").XorFilter
    register(driver)
    yield
    unregister(driver)


def files(tmp_path: Path, shape: Mapping[str, Any], *names: str) -> MakeDisk:
    """Disks of *shape* whose children *names* are files that share the length."""
    numbers = itertools.count()

    async def make(length: int) -> Mapping[str, Any]:
        options = dict(shape)
        for name in names:
            path = tmp_path / f"{name}{next(numbers)}"
            with path.open("wb") as file:
                file.truncate(length // len(names))
            options[name] = {"driver": "file", "filename": str(path)}
        return options

    return make


def test_quickstart(tmp_path: Path) -> None:
    shown = run(EXAMPLES / "quickstart.py", tmp_path / "disk.qcow2")
    assert shown.splitlines() == [
        "disk.qcow2: 64 MiB",
        "drained, 0 requests in flight",
        "task 7 was here",
        "read-only: Operation not permitted",
    ]


def test_filter_as_a_program() -> None:
    assert run(EXAMPLES / "xor_filter.py").startswith("above: b'in the clear'\nbelow: b'CD")


def test_the_plugin_is_found_through_its_entry_point(tmp_path: Path) -> None:
    """Laid out as an installer would: the package, and beside it what it declares."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    (tmp_path / "blockio_concat").symlink_to(PLUGIN / "blockio_concat")
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["blockio.drivers"]
    (info / "entry_points.txt").write_text(
        "[blockio.drivers]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
    )
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1" * 4096)
    two.write_bytes(b"2" * 4096)
    options = {
        "driver": "concat",
        "file": {"driver": "file", "filename": str(one)},
        "second": {"driver": "file", "filename": str(two)},
    }
    program = f"""
import asyncio, blockio
async def main():
    async with blockio.open(options={json.dumps(options)}) as disk:
        memory = bytearray(4)
        await disk.co_preadv(4094, memory)
        print(disk.getlength(), memory.decode())
asyncio.run(main())
"""
    assert run("-c", program, path=tmp_path) == "8192 1122\n"


def test_the_plugin_is_some_thirty_lines() -> None:
    lines = (PLUGIN / "blockio_concat" / "__init__.py").read_text().partition("class ConcatDriver")[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 30


async def test_the_plugin_conforms(tmp_path: Path, concat: None) -> None:
    report = await check_driver(files(tmp_path, {"driver": "concat"}, "file", "second"), Traits(resizable=False))
    assert report.ok, f"\n{report}"


def test_the_plugin_survives_crashes_faults_and_cancellations() -> None:
    shown = run(PLUGIN / "explore.py").splitlines()
    assert shown[0].endswith("(all there are): 0 bad")
    assert shown[1].endswith("faults: 0 badly met")
    assert shown[2].endswith(" cancellations")


def test_measuring() -> None:
    head, _, line, *latencies = run(EXAMPLES / "measure.py", 200, 2).splitlines()
    assert head.startswith("workload ")
    assert line.startswith("4 KiB random writes, QD 8  raw ")
    assert [words.partition(":")[0] for words in latencies] == ["raw", "qcow2"]


@pytest.mark.peer("qemu-img")
def test_the_vm_manager(tmp_path: Path) -> None:
    """A snapshot, a stop and a resumption; every image is clean, and the overlay stands on what it was taken of."""
    shown = run(EXAMPLES / "vm_manager.py", tmp_path, "--writes", "90")
    lines = [line for line in shown.splitlines() if line.startswith("vm1")]
    assert lines == [
        "vm1: write failed, No space left on device: stopping",
        "vm1: stopped (io-error); making room",
        "vm1: goes on",
    ]
    assert "vm0: snapshot taken at write " in shown
    assert shown.endswith("3 machines wrote 270 blocks, and all are there\n")
    for image in ("vm0", "vm1", "vm2", "vm0.1"):
        assert_clean(tmp_path / f"{image}.qcow2")
    info = qemu_img_json("info", "--backing-chain", tmp_path / "vm0.1.qcow2")
    assert [Path(layer["filename"]).name for layer in info] == ["vm0.1.qcow2", "vm0.qcow2"]


@pytest.mark.peer("qemu-img")
def test_the_vm_manager_interrupted(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the writes: said, counted in the exit status, and the images are clean."""
    words = [sys.executable, str(EXAMPLES / "vm_manager.py"), str(tmp_path), "--writes", "30000"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        images = [tmp_path / f"vm{number}.qcow2" for number in range(3)]
        while not all(image.exists() and image.stat().st_size > 1 << 20 for image in images):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert out.endswith("interrupted: the machines are stopped and their disks closed\n")
    for image in images:
        assert_clean(image)


async def test_the_filter_conforms(tmp_path: Path, xor: None) -> None:
    report = await check_driver(
        files(tmp_path, {"driver": "xor", "key": 42}, "file"), Traits(reads_zero=False, resizable=False)
    )
    assert report.ok, f"\n{report}"


@pytest.mark.peer("qemu-img")
def test_the_program_in_the_readme_runs(tmp_path: Path) -> None:
    program = re.search(r"^```python\n(.*?)^```", (EXAMPLES.parent / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert program is not None
    done = subprocess.run([sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_clean(tmp_path / "new.qcow2")


def test_the_recording_in_the_readme_is_what_the_commands_print() -> None:
    recording = load(EXAMPLES / "recording.py", "recording")
    entries = list(recording.record())
    assert "recording.svg" in (EXAMPLES.parent / "README.md").read_text()
    shown = _on_screen(recording.TARGET.read_text())
    # How much of the storage a file takes is the file system's business.
    assert _portable(_on_screen(recording.picture(iter(entries)))) == _portable(shown)
    for command, printed in entries:
        assert f"$ {command}" in shown
        assert all(line.rstrip() in shown for line in printed.splitlines())


def _on_screen(svg: str) -> list[str]:
    """The lines of a terminal that is drawn in *svg*."""
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")
    lines: dict[str, str] = {}
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if clip := element.get("clip-path"):
            lines[clip] = lines.get(clip, "") + (element.text or "").replace("\xa0", " ")
    return [line.rstrip() for line in lines.values()]


def _portable(lines: list[str]) -> list[str]:
    return [re.sub(r"[\d.]+ [KMG]iB on disk", "SIZE on disk", line) for line in lines]
