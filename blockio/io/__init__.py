"""What happens to a request between a parent and a driver; ``NodeIO`` is the way through it."""

from __future__ import annotations

from blockio.io.node_io import NodeIO

__all__ = ["NodeIO"]
