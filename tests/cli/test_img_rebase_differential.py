"""``rebase`` beside the real qemu-img's; see ``test_img_differential``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.imgcases import named, scripts
from tests.support.imgtool import run_both
from tests.support.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

LONG = "n" * 1023

REBASE = f"""
rebase
rebase top.qcow2
rebase -b
rebase -b other.qcow2 -F qcow2
rebase -b other.qcow2 -F qcow2 top.qcow2 mid.qcow2
rebase -b other.qcow2 -F qcow2 nope
rebase -b nope -F qcow2 top.qcow2
rebase -u -b nope -F qcow2 top.qcow2
rebase -u -b nope top.qcow2
rebase -u top.qcow2
rebase -u -F raw top.qcow2
rebase -u -b '' top.qcow2
rebase -u -b '' -F raw top.qcow2
rebase -u -b nope -F foo top.qcow2
rebase -u -b {LONG} -F raw top.qcow2
rebase -u -b {LONG}n -F raw top.qcow2
rebase -u -b {LONG} -F raw small.qcow2
rebase -u -b {"n" * 360} -F raw small.qcow2 ; rebase -u -b m -F luks small.qcow2
rebase -u -b nope -F qcow2 old.qcow2 ; rebase -u old.qcow2
rebase -u -b nope -F qcow2 wide.qcow2 ; rebase -u wide.qcow2
rebase -u -b base.raw -F raw broken.qcow2
rebase -b base.raw -F raw broken.qcow2
rebase -b other.qcow2 -F qcow2 top.qcow2
rebase -b other.qcow2 -F foo top.qcow2
rebase -b other.qcow2 -F raw top.qcow2
rebase -q -b other.qcow2 -F qcow2 top.qcow2
rebase -f qcow2 -b other.qcow2 -F qcow2 top.qcow2
rebase -f raw -b other.qcow2 -F qcow2 top.qcow2
rebase -f foo -b other.qcow2 -F qcow2 top.qcow2
rebase -b base.raw -F raw top.qcow2
rebase -b mid.qcow2 -F qcow2 top.qcow2
rebase -b ./mid.qcow2 -F qcow2 top.qcow2
rebase -b long.raw -F raw top.qcow2
rebase -b long.raw -F raw mid.qcow2
rebase -b short.raw -F raw top.qcow2
rebase -b short.raw -F raw mid.qcow2 ; rebase -b base.raw -F raw mid.qcow2
rebase -b odd.raw -F raw mid.qcow2 ; rebase -b long.raw -F raw mid.qcow2
rebase -b '' top.qcow2
rebase -b '' -F qcow2 top.qcow2
rebase -b '' mid.qcow2
rebase -b '' alone.qcow2
rebase -b other.qcow2 -F qcow2 alone.qcow2
rebase -b other.qcow2 -F qcow2 wide.qcow2
rebase -b other.qcow2 -F qcow2 old.qcow2
rebase -b other.qcow2 -F qcow2 small.qcow2
rebase -b '' small.qcow2
rebase -b other.qcow2 -F qcow2 kept.qcow2
rebase -b alone.qcow2 -F qcow2 alone.qcow2
rebase -b base.raw -F raw base.raw
rebase -b '' base.raw
rebase -u -b '' base.raw
rebase -u -b x -F raw -f raw base.raw
rebase -t foo -b other.qcow2 -F qcow2 top.qcow2
rebase -t none -T none -b other.qcow2 -F qcow2 top.qcow2
rebase -t writethrough -T unsafe -b other.qcow2 -F qcow2 top.qcow2
rebase -T foo -b other.qcow2 -F qcow2 top.qcow2
rebase -c -b other.qcow2 -F qcow2 top.qcow2
rebase -U -b other.qcow2 -F qcow2 top.qcow2
rebase --force-share -b other.qcow2 -F qcow2 top.qcow2
rebase --image-opts -b other.qcow2 -F qcow2 driver=qcow2,file.filename=top.qcow2
rebase --image-opts -f qcow2 -b other.qcow2 -F qcow2 driver=qcow2,file.filename=top.qcow2
rebase --object secret,id=s,data=x -b other.qcow2 -F qcow2 top.qcow2
rebase --object foo,id=s -b other.qcow2 -F qcow2 top.qcow2
rebase -b base.qcow2 -F qcow2 sub/top.qcow2
rebase -b other.qcow2 -F qcow2 sub/top.qcow2
rebase -b ../other.qcow2 -F qcow2 sub/top.qcow2
rebase -b 'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"other.qcow2"}}}}' -F qcow2 top.qcow2
rebase -b file:other.qcow2 -F qcow2 top.qcow2
rebase -b foo:other.qcow2 -F qcow2 top.qcow2
rebase -b above.qcow2 -F qcow2 top.qcow2
rebase -b top.qcow2 -F qcow2 top.qcow2
rebase -p -t foo -b other.qcow2 -F qcow2 top.qcow2
rebase -p -T foo -b other.qcow2 -F qcow2 top.qcow2
rebase -p -b other.qcow2 -F foo top.qcow2
rebase -p -q -b other.qcow2 -F qcow2 top.qcow2
"""


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of three, overlays of each kind, and disks of other lengths and contents to put below them."""
    folder = tmp_path_factory.mktemp("chains")

    def create(*words: str) -> None:
        qemu_img("create", "-q", "-f", *words, cwd=folder)

    def write(name: str, *commands: str, format: str = "qcow2") -> None:
        qemu_io(folder / name, *commands, format=format)

    for name, size, seed in (("base.raw", "1M", 9), ("long.raw", "1536k", 9), ("short.raw", "300k", 8)):
        create("raw", name, size)
        write(name, f"write -P {seed} 0 200k", f"write -P {seed + 1} 200k 99k", format="raw")
    (folder / "odd.raw").write_bytes(b"odd" * 40_000 + b"!")
    create("qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2")
    create("qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "2M")
    write("mid.qcow2", "write -P 1 0 64k", "write -P 4 512k 100k")
    write("top.qcow2", "write -P 2 64k 64k", "write -z 128k 64k", "write -P 3 1536k 64k", "write -z 1M 64k")
    create("qcow2", "-o", "cluster_size=4k", "other.qcow2", "2M")
    write("other.qcow2", "write -P 9 0 200k", "write -P 7 450k 10k", "write -P 7 1100k 300k", "write -z 200k 50k")
    create("qcow2", "alone.qcow2", "1M")
    create("qcow2", "-u", "-b", "nope.qcow2", "-F", "qcow2", "broken.qcow2", "1M")
    overlays = {
        "wide.qcow2": "extended_l2=on,cluster_size=64k",
        "old.qcow2": "compat=0.10",
        "small.qcow2": "cluster_size=512",
        "kept.qcow2": "lazy_refcounts=on",
    }
    for name, options in overlays.items():
        create("qcow2", "-o", options, "-b", "mid.qcow2", "-F", "qcow2", name, "1280k")
        write(name, "write -P 6 100k 30k", "discard 512k 64k")
    qemu_img("snapshot", "-c", "one", "kept.qcow2", cwd=folder)
    write("kept.qcow2", "write -P 5 0 10k")
    create("qcow2", "-b", "top.qcow2", "-F", "qcow2", "above.qcow2")
    (folder / "sub").mkdir()
    create("qcow2", "sub/base.qcow2", "1M")
    create("qcow2", "-b", "base.qcow2", "-F", "qcow2", "sub/top.qcow2")
    write("sub/top.qcow2", "write -P 5 0 200k")
    return folder


def everything(chains: Path) -> list[str]:
    return sorted(str(path.relative_to(chains)) for path in chains.rglob("*") if path.is_file())


@pytest.mark.parametrize("script", scripts(REBASE), ids=lambda script: named(script)[:70])
def test_the_same_line_gives_the_same_outcome(script: list[str], chains: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, everything(chains), chains, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == theirs.files


@pytest.mark.parametrize("unsafe", ["", "-u "])
def test_progress_runs_from_nothing_to_all(unsafe: str, chains: Path, tmp_path: Path) -> None:
    line = f"rebase -p {unsafe}-b other.qcow2 -F qcow2 top.qcow2"
    theirs, mine = run_both([line], everything(chains), chains, tmp_path)
    for said in (theirs.said[0], mine.said[0]):
        assert re.fullmatch(r"(    \(\d+\.\d\d/100%\)\r)+\n", said.out)
        assert said.out.startswith("    (0.00/100%)\r")
        assert said.out.endswith("    (100.00/100%)\r\n")
    assert mine.files == theirs.files


def test_a_format_that_is_missing_is_missed_before_anything_is_copied(chains: Path, tmp_path: Path) -> None:
    """The real tool copies first, and then finds that it cannot go on."""
    theirs, mine = run_both(["rebase -b other.qcow2 top.qcow2"], everything(chains), chains, tmp_path)
    assert mine.said == theirs.said
    assert mine.files["top.qcow2"] == "as it was"
