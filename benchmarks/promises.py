"""What is promised about speed, promise by promise, and what a run says of each: a table to be put into the documents.

The numbers themselves stand with the suites; here is only which of the measured ratios each promise is about.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from blockio.bench.report import Report
from blockio.bench.workload import Row

__all__ = ["PROMISES", "Promise", "promises_text"]


class Promise(NamedTuple):
    """*workload* matches the title of what it is about, *rival* is how the other's name begins."""

    text: str
    workload: str
    rival: str


PROMISES: Final = (
    Promise("4 KiB cached reads, qcow2, QD 1", "qcow2, cached: 4 KiB strided reads, QD 1", "qemu-img"),
    Promise("4 KiB cached reads, qcow2, QD 32", "qcow2, cached: 4 KiB strided reads, QD 32", "qemu-img"),
    Promise("4 KiB cached reads, raw, QD 1", "raw, cached: 4 KiB strided reads, QD 1", "bare preadv"),
    Promise("4 KiB cached writes, QD 1", "qcow2, cached: 4 KiB strided writes, QD 1", "qemu-img"),
    Promise("4 KiB cached writes, QD 32", "qcow2, cached: 4 KiB strided writes, QD 32", "qemu-img"),
    Promise("4 KiB O_DIRECT reads, QD 1", "qcow2, O_DIRECT: 4 KiB strided reads, QD 1", "qemu-img"),
    Promise("4 KiB O_DIRECT reads, QD 32", "qcow2, O_DIRECT: 4 KiB strided reads, QD 32", "qemu-img"),
    Promise("4 KiB O_DIRECT writes, QD 1", "qcow2, O_DIRECT: 4 KiB strided writes, QD 1", "qemu-img"),
    Promise("4 KiB O_DIRECT writes, QD 32", "qcow2, O_DIRECT: 4 KiB strided writes, QD 32", "qemu-img"),
    Promise("1 MiB cached reads, QD 8", "qcow2, cached: 1 MiB sequential reads, QD 8", "qemu-img"),
    Promise("1 MiB cached writes, QD 8", "qcow2, cached: 1 MiB sequential writes, QD 8", "qemu-img"),
    Promise("1 MiB O_DIRECT reads, QD 8", "qcow2, O_DIRECT: 1 MiB sequential reads, QD 8", "qemu-img"),
    Promise("1 MiB O_DIRECT writes, QD 8", "qcow2, O_DIRECT: 1 MiB sequential writes, QD 8", "qemu-img"),
    Promise(
        "4 KiB cached reads through 8 overlays", "qcow2, 8 overlays, cached: 4 KiB strided reads, QD 1", "qemu-img"
    ),
    Promise("convert raw to qcow2", r"convert raw to qcow2, \d+ MiB", "qemu-img convert -W -m 16"),
    Promise("convert qcow2 to raw", r"convert qcow2 to raw, \d+ MiB", "qemu-img convert -W -m 16"),
    Promise("convert qcow2 to qcow2", r"convert qcow2 to qcow2, \d+ MiB", "qemu-img convert -W -m 16"),
    Promise("convert -c, zlib", r"convert to compressed qcow2, zlib, \d+ MiB", "qemu-img"),
    Promise("convert -c, zstd", r"convert to compressed qcow2, zstd, \d+ MiB", "qemu-img"),
    Promise("convert of a zlib image to raw", r"convert from compressed qcow2, zlib, \d+ MiB", "qemu-img"),
    Promise("convert of a zstd image to raw", r"convert from compressed qcow2, zstd, \d+ MiB", "qemu-img"),
    Promise("compare of two equal images", r"compare equal raw and qcow2, \d+ MiB", "qemu-img"),
    Promise("map of a million extents", r"map, [\d,]+ clusters fragmented", "qemu-img"),
)


def promises_text(report: Report) -> str:
    """A line a promise, as Markdown; what was not measured says so."""
    rows = [row for workload in report.workloads for row in workload.rows if row.target is not None]
    lines = ["| workload | against | at least | ratio | low to high | |", "|---|---|---|---|---|---|"]
    for promise in PROMISES:
        found = next((row for row in rows if _about(promise, row)), None)
        lines.append(f"| {promise.text} | " + (_found(found) if found else "not measured | | | | |"))
    slow = [row for row in rows if row.rival.startswith("aiofiles")]
    if slow:
        least = min(slow, key=lambda row: row.ratio.middle)
        lines.append(f"| any of these; least is {least.workload} | {_found(least)}")
    return "\n".join(lines)


def _about(promise: Promise, row: Row) -> bool:
    return re.fullmatch(promise.workload, row.workload) is not None and row.rival.startswith(promise.rival)


def _found(row: Row) -> str:
    return (
        f"{row.rival.partition(' (best')[0]} | {row.target:g} | {row.ratio.middle:.2f} | "
        f"{row.ratio.low:.2f} to {row.ratio.high:.2f} | {row.verdict} |"
    )
