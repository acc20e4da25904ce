"""What opening says, beside what qemu-img says of the same words."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from blockio.driver.gate import AllowAll
from blockio.driver.options import parse_image_opts
from blockio.errors import BlockError
from blockio.graph.node import all_nodes
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.types import OpenFlags

pytestmark = pytest.mark.peer("qemu-img")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``a.raw``, ``a.qcow2`` and overlays whose backing files are lost, odd or fine; the tests run beside them."""
    monkeypatch.chdir(tmp_path)
    for name, *options in (
        ("a.raw", "-f", "raw"),
        ("a.qcow2", "-f", "qcow2"),
        ("fine.qcow2", "-f", "qcow2", "-b", "a.raw", "-F", "raw"),
        ("lost.qcow2", "-f", "qcow2", "-u", "-b", "/nonexist/x", "-F", "raw"),
        ("foo.qcow2", "-f", "qcow2", "-u", "-b", "foo:bar", "-F", "raw"),
        ("json.qcow2", "-f", "qcow2", "-u", "-b", "json:{", "-F", "raw"),
        ("wrong.qcow2", "-f", "qcow2", "-u", "-b", "a.raw", "-F", "qcow2"),
    ):
        subprocess.run(["qemu-img", "create", "-q", *options, name, "1M"], check=True, capture_output=True)
    return tmp_path


def qemu_says(*arguments: str) -> str:
    """What qemu-img has against opening it, without its own name and the name of what it opens; empty: nothing."""
    run = subprocess.run(["qemu-img", "bench", "-c", "1", *arguments], capture_output=True, text=True, check=False)
    return re.sub(rf"^qemu-img: Could not open '{re.escape(arguments[-1])}': ", "", run.stderr).rstrip("\n")


async def we_say(filename: str | None, text: str = "") -> str:
    try:
        node = await open_node(
            filename,
            options=parse_image_opts(text),
            flags=OpenFlags(read_only=True),
            gate=AllowAll(),
            path_factory=NodeIO,
        )
    except BlockError as error:
        assert all_nodes() == []
        return str(error)
    await node.unref()
    return ""


@pytest.mark.parametrize(
    "text",
    [
        "driver=qcow2,file.filename=a.qcow2",
        "file.filename=a.qcow2",
        "driver=raw,file.filename=a.qcow2",
        "driver=file,filename=a.qcow2",
        "driver=raw,file.driver=raw,file.file.filename=a.raw",
        "driver=raw,offset=0x200,size=64k,file.filename=a.raw",
        "driver=qcow2,file.filename=fine.qcow2,backing.file.filename=a.raw,backing.driver=raw",
        "driver=qcow2,file.filename=lost.qcow2,backing.file.filename=a.raw",
        "driver=qcow2,file.filename=fine.qcow2,backing.node-name=foo",
        "a.raw",
        "foo=1",
        "filename=a.raw",
        "driver=file",
        "driver=qcow2",
        "driver=xyz,file.filename=a.raw",
        "driver=qcow2,file=nonode",
        "driver=qcow2,foo=1,file.filename=a.qcow2",
        "driver=qcow2,file.filename=a.qcow2,file.foo=1",
        "driver=file,filename=a.raw,foo=1",
        "driver=raw,cache.foo=on,file.filename=a.raw",
        "driver=raw,cache.direct=maybe,file.filename=a.raw",
        "driver=raw,read-only=maybe,file.filename=a.raw",
        "driver=raw,discard=maybe,file.filename=a.raw",
        "driver=raw,detect-zeroes=maybe,file.filename=a.raw",
        "driver=raw,detect-zeroes=unmap,file.filename=a.raw",
        "driver=raw,node-name=1a,file.filename=a.raw",
        "driver=raw,node-name=a,file.node-name=a,file.filename=a.raw",
        "driver=raw,node-name=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,file.filename=a.raw",
        "driver=raw,offset=12x,file.filename=a.raw",
        "driver=raw,offset=-1,file.filename=a.raw",
        "driver=raw,offset=99999999999999999999,file.filename=a.raw",
        "driver=raw,file.driver=qcow2,file.filename=a.raw",
        "driver=raw,file.driver=raw,file.filename=a.raw",
        "driver=qcow2,file.filename=a.qcow2,lazy-refcounts=maybe",
        "driver=qcow2,file.filename=a.qcow2,l2-cache-size=12x",
        "driver=raw,file.filename=a.raw,file.aio=zz",
        "driver=raw,file.filename=foo:bar",
        "driver=qcow2,file.filename=fine.qcow2,backing=nonode",
        "driver=qcow2,file.filename=fine.qcow2,backing.foo=1",
        "driver=qcow2,file.filename=fine.qcow2,backing.filename=a.raw",
        "driver=qcow2,file.filename=fine.qcow2,backing.file.foo=1",
        "driver=qcow2,file.filename=fine.qcow2,backing.file.filename=nope",
        "driver=raw,force-share=on,file.filename=a.raw",
    ],
)
async def test_options(images: Path, text: str) -> None:
    assert await we_say(None, text) == qemu_says("--image-opts", text)


@pytest.mark.parametrize(
    "filename",
    [
        "a.raw",
        "a.qcow2",
        "file:a.raw",
        "./a.raw",
        "fine.qcow2",
        "nope",
        "./a:b",
        "foo:bar",
        "/dev/nope:x",
        "json:[1]",
        'json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}',
        'json:{"driver":"qcow2","file.driver":"file","file.filename":"a.qcow2"}',
        'json:{"driver":"qcow2","file":{"filename":"lost.qcow2"},"backing":null}',
        'json:{"driver":"qcow2","file":"nonode","file.locking":"on"}',
        'json:{"driver":"qcow2","file":5}',
        'json:{"driver":"qcow2","file":{"filename":"a.qcow2"},"lazy-refcounts":5}',
        'json:{"driver":"qcow2","file":{"filename":"a.qcow2"},"l2-cache-size":true}',
        "lost.qcow2",
        "foo.qcow2",
        "wrong.qcow2",
    ],
)
async def test_names(images: Path, filename: str) -> None:
    assert await we_say(filename) == qemu_says(filename)


@pytest.mark.parametrize("driver", ["qcow2", "raw", "file", "host_device", "xyz"])
async def test_formats(images: Path, driver: str) -> None:
    assert await we_say("a.raw", f"driver={driver}") == qemu_says("-f", driver, "a.raw")


async def test_a_bad_json_name_in_an_image(images: Path) -> None:
    """QEMU adds what its own parser stumbled over; ours says where."""
    beginning = "Could not open backing file: Could not parse the JSON options: "
    assert qemu_says("json.qcow2").startswith(beginning)
    assert (await we_say("json.qcow2")).startswith(beginning)
