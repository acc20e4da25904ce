"""``snapshot`` and ``convert -l`` beside the real qemu-img's; see ``test_img_differential``. Only dates differ."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.imgcases import files_for, named, scripts
from tests.support.imgtool import Outcome, run_both

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

LONG = "n" * 300
SNAPSHOT = f"""
snapshot
snapshot -l
snapshot kept.qcow2
snapshot -l kept.qcow2
snapshot -l kept.qcow2 a.qcow2
snapshot -l -l kept.qcow2
snapshot -l -c x kept.qcow2
snapshot -a first -d twice kept.qcow2
snapshot -c kept.qcow2
snapshot -l -a
snapshot -x kept.qcow2
snapshot -f qcow2 -l kept.qcow2
snapshot -l nope.qcow2
snapshot -l a.qcow2
snapshot -l d.raw
snapshot -l none.raw
snapshot -l short.qcow2
snapshot -l broken.qcow2
snapshot -c x broken.qcow2
snapshot -U -l kept.qcow2
snapshot -U -c x kept.qcow2
snapshot --force-share -l kept.qcow2
snapshot -q -l kept.qcow2
snapshot -q -c x kept.qcow2 ; snapshot -l kept.qcow2
snapshot --image-opts -l driver=qcow2,file.filename=kept.qcow2
snapshot --image-opts -l kept.qcow2
snapshot --image-opts -c x driver=qcow2,file.filename=kept.qcow2 ; info kept.qcow2
snapshot --image-opts -c x driver=raw,file.driver=qcow2,file.file.filename=kept.qcow2 ; info kept.qcow2
snapshot --image-opts -d first driver=raw,file.driver=qcow2,file.file.filename=kept.qcow2 ; info kept.qcow2
snapshot --image-opts -l driver=raw,file.driver=qcow2,file.file.filename=kept.qcow2
snapshot --object secret,id=s,data=x -l kept.qcow2
snapshot --object foo,id=s -l kept.qcow2
snapshot -c x d.raw
snapshot --image-opts -a x driver=raw,file.filename=d.raw
snapshot -d x d.raw
snapshot d.raw
snapshot -c x a.qcow2 ; info a.qcow2 ; info --output=json a.qcow2 ; check a.qcow2 ; map a.qcow2
snapshot -c x ov.qcow2 ; snapshot -a x ov.qcow2 ; check ov.qcow2
snapshot -c x v2.qcow2 ; snapshot -l v2.qcow2 ; resize v2.qcow2 2M
snapshot -c x v3.qcow2 ; snapshot -l v3.qcow2
snapshot -c x packed.qcow2 ; snapshot -a x packed.qcow2 ; snapshot -d x packed.qcow2 ; check packed.qcow2
snapshot -c x meta.qcow2 ; check meta.qcow2 ; snapshot -d x meta.qcow2 ; check meta.qcow2
snapshot -c x small.qcow2 ; check small.qcow2
snapshot -c x ov.qcow2 ; commit ov.qcow2 ; check ov.qcow2 ; snapshot -a x ov.qcow2 ; check ov.qcow2
resize kept.qcow2 8M ; snapshot -c l kept.qcow2 ; resize --shrink kept.qcow2 1M ; snapshot -a l kept.qcow2
snapshot -c x zero.qcow2 ; snapshot -a x zero.qcow2 ; check zero.qcow2
snapshot -c '' kept.qcow2 ; snapshot -l kept.qcow2 ; snapshot -d '' kept.qcow2 ; snapshot -l kept.qcow2
snapshot -c 'a b,c' kept.qcow2 ; snapshot -l kept.qcow2 ; snapshot -d 'a b,c' kept.qcow2
snapshot -c {LONG} kept.qcow2 ; info kept.qcow2 ; info --output=json kept.qcow2
snapshot -a first kept.qcow2 ; check kept.qcow2 ; map kept.qcow2
snapshot -a 1 kept.qcow2 ; check kept.qcow2 ; map kept.qcow2
snapshot -a 4 kept.qcow2 ; check kept.qcow2
snapshot -a nope kept.qcow2
snapshot -d nope kept.qcow2
snapshot -d 1 kept.qcow2 ; snapshot -l kept.qcow2 ; check kept.qcow2
snapshot -d twice kept.qcow2 ; snapshot -l kept.qcow2 ; snapshot -d twice kept.qcow2 ; snapshot -d twice kept.qcow2
snapshot -d 4 kept.qcow2 ; snapshot -l kept.qcow2
snapshot -c new kept.qcow2 ; snapshot -d first kept.qcow2 ; snapshot -c newer kept.qcow2 ; snapshot -l kept.qcow2
resize kept.qcow2 6M ; snapshot -a first kept.qcow2 ; info kept.qcow2 ; check kept.qcow2
resize --shrink kept.qcow2 1M ; check kept.qcow2 ; snapshot -a 2 kept.qcow2 ; check kept.qcow2
convert -l first kept.qcow2 o.raw
convert -l 1 kept.qcow2 o.raw
convert -l 4 -O qcow2 kept.qcow2 o.qcow2
convert -l nope kept.qcow2 o.raw
convert -l '' kept.qcow2 o.raw
convert -l snapshot.id=2 kept.qcow2 o.raw
convert -l snapshot.name=twice kept.qcow2 o.raw
convert -l snapshot.id=3,snapshot.name=twice kept.qcow2 o.raw
convert -l snapshot.id=3,snapshot.name=first kept.qcow2 o.raw
convert -l snapshot.id=9 kept.qcow2 o.raw
convert -l snapshot.id= kept.qcow2 o.raw
convert -l snapshot.id kept.qcow2 o.raw
convert -l snapshot.foo=1 kept.qcow2 o.raw
convert -l snapshot.id=1,foo=2 kept.qcow2 o.raw
convert -l snapshot.name=a,b kept.qcow2 o.raw
convert -l first kept.qcow2 kept.qcow2 o.raw
convert -l first d.raw o.raw
convert -l first a.qcow2 o.raw
info kept.qcow2
info --output=json kept.qcow2
check kept.qcow2
"""
_DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|(?<=\"date-sec\": )\d+|(?<=\"date-nsec\": )\d+")
_TAKEN = re.compile(r"^disk size: .*$|^Image end offset: .*$|^ *\"actual-size\": .*$", re.MULTILINE)


def _said(outcome: Outcome) -> list[tuple[int, str, str]]:
    return [(said.status, _TAKEN.sub("", _DATE.sub("DATE", said.out)), said.err) for said in outcome.said]


@pytest.mark.parametrize("script", scripts(SNAPSHOT), ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    assert _said(mine) == _said(theirs)
    assert mine.files == theirs.files
