"""What nobody should ask of ``blockio img``, beside the real qemu-img's answers; see ``test_img_differential``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.imgcases import files_for, named, scripts
from tests.support.imgtool import run_both

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

SIZES = """
create n.raw 1Q
create n.raw 1kk
create n.raw 1 k
create n.raw 1KiB
create n.raw 0x1k
create n.raw 1e3
create n.raw 1.5
create n.raw ''
create n.raw ' 1k'
create n.raw '1k '
create n.raw +1k
create n.raw -1k
create n.raw -- -1k
create n.raw 8E
create n.raw 16E
create n.raw 99999999999999999999
create n.raw nan
create n.raw inf
create -f qcow2 n.qcow2 8E
create n.raw 1.7M
create -f qcow2 n.qcow2 1.7G
create -f qcow2 n.qcow2 7.9999E
create -f qcow2 n.qcow2 9223372036854775296
create -f qcow2 n.qcow2 9223372036854775807
create -f qcow2 -o size=-1 n.qcow2
create -f qcow2 -o size= n.qcow2 1M
create -f qcow2 -o cluster_size=1x n.qcow2 1M
create -f qcow2 -o cluster_size=8E n.qcow2 1M
resize -f raw d.raw 1Q
resize -f raw d.raw +
resize -f raw d.raw +1kk
resize -f raw d.raw ''
resize -f raw d.raw +-1k
resize -f raw d.raw 8E
resize -f raw d.raw +8E
resize a.qcow2 +9223372036854775807
resize a.qcow2 9223372036854775296
resize -f raw d.raw 9223372036854775807
convert -S 1x d.raw o.raw
convert -S -1 d.raw o.raw
convert -S 8E d.raw o.raw
convert -S 511 d.raw o.raw
convert -m 0 d.raw o.raw
convert -m 17 d.raw o.raw
convert -m x d.raw o.raw
convert -r 1x d.raw o.raw
convert -r -1 d.raw o.raw
map --start-offset 1x d.raw
map --start-offset -1 d.raw
map --max-length -1 d.raw
map --max-length 8E -f raw d.raw
"""

CONTRADICTIONS = """
convert --image-opts '' o.raw
compare -T foo -p a.raw a.raw
compare --image-opts -p foo=1 a.raw
compare --image-opts -f raw -p driver=raw,file.filename=a.raw driver=raw,file.filename=a.raw
create -f raw -f foo n.raw 1M
create -f qcow2 -o compat=0.10,extended_l2=on n.qcow2 1M
create -f qcow2 -o compat=2 n.qcow2 1M
create -f qcow2 -o extended_l2=on,cluster_size=8k n.qcow2 1M
create -f qcow2 -o extended_l2=maybe n.qcow2 1M
create -f qcow2 -b a.qcow2 -F foo n.qcow2
create -f qcow2 -F qcow2 n.qcow2 1M
create -f qcow2 -b a.qcow2 -F qcow2 -o backing_file=d.raw n.qcow2
create -f raw -b a.qcow2 -F qcow2 n.raw
create -f foo n.foo 1M
create -f null-co n 1M
convert -c -O raw a.qcow2 o.raw
convert -c -S 4k -O qcow2 a.qcow2 o.qcow2
convert -n d.raw o.raw
convert -n -o size=1M -O raw d.raw o.raw
convert -n -B a.qcow2 d.raw sparse.raw
convert -C -S 4k d.raw o.raw
convert --target-is-zero d.raw o.raw
convert --target-image-opts d.raw driver=raw,file.filename=o.raw
convert --target-image-opts -O raw -n d.raw driver=raw,file.filename=sparse.raw
convert --image-opts -f raw driver=raw,file.filename=d.raw o.raw
convert -l nope -O raw kept.qcow2 o.raw
convert -l first -O raw d.raw o.raw
convert -B d.raw -O raw a.qcow2 o.raw
convert -F raw -O qcow2 a.qcow2 o.qcow2
convert -f foo d.raw o.raw
convert -O foo d.raw o.raw
convert -T foo d.raw o.raw
compare -f foo d.raw d.raw
compare -F foo d.raw d.raw
compare -T foo d.raw d.raw
compare a.qcow2 a.qcow2
check -f foo a.qcow2
check -f raw d.raw
resize --shrink --preallocation=full -f raw d.raw 1k
resize --preallocation=foo -f raw d.raw +1k
resize -f raw d.raw 1k
resize -f raw -f qcow2 d.raw 2M
commit -f foo ov.qcow2
commit -b nope ov.qcow2
commit -d -b a.qcow2 ov.qcow2
commit a.qcow2
commit -f raw d.raw
snapshot -c x -d y kept.qcow2
info --image-opts -f raw driver=raw,file.filename=d.raw
info --image-opts d.raw
map -f foo d.raw
"""

# What is not plain JSON, some of which the real tool takes all the same.
JSON = r"""
info 'json:{'
info 'json:{foo}'
info 'json:{"a" 1}'
info 'json:{"a":1,}'
info 'json:{"a":}'
info 'json:[1'
info 'json:[1 2]'
info 'json:[1,2]'
info 'json:{"a":1 "b":2}'
info 'json:{"a":1} x'
info 'json:{"a":"b'
info "json:{'driver':'qcow2','file':{'driver':'file','filename':'a.qcow2'}}"
info "json:{'driver':'raw','file.filename':'it\\'s \"x\"'}"
info json:
info json:x
info 'json:{1:2}'
info 'json:{"a":"\x"}'
info 'json:{"a":#}'
info 'json:{"a":01}'
info 'json:{"a":-}'
info 'json:{"a":1.}'
info 'json:]'
info 'json:{"a":1'
info --object '{foo}' a.qcow2
info --object "{'qom-type':'secret','id':'s','data':'x'}" a.qcow2
info --object '{"qom-type":"secret"' a.qcow2
"""

# The real tool leaves behind what it made before it failed.
LEAVES_NOTHING = """
convert --bitmaps -O raw a.qcow2 o.raw
convert -t foo d.raw o.raw
"""

NAMES = (
    "a b",
    "line\nbreak",
    "comma,name",
    "two,,commas",
    "quo'te",
    'dou"ble',
    "tab\t",
    "back\\slash",
    "-dash",
    "é",
    "=",
    "%s",
)


@pytest.mark.parametrize("script", scripts(SIZES + CONTRADICTIONS.lstrip() + JSON.lstrip()), ids=named)
def test_the_same_nonsense_gets_the_same_answer(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == theirs.files


@pytest.mark.parametrize("name", NAMES)
def test_a_strange_name_is_a_name_like_any_other(name: str, template: Path, tmp_path: Path) -> None:
    quoted = "'" + name.replace("'", "'\\''") + "'"
    script = [
        f"create -f qcow2 -- {quoted} 1M",
        f"info -- {quoted}x",
        f"map --output=json -- {quoted}",
        f"check -- {quoted}",
        f"convert -O qcow2 -- d.raw {quoted}2",
        f"compare -- d.raw {quoted}2",
        f"create -f qcow2 -F qcow2 -b ./{quoted} -- {quoted}3",
        f"snapshot -c {quoted} ./{quoted}2",
    ]
    theirs, mine = run_both(script, ["d.raw"], template, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == theirs.files


@pytest.mark.parametrize("script", scripts(LEAVES_NOTHING), ids=named)
def test_a_refused_conversion_leaves_no_target(script: list[str], template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, files_for(script, template), template, tmp_path)
    assert mine.said == theirs.said
    assert "o.raw" in theirs.files
    assert "o.raw" not in mine.files
