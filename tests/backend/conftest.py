"""A memory disk for every test here, and a backend on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from blockio.backend import BlockBackend
from blockio.testing.driver import MemoryDisk

LENGTH = 1 << 20


@pytest.fixture
def disk() -> Iterator[MemoryDisk]:
    """1 MiB of zeroes; only the slow lane, so that every request can be held back."""
    with MemoryDisk(LENGTH, fast=False) as disk:
        yield disk


@pytest.fixture
async def blk(disk: MemoryDisk) -> AsyncIterator[BlockBackend]:
    """A backend on the disk. It must come out of the test with nothing in flight."""
    async with await BlockBackend.new_open(options=disk.options(), resize=True) as blk:
        yield blk
        disk.go()
        disk.fail = None
        assert blk.in_flight == 0
        assert not blk.quiesced
