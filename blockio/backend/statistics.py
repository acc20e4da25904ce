"""What accounting shows: frozen snapshots, as values, as JSON and as a table.

The JSON has the names of QEMU's ``query-blockstats``, so that what reads those reads these. Bytes and nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from rich.table import Table

    from blockio.backend.accounting import Accounting, Counters, Kind, _Interval

__all__ = ["HistogramStatistics", "IntervalStatistics", "LatencyStatistics", "OperationStatistics", "Statistics"]

_PREFIXES: Final[dict[Kind, str]] = {"read": "rd", "write": "wr", "flush": "flush", "unmap": "unmap"}


class HistogramStatistics(msgspec.Struct, frozen=True):
    """``bins`` has one count more than ``boundaries`` (ns); see ``LatencyHistogram``."""

    boundaries: tuple[int, ...]
    bins: tuple[int, ...]


class OperationStatistics(msgspec.Struct, frozen=True):
    """The counts of one kind of request: see ``Counters``."""

    bytes: int
    operations: int
    failed: int
    invalid: int
    merged: int
    time_ns: int
    timed: int
    histogram: HistogramStatistics | None = None

    @property
    def mean_latency_ns(self) -> float | None:
        """The mean of the requests whose time was taken; None without any."""
        return self.time_ns / self.timed if self.timed else None


class LatencyStatistics(msgspec.Struct, frozen=True):
    """The latencies (ns) of one kind of request in an interval, 0 without any; and how many were under way."""

    minimum_ns: int
    maximum_ns: int
    mean_ns: int
    queue_depth: float


class IntervalStatistics(msgspec.Struct, frozen=True):
    """One interval of ``seconds``."""

    seconds: int
    read: LatencyStatistics
    write: LatencyStatistics
    flush: LatencyStatistics
    unmap: LatencyStatistics


class Statistics(msgspec.Struct, frozen=True):
    """All that one backend or node has counted. ``idle_time_ns`` is None where nobody takes the time."""

    name: str
    read: OperationStatistics
    write: OperationStatistics
    flush: OperationStatistics
    unmap: OperationStatistics
    idle_time_ns: int | None
    account_invalid: bool
    account_failed: bool
    intervals: tuple[IntervalStatistics, ...]

    def to_dict(self) -> dict[str, Any]:
        """As ``query-blockstats`` names it."""
        out: dict[str, Any] = {}
        for kind, prefix in _PREFIXES.items():
            counted: OperationStatistics = getattr(self, kind)
            if kind != "flush":
                out[f"{prefix}_bytes"] = counted.bytes
            out[f"{prefix}_operations"] = counted.operations
            out[f"{prefix}_total_time_ns"] = counted.time_ns
            if kind != "flush":
                out[f"{prefix}_merged"] = counted.merged
                out[f"invalid_{prefix}_operations"] = counted.invalid
            out[f"failed_{prefix}_operations"] = counted.failed
            if counted.histogram is not None:
                out[f"{prefix}_latency_histogram"] = {
                    "boundaries": list(counted.histogram.boundaries),
                    "bins": list(counted.histogram.bins),
                }
        out["invalid_flush_operations"] = self.flush.invalid
        if self.idle_time_ns is not None:
            out["idle_time_ns"] = self.idle_time_ns
        out["account_invalid"] = self.account_invalid
        out["account_failed"] = self.account_failed
        out["timed_stats"] = [_interval_dict(interval) for interval in self.intervals]
        return out

    def to_json(self) -> bytes:
        """``to_dict`` as JSON."""
        return msgspec.json.encode(self.to_dict())

    def to_table(self) -> Table:
        """A ``rich`` table of the four kinds."""
        return table([self])


def _interval_dict(interval: IntervalStatistics) -> dict[str, Any]:
    out: dict[str, Any] = {"interval_length": interval.seconds}
    for kind, prefix in _PREFIXES.items():
        latency: LatencyStatistics = getattr(interval, kind)
        if kind == "unmap":  # not QEMU's
            continue
        out[f"min_{prefix}_latency_ns"] = latency.minimum_ns
        out[f"max_{prefix}_latency_ns"] = latency.maximum_ns
        out[f"avg_{prefix}_latency_ns"] = latency.mean_ns
        if kind != "flush":
            out[f"avg_{prefix}_queue_depth"] = latency.queue_depth
    return out


def freeze(accounting: Accounting, intervals: Iterable[_Interval], name: str) -> Statistics:
    """For ``Accounting.snapshot``."""
    return Statistics(
        name=name,
        read=_operations(accounting.read),
        write=_operations(accounting.write),
        flush=_operations(accounting.flush),
        unmap=_operations(accounting.unmap),
        idle_time_ns=accounting.idle_time_ns(),
        account_invalid=accounting.account_invalid,
        account_failed=accounting.account_failed,
        intervals=tuple(_interval(interval) for interval in intervals),
    )


def _operations(counters: Counters) -> OperationStatistics:
    histogram = counters.histogram
    return OperationStatistics(
        bytes=counters.bytes,
        operations=counters.operations,
        failed=counters.failed,
        invalid=counters.invalid,
        merged=counters.merged,
        time_ns=counters.time_ns,
        timed=counters.timed,
        histogram=None if histogram is None else HistogramStatistics(histogram.boundaries, tuple(histogram.bins)),
    )


def _interval(interval: _Interval) -> IntervalStatistics:
    latencies = {
        kind: LatencyStatistics(average.minimum(), average.maximum(), average.mean(), average.sum_per_time())
        for kind, average in interval.averages.items()
    }
    return IntervalStatistics(interval.seconds, *(latencies[kind] for kind in _PREFIXES))


def table(rows: Iterable[Statistics]) -> Table:
    """A ``rich`` table with one line for each kind of request that each of *rows* has seen."""
    from rich.table import Table  # heavy, and only people look at tables

    out = Table(title="Requests")
    out.add_column("of")
    out.add_column("kind")
    for name in ("operations", "bytes", "mean latency", "failed", "invalid", "merged"):
        out.add_column(name, justify="right")
    for row in rows:
        name = row.name
        for kind in _PREFIXES:
            counted: OperationStatistics = getattr(row, kind)
            if not (counted.operations or counted.failed or counted.invalid or counted.merged):
                continue
            out.add_row(
                name,
                kind,
                f"{counted.operations:,}",
                f"{counted.bytes:,}",
                _duration(counted.mean_latency_ns),
                f"{counted.failed:,}",
                f"{counted.invalid:,}",
                f"{counted.merged:,}",
            )
            name = ""
    return out


def _duration(ns: float | None) -> str:
    if ns is None:
        return "-"
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= factor:
            return f"{ns / factor:.3g} {unit}"
    return f"{ns:.3g} ns"
