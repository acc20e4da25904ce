"""What is measured: a workload, its contenders, and the rounds in which they run in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockio.bench.figures import Spread, best_rival, median, paired_ratios, spread

if TYPE_CHECKING:
    from blockio.bench.latency import Latency

__all__ = ["Contender", "Row", "Workload", "rows", "run_rounds"]


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who can do the work. ``run`` does it once and returns its rate (more is better)."""

    name: str
    run: Callable[[], float]
    group: str = ""
    """Of those in one group only the best is compared with: modes of one program."""
    target: float | None = None
    """What ours by this one must reach; a group's is that of its first member."""


@dataclass(slots=True)
class Workload:
    """One thing to be done by several, in the same ``unit``."""

    title: str
    unit: str
    ours: Contender
    rivals: Sequence[Contender]
    rates: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Who is not among the rivals, and why."""
    latency: Latency | None = None
    """Ours, by a pass of its own."""
    series: str = ""
    """Workloads of one series differ in ``depth`` only."""
    depth: int = 0
    rounds: int | None = None
    """How many it needs; None: as many as all others."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: ours against one rival."""

    workload: str
    unit: str
    rival: str
    ours: float
    theirs: float
    ratio: Spread
    rounds: int
    target: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the target is held; empty where there is none."""
        if self.target is None:
            return ""
        return "holds" if self.ratio.middle >= self.target else "misses"


def run_rounds(workload: Workload, rounds: int, tell: Callable[[str], object], *, warm_up: bool = True) -> None:
    """Run everybody *rounds* times in turn; the rates stand in the workload, also after an interruption.

    A rival that fails is left out from then on, with what it said. What ours raises, this raises.
    """
    out: set[str] = set()

    def run(contender: Contender, what: str) -> float | None:
        if contender.name in out:
            return None
        tell(f"{workload.title}: {what}, {contender.name}")
        try:
            return contender.run()
        except (RuntimeError, OSError, ValueError) as error:
            if contender is workload.ours:
                raise
            out.add(contender.name)
            workload.left_out.append(f"{contender.name}: {error}")
            return None

    everybody = [workload.ours, *workload.rivals]
    for contender in everybody:
        workload.rates.setdefault(contender.name, [])
        if warm_up:
            run(contender, "warming up")
    for number in range(rounds):
        for contender in everybody:
            rate = run(contender, f"round {number + 1} of {rounds}")
            if rate is not None:
                workload.rates[contender.name].append(rate)


def rows(workload: Workload) -> list[Row]:
    """Ours against the best of each group, and against each who stands alone."""
    mine = workload.rates.get(workload.ours.name, [])
    groups: dict[str, list[Contender]] = {}
    for rival in workload.rivals:
        if workload.rates.get(rival.name):
            groups.setdefault(rival.group or rival.name, []).append(rival)
    found = []
    for members in groups.values():
        measured: dict[str, Sequence[float]] = {member.name: workload.rates[member.name] for member in members}
        name = best_rival(measured)
        ratios = paired_ratios(mine, measured[name])
        if ratios:
            found.append(
                Row(
                    workload.title,
                    workload.unit,
                    name + _others(measured, name),
                    median(mine),
                    median(measured[name]),
                    spread(ratios),
                    len(ratios),
                    next((member.target for member in members if member.target is not None), None),
                )
            )
    return found


def _others(members: Mapping[str, Sequence[float]], best: str) -> str:
    """The rest of a group, so that nobody wonders whether it was tried."""
    rest = [f"{name.rpartition(' ')[2]} {median(rates):,.0f}" for name, rates in members.items() if name != best]
    return f" (best; {', '.join(rest)})" if rest else ""
