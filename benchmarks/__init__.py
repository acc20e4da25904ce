"""What this project measures of itself: ``make bench``, or ``python -m benchmarks`` and options of ``blockio bench``.

The harness is ``blockio.bench`` (jobs, peers, rounds in turn, ratios, reports), which is shipped, and so are the suites
that tell a user how blockio does beside QEMU's tools on his machine (``blockio.bench.suites``). Here is what only those
who work on blockio ask: what the backend costs, what a started request costs, how fast the tools start.
"""

from __future__ import annotations

from typing import Final

from blockio.bench.suites import SUITES as SHIPPED

__all__ = ["SUITES"]

SUITES: Final = {
    **SHIPPED,
    "backend": "benchmarks.backend:backend",
    "started": "benchmarks.started:started",
    "start-up": "benchmarks.start_up:start_up",
}
"""All suites, as ``blockio.bench.suites`` names them."""
