"""From options to nodes: who is opened, who is asked, what is said, and that nothing stays open."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from pathlib import Path as FilePath
from typing import Any

import pytest

from blockio.driver.gate import Allow, AllowAll, Decision, Deny, Reference, ReferenceKind, Replace
from blockio.errors import BlockError, LimitExceeded, NotThisFormat, OpenDenied, OptionError
from blockio.graph.node import BlockNode, NodeState, all_nodes, find_node
from blockio.graph.open import open_node
from blockio.types import DetectZeroes, Limits, OpenFlags, Perm, Role
from tests.graph.rig import Path, Store, image, world


async def opened(filename: str | None = None, **options: Any) -> BlockNode:
    gate = options.pop("gate", AllowAll())
    flags = options.pop("flags", None)
    trust = options.pop("trust", None)
    return await open_node(
        filename, options=options.pop("options", options), path_factory=Path, gate=gate, flags=flags, trust=trust
    )


def names(node: BlockNode) -> str:
    """The tree as a picture: ``toy(file=toy-store backing=raw(file=toy-store))``."""
    below = " ".join(f"{name}={names(edge.node)}" for name, edge in node.children.items())
    return f"{node.driver_class.name}({below})" if below else node.driver_class.name


# -- what is opened


@pytest.mark.parametrize(
    ("filename", "options", "picture"),
    [
        ("toy-store:raw", {}, "raw(file=toy-store)"),
        ("toy-store:img", {}, "toy(file=toy-store)"),
        ("toy-store:img", {"driver": "raw"}, "raw(file=toy-store)"),
        ("toy-store:img", {"driver": "toy-store"}, "toy-store"),
        ("toy-store:img", {"driver": "toy-filter"}, "toy-filter(file=toy-store)"),
        (None, {"driver": "toy-store", "filename": "img"}, "toy-store"),
        (None, {"driver": "toy", "file": {"driver": "toy-store", "filename": "img"}}, "toy(file=toy-store)"),
        (None, {"file": {"driver": "toy-store", "filename": "img"}}, "toy(file=toy-store)"),
        ('json:{"driver": "toy", "file": {"driver": "toy-store", "filename": "img"}}', {}, "toy(file=toy-store)"),
        (
            'json:{"driver": "toy", "file.driver": "toy-store", "file.filename": "img"}',
            {"driver": "raw"},
            "raw(file=toy-store)",
        ),
        ("toy-store:img", {"file": {"locking": "on"}}, "toy(file=toy-store)"),
        ("toy-store:top", {}, "toy(file=toy-store backing=raw(file=toy-store))"),
        ("toy-store:top", {"backing": None}, "toy(file=toy-store)"),
        ("toy-store:top", {"backing": ""}, "toy(file=toy-store)"),
        (
            "toy-store:top",
            {"backing": {"driver": "toy-filter"}},
            "toy(file=toy-store backing=toy-filter(file=toy-store))",
        ),
        ("toy-store:guess", {}, "toy(file=toy-store backing=toy(file=toy-store))"),
        ("toy-store:data", {}, "toy(file=toy-store data-file=toy-store)"),
        (
            "toy-store:top",
            {"backing": {"driver": "raw", "file": {"driver": "toy-store", "filename": "img"}}},
            "toy(file=toy-store backing=raw(file=toy-store))",
        ),
    ],
)
async def test_what_is_opened(filename: str | None, options: dict[str, Any], picture: str) -> None:
    disks = {
        "raw": b"x" * 512,
        "img": image(),
        "top": image(backing="toy-store:raw", format="raw"),
        "guess": image(backing="toy-store:img"),
        "data": image(data="toy-store:raw"),
    }
    with world(**disks):
        node = await opened(filename, options=options)
        assert names(node) == picture
        await node.unref()


async def test_nodes_are_used_by_their_names() -> None:
    with world(img=image()):
        store = await opened(driver="toy-store", filename="img", **{"node-name": "f0"})
        first = await opened(driver="raw", file="f0")
        assert first.children["file"].node is store
        assert store.refcnt == 2
        await store.unref()
        assert find_node("f0") is store
        await first.unref()
        assert find_node("f0") is None


async def test_a_life() -> None:
    with world(img=image()):
        node = await opened("toy-store:img")
        states = [node.state]
        await node.unref()
        states.append(node.state)
        assert states == [NodeState.OPEN, NodeState.CLOSED]


async def test_a_node_says_whether_its_format_was_guessed() -> None:
    with world(img=image()):
        for options, probed in (({}, True), ({"driver": "toy"}, False)):
            node = await opened("toy-store:img", options=options)
            assert node.probed is probed
            await node.unref()


# -- what is said when it cannot be: the texts of the QEMU tools


@pytest.mark.parametrize(
    ("filename", "options", "message"),
    [
        ("foo:bar", {}, "Unknown protocol 'foo'"),
        ("toy-store:nope", {}, "Could not open 'nope': No such file or directory"),
        (None, {"driver": "xyz"}, "Unknown driver 'xyz'"),
        (None, {"driver": 5}, "Invalid parameter type for 'driver', expected: string"),
        (None, {"driver": "toy"}, 'A block device must be specified for "file"'),
        (None, {"driver": "toy", "file": None}, 'A block device must be specified for "file"'),
        (None, {"driver": "toy", "file": 5}, 'A block device must be specified for "file"'),
        (None, {}, "Must specify either driver or file"),
        (None, {"filename": "x"}, "Must specify either driver or file"),
        (None, {"driver": "toy", "file": {"locking": "on"}}, "Must specify either driver or file"),
        (None, {"driver": "toy-store"}, "The 'toy-store' block driver requires a file name"),
        (None, {"driver": "toy", "file": "nonode"}, "Cannot find device='nonode' nor node-name='nonode'"),
        ("toy-store:img", {"driver": "toy", "foo": "1"}, "Block format 'toy' does not support the option 'foo'"),
        (
            "toy-store:img",
            {"driver": "toy", "foo": {"bar": 1}},
            "Block format 'toy' does not support the option 'foo.bar'",
        ),
        ("toy-store:img", {"cache": {"foo": 1}}, "Block format 'toy' does not support the option 'cache.foo'"),
        ("toy-store:img", {"file": {"foo": 1}}, "Block protocol 'toy-store' doesn't support the option 'foo'"),
        (
            "toy-store:img",
            {"driver": "toy-store", "foo": 1},
            "Block protocol 'toy-store' doesn't support the option 'foo'",
        ),
        (
            "toy-store:img",
            {"driver": "toy-store", "filename": "x"},
            "Can't specify 'file' and 'filename' options at the same time",
        ),
        (
            "toy-store:img",
            {"file": "f0"},
            "Cannot reference an existing block device with additional options or a new filename",
        ),
        (
            "toy-store:img",
            {"backing": "b0", "backing.driver": "toy"},
            "Could not open backing file: "
            "Cannot reference an existing block device with additional options or a new filename",
        ),
        ("toy-store:img", {"read-only": "maybe"}, "Parameter 'read-only' expects 'on' or 'off'"),
        ("toy-store:img", {"cache": {"direct": "maybe"}}, "Parameter 'cache.direct' expects 'on' or 'off'"),
        ("toy-store:img", {"lazy-refcounts": "maybe"}, "Parameter 'lazy-refcounts' expects 'on' or 'off'"),
        ("toy-store:img", {"discard": "maybe"}, "Invalid discard option"),
        ("toy-store:img", {"detect-zeroes": "maybe"}, "invalid parameter value: maybe"),
        (
            "toy-store:img",
            {"detect-zeroes": "unmap"},
            "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
        ),
        ("toy-store:img", {"force-share": "on"}, "force-share=on can only be used with read-only images"),
        ("toy-store:img", {"node-name": "1a"}, "Invalid node-name: '1a'"),
        ("toy-store:img", {"node-name": ""}, "Invalid node-name: ''"),
        ("toy-store:img", {"node-name": "a" * 32}, "Node name too long"),
        ("toy-store:img", {"node-name": "a", "file": {"node-name": "a"}}, "Duplicate nodes with node-name='a'"),
        (
            "toy-store:top",
            {"backing": "nonode"},
            "Could not open backing file: Cannot find device='nonode' nor node-name='nonode'",
        ),
        (
            "toy-store:top",
            {"backing": {"foo": 1}},
            "Could not open backing file: Block format 'raw' does not support the option 'foo'",
        ),
        ("toy-store:lost", {}, "Could not open backing file: Could not open 'nope': No such file or directory"),
        ("toy-store:weird", {}, "Could not open backing file: Unknown protocol 'foo'"),
        ("toy-store:odd", {}, "Could not open backing file: Unknown driver 'zzz'"),
        ("toy-store:nodata", {}, "Could not open 'nope': No such file or directory"),
    ],
)  # fmt: skip
async def test_messages(filename: str | None, options: dict[str, Any], message: str) -> None:
    disks = {
        "raw": b"x",
        "img": image(),
        "top": image(backing="toy-store:raw", format="raw"),
        "lost": image(backing="toy-store:nope", format="raw"),
        "weird": image(backing="foo:bar", format="raw"),
        "odd": image(backing="toy-store:raw", format="zzz"),
        "nodata": image(data="toy-store:nope"),
    }
    with world(**disks):
        with pytest.raises(BlockError) as caught:
            await opened(filename, options=options)
        assert caught.value.message == message
        assert all_nodes() == []


async def test_not_an_image() -> None:
    with world(img=bytes(1024)):
        with pytest.raises(NotThisFormat, match="Image is not in toy format"):
            await opened("toy-store:img", driver="toy")
        assert Store.log[-2:] == ["flush img", "close img"]


# -- the gate


class Gate:
    """Notes what is asked and answers by a table; silence is consent."""

    def __init__(self, **answers: Decision) -> None:
        self.asked: list[Reference] = []
        self.answers = answers

    async def __call__(self, reference: Reference, /) -> Decision:
        await asyncio.sleep(0)
        self.asked.append(reference)
        return self.answers.get(reference.kind.name.lower(), Allow())


CHAIN = {"top": image(backing="toy-store:mid", format="toy"), "mid": image(backing="toy-store:base"), "base": b"x"}


async def test_the_gate_sees_every_wish_of_every_image() -> None:
    with world(**CHAIN):
        gate = Gate()
        await (await opened("toy-store:top", gate=gate)).unref()
        assert gate.asked == [
            Reference(ReferenceKind.PROBE, "", "toy-store:top"),
            Reference(ReferenceKind.BACKING, "toy-store:top", "toy-store:mid", "toy"),
            Reference(ReferenceKind.BACKING, "toy-store:mid", "toy-store:base", None),
            Reference(ReferenceKind.PROBE, "toy-store:mid", "toy-store:base"),
        ]


async def test_what_the_caller_names_does_not_pass_the_gate() -> None:
    with world(**CHAIN):
        gate = Gate()
        base = {"driver": "raw", "file": {"driver": "toy-store", "filename": "base"}}
        await (await opened("toy-store:top", gate=gate, driver="toy", backing=base)).unref()
        assert gate.asked == []


@pytest.mark.parametrize("kind", ["backing", "probe"])
async def test_the_gate_denies(kind: str) -> None:
    with world(**CHAIN):
        with pytest.raises(OpenDenied, match="not today"):
            await opened("toy-store:mid", driver="toy", gate=Gate(**{kind: Deny("not today")}))
        assert ("open base" in Store.log) == (kind == "probe")


async def test_the_default_gate_keeps_images_to_themselves() -> None:
    hostile = image(backing="/etc/passwd", format="raw")
    for disk in (hostile, image(data="/etc/passwd"), image(backing='json:{"driver":"file","filename":"/etc/passwd"}')):
        with world(disk=disk), pytest.raises(OpenDenied, match="/etc/passwd"):
            await open_node("toy-store:disk", path_factory=Path)


async def test_the_gate_replaces() -> None:
    with world(**CHAIN, other=image()):
        instead = Replace({"driver": "toy", "file.driver": "toy-store", "file.filename": "other"})
        node = await opened("toy-store:top", gate=Gate(backing=instead))
        backing = node.backing
        assert backing is not None
        assert backing.filename == "json:{}" or "other" in backing.filename
        await node.unref()


async def test_the_gate_may_say_the_format_itself() -> None:
    with world(disk=image()):
        node = await opened("toy-store:disk", gate=Gate(probe=Replace({"driver": "raw"})))
        assert names(node) == "raw(file=toy-store)"
        await node.unref()


async def test_a_gate_that_answers_nonsense_is_a_program_error() -> None:
    async def gate(reference: Reference, /) -> Any:
        return True

    with world(**CHAIN):
        with pytest.raises(TypeError, match="Allow, Deny or Replace"):
            await opened("toy-store:top", gate=gate)
        with pytest.raises(TypeError, match="driver"):
            await opened("toy-store:top", gate=Gate(probe=Replace({})))


async def test_an_image_cannot_reach_the_nodes_of_this_process() -> None:
    with world(secret=b"s", disk=image(backing='json:{"driver": "raw", "file": "secret"}')):
        secret = await opened(driver="toy-store", filename="secret", **{"node-name": "secret"})
        with pytest.raises(OpenDenied, match="may not use node 'secret'"):
            await opened("toy-store:disk")
        await secret.unref()


# -- chains


@pytest.mark.parametrize(
    "disks",
    [
        {"top": image(backing="toy-store:top")},
        {"top": image(backing="toy-store:top", format="raw")},
        {"top": image(data="toy-store:top")},
        {"top": image(backing="toy-store:mid"), "mid": image(backing="toy-store:top")},
        {"top": image(backing='json:{"driver":"raw","file":{"driver":"toy-store","filename":"top"}}')},
    ],
)
async def test_a_chain_that_bites_its_own_tail(disks: dict[str, bytes]) -> None:
    with world(**disks):
        with pytest.raises(BlockError, match="creates an infinite loop") as caught:
            await opened("toy-store:top")
        assert caught.value.errno == errno.ELOOP


async def test_a_loop_through_links(tmp_path: FilePath) -> None:
    (tmp_path / "top").write_bytes(image(backing="link"))
    (tmp_path / "link").symlink_to("top")
    with world(), pytest.raises(BlockError, match="infinite loop"):
        await opened(str(tmp_path / "top"))


async def test_chains_as_long_as_allowed_and_no_longer() -> None:
    depth = 150
    disks = {f"d{n}": image(backing=f"toy-store:d{n + 1}", format="toy") for n in range(depth)}
    disks[f"d{depth}"] = image()
    with world(**disks):
        node = await opened("toy-store:d0", trust=Limits(max_chain_depth=depth))
        assert len(all_nodes()) == 2 * (depth + 1)
        await node.unref()
        with pytest.raises(LimitExceeded, match=f"^backing file .* is more than {depth - 1} images away"):
            await opened("toy-store:d0", trust=Limits(max_chain_depth=depth - 1))


async def test_backing_names_are_seen_from_the_image(tmp_path: FilePath) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base").write_bytes(b"x" * 512)
    (tmp_path / "top").write_bytes(image(backing="sub/base", format="raw"))
    with world():
        gate = Gate()
        node = await opened(str(tmp_path / "top"), gate=gate)
        assert gate.asked[1].target == str(tmp_path / "sub" / "base")
        assert node.backing is not None
        assert node.backing.filename == str(tmp_path / "sub" / "base")
        await node.unref()


async def test_without_backing_nobody_is_asked() -> None:
    with world(**CHAIN):
        gate = Gate()
        node = await opened("toy-store:top", driver="toy", gate=gate, flags=OpenFlags(no_backing=True))
        assert names(node) == "toy(file=toy-store)"
        assert gate.asked == []
        await node.unref()


# -- what children inherit


@pytest.mark.parametrize(
    ("flags", "options", "file", "backing"),
    [
        (OpenFlags(), {}, OpenFlags(unmap=True), OpenFlags(read_only=True)),
        (
            OpenFlags(read_only=True, cache_direct=True, cache_no_flush=True, force_share=True),
            {},
            OpenFlags(read_only=True, cache_direct=True, cache_no_flush=True, force_share=True, unmap=True),
            OpenFlags(read_only=True, cache_direct=True, cache_no_flush=True, force_share=True),
        ),
        (OpenFlags(auto_read_only=True), {}, OpenFlags(auto_read_only=True, unmap=True), OpenFlags(read_only=True)),
        (OpenFlags(no_io=True), {}, OpenFlags(unmap=True), OpenFlags(read_only=True, no_io=True)),
        (
            OpenFlags(),
            {"cache": {"direct": "on"}, "discard": "unmap", "file": {"discard": "ignore", "cache": {"direct": "off"}}},
            OpenFlags(),
            OpenFlags(read_only=True, cache_direct=True, unmap=True),
        ),
    ],
)
async def test_inherited_flags(flags: OpenFlags, options: dict[str, Any], file: OpenFlags, backing: OpenFlags) -> None:
    with world(top=image(backing="toy-store:raw", format="raw"), raw=b"x"):
        node = await opened("toy-store:top", options={"driver": "toy", **options}, flags=flags)
        assert node.children["file"].node.flags == file
        assert node.children["backing"].node.flags == backing
        await node.unref()


async def test_common_options_are_the_nodes() -> None:
    with world(img=image()):
        node = await opened("toy-store:img", **{"detect-zeroes": "unmap", "discard": "on", "node-name": "n0"})
        assert node.detect_zeroes is DetectZeroes.UNMAP
        assert node.flags == OpenFlags(unmap=True)
        assert find_node("n0") is node
        await node.unref()


async def test_permissions_below_a_format() -> None:
    with world(top=image(backing="toy-store:raw", format="raw"), raw=b"x"):
        node = await opened("toy-store:top")
        file, backing = node.children["file"], node.children["backing"]
        assert (file.role, file.perm) == (Role.IMAGE, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE)
        assert file.shared == Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED
        assert (backing.role, backing.perm) == (Role.COW, Perm.NONE)
        await node.unref()


# -- cancelled, or failing, at every step: nothing stays open

DEEP = {
    "top": image(backing="toy-store:mid"),
    "mid": image(backing="toy-store:base", format="raw"),
    "base": b"x",
}


async def at_every_step(act: Callable[[], Coroutine[Any, Any, BlockNode]], after: Callable[[], None]) -> int:
    """Run *act* again and again, cancelled one turn of the loop later each time, until it ends by itself."""
    turns = 0
    while True:
        task = asyncio.ensure_future(act())
        for _ in range(turns):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task.result().unref()
        after()
        if ended:
            return turns
        turns += 1


def nothing_open() -> None:
    assert all_nodes() == []
    assert Store.held == 0


async def test_cancelled_at_every_await_of_open() -> None:
    with world(**DEEP):
        steps = await at_every_step(lambda: opened("toy-store:top", gate=Gate()), nothing_open)
        assert steps > 10
        node = await opened("toy-store:top")  # and then it works
        await node.unref()


async def test_cancelled_at_every_await_of_close() -> None:
    with world(**DEEP):

        async def close() -> None:
            await node.unref()

        steps = 1  # cancelled before its first step, a task never runs
        while True:
            node = await opened("toy-store:top")
            task = asyncio.ensure_future(close())
            for _ in range(steps):
                await asyncio.sleep(0)
            ended = task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            nothing_open()  # closing went on to its end
            assert task.cancelled() or ended
            if ended:
                break
            steps += 1
        assert steps > 3


@pytest.mark.parametrize(
    "failing",
    ["open top", "read top", "check top", "open mid", "read mid", "check mid", "open base", "check base"],
)
async def test_a_step_that_fails(failing: str) -> None:
    with world(**DEEP):
        Store.fail[failing] = BlockError("no")
        with pytest.raises(BlockError, match=r"no$"):
            await opened("toy-store:top")
        nothing_open()
        Store.fail.clear()
        await (await opened("toy-store:top")).unref()


async def test_closing_releases_everything_whatever_fails() -> None:
    with world(**DEEP):
        node = await opened("toy-store:top")
        for failing in (
            "flush top",
            "close image toy-store:top",
            "close top",
            "close image toy-store:mid",
            "close base",
        ):
            Store.fail[failing] = BlockError(failing)
        with pytest.raises(BlockError, match=r"^close image toy-store:top\b") as caught:
            await node.unref()
        noted = "\n".join(getattr(caught.value, "__notes__", []))
        assert "close top" in noted or "flush top" in noted
        nothing_open()


async def test_a_program_error_in_a_driver_leaks_nothing() -> None:
    with world(**DEEP):
        Store.fail["read mid"] = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await opened("toy-store:top")
        nothing_open()


async def test_options_of_the_wrong_kind_are_type_errors() -> None:
    with world(), pytest.raises(TypeError):
        await opened(options={"driver": b"raw"})
    with world(img=image()), pytest.raises(OptionError):
        await opened("toy-store:img", driver=5)
