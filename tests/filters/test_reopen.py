"""Driver options that a reopen changes: ``reopen -o`` of both tools, and what the library refuses."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.cli.io import main
from blockio.errors import OptionError
from blockio.graph.reopen import reopen
from blockio.testing.driver import MemoryDisk
from blockio.throttle import ThrottleGroup
from tests.support.qemu import without_timing

GROUPS = ["--object", "throttle-group,id=a", "--object", "throttle-group,id=b"]


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize(
    ("image", "option"),
    [
        *(
            ("driver=throttle,throttle-group=a,file.driver=file,file.filename=d", option)
            for option in ("throttle-group=b", "throttle-group=a", "throttle-group=zz", "foo=1", "driver=raw")
        ),
        ("driver=throttle,throttle-group=a,file.driver=file,file.filename=d", "file.filename=x"),
        ("driver=throttle,throttle-group=a,file.driver=file,file.filename=d", "node-name=q"),
        ("driver=preallocate,file.driver=file,file.filename=d", "prealloc-align=1000"),
        ("driver=preallocate,file.driver=file,file.filename=d", "prealloc-size=1M"),
        ("driver=preallocate,file.driver=file,file.filename=d", "prealloc-size=many"),
    ],
)
def test_in_the_tools_words(
    image: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "d").write_bytes(bytes(65536))
    monkeypatch.chdir(tmp_path)
    words = [*GROUPS, "--image-opts", image, "-c", f"reopen -o {option}", "-c", "read 0 512"]
    capfd.readouterr()
    status = main(words, "qemu-io")
    ours = capfd.readouterr()
    done = subprocess.run(["qemu-io", *words], capture_output=True, text=True, check=False, timeout=60)
    assert (status, without_timing(ours.out), ours.err) == (done.returncode, without_timing(done.stdout), done.stderr)


async def test_into_another_group_and_only_where_all_agree() -> None:
    one, two = ThrottleGroup("one"), ThrottleGroup("two")
    with MemoryDisk() as disk:
        options: dict[str, Any] = {"driver": "throttle", "throttle-group": "one", "file": disk.options()}
        async with await BlockBackend.new_open(options=options) as blk:
            node = blk.bs
            assert node is not None
            await reopen(node, options={"throttle-group": "two"})
            assert (len(one.members), len(two.members)) == (0, 1)
            assert '"throttle-group": "two"' in node.filename
            with pytest.raises(OptionError, match="Throttle group 'nope' does not exist"):
                await reopen(node, options={"throttle-group": "nope"}, cache_no_flush=True)
            with pytest.raises(OptionError, match="Cannot change the option 'disk'"):
                await reopen(node.children["file"].node, options={"disk": "other"})
            await reopen(node.children["file"].node, options={"disk": disk.name})
            assert not node.flags.cache_no_flush
            assert node.options == {"throttle-group": "two"}
            waiting = asyncio.create_task(blk.co_pwritev(0, b"x"))
            await reopen(node, options={"throttle-group": "one"})
            await waiting
            assert (len(one.members), len(two.members)) == (1, 0)
    one.delete()
    two.delete()
