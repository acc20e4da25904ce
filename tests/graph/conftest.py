"""After every test of the graph no node may be left."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from blockio.graph.drain import drain_all_sections
from blockio.graph.node import all_nodes


@pytest.fixture(autouse=True)
def _no_node_left() -> Iterator[None]:
    yield
    gc.collect()
    left = all_nodes()
    assert not left, f"nodes left behind: {left}"
    assert drain_all_sections() == 0
