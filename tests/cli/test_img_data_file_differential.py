"""Images with external data files beside the real qemu-img's; see ``test_img_differential``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.imgcases import named, scripts
from tests.support.imgtool import run_both
from tests.support.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

TABLE = """
create -f qcow2 -o data_file=n.raw n.qcow2 1M ; info n.qcow2 ; info --output=json n.qcow2 ; map --output=json n.qcow2
create -f qcow2 -o data_file=n.raw,data_file_raw=on n.qcow2 1M ; info n.qcow2 ; check n.qcow2
create -f qcow2 -o data_file=n.raw,data_file_raw=on,extended_l2=on n.qcow2 1M ; map --output=json n.qcow2 ; info n.qcow2
create -f qcow2 -o data_file=n.raw,preallocation=metadata n.qcow2 1M ; check n.qcow2
create -f qcow2 -o data_file=n.raw,preallocation=falloc n.qcow2 1M ; check n.qcow2
create -f qcow2 -o data_file=file:n.raw n.qcow2 1M ; info n.qcow2
create -f qcow2 -o data_file_raw=on n.qcow2 1M
create -f qcow2 -o data_file=n,compat=0.10 n.qcow2 1M
create -f qcow2 -o data_file=n,compat=0.10,compression_type=zstd n.qcow2 1M
create -f qcow2 -o data_file_raw=on,refcount_bits=7 n.qcow2 1M
create -f qcow2 -o data_file=n,data_file_raw=on,backing_file=d.qcow2,backing_fmt=qcow2 n.qcow2 1M
create -f qcow2 -o data_file=nowhere/n n.qcow2 1M
create -f qcow2 -o data_file= n.qcow2 1M
create -f qcow2 -o data_file=. n.qcow2 1M
info d.qcow2 ; check d.qcow2 ; map d.qcow2 ; map --output=json d.qcow2
info r.qcow2 ; check r.qcow2 ; map r.qcow2 ; map --output=json r.qcow2
info lost.qcow2 ; check lost.qcow2
info --image-opts driver=qcow2,file.filename=d.qcow2,data-file.driver=file,data-file.filename=d.raw
map --image-opts driver=qcow2,file.filename=lost.qcow2,data-file.filename=d.raw
map --image-opts driver=qcow2,file.filename=d.qcow2,data-file=nonode
info --image-opts driver=qcow2,file.filename=plain.qcow2,data-file.filename=d.raw
map --image-opts driver=qcow2,file.filename=plain.qcow2,data-file.filename=d.raw
snapshot -c s d.qcow2 ; snapshot -l d.qcow2 ; snapshot -a s d.qcow2 ; snapshot -d s d.qcow2
resize d.qcow2 2M ; map --output=json d.qcow2 ; resize --shrink d.qcow2 128k ; map --output=json d.qcow2 ; check d.qcow2
resize r.qcow2 2M ; map --output=json r.qcow2 ; resize --shrink r.qcow2 128k ; map --output=json r.qcow2 ; check r.qcow2
resize --preallocation=metadata d.qcow2 +1M ; map --output=json d.qcow2
resize --preallocation=full r.qcow2 +1M ; check r.qcow2
convert -O qcow2 -o data_file=cv.raw,data_file_raw=on d.qcow2 cv.qcow2 ; compare d.qcow2 cv.qcow2
convert -O qcow2 -o data_file=cv.raw r.qcow2 cv.qcow2 ; map --output=json cv.qcow2 ; compare r.qcow2 cv.qcow2
convert -c -O qcow2 -o data_file=cv.raw d.qcow2 cv.qcow2
convert -n -O qcow2 plain.qcow2 r.qcow2 ; compare plain.qcow2 r.qcow2 ; compare -F raw plain.qcow2 r.raw
convert -O raw r.qcow2 out ; compare -f raw -F raw r.raw out
commit o.qcow2 ; map --output=json o.qcow2 ; compare plain.qcow2 o.qcow2
info --backing-chain o.qcow2
measure -O qcow2 -o data_file=x,data_file_raw=on --size 1M
measure -O qcow2 -o data_file=x d.qcow2
measure -O raw d.qcow2
bitmap --add d.qcow2 b ; info d.qcow2 ; bitmap --remove d.qcow2 b ; check d.qcow2
amend -o data_file=other.raw d.qcow2 ; info d.qcow2 ; check d.qcow2
amend -o data_file= d.qcow2 ; info d.qcow2 ; check d.qcow2
amend -o data_file_raw=off r.qcow2 ; info r.qcow2
amend -o data_file_raw=on d.qcow2
amend -o data_file=d.raw plain.qcow2
amend -o compat=0.10 d.qcow2
dd if=r.qcow2 of=out bs=64k count=4
"""

STANDS_ON = {"d.qcow2": ("d.raw",), "r.qcow2": ("r.raw",), "o.qcow2": ("o.raw", "plain.qcow2")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")

    def create(name: str, options: str, *words: str) -> None:
        qemu_img("create", "-q", "-f", "qcow2", *words, "-o", options, f"{name}.qcow2", "512k", cwd=folder)

    create("d", "data_file=d.raw")
    create("r", "data_file=r.raw,data_file_raw=on")
    create("plain", "compat=1.1")

    def change(name: str, *commands: str) -> None:
        image = f"driver=qcow2,file.filename={folder}/{name}.qcow2"
        data = f",data-file.filename={folder}/{name}.raw" if (folder / f"{name}.raw").exists() else ""
        qemu_io(image + data, *commands, options=("--image-opts",))

    for name in ("d", "r", "plain"):
        change(name, "write -P 1 0 256k", "discard 0 64k", "write -z 64k 64k", "write -z -u 128k 64k")
    create("lost", "data_file=gone.raw")
    (folder / "gone.raw").unlink()
    create("o", "data_file=o.raw", "-b", "plain.qcow2", "-F", "qcow2")
    change("o", "write -P 5 320k 64k")
    return folder


def _same(text: str) -> str:
    """How much of the disk metadata takes is the file system's affair."""
    return re.sub(r'(disk size: |"actual-size": ).*', r"\1…", text)


@pytest.mark.parametrize("script", scripts(TABLE), ids=named)
def test_as_the_real_tool(script: list[str], images: Path, tmp_path: Path) -> None:
    text = " ".join(script)
    names = {"plain.qcow2", *(path.name for path in images.iterdir() if path.name in text)}
    for name, below in STANDS_ON.items():
        if name in text:
            names.update(below)
    theirs, ours = run_both(script, sorted(names), images, tmp_path)
    for line, left, right in zip(script, theirs.said, ours.said, strict=True):
        assert [line, right.status, _same(right.out), right.err] == [line, left.status, _same(left.out), left.err]
    if any(said.status and line.startswith("convert") for line, said in zip(script, theirs.said, strict=True)):
        for made in {"cv.qcow2", "cv.raw"} - names:
            theirs.files.pop(made, None)  # of a conversion that failed ours leaves nothing behind
    assert ours.files == theirs.files
