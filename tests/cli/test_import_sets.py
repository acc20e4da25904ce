"""Start-up is what is imported: each command loads the drivers of its images and nothing heavy that it does not use.

Sets are compared, not times, so that a busy machine changes nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support.qemu import pattern

# Modules that cost tens of milliseconds or more, or stand for a package that does.
_HEAVY: Final = frozenset(
    (
        "aiofiles",
        "anyio",
        "argparse",
        "concurrent.futures.process",
        "cryptography",
        "email",
        "importlib.metadata",
        "isal",
        "matplotlib",
        "multiprocessing",
        "numpy",
        "readline",
        "rich",
        "tempfile",
        "uvloop",
        "zstandard",
    )
)
_FILE: Final = {"file", "posix"}
_RAW: Final = _FILE | {"raw"}
_QCOW2: Final = _FILE | {"qcow2"}
_BOTH: Final = _RAW | _QCOW2
_PLAIN: Final = frozenset(("_bisect", "_queue", "bisect", "gc", "mmap", "queue"))
"""What a plain command may load beside this project's modules, and what ``import asyncio, msgspec`` has loaded."""
_RING: Final = frozenset(
    ("_ctypes", "blockio.aio.merging", "blockio.aio.registered", "blockio.aio.uring", "ctypes", "ctypes._endian")
)
"""What the first request loads that the page cache cannot serve: who knows when the machine empties it."""
_METADATA: Final = {"importlib.metadata", "email", "tempfile"}  # which imports the other two
_SECRET: Final = "--object secret,id=s,data=x"

_PROBE: Final = """\
import sys
from blockio.cli.main import main
status = main(sys.argv[1:])
sys.stderr.write("\\n" + " ".join(sys.modules))
sys.exit(status)
"""


def _loaded(words: list[str], folder: Path) -> set[str]:
    """The modules that the command *words* has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.rpartition("\n")[2].split())


def _drivers(loaded: set[str]) -> set[str]:
    """The packages and modules of drivers: ``qcow2``, ``filters.throttle``."""
    found = {name.removeprefix("blockio_drivers.") for name in loaded if name.startswith("blockio_drivers.")}
    return {name for name in found if name.startswith("filters.") or ("." not in name and name != "filters")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``disk.raw``, and the same as ``disk.qcow2``, ``packed.qcow2`` (zlib) and ``overlay.qcow2``."""
    from blockio.cli.main import main  # in this process nothing is looked at

    folder = tmp_path_factory.mktemp("imports")
    raw = folder / "disk.raw"
    raw.write_bytes(pattern(256 << 10))
    for words in (
        f"img convert -f raw -O qcow2 {raw} {folder}/disk.qcow2",
        f"img convert -c -f raw -O qcow2 {raw} {folder}/packed.qcow2",
        f"img create -q -f qcow2 -b {raw} -F raw {folder}/overlay.qcow2",
        f"img create -q -f raw {folder}/grows.raw 1M",
        f"img create -q {_SECRET} -f luks -o key-secret=s,iter-time=10 {folder}/disk.luks 64k",
    ):
        assert main(["blockio", *words.split()]) == 0
    return folder


@pytest.mark.parametrize(
    ("line", "drivers", "heavy"),
    [
        ("--help", set(), set()),
        ("--version", set(), _METADATA),
        ("img --help", set(), _METADATA),
        ("img info disk.qcow2", _QCOW2, set()),
        ("img info --output=json disk.raw", _RAW, set()),
        ("img digest disk.qcow2", _QCOW2, set()),
        ("img inspect disk.qcow2", _QCOW2, set()),
        ("img info --backing-chain overlay.qcow2", _BOTH, set()),
        ("img check disk.qcow2", _QCOW2, set()),
        ("img map overlay.qcow2", _BOTH, set()),
        ("img compare disk.raw disk.qcow2", _BOTH, set()),
        ("img create -f raw new.raw 1M", _RAW, set()),
        ("img create -f qcow2 new.qcow2 1M", _QCOW2, set()),
        ("img resize -f raw grows.raw 2M", _RAW, set()),
        ("img convert -f raw -O qcow2 disk.raw copy.qcow2", _BOTH, set()),
        ("img convert -c -f raw -O qcow2 disk.raw copied.qcow2", _BOTH, {"isal"}),
        ("img convert -f qcow2 -O raw packed.qcow2 unpacked.raw", _BOTH, {"isal"}),
        ("img snapshot -l disk.qcow2", _QCOW2, set()),
        ("img measure -O qcow2 -f raw disk.raw", _BOTH, set()),
        ("img dd if=disk.raw of=dd.raw bs=64k", _RAW, set()),
        ("img bench -f raw -c 10 disk.raw", _RAW, {"uvloop"}),
        (f"img info {_SECRET} --image-opts driver=luks,key-secret=s,file.filename=disk.luks",
         _FILE | {"crypto", "luks"}, {"cryptography"}),
        ("io -r -f qcow2 disk.qcow2 -c length", _QCOW2, set()),
        ("io --image-opts driver=throttle,throttle-group=g,file.driver=null-co,file.size=1M -c length"
         " --object throttle-group,id=g", {"filters.throttle", "null"}, set()),
        ("bench -f raw --size 1M --count 10 --rounds 1 --peers none", _RAW, {"argparse", "uvloop", *_METADATA}),
        ("bench --list", set(), {"argparse", *_METADATA}),
    ],
)  # fmt: skip
def test_a_command_loads_its_drivers_and_nothing_heavy(
    line: str, drivers: set[str], heavy: set[str], folder: Path
) -> None:
    loaded = _loaded(["blockio", *line.split()], folder)
    assert _drivers(loaded) == drivers
    assert loaded & _HEAVY <= heavy, "heavier than it was"
    tool = line.split(maxsplit=1)[0]
    others = {"img", "io", "bench"} - {tool} - ({"img"} if tool == "bench" else set())
    assert not {f"blockio.cli.{other}.tool" for other in others} & loaded, "another tool came along"


@pytest.fixture(scope="module")
def beneath() -> set[str]:
    """What is loaded when asyncio and msgspec are."""
    probe = "import asyncio, msgspec, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "most"),
    [
        ("img info disk.raw", 116),
        ("img info disk.qcow2", 144),
        ("img check disk.qcow2", 145),
        ("img map disk.qcow2", 140),
        ("img compare disk.raw disk.qcow2", 144),
        ("img convert -f raw -O qcow2 disk.raw plain.qcow2", 160),
        ("img convert -f qcow2 -O raw disk.qcow2 plain.raw", 157),
    ],
)
def test_a_plain_command_loads_no_more_than_it_did(line: str, most: int, folder: Path, beneath: set[str]) -> None:
    """A module takes 0.15 to 1 ms. Where a limit is in the way: import where it is used what these do not need."""
    loaded = _loaded(["blockio", *line.split()], folder) - _RING
    ours = {name for name in loaded if name.partition(".")[0] in ("blockio", "blockio_drivers")}
    assert len(ours) <= most, sorted(ours)
    assert loaded - ours - beneath <= _PLAIN
