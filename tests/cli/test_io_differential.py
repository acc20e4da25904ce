"""``blockio io`` beside the real qemu-io: the same words on the same images in separate folders.

Standard output and error, exit status and the images afterwards must be equal; only times, rates and the numbers in
generated node names are taken out. Where clusters may lie in another order (after growing with preallocation), a qcow2
image must be clean and hold the same. Ours runs in this process, so a case costs some milliseconds.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from blockio.cli.io import main
from tests.support.full_disk import small_file_system
from tests.support.iotool import Both, Case, Outcome, call, copy_images, each, make_images, on, outcome, theirs
from tests.support.qemu import assert_clean, qemu_img

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")


STOPPED = ("-f", "qcow2", "blkdebug::disk.qcow2")

READING = [
    *each(
        "disk.raw",
        "read 0 512",
        "r 512 1k",
        "read -C 0 4096",
        "read -q 0 4096",
        "read -Cq 0 4096",
        "read -v 0 20",
        "read -qv 0 20",
        "read -Cv 590 33",
        "read -p 1 1",
        "read 0 0",
        "read -v 0 0",
        "read 1M 0",
        "read 1M 512",
        "read 1048000 512",
        "read 1048064 513",
        "read 9223372036854775807 512",
        "read 0x200 0x10",
        "read 1.5k 1b",
        "read -a 0 512",
        "read -b 0 512",
        "read -b 5 5",
        "read -b 512 5",
        "read x 1",
        "read 0 x",
        "read -- -1 512",
        "read",
        "read 0",
        "r 0",
        "read 0 1 2",
        "read -Z 0 1",
        "r -Z 0 1",
        "read 0 512 -P 1",
        "read -P",
        "read 0 1 -P",
        "read -P 300 0 512",
        "read -P -1 0 512",
        "read -P zz 0 512",
        "read -P 010 0 1",
        "read -P 65 0 512",
        "read -P 66 0 512",
        "read -qP1 0 512",
        "read -P 1 -P 65 0 512",
        "read -s 0 0 512",
        "read -l 0 0 512",
        "read -P 65 -s 100 0 512",
        "read -P 65 -s 512 0 512",
        "read -P 65 -l 100 0 512",
        "read -P 66 -s 5 -l 5 0 512",
        "read -P 65 -l 600 0 512",
        "read -P 65 -s 600 0 512",
        "read -P 65 -s 500 -l 100 0 512",
        "read -P 65 -s 3G 0 512",
        "read -P 0 -s x 0 512",
        "read -P 0 -l x 0 512",
        "read -P 1 -l 5 x 1",
        "read -P 1 -l 6G 0 5G",
        "read -bP 1 -l 9 1 1",
        "read 0 2G",
        "read 0 8E",
        'read "0" 512',
        "read 'a b' 1",
        "readv 0 512 512",
        "readv -v 0 8 8",
        "readv -v 590 5 5",
        "readv -P 7 0 512 512",
        "readv -P 65 0 1 2 3",
        "readv -qv 0 16",
        "readv -C 0 16 16",
        "readv 0 x",
        "readv x 1",
        "readv 0 0",
        "readv 2M 1k",
        "readv 0 512 -5",
        "readv 0",
        "readv -P 1 0",
        "readv 0 3G",
        "readv 0 1G 1G 1G",
        "rv 0 1",
    ),
    *each("disk.qcow2", "read -v 65530 12", "read 0 1M", "read -P 65 0 64k", "read -P 0 128k 64k", "read 1M 1"),
    on("overlay.qcow2", "read -v 65530 12", "read -P 66 0 64k", "read -P 65 64k 4k", "read -P 0 1M 1M"),
    on("odd.raw", "length", "read 0 1000", "read 999 2", "read -v 990 34", "read 1024 1", "map", "alloc 0 9M"),
    on("empty.raw", "length", "map", "alloc 0", "read 0 0", "read 0 1", "write 0 1"),
]

WRITING = [
    *each(
        "disk.raw",
        "write 0 512",
        "w 1 1",
        "write -P 65 590 600",
        "write -C 0 512",
        "write -q 0 512",
        "write -f 0 4k",
        "write -p 0 512",
        "write -z 0 512",
        "write -z 100 5000",
        "write -zf 0 4k",
        "write -zq 0 4k",
        "write -zu 0 4k",
        "write -nz 0 4k",
        "write -z 0 0",
        "write 0 0",
        "write -zP 1 0 512",
        "write -u 0 512",
        "write -n 0 512",
        "write -nu 0 1",
        "write -c 0 4k",
        "write -cz 0 4k",
        "write -cz 5 5",
        "write -c 5 5",
        "write -c 512 3G",
        "write -c x x",
        "write -bz 0 4k",
        "write -bc 0 4k",
        "write -bf 0 4k",
        "write -b 0 4k",
        "write -bs pattern 5 5",
        "write -fc 0 4k",
        "write -s missing 0 4k",
        "write -s pattern 0 8",
        "write -s pattern 100 100000",
        "write -s pattern 0 0",
        "write -s nothing 0 8",
        "write -s . 0 8",
        "write -s pattern -P 1 0 8",
        "write -s pattern -z 0 8",
        "write 0 3G",
        "write -z 0 3G",
        "write -nz 0 3G",
        "write 0 2147483647",
        "write 1M 512",
        "write 1048575 2",
        "write x 512",
        "write -P 1 x 3G",
        "write 0 x",
        "write 0",
        "write -z",
        "write -u -P 1 0 1 2",
        "writev 0 512 512 3",
        "writev -P 3 0 512 x",
        "writev -P 256 0 1",
        "writev x 512",
        "writev 0",
        "writev 0 -1",
        "writev 0 0 0",
        "writev 0 3G",
        "writev 0 1G 1G 1G",
        "writev -f 0 512",
        "writev -q 0 512",
        "writev -C 0 512 512",
        "writev -P 9 100 1000 1000",
        "writev 1M 1",
        "discard 0 4k",
        "d 1 2",
        "discard -C 0 4k",
        "discard -q 0 4k",
        "discard 0 0",
        "discard x 4k",
        "discard 0 x",
        "discard 0",
        "discard -x 0 1",
        "discard 0 1 1",
        "discard 0 3G",
        "discard 2M 4k",
        "discard 0 2147483136",
    ),
    *each("disk.raw", "discard 0 64k", "discard 100 100000", "write -zu 0 64k", options="-d unmap"),
    *each("disk.raw", "discard 0 64k", "discard 100 100000", "write -zu 0 64k", options="-d ignore"),
    *each("disk.raw", "write 0 512", "discard 0 1", "truncate 5M", "aio_write 0 1", "write -c 0 1", options="-r"),
    on("disk.raw", "flush", "f", "flush x", "write -q 0 1", "flush"),
    on("disk.qcow2", "write -P 1 0 512", "write -P 2 100k 200k", "write -z 64k 64k", "map", "read -P 2 150k 150k"),
    on("disk.qcow2", "write -P 7 1 1", "writev -P 8 200000 300 70000", "discard 0 64k", "alloc 0 1M"),
    on("disk.qcow2", "discard 0 64k", "read -P 0 0 64k", "map", options="-d unmap"),
    on("overlay.qcow2", "write -P 3 70000 10", "read -v 69995 20", "write -z 64k 64k", "read -P 0 64k 64k", "map"),
    on("overlay.qcow2", "discard 0 128k", "read -v 0 4", "map", options="-d off"),
]

QUEUED = [
    *each(
        "disk.raw",
        "aio_read 0 512",
        "aio_read 0 512 512",
        "aio_read -P 9 0 512",
        "aio_read -P 65 0 512",
        "aio_read -i 0 512",
        "aio_read -i 0 x",
        "aio_read -Zi 0 1",
        "aio_read -P 300 -i 0 1",
        "aio_read -q 0 512",
        "aio_read -C 0 512",
        "aio_read -v 0 16",
        "aio_read -qv 0 16",
        "aio_read 2M 512",
        "aio_read x 512",
        "aio_read 0 x",
        "aio_read 0",
        "aio_read 0 2G",
        "aio_read 0 1 -P",
        "aio_read 0 0",
        "aio_write 0 512",
        "aio_write -P 7 1000 500 600",
        "aio_write -P 900 0 1",
        "aio_write -z 0 512",
        "aio_write -zu 0 512",
        "aio_write -zP 1 0 512",
        "aio_write -z 0 512 512",
        "aio_write -z x 1",
        "aio_write -u 0 512",
        "aio_write -i 0 512",
        "aio_write -n 0 1",
        "aio_write 2M 512",
        "aio_write -z 2M 512",
        "aio_write -C 0 512",
        "aio_write -q 0 512",
        "aio_write -f 0 512",
        "aio_write 0 1 -f",
        "aio_write 0",
        "aio_flush",
        "aio_flush 1",
    ),
    on("disk.raw", "aio_write -P 5 0 64k", "aio_flush", "read -P 5 0 64k", "length"),
    on("disk.qcow2", "aio_write -qP 5 0 64k", "aio_write -qP 6 64k 64k", "aio_flush", "read -P 5 0 64k", "map"),
    on("disk.qcow2", "aio_write -q 0 1M", "close", "length"),
]

IMAGE = [
    *each(
        "disk.raw",
        "length",
        "l",
        "length 1",
        "truncate 2M",
        "t 512k",
        "truncate 2000001",
        "truncate -- 1M",
        "truncate 1M 2M",
        "truncate -m full 3M",
        "truncate -m falloc 3M",
        "truncate -m metadata 3M",
        "truncate 2M -m off",
        "truncate -m bogus 3M",
        "truncate -m x y",
        "truncate -m",
        "truncate x",
        "truncate",
        "truncate -1",
        "truncate 8E",
        "map",
        "map x",
        "alloc 0",
        "a 0 512",
        "alloc 0 1M",
        "alloc 511",
        "alloc 1M",
        "alloc 1M 1",
        "alloc 1048000 1000",
        "alloc 0 0",
        "alloc -x",
        "alloc x",
        "alloc 0 x",
        "alloc",
        "alloc 0 1 2",
        "alloc 1G 4",
        "alloc 0 3G",
        "sleep 1",
        "sleep x",
        "sleep",
        "sleep 1 2",
        "sleep -1",
        "sleep 1.5",
        "sleep 0x1",
        "help bogus",
        "help -x",
        "help read write",
        "help length",
        "? l",
        "bogus 1",
        "",
        "   ",
        "\tlength",
        "quit 1",
    ),
    on("disk.raw", "truncate 2M", "length", "map", "t 1M", "length", "map"),
    on("disk.raw", "truncate 0", "length", "map", "read 0 1", "truncate 4k", "read -P 0 0 4k"),
    on("disk.raw", "quit", "read 0 1"),
    on("disk.raw", "q"),
    on("disk.qcow2", "map", "alloc 0 1M", "alloc 64k 128k", "alloc 100000 512", "length"),
    on("disk.qcow2", "truncate 64k", "length", "truncate 2M", "length", "truncate 2000001", "map"),
    on("disk.qcow2", "truncate -m falloc 3M", "map", "truncate -m metadata 4M", "truncate -m off 4M"),
    on("overlay.qcow2", "map", "alloc 0 2M", "alloc 0 64k", "truncate 3M", "read -P 0 2M 1M"),
    on("disk.raw", "close", "read 0 512", "close", "map", "length x", "bogus", "sleep 1"),
    on("disk.raw", "open disk.raw"),
    on("disk.raw", "close", "open disk.raw", "read 0 1"),
    on("disk.raw", "close", "open -r disk.raw", "read 0 1"),
    on("disk.raw", "close", "open -o driver=raw disk.raw", "read 0 1"),
    on("disk.raw", "close", "open missing", "read 0 1"),
    on("disk.raw", "close", "open"),
    on("disk.raw", "close", "open -o", "o", "open -r", "length"),
    on("disk.raw", "close", "open -r -o driver=raw disk.raw", "write 0 1"),
    on("disk.raw", "close", "open -x"),
    on("disk.raw", "close", "open -o driver=bogus disk.raw"),
    on("disk.raw", "close", "open -o driver=raw,bogus=1 disk.raw"),
    on("disk.raw", "close", "open -o driver=raw"),
    on("disk.raw", "close", "open -o bogus"),
    on("disk.raw", "close", "open -t bogus disk.raw", "open -d bogus disk.raw", "open -i bogus disk.raw"),
    on("disk.raw", "close", "open -o driver=raw disk.raw odd.raw"),
    on("disk.raw", "close", "open -o driver=raw,file.filename=disk.raw", "length"),
    on("disk.raw", "close", "open -o driver=raw -o file.filename=disk.raw", "length"),
    on("disk.raw", "close", "open -U disk.raw"),
    on("disk.raw", "close", "open -rUo driver=raw disk.raw", "length"),
    on("disk.raw", "close", "open -n -o driver=raw disk.raw", "read 0 512", "read 1 1", "write -P 3 1 1", "length"),
    on("disk.raw", "close", "open -s -o driver=raw disk.raw", "write -P 3 0 1", "read -P 3 0 1", "length"),
    on("disk.raw", "close", "open -C -o driver=raw disk.raw", "length"),
    on("disk.qcow2", "close", "open -C -r disk.qcow2", "length"),
    on("disk.qcow2", "close", "open disk.qcow2", "map", "close", "open -o driver=raw disk.qcow2", "read -v 0 8"),
    on("disk.raw", "close", "open -o driver=null-co,size=1M", "length", "discard 0 4k", "flush"),
    on("disk.raw", "close", 'open json:{"driver":"null-co","size":65536}', "length"),
    on("disk.raw", "close", "open foo:bar"),
    *each(
        "disk.raw",
        "reopen",
        "reopen -rw",
        "reopen -r -w",
        "reopen -x",
        "reopen -c bogus",
        "reopen -o bogus=1",
        "reopen foo",
        "reopen -o foo",
        "reopen -o",
        "reopen -o read-only=on",
        "reopen -r -o read-only=on",
        "reopen -c none -o cache.direct=on",
    ),
    on("disk.raw", "close", "reopen"),
    on("disk.raw", "reopen -r", "write 0 1", "read 0 1", "reopen -w", "write -P 9 0 1"),
    on("disk.raw", "reopen -w", "write 0 1", options="-r"),
    on("disk.raw", "reopen -c none", "read 0 1", "write 5 1", "reopen -c writethrough", "write 0 1"),
    on("overlay.qcow2", "write 0 64k", "reopen -r", "write 0 1", "reopen -w", "write 0 1", "reopen -c unsafe", "map"),
]

CALLING = [
    call("-c", "length"),
    call("-f", "raw", "-c", "read 0 1"),
    call("-c", "sleep 1"),
    call("-c", "help bogus"),
    call("-f", "bogus", "disk.raw"),
    call("disk.raw", "-c", "length"),
    call("disk.qcow2", "-c", "length"),
    call("-r", "disk.raw", "-c", "length"),
    call("missing", "-c", "length"),
    call("-f", "raw", "disk.raw", "-t", "bogus"),
    call("-f", "raw", "disk.raw", "-d", "bogus"),
    call("-f", "raw", "disk.raw", "-i", "bogus"),
    call("-f", "raw", "disk.raw", "-i", "native", "-c", "length"),
    call("-f", "raw", "disk.raw", "-k", "-c", "length"),
    call("-f", "raw", "disk.raw", "-i", "threads", "-c", "read 0 1"),
    call("-f", "raw", "disk.raw", "-k", "-i", "threads", "-c", "read 0 1"),
    call("-f", "raw", "disk.raw", "-i", "native", "-i", "io_uring", "-c", "read 0 1"),
    call("-f", "raw", "disk.raw", "-i", "io_uring", "-c", "read 0 1", "-c", "write 0 1"),
    call("-f", "raw", "disk.raw", "-k", "-n", "-c", "read 0 1", "-c", "write -P 1 5 700"),
    call("-f", "raw", "disk.raw", "-n", "-c", "read 0 512", "-c", "read 1 1"),
    call("-f", "raw", "disk.raw", "-m", "-n", "-c", "read 0 512", "-c", "write 0 4k"),
    call("-f", "raw", "disk.raw", "-t", "none", "-c", "write 0 1"),
    call("-f", "raw", "disk.raw", "-t", "writethrough", "-c", "write 0 1"),
    call("-f", "raw", "disk.raw", "-t", "directsync", "-c", "write 0 1"),
    call("-f", "raw", "disk.raw", "-t", "unsafe", "-c", "write 0 1"),
    call("-U", "-f", "raw", "disk.raw", "-c", "length"),
    call("-rU", "-f", "raw", "disk.raw", "-c", "length"),
    call("--image-opts", "driver=raw,file.filename=disk.raw", "-c", "length"),
    call("--image-opts", "-f", "raw", "driver=raw,file.filename=disk.raw", "-c", "length"),
    call("--image-opts", "bogus", "-c", "length"),
    call("--image-opts", "driver=raw,file.filename=disk.raw,foo=1", "-c", "length"),
    call("--image-opts", "driver=qcow2,file.driver=file,file.filename=disk.qcow2", "-c", "length"),
    call("--image-opts", "driver=raw,offset=512,size=1024,file.filename=disk.raw", "-c", "length", "-c", "map"),
    call("-s", "-f", "qcow2", "disk.qcow2", "-c", "write 0 64k", "-c", "map"),
    call("-s", "-f", "qcow2", "disk.qcow2", "-r", "-c", "write 0 64k", "-c", "map"),
    call("-C", "-f", "qcow2", "overlay.qcow2", "-c", "read 64k 64k", "-c", "map"),
    call("-C", "-r", "-f", "qcow2", "disk.qcow2", "-c", "length"),
    call("-T", "foo", "-f", "raw", "disk.raw", "-c", "length"),
    call("--trace", "enable=foo", "-f", "raw", "disk.raw", "-c", "length"),
    call("--object", "bogus", "-f", "raw", "disk.raw", "-c", "length"),
    call("-f", "qcow2", "disk.raw", "-c", "length"),
    call("-f", "qcow2", "empty.raw", "-c", "length"),
    call("-f", "qcow2", "nothing", "-c", "length"),
    call("-f", "raw", "folder", "-c", "length"),
    call("-f", "raw", "-r", "folder", "-c", "length"),
    call("-f", "qcow2", "", "-c", "length"),
    call("foo:bar", "-c", "length"),
    call('json:{"driver":"raw","file":{"driver":"file","filename":"missing"}}', "-c", "length"),
    call('json:{"driver":"raw","file":{"driver":"file","filename":"disk.raw"}}', "-c", "length"),
    call("-f", "raw", "/dev/null", "-c", "length"),
    call("--cmd", "length", "-f", "qcow2", "--read-only", "disk.qcow2"),
    call("--cm", "length", "-fqcow2", "disk.qcow2"),
    call("-clength", "-fqcow2", "--", "disk.qcow2"),
    call("lonely.qcow2", "-c", "length"),
    call("-f", "qcow2", "torn.qcow2", "-c", "length"),
]

STOPPING = [
    *each(
        "disk.raw", "break write_aio A", "break x", "remove_break A", "remove_break", "resume A", "resume", "wait_break"
    ),
    on("disk.qcow2", "break", "break write_aio", "resume A B", "remove_break A", "abort 1", "sigraise", "sigraise 999"),
    *each("disk.raw", "abort 1", "sigraise x", "sigraise 0"),
    call(
        *STOPPED,
        "-c",
        "break write_aio A",
        "-c",
        "aio_write 0 512",
        "-c",
        "wait_break A",
        "-c",
        "resume A",
        "-c",
        "aio_flush",
    ),
    call(*STOPPED, "-c", "break write_aio A", "-c", "remove_break A", "-c", "write 0 512", "-c", "remove_break A"),
    call(*STOPPED, "-c", "break no_such_event A"),
    call(*STOPPED, "-c", "resume A"),
    call(*STOPPED, "-c", "remove_break A"),
]

# What each letter does is above; here each command has all of its letters where it fails, or where it had none yet.
LETTERS = [
    *each(
        "disk.raw",
        "aio_read -Cqv x 512",
        "aio_write -Cfq x 512",
        "aio_write -P 300 -i 0 1",
        "discard -Cq x 512",
        "flush 1",
        "info",
        "info x",
    ),
    *each("disk.raw", "read -bCqv 0 x", "readv -Cqv 0 x", "write -Cq 0 x", "writev -Cfq 0 x", "close x"),
    *each("disk.qcow2", "write -b 0 512", "reopen -o lazy-refcounts=on", "reopen -r"),
    on("disk.qcow2", "write -bC 0 64k", "read -bqP 0xcd 0 64k"),
    call("-c", "open -rsCnkU -t none -d unmap -o driver=raw missing"),
    call("-c", "open -nk -t none -d unmap -o driver=raw disk.raw", "-c", "length"),
    call(*STOPPED, "-c", "break write_aio A", "-c", "remove_break A", "-c", "write 0 512"),
]

CASES = READING + WRITING + QUEUED + IMAGE + CALLING + STOPPING + LETTERS


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every image that the cases work on."""
    folder = tmp_path_factory.mktemp("images")
    make_images(folder)
    return folder


@pytest.fixture
def both(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Both:
    """Run words through ours and through theirs."""

    def run(words: tuple[str, ...]) -> tuple[Outcome, Outcome]:
        left, right = tmp_path / "a", tmp_path / "b"
        for folder in (left, right):
            copy_images(words, images, folder)
        monkeypatch.chdir(left)
        capfd.readouterr()
        status = main(words, "qemu-io")
        shown = capfd.readouterr()
        return outcome(left, status, shown.out, shown.err), theirs(words, right)

    return run


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_the_same_words_give_the_same_outcome(case: Case, both: Both, tmp_path: Path) -> None:
    ours, real = both(case.words)
    assert ours.out == real.out
    assert ours.err == real.err
    assert ours.status == real.status
    assert ours.files.keys() == real.files.keys()
    for name in (name for name, digest in ours.files.items() if real.files[name] != digest):
        assert name.endswith(".qcow2"), f"{name} differs"
        assert_clean(tmp_path / "a" / name)
        qemu_img("compare", tmp_path / "a" / name, tmp_path / "b" / name)


@pytest.mark.parametrize(
    "words", [("-x", "disk.raw"), ("--bogus",), ("-c",), ("--cmd",), ("--c", "x"), ("--read-only=3",), ("a", "b")]
)
def test_wrong_options_are_named_alike_and_answered_with_the_usage(words: tuple[str, ...], both: Both) -> None:
    ours, real = both(words)
    assert ours.err == real.err
    assert ours.status == real.status == 1
    first = "Usage: qemu-io [OPTIONS]... [-c STRING]... [file]"
    assert ours.out.splitlines()[0] == real.out.splitlines()[0] == first
    assert ours.files == real.files


def test_every_option_of_the_real_tool_is_in_our_help(both: Both) -> None:
    ours, real = both(("--help",))
    assert ours.status == real.status == 0
    options = set(re.findall(r"(?<![\w-])--?[a-zA-Z-]+", real.out))
    assert options <= set(re.findall(r"(?<![\w-])--?[a-zA-Z-]+", ours.out))


def test_the_usage_lines_of_the_commands_are_the_same(both: Both) -> None:
    ours, real = both(("-c", "help"))
    assert ours.out == real.out


@pytest.mark.parametrize("command", ["write 0 4M", "aio_write 0 4M", "writev 0 4M", "write -f 0 4M"])
def test_a_full_disk_is_told_as_the_real_tool_tells_it(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with small_file_system(tmp_path, 1 << 20) as folder:
        image = folder / "disk.raw"
        outcomes = []
        for ours in (True, False):
            image.unlink(missing_ok=True)
            image.touch()
            os.truncate(image, 4 << 20)
            words = ["-f", "raw", str(image), "-c", command, "-c", "aio_flush", "-c", "read -q -P 0 3M 1M"]
            if ours:
                status = main(words, "qemu-io")
                shown = capfd.readouterr()
                outcomes.append((status, shown.out, shown.err))
            else:
                done = subprocess.run(["qemu-io", *words], capture_output=True, text=True, check=False)
                outcomes.append((done.returncode, done.stdout, done.stderr))
    assert "No space left on device" in outcomes[0][1]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", ["backing", "itself"])
def test_an_image_that_is_its_own_backing_file_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real tool follows such a chain until memory is spent, so there is nothing to compare with."""
    monkeypatch.chdir(tmp_path)
    backing = {"backing": "b.qcow2", "itself": "a.qcow2"}[name]
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", "qcow2", tmp_path / "a.qcow2", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "a.qcow2", "-F", "qcow2", tmp_path / "b.qcow2", "1M")
    assert main(["-r", "a.qcow2", "-c", "length"], "qemu-io") == 1
    assert "a.qcow2' creates an infinite loop." in capfd.readouterr().err


def test_a_disk_that_shrank_and_grew_does_not_show_its_old_content(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Inside one cluster the real tool brings the old bytes back; what is new reads as zeroes here."""
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    commands = (
        "write -q -P 65 0 128k",
        "truncate 100k",
        "truncate 2M",
        "read -q -P 65 0 100k",
        "read -q -P 0 100k 28k",
    )
    words = [word for command in commands for word in ("-c", command)]
    assert main(["-f", "qcow2", str(image), *words], "qemu-io") == 0
    assert capfd.readouterr() == ("", "")
    assert_clean(image)
