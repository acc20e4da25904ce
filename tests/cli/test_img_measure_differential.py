"""``measure`` beside the real qemu-img's; see ``test_img_differential``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.imgcases import files_for, named, scripts
from tests.support.imgtool import run_both

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

MEASURE = """
measure
measure --size 1G
measure --size 1G a.qcow2
measure a.qcow2 odd.raw
measure -O qcow2 --size 1G
measure -O qcow2 a.qcow2
measure -O raw a.qcow2
measure -O qcow2 odd.raw
measure odd.raw
measure d.raw
measure -O qcow2 d.raw
measure -O qcow2 sparse.raw
measure -O qcow2 -f raw a.qcow2
measure -O qcow2 ov.qcow2
measure -O qcow2 longer.qcow2
measure -O qcow2 packed.qcow2
measure -O qcow2 v2.qcow2
measure -O qcow2 zero.qcow2
measure -O qcow2 falloc.qcow2
measure -O qcow2 small.qcow2
measure -O qcow2 -o cluster_size=4k small.qcow2
measure -O qcow2 -o cluster_size=2M a.qcow2
measure -O qcow2 -o cluster_size=512 a.qcow2
measure --output=json -O qcow2 a.qcow2
measure --output=json --size 1M
measure --output=human --size 1M
measure --output=x --size 1M
measure -f qcow2 --size 1M
measure --image-opts --size 1M
measure -l x --size 1M
measure -l x a.qcow2
measure -l x d.raw
measure -O foo --size 1M
measure -O null-co --size 1M
measure -O file --size 1M
measure -O qcow2 -o cluster_size=4k --size 1G
measure -O qcow2 -o cluster_size=3k --size 1M
measure -O qcow2 -o preallocation=full a.qcow2
measure -O qcow2 -o preallocation=falloc a.qcow2
measure -O qcow2 -o preallocation=metadata a.qcow2
measure -O qcow2 -o preallocation=full --size 10M
measure -O qcow2 -o backing_file=x a.qcow2
measure -O qcow2 -o foo=1 --size 1M
measure -O qcow2 -o extended_l2=on,cluster_size=128k --size 10G
measure -O qcow2 -o extended_l2=on,cluster_size=128k a.qcow2
measure -O qcow2 -o compat=0.10 a.qcow2
measure -O qcow2 -o refcount_bits=1 --size 10T
measure -O qcow2 -o refcount_bits=64 --size 10T
measure -O qcow2 -o cluster_size=512 --size 100G
measure -O qcow2 -o size=5M --size 1M
measure -O qcow2 -o size=5M a.qcow2
measure -O qcow2 --size 8E
measure -O qcow2 --size 9223372036854775807
measure -O qcow2 -o compat=0.10,extended_l2=on --size 1G
measure -O qcow2 -o compat=0.10,compression_type=zstd a.qcow2
measure -O qcow2 -o compat=0.10,refcount_bits=8 --size 1G
measure -O qcow2 -o compat=v3 --size 1G
measure -O qcow2 -o preallocation=bad --size 1G
measure -O qcow2 -o compression_type=foo --size 1G
measure --size -1
measure --size 1x
measure -O qcow2 --size 1
measure --size 1
measure -O qcow2 --size 0
measure -U -O qcow2 a.qcow2
measure nope
measure -f raw nope
measure --image-opts driver=qcow2,file.filename=a.qcow2
measure --image-opts -f raw driver=qcow2,file.filename=a.qcow2
measure --object secret,id=s,data=x a.qcow2
bitmap --add a.qcow2 b0 ; measure -O qcow2 a.qcow2
bitmap --add -g 512 a.qcow2 b0 ; bitmap --add a.qcow2 another ; measure -O qcow2 -o cluster_size=4k a.qcow2
snapshot -c s0 a.qcow2 ; measure -O qcow2 -l s0 a.qcow2
"""


@pytest.mark.parametrize("script", scripts(MEASURE), ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    assert mine.said == theirs.said
