"""How much the suites do."""

from __future__ import annotations

from dataclasses import dataclass

from blockio.bench.scratch import MIB

__all__ = ["Scale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done. Quick answers are noisier ones."""

    rounds: int = 5
    disk: int = 256 * MIB
    requests: int = 100_000
    direct_requests: int = 20_000
    large_requests: int = 4_000
    convert_disk: int = 2048 * MIB
    start_rounds: int = 15
    clusters: int = 1 << 20
    passes: int = 51
    """Of what is measured in short passes rather than rounds."""

    @classmethod
    def quick(cls) -> Scale:
        """Minutes instead of an hour."""
        return cls(3, 64 * MIB, 30_000, 4_000, 500, 512 * MIB, 7, 1 << 17, 21)
