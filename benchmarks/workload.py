"""What is measured: a workload, its contenders, and the rounds in which they run in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.figures import Spread, best_rival, median, paired_ratios, spread

__all__ = ["Contender", "Row", "Workload", "rows", "run_rounds"]


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who can do the work. ``run`` does it once and returns its rate (more is better)."""

    name: str
    run: Callable[[], float]
    group: str = ""
    """Of those in one group only the best is compared with: modes of one program."""


@dataclass(slots=True)
class Workload:
    """One thing to be done by several, in the same ``unit``; ``target`` is what ours by the first group must reach."""

    title: str
    unit: str
    ours: Contender
    rivals: Sequence[Contender]
    target: float | None = None
    rates: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


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
    """Run everybody *rounds* times in turn; the rates stand in the workload, also after an interruption."""
    everybody = [workload.ours, *workload.rivals]
    for contender in everybody:
        workload.rates.setdefault(contender.name, [])
        if warm_up:
            tell(f"{workload.title}: warming up, {contender.name}")
            contender.run()
    for number in range(rounds):
        for contender in everybody:
            tell(f"{workload.title}: round {number + 1} of {rounds}, {contender.name}")
            workload.rates[contender.name].append(contender.run())


def rows(workload: Workload) -> list[Row]:
    """Ours against the best of each group, and against each who stands alone. The target is for the first."""
    mine = workload.rates.get(workload.ours.name, [])
    groups: dict[str, dict[str, Sequence[float]]] = {}
    for rival in workload.rivals:
        measured = workload.rates.get(rival.name, [])
        if measured:
            groups.setdefault(rival.group or rival.name, {})[rival.name] = measured
    found = []
    for index, members in enumerate(groups.values()):
        name = best_rival(members)
        ratios = paired_ratios(mine, members[name])
        if ratios:
            found.append(
                Row(
                    workload.title,
                    workload.unit,
                    name + _others(members, name),
                    median(mine),
                    median(members[name]),
                    spread(ratios),
                    len(ratios),
                    workload.target if index == 0 else None,
                )
            )
    return found


def _others(members: Mapping[str, Sequence[float]], best: str) -> str:
    """The rest of a group, so that nobody wonders whether it was tried."""
    rest = [f"{name.rpartition(' ')[2]} {median(rates):,.0f}" for name, rates in members.items() if name != best]
    return f" (best; {', '.join(rest)})" if rest else ""
