"""``blockio bench``: workloads beside their peers, with ratios, spread, latencies and pages to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["main"]


def main(words: Sequence[str], prog: str, suites: Mapping[str, str] | None = None) -> int:
    """Run the tool with *words*, called *prog*. Returns the exit status.

    *suites* are those there are to choose from, as ``blockio.bench.suites.SUITES``, which is what None stands for.
    """
    from blockio.cli.bench.tool import run  # heavy, and only this tool needs it

    return run(words, prog, suites)
