"""What is to be done to a disk: one job, and the places its requests go to. Pure; the same for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice, repeat
from operator import invert, xor
from typing import Final, Literal, TypeAlias

import msgspec

from blockio.errors import OptionError
from blockio.types import INT_MAX

__all__ = ["PATTERNS", "Job", "Pattern", "places", "zipf"]

Pattern: TypeAlias = Literal["sequential", "strided", "random", "zipf"]
PATTERNS: Final[tuple[Pattern, ...]] = ("sequential", "strided", "random", "zipf")

_PERIOD: Final = 1 << 17
"""After so many requests a pattern that is diced repeats itself: dicing while the clock runs would be measured too."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one size to one disk. Sizes and offsets are bytes.

    It ends after ``count`` requests or ``seconds``, whichever is given (one must be) and comes first.
    """

    pattern: Pattern = "sequential"
    block_size: int = 4096
    read_percent: int = 100
    """How many of a hundred requests read; the others write."""
    depth: int = 1
    """How many are under way at once."""
    count: int | None = None
    seconds: float | None = None
    flush_interval: int = 0
    """After so many writes a flush, beside the other requests; 0: never."""
    offset: int = 0
    size: int | None = None
    """How much of the disk from ``offset`` on is used; None: all."""
    step: int | None = None
    """From one strided request to the next; None: 257 blocks, far enough to come to another cluster each time."""
    theta: float = 1.2
    """How uneven zipf is: the place of rank k is asked for 1/k**theta as often as the first."""
    seed: int = 1

    def __post_init__(self) -> None:
        """OptionError for what contradicts itself."""
        if self.pattern not in PATTERNS:
            raise OptionError(f"Unknown workload '{self.pattern}': there are {', '.join(PATTERNS)}")
        if not 0 < self.block_size <= INT_MAX:
            raise OptionError(f"Invalid block size {self.block_size}")
        if not 0 <= self.read_percent <= 100:
            raise OptionError(f"Invalid share of reads {self.read_percent}: 0 to 100 percent")
        if self.depth < 1:
            raise OptionError(f"Invalid queue depth {self.depth}")
        if self.count is None and self.seconds is None:
            raise OptionError("A job needs a count of requests or a time")
        if (self.count is not None and self.count < 1) or (self.seconds is not None and not self.seconds > 0):
            raise OptionError("A job sends at least one request and takes some time")
        if self.flush_interval < 0 or self.offset < 0 or (self.size or 0) < 0 or (self.step or 0) < 0:
            raise OptionError("Offsets, sizes and intervals cannot be negative")
        if self.flush_interval and not self.writes:
            raise OptionError("Flushes are for jobs that write")
        if self.theta <= 0:
            raise OptionError(f"Invalid zipf exponent {self.theta:g}")

    @property
    def writes(self) -> bool:
        """Whether it changes the disk."""
        return self.read_percent < 100

    @property
    def stride(self) -> int:
        """Bytes from one request to the next, for the two patterns that have such."""
        if self.pattern == "sequential":
            return self.block_size
        return 257 * self.block_size if self.step is None else self.step

    @property
    def title(self) -> str:
        """``4 KiB random reads, QD 32``."""
        kinds = {100: "reads", 0: "writes"}.get(self.read_percent, f"{self.read_percent} % reads")
        pattern = f"zipf({self.theta:g})" if self.pattern == "zipf" else self.pattern
        flushes = f", flush every {self.flush_interval}" if self.flush_interval else ""
        return f"{size_text(self.block_size)} {pattern} {kinds}{flushes}, QD {self.depth}"

    def blocks(self, length: int) -> int:
        """How many places there are on a disk of *length* bytes. OptionError where not even one request fits."""
        used = max(length - self.offset, 0)
        if self.size is not None:
            used = min(used, self.size)
        if used < self.block_size:
            raise OptionError(
                f"The disk is too small: a job may use {used} of its {length} bytes, a request needs {self.block_size}"
            )
        return used // self.block_size


def size_text(nbytes: int) -> str:
    """``4 KiB``, ``512 B``: in the largest unit that divides it."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes and nbytes % (1 << shift) == 0:
            return f"{nbytes >> shift} {unit}"
    return f"{nbytes} B"


def places(job: Job, length: int) -> Iterator[int]:
    """Where each request goes on a disk of *length* bytes, endlessly or ``job.count`` times.

    A read is its offset, a write the offset's complement (``~offset``, negative): one number a request, made before the
    clock runs. OptionError where the disk is too small.
    """
    blocks = job.blocks(length)
    # Nothing of Python's own runs for each request, where that can be: it would be measured too.
    source: Iterator[int] = chain.from_iterable(repeat(_offsets(job, blocks)))
    if job.read_percent == 0:
        source = map(invert, source)
    elif job.read_percent < 100:
        dice = random.Random(-job.seed)
        # Of a length that is no multiple of the offsets' period, so that no place is only read.
        flips = [0 if dice.random() * 100 < job.read_percent else -1 for _ in range(65_537)]
        source = map(xor, source, cycle(flips))  # -1 makes the complement
    return source if job.count is None else islice(source, job.count)


def _offsets(job: Job, blocks: int) -> Sequence[int]:
    """One period of the pattern."""
    size, base = job.block_size, job.offset
    if job.pattern == "sequential":
        return range(base, base + blocks * size, size)
    wanted = _PERIOD if job.count is None else min(job.count, _PERIOD)
    if job.pattern == "strided":
        room, step = blocks * size, job.stride
        if step % size:
            room -= size - 1  # so that the last place still has a whole request behind it
        return [base + number * step % room for number in range(wanted)]
    dice = random.Random(job.seed)
    if job.pattern == "random":
        return [base + dice.randrange(blocks) * size for _ in range(wanted)]
    rank = zipf(blocks, job.theta, dice)
    scatter = _scatter(blocks)
    return [base + rank() * scatter % blocks * size for _ in range(wanted)]


def _scatter(blocks: int) -> int:
    """A factor that takes the ranks one to one to places all over the disk: hot blocks seldom are neighbours."""
    factor = max(int(blocks * 0.618), 1)
    while math.gcd(factor, blocks) != 1:
        factor += 1
    return factor


def zipf(blocks: int, theta: float, dice: random.Random) -> Callable[[], int]:
    """Ranks from 0 to *blocks* - 1; rank k comes up in proportion to (k + 1)**-theta, exactly, without a table.

    By rejection-inversion (Hörmann and Derflinger, *Rejection-inversion to generate variates from monotone discrete
    distributions*, 1996): the hat is the density's integral, and few draws are thrown away.
    """

    def integral(x: float) -> float:
        log = math.log(x)
        return log * _ratio((1 - theta) * log)

    def inverse(y: float) -> float:
        t = max(y * (1 - theta), -1.0)  # rounding must not leave the logarithm's domain
        return math.exp(y * (math.log1p(t) / t if abs(t) > 1e-8 else 1 - t / 2))

    first = integral(1.5) - 1
    last = integral(blocks + 0.5)
    sure = 2 - inverse(integral(2.5) - 2**-theta)

    def draw() -> int:
        while True:
            y = last + dice.random() * (first - last)
            x = inverse(y)
            rank = min(max(int(x + 0.5), 1), blocks)
            if rank - x <= sure or y >= integral(rank + 0.5) - rank**-theta:
                return rank - 1

    return draw


def _ratio(t: float) -> float:
    """(exp(t) - 1) / t, also near 0."""
    return math.expm1(t) / t if abs(t) > 1e-8 else 1 + t / 2
