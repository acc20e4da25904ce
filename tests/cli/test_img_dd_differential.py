"""``dd`` beside the real qemu-img's; see ``test_img_differential``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.imgcases import files_for, named, scripts
from tests.support.imgtool import ours, run_both

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

DD = """
dd
dd if=d.raw
dd of=o.raw
dd foo
dd foo=1 if=d.raw of=o.raw
dd if if=d.raw of=o.raw
dd if=d.raw of=o.raw
dd if=d.raw of=o.raw bs=0
dd if=d.raw of=o.raw bs=3G
dd if=d.raw of=o.raw bs=1x
dd if=d.raw of=o.raw bs=
dd if=d.raw of=o.raw bs=-1
dd if=d.raw of=o.raw count=-1
dd if=d.raw of=o.raw skip=x
dd if=d.raw of=o.raw bs=1M
dd if=d.raw of=o.raw bs=64k count=3
dd if=d.raw of=o.raw bs=64k count=3 skip=1
dd if=d.raw of=o.raw bs=64k count=3 skip=3
dd if=d.raw of=o.raw bs=64k count=3 skip=4
dd if=d.raw of=o.raw bs=1000 count=7 skip=2
dd if=odd.raw of=o.raw bs=7
dd if=odd.raw of=o.raw bs=7 skip=1
dd if=d.raw of=o.raw count=0
dd if=d.raw of=o.raw count=1.5k
dd if=d.raw of=o.raw bs=512 bs=1k count=1
dd if=none.raw of=o.raw
dd if=text.raw of=o.raw count=9223372036854775807 bs=2
dd if=d.raw of=o.raw skip=9223372036854775807 bs=2
dd if=d.raw of=o.raw skip=20M
dd if=d.raw of=sparse.raw
dd if=d.raw if=odd.raw of=o.raw
dd if=a.qcow2 of=o.raw bs=64k
dd -f qcow2 if=a.qcow2 of=o.raw bs=64k
dd -f raw if=a.qcow2 of=o.raw bs=64k
dd -f qcow2 -O qcow2 if=ov.qcow2 of=o.qcow2 bs=1M
dd -O qcow2 if=ov.qcow2 of=o.qcow2 bs=1000k skip=1 count=3
dd -O qcow2 if=packed.qcow2 of=o.qcow2 bs=1M
dd -O foo if=d.raw of=o.raw
dd -O null-co if=d.raw of=o.raw
dd -O raw if=d.raw of=foo:o.raw
dd -f foo if=d.raw of=o.raw
dd -f qcow2 if=d.raw of=o.raw
dd if=nope of=o.raw
dd if= of=o.raw
dd if=d.raw of=nodir/o.raw
dd if=d.raw of=sub
dd if=d.raw of=file:odd:name.raw
dd if=short.qcow2 of=o.raw
dd -f raw --image-opts if=d.raw of=o.raw
dd --image-opts if=driver=raw,file.filename=d.raw of=o.raw
dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=o.raw bs=1M
dd --object secret,id=s,data=x if=d.raw of=o.raw
dd --object foo,id=s if=d.raw of=o.raw
dd -U if=d.raw of=o.raw bs=1M
dd -x if=d.raw of=o.raw
dd -O
"""


@pytest.mark.parametrize("script", scripts(DD), ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == theirs.files


def test_a_disk_is_not_copied_onto_itself(tmp_path: Path) -> None:
    """The real tool empties it, and then copies nothing."""
    aside = tmp_path / "aside"
    aside.mkdir()
    (tmp_path / "d.raw").write_bytes(b"x" * 1024)
    (tmp_path / "link.raw").symlink_to("d.raw")
    for name in ("d.raw", "link.raw"):
        said = ours(f"dd if=d.raw of={name}", tmp_path, aside)
        assert (said.status, said.err) == (1, f"qemu-img: input and output file are the same: '{name}'\n")
    assert (tmp_path / "d.raw").read_bytes() == b"x" * 1024
