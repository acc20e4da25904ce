"""What is remembered of a root when it is gone, and the questions it answers."""

from __future__ import annotations

import pytest

from blockio.backend import BlockBackend
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.driver import MemoryDisk, MemoryDriver
from blockio.types import DetectZeroes, OpenFlags, Perm


async def test_remembered_while_empty_and_used_for_the_next_medium(disk: MemoryDisk) -> None:
    options = disk.options(**{"read-only": "on", "detect-zeroes": "unmap", "discard": "unmap"})
    async with await BlockBackend.new_open(options=options, flags=OpenFlags(read_only=True)) as blk:
        before = blk.get_flags()
        assert (before.read_only, before.unmap) == (True, True)
        assert not blk.supports_write_perm()
        await blk.remove_bs()
        assert blk.get_flags() == before
        assert blk.get_root_state().detect_zeroes is DetectZeroes.UNMAP
        assert blk.get_detect_zeroes_from_root_state() is True
        assert blk.get_open_flags_from_root_state() == before
        assert not blk.supports_write_perm()

        blk.get_root_state().read_only = False  # whoever changes the medium asks for another mode
        assert blk.supports_write_perm()
        assert blk.get_flags().read_only
        flags = blk.get_open_flags_from_root_state()
        assert (flags.read_only, flags.unmap) == (False, True)
        node = await open_node(options=disk.options(), flags=flags, path_factory=NodeIO)
        await blk.insert_bs(node)
        await node.unref()
        assert not blk.get_flags().read_only
        await blk.remove_bs()
        assert not blk.get_root_state().read_only
        assert blk.get_detect_zeroes_from_root_state() is False


async def test_never_had_a_root() -> None:
    async with BlockBackend() as blk:
        assert blk.get_root_state() is blk.root_state
        assert blk.get_flags() == OpenFlags()
        assert blk.supports_write_perm()
        assert not blk.is_sg()
        with pytest.raises(RuntimeError, match="insert_bs"):
            blk.update_root_state()


async def test_taken_down_before_it_is_removed_only(blk: BlockBackend) -> None:
    assert blk.bs is not None
    blk.bs.detect_zeroes = DetectZeroes.ON
    assert not blk.get_detect_zeroes_from_root_state()
    blk.update_root_state()
    assert blk.get_detect_zeroes_from_root_state()
    blk.root_state.open_flags = OpenFlags(unmap=True)
    assert not blk.get_flags().unmap  # while there is a root, it is asked


async def test_switches(blk: BlockBackend, disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not blk.is_sg()
    monkeypatch.setattr(MemoryDriver, "sg", True)
    assert blk.is_sg()
    assert blk.is_writable()
    blk.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
    assert not blk.is_writable()
    assert blk.supports_write_perm()
