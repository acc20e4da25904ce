"""Job files of fio, in their common subset: what one asks for, as jobs of this harness. Pure.

A job file is read as fio reads it (sections, ``[global]`` for those behind it, comments, sizes in powers of 1024), but
what is not understood is refused with its line, never passed over. What has no meaning here, and changes nothing about
what is measured, is named in ``notes``. What is different by nature: jobs run one after the other, as if each had
``stonewall``; random places may come again, as with ``norandommap``; the page cache is left as it is, as with
``invalidate=0``; and no file is made or made longer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from blockio.bench.job import Job, Pattern
from blockio.driver.options import parse_size
from blockio.errors import OptionError

__all__ = ["FioJob", "read_fio"]

_RW: Final[dict[str, tuple[Pattern, int | None]]] = {
    "read": ("sequential", 100),
    "write": ("sequential", 0),
    "randread": ("random", 100),
    "randwrite": ("random", 0),
    "rw": ("sequential", None),
    "readwrite": ("sequential", None),
    "randrw": ("random", None),
}
_ENGINES: Final = {
    "io_uring": "io_uring",
    "libaio": "native",
    **dict.fromkeys(("psync", "sync", "pvsync", "pvsync2", "vsync", "posixaio"), "threads"),
}
_ONE_AT_A_TIME: Final = {"psync", "sync", "pvsync", "pvsync2", "vsync"}
_ALIASES: Final = {
    "readwrite": "rw",
    "blocksize": "bs",
    "io_limit": "io_size",
    "timeout": "runtime",
    "wait_for_previous": "stonewall",
}
_FLAGS: Final = {"time_based", "stonewall", "norandommap", "group_reporting", "thread"}
"""Keys that may stand without a value."""
_SAME: Final = {
    "name", "description", "stonewall", "norandommap", "group_reporting", "thread", "allrandrepeat", "randrepeat",
    "random_generator", "disk_util", "percentile_list", "lat_percentiles", "clat_percentiles",
}  # fmt: skip
"""Keys that are understood, and change nothing about what is measured here."""
_UNUSED: Final = {
    "ramp_time": "one round warms up instead",
    "loops": "rounds repeat a job, see --rounds",
    "invalidate": "the page cache is left as it is",
    "end_fsync": "what a run leaves unwritten is not waited for",
    "fallocate": "no file is made longer",
    "directory": "filename alone says which file",
    "cpus_allowed": "see taskset",
    **dict.fromkeys(
        (
            "iodepth_batch",
            "iodepth_batch_submit",
            "iodepth_batch_complete",
            "iodepth_batch_complete_min",
            "iodepth_batch_complete_max",
            "iodepth_low",
        ),
        "the loop makes its own batches",
    ),
    **dict.fromkeys(("write_bw_log", "write_lat_log", "write_iops_log", "log_avg_msec"), "see --json"),
}
"""Keys that are passed over, and what the reader is told instead."""
_SECONDS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME: Final = re.compile(r"([0-9.]+)\s*(us|ms|s|m|h|d)?", re.ASCII)
_COMMENT: Final = re.compile(r"[;#]")


class FioJob(msgspec.Struct, frozen=True, kw_only=True):
    """One section. Sizes are bytes, or where ``percent`` says so hundredths of the file."""

    name: str
    job: Job
    """All but what depends on the disk, which ``on`` adds."""
    filename: str | None = None
    """None: a disk is to be made for it."""
    size: int | None = None
    percent: bool = False
    io_size: int | None = None
    direct: bool = False
    aio: str | None = None
    notes: tuple[str, ...] = ()

    def on(self, length: int) -> Job:
        """What it does on a disk of *length* bytes: unless it goes by time, as much as it uses of it, once.

        OptionError where the disk is too small.
        """
        size = self.size
        if size is not None and self.percent:
            size = length * size // 100
        room = length - self.job.offset
        if size is not None and size > room:
            raise OptionError(f"fio job '{self.name}' uses {size} bytes, the disk has {max(room, 0)}")
        job = msgspec.structs.replace(self.job, size=size)
        if self.job.count is not None:
            whole = job.blocks(length) if self.io_size is None else self.io_size // job.block_size
            job = msgspec.structs.replace(job, count=max(whole, 1))
        return job


def read_fio(text: str, name: str) -> list[FioJob]:
    """The jobs of the job file *text*, called *name*. OptionError says what is refused, and where."""
    shared: dict[str, _Value] = {}
    sections: list[tuple[str, dict[str, _Value]]] = []
    into: dict[str, _Value] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = _COMMENT.split(raw, maxsplit=1)[0].strip()
        where = f"'{name}', line {number}"
        if not line:
            continue
        if line.startswith("["):
            title = line[1:].partition("]")[0].strip()
            if "]" not in line or not title:
                raise OptionError(f"{where}: '{line}' is no name of a job")
            if title == "global":
                into = shared
            else:
                into = dict(shared)
                sections.append((title, into))
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if into is None:
            raise OptionError(f"{where}: '{line}' stands before the first [job]")
        if not equals and key not in _FLAGS:
            raise OptionError(f"{where}: '{line}' is no setting")
        key = _ALIASES.get(key, key)
        if key not in _READERS and key not in _SAME and key not in _UNUSED:
            raise OptionError(f"{where}: '{key}' is not understood here")
        into[key] = _Value(key, value if equals else "1", where)
    if not sections:
        raise OptionError(f"'{name}' has no jobs")
    return [_job(title, settings) for title, settings in sections]


class _Value(msgspec.Struct, frozen=True):
    """What a setting says. All of these raise OptionError for what is no such thing."""

    key: str
    text: str
    where: str

    def wrong(self, what: str) -> OptionError:
        return OptionError(f"{self.where}: {self.key}={self.text}: {what}")

    def size(self) -> int:
        """``4k``, ``64KiB``, ``1g``."""
        short = re.sub(r"(?<=[kmgtp])(i|ib|b)$", "", self.text.lower())
        try:
            return parse_size(short)
        except OptionError:
            raise self.wrong("no size") from None

    def number(self, low: int, high: int | None = None) -> int:
        if not self.text.isascii() or not self.text.isdigit():
            raise self.wrong("no number")
        value = int(self.text)
        if value < low or (high is not None and value > high):
            raise self.wrong(f"less than {low}" if value < low else f"more than {high}")
        return value

    def yes(self) -> bool:
        return bool(self.number(0, 1))

    def seconds(self) -> float:
        """``30``, ``500ms``, ``1m``."""
        found = _TIME.fullmatch(self.text.lower())
        try:
            return float(found[1]) * _SECONDS[found[2] or "s"] if found else float("x")
        except ValueError:
            raise self.wrong("no time") from None


def _job(name: str, settings: dict[str, _Value]) -> FioJob:
    made = _Made()
    for key, value in settings.items():
        reader = _READERS.get(key)
        if reader is not None:
            reader(made, value)
        elif key in _UNUSED:
            made.notes.append(f"{key} has no meaning here: {_UNUSED[key]}")
    return made.finished(settings["name"].text if "name" in settings else name)


class _Made:
    """What the settings of one job have said so far."""

    def __init__(self) -> None:
        self.rw = "read"
        self.skip: int | None = None
        self.mix = 50
        self.block_size = 4096
        self.depth = 1
        self.engine = "psync"
        self.aio: str | None = None
        self.direct = False
        self.filename: str | None = None
        self.size: int | None = None
        self.percent = False
        self.io_size: int | None = None
        self.offset = 0
        self.seconds: float | None = None
        self.time_based = False
        self.theta: float | None = None
        self.seed = 1
        self.flush_interval = 0
        self.notes: list[str] = []

    def finished(self, name: str) -> FioJob:
        pattern, share = _RW[self.rw]
        step = None
        if self.skip is not None:
            pattern, step = "strided", self.block_size + self.skip
        if pattern == "random" and self.theta is not None:
            pattern = "zipf"
        if self.engine in _ONE_AT_A_TIME and self.depth > 1:
            self.notes.append(f"fio's {self.engine} has one request at a time: iodepth is 1")
            self.depth = 1
        if self.aio == "native" and not self.direct:
            self.notes.append("libaio without direct=1 would block: io_uring is used")
            self.aio = "io_uring"
        if self.time_based and self.seconds is None:
            raise OptionError(f"fio job '{name}': time_based needs a runtime")
        share = self.mix if share is None else share
        job = Job(
            pattern=pattern,
            block_size=self.block_size,
            read_percent=share,
            depth=self.depth,
            count=None if self.time_based else 1,
            seconds=self.seconds,
            flush_interval=self.flush_interval if share < 100 else 0,
            offset=self.offset,
            step=step,
            theta=1.2 if self.theta is None else self.theta,
            seed=self.seed,
        )
        return FioJob(
            name=name,
            job=job,
            filename=self.filename,
            size=self.size,
            percent=self.percent,
            io_size=self.io_size,
            direct=self.direct,
            aio=self.aio,
            notes=tuple(self.notes),
        )


def _rw(made: _Made, value: _Value) -> None:
    kind, colon, skip = value.text.partition(":")
    if kind not in _RW:
        raise value.wrong(f"there are {', '.join(_RW)}")
    made.rw = kind
    made.skip = None
    if colon:
        if _RW[kind][0] == "random":
            raise value.wrong("only sequential requests skip")
        made.skip = _Value(value.key, skip, value.where).size()


def _bs(made: _Made, value: _Value) -> None:
    made.block_size = value.size()
    if not made.block_size:
        raise value.wrong("no size")


def _size(made: _Made, value: _Value) -> None:
    made.percent = value.text.endswith("%")
    if made.percent:
        made.size = _Value(value.key, value.text[:-1].strip(), value.where).number(1, 100)
    else:
        made.size = value.size()


def _engine(made: _Made, value: _Value) -> None:
    if value.text not in _ENGINES:
        raise value.wrong(f"there are {', '.join(_ENGINES)}")
    made.engine, made.aio = value.text, _ENGINES[value.text]


def _filename(made: _Made, value: _Value) -> None:
    if re.search(r"(?<!\\):", value.text):
        raise value.wrong("one file a job")
    made.filename = value.text.replace("\\:", ":")


def _distribution(made: _Made, value: _Value) -> None:
    kind, colon, theta = value.text.partition(":")
    if kind not in {"random", "zipf"}:
        raise value.wrong("there are random and zipf")
    if kind == "random":
        made.theta = None
        return
    try:
        made.theta = float(theta) if colon else 1.1
    except ValueError:
        raise value.wrong("no number") from None


def _numjobs(made: _Made, value: _Value) -> None:
    if value.number(1) > 1:
        raise value.wrong("one process measures; use iodepth")


def _set(field: str, read: Callable[[_Value], object]) -> Callable[[_Made, _Value], None]:
    return lambda made, value: setattr(made, field, read(value))


_READERS: Final[dict[str, Callable[[_Made, _Value], None]]] = {
    "rw": _rw,
    "bs": _bs,
    "size": _size,
    "ioengine": _engine,
    "filename": _filename,
    "random_distribution": _distribution,
    "numjobs": _numjobs,
    "iodepth": _set("depth", lambda value: value.number(1)),
    "io_size": _set("io_size", _Value.size),
    "offset": _set("offset", _Value.size),
    "runtime": _set("seconds", _Value.seconds),
    "time_based": _set("time_based", _Value.yes),
    "direct": _set("direct", _Value.yes),
    "buffered": _set("direct", lambda value: not value.yes()),
    "rwmixread": _set("mix", lambda value: value.number(0, 100)),
    "rwmixwrite": _set("mix", lambda value: 100 - value.number(0, 100)),
    "randseed": _set("seed", lambda value: value.number(0)),
    "fsync": _set("flush_interval", lambda value: value.number(0)),
    "fdatasync": _set("flush_interval", lambda value: value.number(0)),
}
"""What each setting does to the job that is made."""
