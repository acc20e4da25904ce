"""Leaky buckets: how long a request has to wait so that a rate is kept. Arithmetic only, no clock and no loop.

There are six, as in QEMU: bytes and operations, each in total, for reads and for writes. What is used pours into a
bucket, which leaks at its average rate. While the bucket is over its size, requests wait:

* without ``max`` the size is a tenth of a second's worth, so that not every second request waits;
* with ``max`` it is ``max * burst_length``, so that this much may go through at once after a quiet time;
* with a ``burst_length`` above 1 a second, small bucket leaks at ``max`` and holds the burst itself to that rate.

A request goes through whole when its wait is over, however large it is; the next one waits for what it has used.
So over time the rate is exact: what a bucket took in is what leaked out, plus its level.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import msgspec

from blockio.errors import OptionError

__all__ = ["LENGTH_MAX", "VALUE_MAX", "Direction", "LeakyBucket", "Limit", "ThrottleConfig", "ThrottleState"]

VALUE_MAX: Final = 10**15
"""The highest rate, in bytes or operations a second."""

LENGTH_MAX: Final = 2**32 - 1
"""The longest burst, in seconds."""

_SHARE: Final = 10
"""A bucket that may not burst holds this part of a second's worth."""


class Direction(IntEnum):
    """What a request does to the disk; discards and zero writes are writes."""

    READ = 0
    WRITE = 1


class Limit(msgspec.Struct, frozen=True):
    """One bucket's limit, in bytes or operations a second; 0 is none. ``burst_length`` is in seconds."""

    avg: int = 0
    max: int = 0
    burst_length: int = 1


_NONE: Final = Limit()


class ThrottleConfig(msgspec.Struct, frozen=True):
    """QEMU's ThrottleConfig: the six limits, and ``op_size``: from how many bytes on a request is several operations.

    Every instance is consistent: values that contradict each other are an OptionError with QEMU's message, here.
    """

    bps_total: Limit = _NONE
    bps_read: Limit = _NONE
    bps_write: Limit = _NONE
    iops_total: Limit = _NONE
    iops_read: Limit = _NONE
    iops_write: Limit = _NONE
    op_size: int = 0

    def __post_init__(self) -> None:
        for name, value in self._numbers():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
        message = _contradiction(self)
        if message is not None:
            raise OptionError(message)

    @classmethod
    def of(cls, limits: Mapping[str, int] | None = None, /, **more: int) -> ThrottleConfig:
        """From the flat names users know: ``bps_total``, ``bps_total_max``, ``bps_total_max_length``, … ``iops_size``.

        A mapping may write them with dashes. TypeError for a name that there is not; OptionError as the class.
        """
        values: dict[str, dict[str, int]] = {name: {} for name in _LIMITS}
        op_size = 0
        for given, value in [*(limits or {}).items(), *more.items()]:
            name = given.replace("-", "_")
            if name == "iops_size":
                op_size = value
                continue
            limit, part = _split(name)
            if limit not in values:
                raise TypeError(f"there is no throttle limit '{given}'")
            if part == "burst_length" and value > LENGTH_MAX:
                raise OptionError(f"{name.replace('_', '-')} value must be in the range [0, {LENGTH_MAX}]")
            values[limit][part] = value
        return cls(**{name: Limit(**parts) for name, parts in values.items()}, op_size=op_size)

    @property
    def enabled(self) -> bool:
        """Whether anything is limited (``throttle_enabled``)."""
        return any(limit.avg for limit in self.limits())

    def limits(self) -> tuple[Limit, ...]:
        """The six, in the order of the fields."""
        return (self.bps_total, self.bps_read, self.bps_write, self.iops_total, self.iops_read, self.iops_write)

    def as_dict(self) -> dict[str, int]:
        """The flat names with dashes and their values, as management programs see them; the inverse of ``of``."""
        answer: dict[str, int] = {}
        for name, limit in zip(_LIMITS, self.limits(), strict=True):
            dashed = name.replace("_", "-")
            answer[dashed] = limit.avg
            answer[dashed + "-max"] = limit.max
            answer[dashed + "-max-length"] = limit.burst_length
        answer["iops-size"] = self.op_size
        return answer

    def _numbers(self) -> list[tuple[str, object]]:
        parts = [
            (f"{name}.{part}", getattr(limit, part))
            for name, limit in zip(_LIMITS, self.limits(), strict=True)
            for part in limit.__struct_fields__
        ]
        return [*parts, ("op_size", self.op_size)]


_LIMITS: Final = tuple(name for name in ThrottleConfig.__struct_fields__ if name != "op_size")


def _split(name: str) -> tuple[str, str]:
    """``bps_total_max_length`` is the burst length of ``bps_total``."""
    for end, part in (("_max_length", "burst_length"), ("_max", "max")):
        if name.endswith(end):
            return name.removesuffix(end), part
    return name, "avg"


def _contradiction(config: ThrottleConfig) -> str | None:
    """What is wrong with *config* in QEMU's words and order, or None (``throttle_is_valid``)."""
    bps = (config.bps_total, config.bps_read, config.bps_write)
    iops = (config.iops_total, config.iops_read, config.iops_write)
    if config.op_size < 0:
        return "Property values cannot be negative"
    if config.op_size and not any(limit.avg for limit in iops):
        return "iops size requires an iops value to be set"
    for total, read, write in (bps, iops):
        if (total.avg and (read.avg or write.avg)) or (total.max and (read.max or write.max)):
            return "bps/iops/max total values and read/write values cannot be used at the same time"
    for limit in config.limits():
        if not (0 <= limit.avg <= VALUE_MAX and 0 <= limit.max <= VALUE_MAX):
            return f"bps/iops/max values must be within [0, {VALUE_MAX}]"
        if limit.burst_length == 0:
            return "the burst length cannot be 0"
        if not 0 < limit.burst_length <= LENGTH_MAX:
            return f"burst length value must be in the range [0, {LENGTH_MAX}]"
        if limit.burst_length > 1 and not limit.max:
            return "burst length set without burst rate"
        if limit.max and limit.burst_length > VALUE_MAX // limit.max:
            return "burst length too high for this burst rate"
        if limit.max and not limit.avg:
            return "bps_max/iops_max require corresponding bps/iops values"
        if limit.max and limit.max < limit.avg:
            return "bps_max/iops_max cannot be lower than bps/iops"
    return None


class LeakyBucket:
    """What one limit has let through and not yet leaked.

    Invariant: both levels are at least 0; ``burst_level`` stays 0 unless bursts are held to their own rate.
    """

    __slots__ = ("_burst_size", "_holds_bursts", "_size", "avg", "burst_level", "level", "max")

    def __init__(self, limit: Limit) -> None:
        self.avg = limit.avg
        self.max = limit.max
        self.level = 0.0
        self.burst_level = 0.0
        self._holds_bursts = limit.burst_length > 1
        self._size = float(limit.max * limit.burst_length) if limit.max else limit.avg / _SHARE
        self._burst_size = limit.max / _SHARE

    def leak(self, seconds: float) -> None:
        """*seconds* have gone by."""
        self.level = max(self.level - self.avg * seconds, 0.0)
        if self._holds_bursts:
            self.burst_level = max(self.burst_level - self.max * seconds, 0.0)

    def pour(self, units: float) -> None:
        """*units* go through; negative ones were poured before and did not go through after all."""
        self.level = max(self.level + units, 0.0)
        if self._holds_bursts:
            self.burst_level = max(self.burst_level + units, 0.0)

    def wait(self) -> float:
        """Seconds until the next request may go through; 0 for now."""
        over = self.level - self._size
        if over > 0:
            return over / self.avg
        if self._holds_bursts:
            over = self.burst_level - self._burst_size
            if over > 0:
                return over / self.max
        return 0.0


class ThrottleState:
    """The buckets of one configuration, at a moment. Times are monotonic seconds of the caller's clock.

    Only limits that are set have a bucket, so that nothing is spent on the others. Starts with all of them empty.
    """

    __slots__ = ("_bytes", "_op_size", "_operations", "_poured", "_until")

    def __init__(self, config: ThrottleConfig, now: float) -> None:
        self._op_size = config.op_size
        self._until = now

        def buckets(total: Limit, read: Limit, write: Limit) -> tuple[tuple[LeakyBucket, ...], ...]:
            shared = [LeakyBucket(total)] if total.avg else []
            return tuple((*shared, *([LeakyBucket(own)] if own.avg else [])) for own in (read, write))

        self._bytes = buckets(config.bps_total, config.bps_read, config.bps_write)
        self._operations = buckets(config.iops_total, config.iops_read, config.iops_write)
        self._poured = tuple({id(b): b for pair in (self._bytes, self._operations) for d in pair for b in d}.values())

    @property
    def limited(self) -> bool:
        """Whether any request can ever have to wait."""
        return bool(self._poured)

    def wait(self, direction: Direction, now: float) -> float:
        """Seconds until the next request in *direction* may go; 0 for now."""
        self._leak(now)
        wait = 0.0
        for bucket in self._bytes[direction]:
            wait = max(wait, bucket.wait())
        for bucket in self._operations[direction]:
            wait = max(wait, bucket.wait())
        return wait

    def account(self, direction: Direction, nbytes: int, now: float) -> None:
        """A request of *nbytes* bytes goes through."""
        self._leak(now)
        self._pour(direction, nbytes, 1)

    def take_back(self, direction: Direction, nbytes: int, now: float) -> None:
        """A request that was accounted did not go through after all."""
        self._leak(now)
        self._pour(direction, nbytes, -1)

    def _pour(self, direction: Direction, nbytes: int, sign: int) -> None:
        for bucket in self._bytes[direction]:
            bucket.pour(sign * nbytes)
        operations = nbytes / self._op_size if 0 < self._op_size < nbytes else 1.0
        for bucket in self._operations[direction]:
            bucket.pour(sign * operations)

    def _leak(self, now: float) -> None:
        seconds = now - self._until
        if seconds > 0:  # members on different threads may look at their clocks in one order and come here in another
            self._until = now
            for bucket in self._poured:
                bucket.leak(seconds)
