"""``amend`` beside the real qemu-img's; see ``test_img_differential``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.imgcases import named, scripts
from tests.support.imgtool import run_both
from tests.support.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

KNOWN = "--object secret,id=s,data=abc --object secret,id=n,data=new"
KEY = "--image-opts driver=luks,file.filename=key.luks,key-secret=s"

AMEND = f"""
amend
amend plain.qcow2
amend -o size=8M
amend -o size=8M plain.qcow2 v2.qcow2
amend -o
amend -o , plain.qcow2
amend -o size=8M nope
amend -o size=8M -f foo plain.qcow2
amend -o size=8M -t foo plain.qcow2
amend -o size=8M -x plain.qcow2
amend -U -o size=8M plain.qcow2
amend -o help
amend -f qcow2 -o help
amend -f luks -o help
amend -f raw -o help
amend -f foo -o help
amend -o help plain.qcow2
amend -o size=1M,help plain.qcow2
amend -o help plain.raw
amend -f raw -o size=8M plain.raw
amend -o compat=foo plain.qcow2
amend -o compat=0.10 plain.qcow2
amend -o compat=v2 plain.qcow2 ; amend -o compat=v3 plain.qcow2
amend -o compat= plain.qcow2
amend -o compat=1.1 v2.qcow2
amend -o compat=1.1 v2kept.qcow2
amend -o compat=1.1,lazy_refcounts=on,refcount_bits=8,size=2M v2.qcow2
amend -o lazy_refcounts=on v2.qcow2
amend -o refcount_bits=8 v2.qcow2
amend -o refcount_bits=16 v2.qcow2
amend -o compat=0.10 over.qcow2
amend -o compat=0.10 kept.qcow2
amend -o compat=0.10 keptlonger.qcow2
amend -o compat=0.10 sub.qcow2
amend -o compat=0.10 zstd.qcow2
amend -o compat=0.10 zstdpacked.qcow2
amend -o compat=0.10 wide.qcow2
amend -o compat=0.10,refcount_bits=16 wide.qcow2
amend -o compat=0.10 lazy.qcow2
amend -o compat=0.10,lazy_refcounts=on plain.qcow2
amend -o lazy_refcounts=on plain.qcow2
amend -o lazy_refcounts=off lazy.qcow2 ; amend -o lazy_refcounts plain.qcow2
amend -o lazy_refcounts=maybe plain.qcow2
amend -o refcount_bits=1 plain.qcow2
amend -o refcount_bits=64 plain.qcow2 ; amend -o refcount_bits=2 plain.qcow2
amend -o refcount_bits=1 kept.qcow2
amend -o refcount_bits=2 kept.qcow2
amend -o refcount_bits=32 packed.qcow2
amend -o refcount_bits=3 plain.qcow2
amend -o refcount_bits=0 plain.qcow2
amend -o refcount_bits=128 plain.qcow2
amend -o refcount_bits=x plain.qcow2
amend -o size=8M plain.qcow2
amend -o size=1M plain.qcow2
amend -o size=1000 plain.qcow2
amend -o size=x plain.qcow2
amend -o size=8M over.qcow2
amend -o backing_file=plain.qcow2 plain.qcow2
amend -o backing_file=plain.qcow2,backing_fmt=qcow2 over.qcow2
amend -o backing_file=other.qcow2,backing_fmt=qcow2 over.qcow2
amend -o backing_fmt=qcow2 over.qcow2
amend -o data_file=x plain.qcow2
amend -o data_file_raw=on plain.qcow2
amend -o data_file_raw=off plain.qcow2
amend -o cluster_size=4k plain.qcow2
amend -o cluster_size=foo plain.qcow2
amend -o extended_l2=on,compat=1.1 plain.qcow2
amend -o encryption=on plain.qcow2
amend -o encrypt.format=luks plain.qcow2
amend -o encrypt.state=active plain.qcow2
amend -o foo=1 plain.qcow2
amend -o compat=0.10 -o size=2M plain.qcow2
amend -q -o size=2M plain.qcow2
amend --force -o size=2M plain.qcow2
amend -f qcow2 -t none -o compat=0.10 plain.qcow2
amend -t writethrough -o refcount_bits=1 plain.qcow2
amend --image-opts -o size=2M driver=qcow2,file.filename=plain.qcow2
amend --image-opts -f qcow2 -o size=2M driver=qcow2,file.filename=plain.qcow2
amend {KNOWN} -o new-secret=n {KEY}
amend {KNOWN} -o state=foo {KEY}
amend {KNOWN} -o size=1M {KEY}
amend {KNOWN} -o state=active {KEY}
amend {KNOWN} -o state=active,new-secret=q {KEY}
amend {KNOWN} -o state=active,new-secret=n,keyslot=9 {KEY}
amend {KNOWN} -o state=active,new-secret=n,keyslot=-1 {KEY}
amend {KNOWN} -o state=active,new-secret=n,keyslot=0 {KEY}
amend {KNOWN} -o state=inactive,keyslot=0 {KEY}
amend {KNOWN} -o state=inactive,old-secret=s,new-secret=n {KEY}
amend {KNOWN} -o state=inactive,old-secret=n {KEY}
amend -f luks -o state=inactive,keyslot=0 key.luks
amend -p -o size=2M -t foo plain.qcow2
amend -p -o size=2M
amend -p -o help plain.qcow2
amend -p -f foo -o help
amend -p -o foo=1 plain.qcow2
amend -p -q -o size=2M plain.qcow2
"""

UNLIKE = f"""
amend {KNOWN} -o state=active,new-secret=n,iter-time=1 {KEY} ; amend {KNOWN} -o state=inactive,old-secret=s {KEY}
amend {KNOWN} -o state=active,new-secret=n,keyslot=5,iter-time=1 {KEY} ; amend {KNOWN} -o state=inactive,keyslot=5 {KEY}
amend {KNOWN} --force -o state=active,new-secret=n,keyslot=0,iter-time=1 {KEY}
amend {KNOWN} --force -o state=inactive,keyslot=0 {KEY}
"""
"""Salts and key material are random, so that only what was said, and what opens, is the same."""
OPENING = ([False, True], [True, False], [False, True], [False, False])
"""Whether the first passphrase then opens the disk, and whether the new one does."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images of every kind that amend treats differently."""
    folder = tmp_path_factory.mktemp("images")

    def create(*words: str) -> None:
        qemu_img("create", "-q", "-f", *words, cwd=folder)

    def write(name: str, *commands: str) -> None:
        qemu_io(folder / name, *commands, format="qcow2")

    def make(name: str, options: str = "", *commands: str) -> None:
        # Smaller clusters than usual: what refcounts of all widths cost qemu-img grows with their square.
        create("qcow2", "-o", f"cluster_size=16k{options and ','}{options}", name, "1M")
        write(name, "write -P 1 0 100k", *commands)

    zeroes = ("write -z 64k 64k", "write -z -u 256k 128k", "discard 0 64k")
    make("plain.qcow2", "", *zeroes)
    make("v2.qcow2", "compat=0.10")
    make("v2kept.qcow2", "compat=0.10")
    make("lazy.qcow2", "lazy_refcounts=on", *zeroes)
    make("wide.qcow2", "refcount_bits=64", *zeroes)
    make("sub.qcow2", "extended_l2=on", *zeroes)
    make("zstd.qcow2", "compression_type=zstd", *zeroes)
    make("kept.qcow2", "", *zeroes)
    make("keptlonger.qcow2")
    for name in ("kept", "keptlonger", "v2kept"):
        qemu_img("snapshot", "-c", "one", f"{name}.qcow2", cwd=folder)
    write("kept.qcow2", "write -P 2 64k 100k", "write -z -u 512k 64k", "discard 300k 64k")
    qemu_img("resize", "-q", "keptlonger.qcow2", "2M", cwd=folder)
    create("qcow2", "-b", "plain.qcow2", "-F", "qcow2", "over.qcow2", "2M")
    write("over.qcow2", *zeroes, "write -P 7 1900k 10k")
    make("plain.raw")
    (folder / "plain.raw").write_bytes(b"raw" * 10000)
    qemu_img("convert", "-f", "qcow2", "-c", "-O", "qcow2", "plain.qcow2", "packed.qcow2", cwd=folder)
    options = ("-o", "compression_type=zstd")
    qemu_img("convert", "-f", "qcow2", "-c", "-O", "qcow2", *options, "plain.qcow2", "zstdpacked.qcow2", cwd=folder)
    secret = ("--object", "secret,id=s,data=abc")
    create("luks", *secret, "-o", "key-secret=s,iter-time=1", "key.luks", "64k")
    return folder


def needed(script: list[str], images: Path) -> list[str]:
    """The images that *script* speaks of, and what they stand on."""
    text = " ".join(script) + (" plain.qcow2" if "over.qcow2" in " ".join(script) else "")
    return sorted(path.name for path in images.iterdir() if re.search(rf"(?<!\w){re.escape(path.name)}", text)) or [
        "v2.qcow2"
    ]


@pytest.mark.parametrize("script", scripts(AMEND), ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], images: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, needed(script, images), images, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == theirs.files


@pytest.mark.parametrize(("script", "opening"), list(zip(scripts(UNLIKE), OPENING, strict=True)), ids=str)
def test_the_same_passphrases_open_it(script: list[str], opening: list[bool], images: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(script, needed(script, images), images, tmp_path)
    assert mine.said == theirs.said
    found = []
    for folder in ("theirs", "ours"):
        opens = []
        for secret in ("abc", "new"):
            options = f"driver=luks,file.filename={tmp_path / folder / 'key.luks'},key-secret=s"
            words = ("--object", f"secret,id=s,data={secret}", "--image-opts", options)
            opens.append(qemu_img("convert", *words, tmp_path / "disk.raw", check=False).returncode == 0)
        found.append(opens)
    assert found[0] == found[1] == opening


def test_progress_runs_from_nothing_to_all(images: Path, tmp_path: Path) -> None:
    script = ["amend -p -o refcount_bits=8 plain.qcow2", "amend -p -o compat=0.10 plain.qcow2"]
    theirs, mine = run_both(script, ["plain.qcow2"], images, tmp_path)
    for said in (*theirs.said, *mine.said):
        assert re.fullmatch(r"(    \(\d+\.\d\d/100%\)\r)+\n", said.out)
        assert said.out.startswith("    (0.00/100%)\r")
        assert said.out.endswith("    (100.00/100%)\r\n")
    assert [said.err for said in mine.said] == [said.err for said in theirs.said]
    assert mine.files == theirs.files
