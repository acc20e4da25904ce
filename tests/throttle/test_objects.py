"""Throttle groups as objects: defined by text or JSON, in the library and in both tools beside the real ones."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockio.aio.clock import ManualClock
from blockio.backend import BlockBackend
from blockio.cli.img import main as img_main
from blockio.cli.io import main as io_main
from blockio.errors import OptionError
from blockio.objects import create_object, delete_object, find_object, object_ids
from blockio.testing.driver import MemoryDisk
from blockio.throttle import ThrottleConfig, ThrottleGroup, find_group
from blockio.throttle.user_object import ThrottleGroupObject
from tests.support.qemu import without_timing

DEFINITIONS = [
    "throttle-group,id=g",
    "throttle-group,id=g,x-bps-total=100000",
    "throttle-group,id=g,x-bps-total=0x20000,x-bps-total-max=200000,x-bps-total-max-length=3",
    "throttle-group,id=g,x-bps-total=1M",
    "throttle-group,id=g,x-bps-total=-1",
    "throttle-group,id=g,x-bps-total=many",
    "throttle-group,id=g,x-bps-total=99999999999999999999",
    "throttle-group,id=g,bps-total=5",
    "throttle-group,id=g,limits.bps-total=500000",
    "throttle-group,id=g,limits.bps-total=5k",
    "throttle-group,id=g,limits.bps-total=-5",
    "throttle-group,id=g,limits.colour=5",
    "throttle-group,id=g,limits.bps-total=5000,limits.bps-read=6",
    "throttle-group,id=g,limits.bps-total=5000,limits.bps-total-max-length=99999999999",
    "throttle-group,id=g,x-bps-total=5000,x-bps-read=6",
    "throttle-group,id=g,x-iops-total=5000,x-iops-write=6",
    "throttle-group,id=g,x-bps-total-max=5000",
    "throttle-group,id=g,x-bps-total=5000,x-bps-total-max=6",
    "throttle-group,id=g,x-bps-total=5000,x-bps-total-max-length=0",
    "throttle-group,id=g,x-bps-total=5000,x-bps-total-max-length=5",
    "throttle-group,id=g,x-bps-total=5000,x-bps-total-max-length=99999999999",
    "throttle-group,id=g,x-iops-size=5",
    "throttle-group,id=g,x-iops-total=5000,x-iops-size=4k",
    "throttle-group,id=g,x-iops-total=5000,x-iops-size=4096",
    "throttle-group,id=g,x-bps-total=9999999999999999",
    "throttle-group,id=",
    "throttle-group,id=9g",
    "throttle-group,x-bps-total=1",
    '{"qom-type":"throttle-group","id":"g","x-bps-total":100000}',
    '{"qom-type":"throttle-group","id":"g","limits":{"bps-total":100000}}',
    '{"qom-type":"throttle-group","id":"g","limits":{"bps-total":"1000"}}',
    '{"qom-type":"throttle-group","id":"g","limits":3}',
    '{"qom-type":"throttle-group","id":"g","x-bps-total":"1000"}',
]

Both = Callable[[list[str], Callable[..., int]], None]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Both:
    """Run a command line through ours and theirs, and compare everything that is said."""
    (tmp_path / "d").write_bytes(bytes(65536))
    monkeypatch.chdir(tmp_path)

    def run(words: list[str], main: Callable[..., int]) -> None:
        capfd.readouterr()
        status = main(words[1:], words[0])
        said = capfd.readouterr()
        theirs = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )
        assert (status, without_timing(said.out), said.err) == (
            theirs.returncode,
            without_timing(theirs.stdout),
            theirs.stderr,
        )
        assert object_ids() == ()
        assert find_group("g") is None

    return run


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_definitions_in_the_io_tool(definition: str, both: Both) -> None:
    image = "driver=throttle,throttle-group=g,file.driver=file,file.filename=d"
    both(["qemu-io", "--object", definition, "-c", "read 0 1k", "--image-opts", image], io_main)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("definition", DEFINITIONS[::4])
def test_definitions_in_the_image_tool(definition: str, both: Both) -> None:
    both(["qemu-img", "compare", "--object", definition, "-f", "raw", "-F", "raw", "d", "d"], img_main)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("definition", ["throttle-group,id=g,x-bps-total=x", "throttle-group,id=g", "help"])
@pytest.mark.parametrize(
    "words", ["info d", "map -f raw d", "check -f raw d", "compare d d", "resize -f raw d +0", "create -f raw e 1M"]
)
def test_every_command_ends_as_theirs(words: str, definition: str, both: Both) -> None:
    command, *rest = words.split()
    both(["qemu-img", command, "--object", definition, *rest], img_main)


@pytest.mark.peer("qemu-img", "qemu-io")
def test_an_id_is_given_once(both: Both) -> None:
    twice = ["--object", "throttle-group,id=g"] * 2
    both(["qemu-io", *twice, "-c", "read 0 1k", "-f", "raw", "d"], io_main)
    both(["qemu-img", "info", *twice, "-f", "raw", "d"], img_main)
    both(["qemu-io", "--object", "throttle-group,id=g", "--object", "help"], io_main)


async def test_a_group_is_found_by_its_id_and_in_use_while_it_has_members() -> None:
    made = create_object({"qom-type": "throttle-group", "id": "gold", "limits": {"iops-total": 7}})
    assert isinstance(made, ThrottleGroupObject)
    assert find_object("gold") is made
    assert made.group is find_group("gold")
    assert made.group.config == ThrottleConfig.of(iops_total=7)
    with MemoryDisk() as disk:
        options = {"driver": "throttle", "throttle-group": "gold", "file": disk.options()}
        async with await BlockBackend.new_open(options=options):
            with pytest.raises(OptionError, match="object 'gold' is in use, can not be deleted"):
                delete_object("gold")
    delete_object("gold")
    assert find_object("gold") is None
    assert find_group("gold") is None
    with pytest.raises(OptionError, match="object 'gold' not found"):
        delete_object("gold")


def test_a_group_that_a_program_made_keeps_its_name() -> None:
    group = ThrottleGroup("mine", clock=ManualClock())
    with pytest.raises(OptionError, match="duplicate property 'mine'"):
        create_object({"qom-type": "throttle-group", "id": "mine"})
    assert find_group("mine") is group
    group.delete()


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({"id": "g"}, "Parameter 'qom-type' is missing"),
        ({"qom-type": "throttle-group"}, "Parameter 'id' is missing"),
        ({"qom-type": "throttle-group", "id": 5}, "Invalid parameter type for 'id', expected: string"),
        ({"qom-type": "teapot", "id": "g"}, "Parameter 'qom-type' does not accept value 'teapot'"),
        ({"qom-type": "throttle-group", "id": "g", "x-bps-total": True}, "Invalid parameter type for 'x-bps-total'"),
        ({"qom-type": "throttle-group", "id": "g", "x-bps-total.y": 1}, "Invalid parameter type for 'x-bps-total'"),
        ({"qom-type": "throttle-group", "id": "g", "a": 1, "a.b": 1}, "Parameters 'a.*' used inconsistently"),
        ({"qom-type": "throttle-group", "id": "g", "a": {"b": 1}}, "Parameter 'a.b' is unexpected"),
    ],
)
def test_bad_definitions(definition: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        create_object(definition)
    assert str(caught.value).startswith(message)
    assert object_ids() == ()


def test_the_limits_hold() -> None:
    """Defined by text, they are those of the group: a second's worth of 2,000 bytes and the rest waits."""
    made = create_object({"qom-type": "throttle-group", "id": "slow", "x-bps-write": "2000"}, text=True)
    assert isinstance(made, ThrottleGroupObject)
    clock = ManualClock()
    made.group._clock = clock
    made.group.set_config(made.group.config)

    async def main() -> None:
        with MemoryDisk() as disk:
            options = {"driver": "throttle", "throttle-group": "slow", "file": disk.options()}
            async with await BlockBackend.new_open(options=options) as blk:
                await blk.co_pwritev(0, bytes(2000))
                second = asyncio.create_task(blk.co_pwritev(0, b"x"))
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not second.done()
                clock.advance(1)
                await second

    asyncio.run(main())
    delete_object("slow")
