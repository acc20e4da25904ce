"""Where a request's time goes: the arithmetic by an injected clock, the way down real stacks, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockio.bench import layers
from blockio.bench.figures import Spread
from blockio.bench.job import Job
from blockio.bench.layers import Layer, LayerCost, Level, costs, measure_layers
from blockio.bench.load import run_loop
from blockio.bench.scratch import MIB, Scratch, make_scratch
from blockio.bench.stack import Stack
from blockio.errors import OptionError
from blockio.img.converting import convert
from blockio.img.opening import Image
from tests.support.qemu import assert_clean


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "REQUESTS", 20)


async def test_a_layers_own_is_what_it_adds_to_the_one_below_pass_by_pass() -> None:
    log: list[str] = []
    now = 0
    times = {"call": [0, 100, 300, 200], "node": [0, 150, 500, 250]}

    def level(name: str) -> Level:
        takes = iter(times[name])

        async def run() -> None:
            nonlocal now
            log.append(name)
            now += next(takes)

        return Level(name, run)

    found = await costs([level("call"), level("node")], requests=10, passes=3, clock=lambda: now)
    assert log == ["call", "node"] * 4, "one pass to warm up, then in turn"
    assert found == [
        Layer("call", Spread(10, 20, 30), Spread(10, 20, 30)),
        Layer("node", Spread(15, 25, 50), Spread(5, 5, 20)),
    ]


def _measured(stack: Stack, job: Job) -> dict[str, LayerCost]:
    found = run_loop(measure_layers(stack, job, name="disk", passes=1))
    assert [cost.lane for cost in found] == ["fast", "started", "slow"]
    return {cost.lane: cost for cost in found}


def _names(cost: LayerCost) -> list[str]:
    return [layer.name for layer in cost.layers]


_ABOVE = ["backend, counting", "backend, timing"]
_FILE = ["the asking loop", "system call", "file driver", "file node"]


@pytest.mark.parametrize(
    ("wanted", "nodes"),
    [
        (Scratch(format="raw", size=MIB), [*_FILE, "raw node"]),
        (Scratch(size=MIB), [*_FILE, "qcow2 node"]),
        (Scratch(size=MIB, overlays=2), [*_FILE, "qcow2 node", "qcow2 node", "qcow2 node"]),
        (Scratch(size=MIB, encrypted=True), [*_FILE, "luks node"]),
    ],
    ids=lambda value: value.title if isinstance(value, Scratch) else "",
)
def test_every_layer_down_to_the_system_call(wanted: Scratch, nodes: list[str], tmp_path: Path) -> None:
    stack, _ = make_scratch(tmp_path, wanted)
    for depth in (1, 4):
        found = _measured(stack, Job(pattern="random", count=1, depth=depth))
        assert _names(found["slow"]) == [*nodes, *_ABOVE]
        assert found["slow"].layers[-1].total.middle > 0
        for lane in ("fast", "started"):
            assert _names(found[lane]) == [*nodes, *_ABOVE] or "declines" in found[lane].left_out


def test_below_what_is_stored_otherwise_nothing_is_measured(tmp_path: Path) -> None:
    raw, disk = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"squeeze me" * (MIB // 10))
    run_loop(convert(Image(filename=str(raw), format="raw"), str(disk), "qcow2", compress=True))
    found = _measured(Stack(image=Image(filename=str(disk), format="qcow2")), Job(pattern="random", count=1))
    assert _names(found["slow"]) == ["the asking loop", "qcow2 node", *_ABOVE]
    assert found["started"].left_out == "the qcow2 node declines"


@pytest.mark.peer("qemu-img")
def test_writes_go_where_the_data_lies(tmp_path: Path) -> None:
    """Through every layer, and the image stays whole."""
    for wanted, nodes in (
        (Scratch(size=MIB), [*_FILE, "qcow2 node"]),
        (Scratch(size=MIB, format="raw"), [*_FILE, "raw node"]),
        (Scratch(size=MIB, encrypted=True), ["the asking loop", "luks node"]),
    ):
        stack, _ = make_scratch(tmp_path, wanted)
        found = _measured(stack, Job(pattern="random", count=1, read_percent=0))
        assert _names(found["slow"]) == [*nodes, *_ABOVE]
    assert_clean(tmp_path / "disk.qcow2")


def test_a_disk_that_is_nowhere(tmp_path: Path) -> None:
    stack = Stack(image=Image(options={"driver": "null-co", "size": MIB}))
    found = _measured(stack, Job(count=1))
    assert _names(found["slow"]) == ["the asking loop", "null-co driver", "null-co node", *_ABOVE]
    assert found["slow"].engine == ""


def test_a_mix_is_refused() -> None:
    stack = Stack(image=Image(options={"driver": "null-co", "size": MIB}))
    with pytest.raises(OptionError, match="not for a mix"):
        _measured(stack, Job(count=1, read_percent=50))
    with pytest.raises(OptionError, match="too small"):
        _measured(stack, Job(count=1, block_size=2 * MIB))
