"""``bench`` beside the real qemu-img's, its time aside; see ``test_img_differential``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.imgcases import files_for, named, scripts
from tests.support.imgtool import ours, run_both

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

BENCH = """
bench
bench a.raw d.raw
bench -c x a.raw
bench -c -1 a.raw
bench -c 0 a.raw
bench -d x a.raw
bench -i foo a.raw
bench -o -1 a.raw
bench -o 1x a.raw
bench -s 3G a.raw
bench -s 0 -c 10 a.raw
bench -S -1 a.raw
bench -S 3G a.raw
bench --pattern=300 a.raw
bench --pattern=x a.raw
bench --pattern=-1 a.raw
bench --flush-interval=x a.raw
bench --flush-interval=-1 -w a.raw
bench --flush-interval=10 a.raw
bench -w --flush-interval=10 a.raw
bench -w --flush-interval=3 -d 3 -c 20 -f raw a.raw
bench -w --flush-interval=3 -d 3 -c 20 --no-drain -f raw a.raw
bench -c 10 --no-drain a.raw
bench -t foo a.raw
bench -n -c 10 a.raw
bench -i native -c 10 a.raw
bench -i threads -c 10 a.qcow2
bench -t none -c 10 a.qcow2
bench -f raw -c 10 -q a.raw
bench -f raw -c 10 -s 512 -S 1k -o 4k a.raw
bench -f raw -c 10 -o 20M a.raw
bench -f raw -c 3 -s 1000 a.raw
bench -f qcow2 -c 30 -d 1 ov.qcow2
bench -f qcow2 -c 30 -w --pattern=65 ov.qcow2
bench -f qcow2 -c 30 -w --pattern=0x41 -S 70000 -o 300 -s 1000 ov.qcow2
bench -w -c 1 a.raw
bench -w -c 017 -d 010 -f raw a.raw
bench nope
bench -f qcow2 a.raw
bench -f foo a.raw
bench --image-opts -c 10 driver=raw,file.filename=a.raw
bench --image-opts -f raw driver=raw,file.filename=a.raw
bench -U -c 10 a.qcow2
bench -n -i threads -c 1 -f raw a.raw
bench -i native -i io_uring -c 1 -f raw a.raw
bench -i io_uring -i threads -c 1 -f raw a.raw
bench -z a.raw
"""


@pytest.mark.parametrize("script", scripts(BENCH), ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    for one, other in zip(mine.said, theirs.said, strict=True):
        assert _timeless(one.out) == _timeless(other.out)
        assert (one.status, one.err) == (other.status, other.err)
    assert mine.files == theirs.files


def _timeless(text: str) -> str:
    return re.sub(r"completed in \d+\.\d{3} seconds", "completed in T seconds", text)


def test_without_any_request_at_a_time_nothing_would_ever_happen(template: Path, tmp_path: Path) -> None:
    """The real tool waits for ever."""
    said = ours(f"bench -d 0 {template / 'a.raw'}", tmp_path, tmp_path)
    assert (said.status, said.err) == (1, "qemu-img: Invalid queue depth specified\n")
