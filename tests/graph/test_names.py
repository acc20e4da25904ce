"""What nodes are called, and by which names they can be opened again."""

from __future__ import annotations

import threading
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.driver.gate import AllowAll
from blockio.errors import OptionError
from blockio.graph.describe import exact_filename, filename_of, folder_of, full_options
from blockio.graph.names import all_nodes, find_node, name_guards
from blockio.graph.node import BlockNode
from blockio.graph.open import open_node
from blockio.types import OpenFlags
from tests.graph.rig import Path, image, world

DISKS = {"img": image(size=512), "top": image(backing="toy-store:base", format="raw"), "base": bytes(512)}


async def opened(filename: str | None = None, **options: Any) -> BlockNode:
    return await open_node(filename, options=options, path_factory=Path, gate=AllowAll())


# -- node names


async def test_generated_names_are_unique_and_nobody_can_take_them() -> None:
    with world(**DISKS):
        nodes = [await opened("toy-store:img", driver="toy-store") for _ in range(3)]
        names = [node.node_name for node in nodes]
        assert len(set(names)) == 3
        assert all(name.startswith("#block") and name[6:].isdigit() for name in names)
        with pytest.raises(OptionError, match="Invalid node-name"):
            await opened("toy-store:img", **{"node-name": "#block999"})
        for node in nodes:
            await node.unref()


async def test_a_name_is_free_again_after_closing() -> None:
    with world(**DISKS):
        for _ in range(2):
            node = await opened("toy-store:img", driver="toy-store", **{"node-name": "n0"})
            assert find_node("n0") is node
            assert all_nodes() == [node]
            await node.unref()
            assert find_node("n0") is None


async def test_others_may_guard_their_names() -> None:
    def guard(name: str) -> None:
        if name == "vda":
            raise OptionError(f"node-name={name} is conflicting with a device id")

    name_guards.append(guard)
    try:
        with world(**DISKS), pytest.raises(OptionError, match="conflicting with a device id"):
            await opened("toy-store:img", **{"node-name": "vda"})
    finally:
        name_guards.remove(guard)


@given(st.text(max_size=40))
async def test_names_are_well_formed_or_refused(name: str) -> None:
    with world(**DISKS):
        try:
            node = await opened("toy-store:img", driver="toy-store", **{"node-name": name})
        except OptionError:
            assert find_node(name) is None
            return
        assert name[0].isalpha()
        assert len(name.encode()) <= 31
        await node.unref()


def test_the_table_is_one_for_all_threads() -> None:
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.append(all_nodes()))
    thread.start()
    thread.join()
    assert seen == [[]]


# -- file names


@pytest.mark.parametrize(
    ("filename", "options", "name"),
    [
        ("toy-store:img", {}, "toy-store:img"),
        ("toy-store:img", {"driver": "raw"}, "toy-store:img"),
        ("toy-store:img", {"file": {"node-name": "f0", "cache.direct": "on"}}, "toy-store:img"),
        ("toy-store:top", {}, "toy-store:top"),
        ("toy-store:top", {"backing": {"driver": "raw"}}, "toy-store:top"),
        (
            "toy-store:img",
            {"file": {"locking": "on"}},
            'json:{"driver": "toy", "file": {"driver": "toy-store", "filename": "img", "locking": "on"}}',
        ),
        (
            None,
            {"driver": "toy", "file": {"driver": "toy-store", "filename": "img"}},
            'json:{"driver": "toy", "file": {"driver": "toy-store", "filename": "img"}}',
        ),
        (
            "toy-store:img",
            {"lazy-refcounts": "on"},
            'json:{"driver": "toy", "lazy-refcounts": "on", "file": {"driver": "toy-store", "filename": "img"}}',
        ),
        (
            "toy-store:img",
            {"driver": "toy-filter"},
            'json:{"driver": "toy-filter", "file": {"driver": "toy-store", "filename": "img"}}',
        ),
        (
            "toy-store:top",
            {"backing": None},
            'json:{"driver": "toy", "file": {"driver": "toy-store", "filename": "top"}, "backing": null}',
        ),
        (
            "toy-store:top",
            {"backing": {"driver": "toy-store", "filename": "img"}},
            'json:{"driver": "toy", "file": {"driver": "toy-store", "filename": "top"}, '
            '"backing": {"driver": "toy-store", "filename": "img"}}',
        ),
    ],
)
async def test_a_name_opens_the_same_nodes_again(filename: str | None, options: dict[str, Any], name: str) -> None:
    with world(**DISKS):
        node = await opened(filename, **options)
        assert node.filename == filename_of(node) == name
        again = await opened(name, **({"driver": options["driver"]} if "driver" in options else {}))
        assert full_options(again) == full_options(node)
        assert again.filename == name
        await again.unref()
        await node.unref()


async def test_without_its_backing_file_an_image_needs_a_long_name() -> None:
    with world(**DISKS):
        node = await open_node("toy-store:top", flags=OpenFlags(no_backing=True), path_factory=Path)
        assert exact_filename(node) is None
        await node.unref()


@pytest.mark.parametrize(
    ("name", "called", "folder"), [("disk", "disk", ""), ("./a:b", "./a:b", "./"), ("sub/disk", "sub/disk", "sub/")]
)
async def test_plain_paths(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch, name: str, called: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(bytes(512))
    with world():
        node = await opened(name, driver="raw")
        assert (node.filename, folder_of(node)) == (called, folder)
        await node.unref()
