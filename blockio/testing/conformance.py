"""The driver conformance suite: does a driver keep the promises of ``blockio.driver.base``?

For drivers here and for everybody's own; it needs no test framework. A driver is done when it passes::

    async def make(length: int) -> dict[str, object]:
        path = tempfile.mktemp(dir=workdir)
        await create_my_image(path, length)
        return {"driver": "mine", "file": {"driver": "file", "filename": path}}

    report = await check_driver(make)
    assert report.ok, report

``make`` provides a new disk of *length* bytes and answers with the nested options that open it. ``Traits`` say what
the driver never promised (a null disk keeps nothing; a filter over a fixed device does not resize). Every check runs on
disks of its own, in both lanes where that makes a difference, and ends by looking for what it left behind: requests in
flight, nodes. A check that fails does not stop the others. What can be a fault of the driver alone is an
``Outcome``; a mistake in the call of the suite (``make`` raises) is raised.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from blockio.driver.gate import AllowAll
from blockio.testing.conformance_bench import Bench, MakeDisk, Skip, Traits, expect
from blockio.testing.conformance_checks import CHECKS

if TYPE_CHECKING:
    from blockio.driver.gate import OpenGate

__all__ = ["Bench", "ConformanceReport", "MakeDisk", "Outcome", "Skip", "Traits", "Verdict", "check_driver", "checks"]


class Verdict(Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: its name, what it shows, how it ended and, where it failed or was skipped, why."""

    name: str
    shows: str
    verdict: Verdict
    reason: str = ""
    error: BaseException | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ConformanceReport:
    """All outcomes, in the order of the checks."""

    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return all(outcome.verdict is not Verdict.FAILED for outcome in self.outcomes)

    def failures(self) -> tuple[Outcome, ...]:
        """Those that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.verdict is Verdict.FAILED)

    def __str__(self) -> str:
        lines = []
        for outcome in self.outcomes:
            reason = f": {outcome.reason}" if outcome.reason else ""
            lines.append(f"{outcome.verdict.value:8}{outcome.name}{reason}")
        return "\n".join(lines)


def checks() -> dict[str, str]:
    """The names of all checks and what each shows."""
    return {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in CHECKS.items()}


async def check_driver(
    make: MakeDisk,
    traits: Traits | None = None,
    *,
    gate: OpenGate | None = None,
    only: str | None = None,
) -> ConformanceReport:
    """Run every check (or those whose name contains *only*) on disks that *make* provides.

    A driver promises everything unless *traits* say what not. *gate* decides over what the images refer to; everything
    is allowed unless told. To be awaited in a running loop; when cancelled, the disk of the current check is closed.
    """
    bench = Bench(make, traits or Traits(), gate or AllowAll())
    outcomes = []
    for name, shows in checks().items():
        if only is None or only in name:
            outcomes.append(await _run(name, shows, bench))
    return ConformanceReport(tuple(outcomes))


async def _run(name: str, shows: str, bench: Bench) -> Outcome:
    before = set(asyncio.all_tasks())
    try:
        await CHECKS[name](bench)
        left = {task for task in set(asyncio.all_tasks()) - before if not task.done()}
        expect(not left, f"tasks left behind: {left}")
    except Skip as skip:
        return Outcome(name, shows, Verdict.SKIPPED, str(skip))
    except Exception as error:  # whatever a driver raises is its failure, and the other checks go on
        return Outcome(name, shows, Verdict.FAILED, f"{type(error).__name__}: {error}", error)
    return Outcome(name, shows, Verdict.PASSED)
