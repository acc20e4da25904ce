"""A crash while an image is made: there is none, or a whole one; on a device that held another, that one or neither."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from blockio.errors import NotThisFormat
from blockio.testing.crash import CrashState, explore_crashes
from blockio.testing.journal import Journal
from blockio.testing.memory import MemoryChild
from blockio.types import Limits
from blockio_drivers.qcow2.create import create_image
from blockio_drivers.qcow2.header import Header
from blockio_drivers.qcow2.options import Qcow2CreateOptions
from tests.qcow2.engine import Qcow2Rig, Target, new_image, open_disk

SIZE = 100 << 9
LONG_NAME = "base.raw" * 60  # so that the header takes more than one sector


async def old_image() -> bytearray:
    image = await new_image(2 * SIZE, cluster_size=4096)
    async with open_disk(image) as disk:
        await disk.write(0, b"old" * 20000)
    return image.data


@pytest.mark.parametrize("before", ["nothing", "an old image", "garbage"])
@pytest.mark.parametrize(
    "options",
    [{"backing_file": LONG_NAME, "backing_fmt": "raw"}, {"preallocation": "metadata"}, {"preallocation": "full"}],
    ids=["overlay", "metadata", "full"],
)
def test_after_a_crash_while_making_an_image(before: str, options: dict[str, Any]) -> None:
    async def main() -> int:
        rnd = random.Random(before)
        old = {"nothing": b"", "garbage": rnd.randbytes(50000)}.get(before) or bytes(await old_image())
        file = MemoryChild(old if before != "nothing" else b"")
        start = bytes(file.data)
        journal = Journal()
        journal.add("file", start)
        target = Target(journal.over("file", file))
        await create_image(target, Qcow2CreateOptions(size=SIZE, cluster_size=4096, **options))
        made = 0

        async def judge(state: CrashState) -> None:
            nonlocal made
            data = state.disks["file"]
            try:
                header = Header.decode(bytes(data[:65536]), trust=Limits())
            except NotThisFormat:
                return
            if header.size == 2 * SIZE:
                assert data[: len(start)] == start, "the old image stays whole until it is gone"
                return
            made += 1
            assert header.backing_file == options.get("backing_file")
            async with Qcow2Rig().open(state.disks, read_only=True) as disk:
                found = await disk.check()
                assert found is not None
                assert not found.corruptions
                assert not found.leaks
                if not header.backing_file:
                    assert await disk.read(0, SIZE) == bytes(SIZE)

        report = await explore_crashes(journal, judge, states=300, seed=1)
        assert report.ok, report
        return made

    assert asyncio.run(main()), "the last moment shows the new image"
