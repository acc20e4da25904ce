"""The result as a value: written as JSON, read again, and compared with an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from blockio.bench.figures import Spread, median, spread
from blockio.bench.latency import Latency
from blockio.bench.layers import LayerCost
from blockio.bench.workload import Row, Workload, rows
from blockio.errors import OptionError

__all__ = ["Change", "Measured", "Report", "compare", "read_report", "report_of"]

VERSION = 1


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One workload: everybody's rates, more is better, and ours by each rival's."""

    title: str
    unit: str
    ours: str
    rates: dict[str, list[float]]
    rows: list[Row]
    left_out: list[str] = []
    notes: list[str] = []
    latency: Latency | None = None
    series: str = ""
    depth: int = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the harness."""

    version: int = VERSION
    made: str
    """When, as ISO 8601 says it."""
    machine: list[str]
    """Programs, libraries and what they ran on: what decides over the figures."""
    workloads: list[Measured] = []
    layers: list[LayerCost] = []
    interrupted: bool = False
    """Rounds are missing: the figures are partial."""
    failure: str = ""
    """What ended it before its time."""

    def encoded(self) -> bytes:
        """As JSON for people, too."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def report_of(
    workloads: Sequence[Workload],
    *,
    made: str,
    machine: list[str],
    layers: Sequence[LayerCost] = (),
    interrupted: bool = False,
    failure: str = "",
) -> Report:
    """What was measured, frozen. Workloads that nobody finished a round of are left out."""
    measured = [
        Measured(
            title=workload.title,
            unit=workload.unit,
            ours=workload.ours.name,
            rates={name: list(rates) for name, rates in workload.rates.items() if rates},
            rows=rows(workload),
            left_out=list(workload.left_out),
            notes=list(workload.notes),
            latency=workload.latency,
            series=workload.series,
            depth=workload.depth,
        )
        for workload in workloads
        if workload.rates.get(workload.ours.name)
    ]
    return Report(
        made=made, machine=machine, workloads=measured, layers=list(layers), interrupted=interrupted, failure=failure
    )


def read_report(data: bytes, name: str) -> Report:
    """A report from its JSON. OptionError where *data*, called *name*, is none."""
    try:
        report = msgspec.json.decode(data, type=Report)
    except msgspec.DecodeError as error:
        raise OptionError(f"'{name}' is no result of this harness: {error}") from error
    if report.version != VERSION:
        raise OptionError(f"'{name}' has version {report.version}, this harness reads {VERSION}")
    return report


class Change(msgspec.Struct, frozen=True):
    """Somebody's rate in one workload, then and now. *ratio* is now by then: more than 1 is faster."""

    workload: str
    name: str
    before: Spread
    now: Spread
    ratio: float

    @property
    def clear(self) -> bool:
        """Whether the two spreads do not even touch: what is said is more than noise."""
        return self.now.low > self.before.high or self.now.high < self.before.low


def compare(before: Report, now: Report) -> list[Change]:
    """All that both have measured, in today's order. Where a rival changed too, it was the machine."""
    earlier = {workload.title: workload.rates for workload in before.workloads}
    changes = []
    for workload in now.workloads:
        for name, rates in workload.rates.items():
            then = earlier.get(workload.title, {}).get(name)
            if then and rates and median(then) > 0:
                changes.append(Change(workload.title, name, spread(then), spread(rates), median(rates) / median(then)))
    return changes
