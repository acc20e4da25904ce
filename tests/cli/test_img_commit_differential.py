"""``commit`` beside the real qemu-img's; see ``test_img_differential``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.imgcases import named, scripts
from tests.support.imgtool import run_both
from tests.support.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

COMMIT = """
commit
commit top.qcow2 mid.qcow2
commit alone.qcow2
commit base.raw
commit -f raw base.raw
commit nope
commit top.qcow2
commit -f qcow2 top.qcow2
commit -f raw top.qcow2
commit -f foo top.qcow2
commit -d top.qcow2
commit -q top.qcow2
commit -b base.raw top.qcow2
commit -b mid.qcow2 top.qcow2
commit -b mid.qcow2 -d top.qcow2
commit -b ./base.raw top.qcow2
commit -b nope top.qcow2
commit -b '' top.qcow2
commit -b top.qcow2 top.qcow2
commit -b base.qcow2 sub/top.qcow2
commit -b sub/base.qcow2 sub/top.qcow2
commit sub/top.qcow2
commit -t foo top.qcow2
commit -t none top.qcow2
commit -t writethrough top.qcow2
commit -r 10G top.qcow2
commit -r x top.qcow2
commit -r
commit -f qcow2 mid.qcow2
commit top.qcow2 ; commit mid.qcow2
commit -o x top.qcow2
commit --image-opts driver=qcow2,file.filename=top.qcow2
commit --image-opts -f qcow2 driver=qcow2,file.filename=top.qcow2
commit --object secret,id=s,data=x top.qcow2
commit broken.qcow2
"""


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of three, whose top is longer than what it stands on, a chain in a folder, and images without one."""
    folder = tmp_path_factory.mktemp("chains")

    def create(*words: str) -> None:
        qemu_img("create", "-q", *words, cwd=folder)

    create("-f", "raw", "base.raw", "1M")
    qemu_io(folder / "base.raw", "write -P 9 0 1M", format="raw")
    create("-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2")
    create("-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "2M")
    qemu_io(folder / "mid.qcow2", "write -P 1 0 64k", "write -P 4 512k 100k", format="qcow2")
    qemu_io(
        folder / "top.qcow2", "write -P 2 64k 64k", "write -z 128k 64k", "write -P 3 1536k 64k", "write -z 1M 64k",
        format="qcow2",
    )  # fmt: skip
    create("-f", "qcow2", "alone.qcow2", "1M")
    create("-f", "qcow2", "-u", "-b", "nope.qcow2", "-F", "qcow2", "broken.qcow2", "1M")
    (folder / "sub").mkdir()
    create("-f", "qcow2", "sub/base.qcow2", "1M")
    create("-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "sub/top.qcow2")
    qemu_io(folder / "sub/top.qcow2", "write -P 5 0 200k", format="qcow2")
    return folder


def everything(chains: Path) -> list[str]:
    return sorted(str(path.relative_to(chains)) for path in chains.rglob("*") if path.is_file())


@pytest.mark.parametrize("script", scripts(COMMIT), ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], chains: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, everything(chains), chains, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == theirs.files


def test_progress_runs_from_nothing_to_all(chains: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(["commit -p top.qcow2"], everything(chains), chains, tmp_path)
    for said in (theirs.said[0], mine.said[0]):
        assert re.fullmatch(r"(    \(\d+\.\d\d/100%\)\r)+\nImage committed\.\n", said.out)
        assert said.out.startswith("    (0.00/100%)\r")
        assert said.out.endswith("    (100.00/100%)\r\nImage committed.\n")
    assert mine.files == theirs.files
