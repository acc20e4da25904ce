"""Encrypted qcow2 images beside the real qemu-img; see ``test_img_differential``.

``S`` in a line stands for the secrets that all of them have, ``L=`` and ``A=`` for opening an image of LUKS or AES,
``N=`` for doing so with another passphrase; ``_WORDS`` has the rest.
A LUKS header costs qemu-img two seconds of the processor, so that no line makes one; what ours are to it is seen in
``tests/qcow2/test_encryption.py``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.imgcases import named, scripts
from tests.support.imgtool import PASSPHRASE, Said, ours, run_both
from tests.support.qemu import qemu_img, qemu_img_json, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

_SECRETS = {"s": f"data={PASSPHRASE}", "w": "data=wrong", "b": "format=base64,data=/w==", "n": "data=new"}
SECRETS = " ".join(f"--object secret,id={id},{value}" for id, value in _SECRETS.items())
_WORDS = {
    "LUKS": "encrypt.format=luks,encrypt.iter-time=10",
    "ADD": "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10",
    "ERASE": "encrypt.state=inactive",
    "OPENED": "--image-opts L=l.qcow2",
}
RANDOM = re.compile(r'(uuid"?|iters"?|actual-size"|disk size)(: "?)[0-9a-f-]+(\.\d+)?( [KM]iB)?')

_NAME = re.compile(r"json:(\{.*\})")

CREATE = """
create -f qcow2 S -o encrypt.format=aes,encrypt.key-secret=s x.qcow2 1M
create -f qcow2 S -o encrypt.format=qcow,encrypt.key-secret=s x.qcow2 1M
create -f qcow2 S -o encryption=on,encrypt.key-secret=s x.qcow2 1M
create -f qcow2 S -o encryption=on,encrypt.format=aes,encrypt.key-secret=s x.qcow2 1M
create -f qcow2 S -o encrypt.format=aes x.qcow2 1M
create -f qcow2 S -o encrypt.format=luks x.qcow2 1M
create -f qcow2 S -o LUKS,encrypt.key-secret=nobody x.qcow2 1M
create -f qcow2 S -o LUKS,encrypt.key-secret=b x.qcow2 1M
create -f qcow2 S -o encrypt.format=foo,encrypt.key-secret=s x.qcow2 1M
create -f qcow2 S -o encryption=off,encrypt.key-secret=s x.qcow2 1M
create -f qcow2 S -o encrypt.cipher-alg=aes-128 x.qcow2 1M
create -f qcow2 S -o encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-128 x.qcow2 1M
create -f qcow2 S -o LUKS,encrypt.key-secret=s,encrypt.cipher-alg=foo x.qcow2 1M
create -f qcow2 S -o LUKS,encrypt.key-secret=s,encrypt.cipher-alg=3des x.qcow2 1M
create -f qcow2 S -o LUKS,encrypt.key-secret=s,encrypt.ivgen-alg=foo x.qcow2 1M
create -f qcow2 S -o LUKS,encrypt.key-secret=s,encrypt.iter-time=foo x.qcow2 1M
create -f qcow2 S -o LUKS,encrypt.key-secret=s,encrypt.foo=foo x.qcow2 1M
create -f qcow2 S -o encryption=on,encrypt.key-secret=s -b l.qcow2 -F qcow2 x.qcow2
"""

OPEN = """
info l.qcow2
info --output=json l.qcow2
info S --image-opts A=a.qcow2
info o.qcow2
check l.qcow2
check --output=json S --image-opts L=l.qcow2
check S --image-opts driver=qcow2,file.filename=l.qcow2,encrypt.key-secret=nobody
check S --image-opts driver=qcow2,file.filename=l.qcow2,encrypt.key-secret=w
check S --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=w
check S --image-opts driver=qcow2,file.filename=l.qcow2,encrypt.format=aes,encrypt.key-secret=s
check S --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.format=luks,encrypt.key-secret=s
check S --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.format=foo,encrypt.key-secret=s
check S --image-opts driver=qcow2,file.filename=p.qcow2,encrypt.key-secret=nobody
check S --image-opts driver=qcow2,file.filename=p.qcow2,encrypt.foo=x
check S --image-opts driver=qcow2,file.filename=l.qcow2,encrypt.foo=x,encrypt.key-secret=s
map --output=json S --image-opts L=l.qcow2
map --output=json S --image-opts L=o.qcow2
compare S --image-opts L=l.qcow2 A=a.qcow2
compare S --image-opts L=l.qcow2 driver=qcow2,file.filename=p.qcow2
measure S -O qcow2 --image-opts L=l.qcow2
"""

CHANGE = """
resize S --image-opts L=l.qcow2 2M
snapshot S -c one --image-opts L=l.qcow2
snapshot -c one l.qcow2
rebase S -u -b p.qcow2 -F qcow2 --image-opts L=o.qcow2
rebase S -u -b '' --image-opts L=o.qcow2
rebase S -b '' --image-opts L=o.qcow2
rebase -u -b '' o.qcow2
bitmap S --add --image-opts L=l.qcow2 b
commit S --image-opts L=o.qcow2
convert S -O raw --image-opts L=l.qcow2 x.raw
convert S -O raw --image-opts L=o.qcow2 x.raw
convert S -O raw --image-opts driver=qcow2,file.filename=a.qcow2,encrypt.key-secret=w x.raw
convert S -O qcow2 -o encryption=on,encrypt.key-secret=s,compat=0.10 p.qcow2 x.qcow2
convert S -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s,preallocation=metadata p.qcow2 x.qcow2
convert S -c -O qcow2 -o LUKS,encrypt.key-secret=s p.qcow2 x.qcow2
convert S -O qcow2 -o LUKS,encrypt.key-secret=nobody p.qcow2 x.qcow2
convert S -n --image-opts --target-image-opts driver=qcow2,file.filename=p.qcow2 L=l.qcow2
dd S --image-opts if=L=l.qcow2 of=x.raw
"""

AMEND = """
amend S -o ADD,encrypt.keyslot=3,size=2M OPENED ; check S --image-opts N=l.qcow2 ; \
amend S -o ERASE,encrypt.old-secret=n OPENED ; amend S -o ADD,encrypt.keyslot=0 OPENED
amend S -o encrypt.state=active,encrypt.new-secret=b OPENED
amend S -o ADD --image-opts A=a.qcow2
amend S -o ADD p.qcow2
amend S -o ERASE,encrypt.old-secret=s OPENED
amend S -o ERASE,encrypt.keyslot=9 OPENED
amend S -o encrypt.keyslot=1 OPENED
amend S -o encrypt.state=foo OPENED
amend S -o encrypt.state=foo,compat=foo OPENED
amend S -o compat=0.10 OPENED
"""

MEASURE = """
measure S -O qcow2 --size 1M -o encrypt.format=luks
measure S -O qcow2 --size 1M -o encrypt.format=aes,encrypt.key-secret=s
measure S -O qcow2 --size 1M -o encryption=on
measure S -O luks --size 1M
measure S -O luks --size 1M -o key-secret=s,cipher-alg=foo
measure S -O luks --size 1M -o key-secret=s,cipher-alg=3des
measure S -O luks --size 8E -o key-secret=s
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``p.qcow2`` in the clear, ``l.qcow2`` and ``a.qcow2`` with the same content, ``o.qcow2`` (ours) on the first."""
    folder = tmp_path_factory.mktemp("encrypted")
    aside = tmp_path_factory.mktemp("aside")
    qemu_img("create", "-q", "-f", "qcow2", "p.qcow2", "1M", cwd=folder)
    for name, how in ("l.qcow2", _WORDS["LUKS"]), ("a.qcow2", "encrypt.format=aes"):
        options = f"{how},encrypt.key-secret=s"
        qemu_img("create", "-q", "-f", "qcow2", *SECRETS.split(), "-o", options, name, "1M", cwd=folder)
    made = ours(_spelt("create -q -f qcow2 S -o LUKS,encrypt.key-secret=s -b p.qcow2 -F qcow2 o.qcow2"), folder, aside)
    assert made.status == 0, made.err
    for name in "pla":
        _write(folder / f"{name}.qcow2", "write -P 1 0 200k", "write -P 2 700k 1k")
    _write(folder / "o.qcow2", "write -P 3 100k 100k", "write -z 640k 64k")
    return folder


def _write(path: Path, *commands: str) -> None:
    qemu_io(_opts(str(path)), *commands, options=(*SECRETS.split(), "--image-opts"))


def _opts(name: str, secret: str = "s") -> str:
    return f"driver=qcow2,encrypt.key-secret={secret},file.filename={name}"


def _spelt(line: str) -> str:
    for word, options in _WORDS.items():
        line = re.sub(rf"\b{word}\b", options, line)
    line = re.sub(r"\b([LAN])=(\S+)", lambda found: _opts(found[2], "n" if found[1] == "N" else "s"), line)
    return line.replace(" S ", f" {SECRETS} ", 1)


def _without_chance(said: list[Said]) -> list[Said]:
    """Without what is random or measured, and with the members of names sorted: QEMU's order is that of its tables."""
    return [Said(one.status, *(_NAME.sub(_sorted, RANDOM.sub(r"\1\2X", text)) for text in one[1:])) for one in said]


def _sorted(name: re.Match[str]) -> str:
    return json.dumps(json.loads(name[1]), sort_keys=True)


@pytest.mark.parametrize(
    "script", [line for table in (CREATE, OPEN, CHANGE, AMEND, MEASURE) for line in scripts(table)], ids=named
)
def test_the_same_line_gives_the_same_outcome(script: list[str], images: Path, tmp_path: Path) -> None:
    lines = [_spelt(line) for line in script]
    wanted = {name for name in ("p", "l", "a", "o") if f"{name}.qcow2" in lines[0]}
    files = sorted(f"{name}.qcow2" for name in wanted | {"p"})
    theirs, mine = run_both(lines, files, images, tmp_path)
    assert _without_chance(mine.said) == _without_chance(theirs.said)
    assert mine.files == theirs.files


def test_a_new_image_is_what_qemu_makes(images: Path) -> None:
    """``o.qcow2`` is ours: but for what it stands on, what is random and what is measured, it is ``l.qcow2``."""
    theirs, mine = (qemu_img_json("info", "--output=json", images / name) for name in ("l.qcow2", "o.qcow2"))
    for info in (theirs, mine):
        encrypt = info["format-specific"]["data"]["encrypt"]
        del info["filename"], info["actual-size"], encrypt["uuid"], encrypt["master-key-iters"]
        del encrypt["slots"][0]["iters"]
    assert {name: value for name, value in mine.items() if "backing" not in name} == theirs
