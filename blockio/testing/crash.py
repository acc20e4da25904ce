"""Crashes: every state of the disks that one may legally leave is judged.

Record what a driver does to its disks with a ``Journal``, then hand it to ``explore_crashes`` with a judge: a coroutine
function that opens what a crash left, and raises where it is not what was promised. ``record`` and ``survives`` do both
for a whole stack::

    rig = StackRig(lambda disks: {"driver": "mine", "file": disks["file"]})
    run = await record(rig, {"file": image}, workload)   # async def workload(guest: Guest) -> None
    report = await explore_crashes(run.journal, survives(rig, run.promises), states=5000, seed=1)
    assert report.ok, report

What a crash may leave: all changes that are durable (see ``blockio.testing.journal``), and of the others any part, in
units of ``unit`` bytes. Each unit of a pending write is there or not (one written in part is there with what was
written to it before); a discarded unit is as it was, zeroes or garbage; a truncate has happened or not. Where a moment
has few enough of these states all are judged; of more, first the telling ones (nothing, everything, all but one change,
one alone, each prefix), then a seeded sample, torn writes among it.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from blockio.testing.faults import FaultPlan, FaultyChild
from blockio.testing.guest import SECTOR, Allowed, Guest, Promises, Workload
from blockio.testing.journal import DISCARDED, ChangeKind, Journal, Moment, apply_change, put, resize
from blockio.testing.rig import Rig, sound, writable
from blockio.testing.wrapping import PausingChild

if TYPE_CHECKING:
    from blockio.driver.child import Child

__all__ = [
    "CrashFailure",
    "CrashReport",
    "CrashState",
    "Judge",
    "Run",
    "crash_state",
    "explore_crashes",
    "record",
    "survives",
]

Choice: TypeAlias = tuple[int, ...]
"""For each pending change the units of it that are there, as bits from the first on.

A discard has one bit more, above those of its units: whether they became garbage instead of zeroes.
"""


@dataclass(frozen=True, slots=True)
class CrashState:
    """What a crash left. ``disks`` is the judge's to change.

    ``name`` makes it again, with ``crash_state``; ``tick`` is when it came, as ``Promises.after_crash`` wants it.
    """

    name: str
    tick: int
    disks: dict[str, bytearray] = field(repr=False)
    digest: int = field(repr=False)
    """The same for the same contents, and spread evenly: what a judge may sample by."""


Judge: TypeAlias = Callable[[CrashState], Awaitable[None]]
"""Raises where the state is not one that a crash may leave."""


@dataclass(frozen=True, slots=True)
class CrashFailure:
    """A state that was judged bad: its ``name``, and the ``story`` of what had happened and what had not."""

    name: str
    error: Exception
    story: str

    def __str__(self) -> str:
        return f"crash state {self.name}: {type(self.error).__name__}: {self.error}\n{self.story}"


@dataclass(frozen=True, slots=True)
class CrashReport:
    """``states`` were judged, at ``moments`` moments; ``exhaustive``: no legal state was left out.

    ``images`` counts different contents: the same content at two moments must keep two different promises.
    """

    seed: int
    states: int
    images: int
    moments: int
    exhaustive: bool
    failures: tuple[CrashFailure, ...]

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failures

    def __str__(self) -> str:
        how = "all there are" if self.exhaustive else f"seed {self.seed}"
        counts = f"{self.states} crash states at {self.moments} moments, {self.images} different"
        lines = [f"{counts} ({how}): {len(self.failures)} bad"]
        return "\n".join([*lines, *map(str, self.failures)])


@dataclass(frozen=True, slots=True)
class Run:
    """What was recorded: all that reached the disks, what the guest was promised, and the disks as they are now."""

    journal: Journal
    promises: Promises
    disks: dict[str, bytearray]


async def record(
    rig: Rig,
    disks: Mapping[str, bytes | bytearray],
    workload: Workload,
    *,
    discard_zeroes: bool = False,
    turns: int = 0,
    seed: int = 0,
    faults: FaultPlan | None = None,
) -> Run:
    """Let a guest do *workload* on *rig* over copies of *disks*, and record it, also the opening and closing.

    *discard_zeroes*: see ``Guest``. With *turns* each operation of a disk takes up to that many turns of the loop, by
    *seed*, so that requests which the workload sends side by side overtake each other. *faults* are met while the
    guest works, who is forgiving then. What the workload raises else is raised.
    """
    journal = Journal()
    copies = {name: bytearray(data) for name, data in disks.items()}
    async with rig.open({name: bytearray(data) for name, data in disks.items()}, read_only=True) as disk:
        promises = Promises(await disk.read(0, disk.length), journal.tick)
    for name, data in copies.items():
        journal.add(name, data)
    rnd = random.Random(seed)

    plan = faults or FaultPlan()
    nth, plan.nth = plan.nth, 0

    def wrap(name: str, child: Child) -> Child:
        below = PausingChild(child, turns=turns, rnd=rnd) if turns else child
        return journal.over(name, FaultyChild(below, plan))

    async with rig.open(copies, wrap=wrap) as disk:
        guest = Guest(disk, promises, discard_zeroes=discard_zeroes, forgiving=faults is not None)
        plan.arm(nth)
        await workload(guest)
        plan.nth = 0
        await guest.verify()
        disk.at_rest()
    return Run(journal, promises, copies)


def survives(rig: Rig, promises: Promises, *, leaks: bool = True, repairs: bool = False, rewrite: int = 8) -> Judge:
    """The judge for what ``record`` recorded: the stack opens, its check finds no errors, and promises are kept.

    *leaks* and *repairs*: see ``sound``. One in *rewrite* states is then opened for writing, written to and checked
    again.
    """
    allowed: dict[int, Allowed] = {}

    async def judge(state: CrashState) -> None:
        if state.tick not in allowed:
            allowed[state.tick] = promises.after_crash(state.tick)
        await sound(rig, state.disks, allowed[state.tick], leaks=leaks, repairs=repairs)
        if state.digest % rewrite == 0:
            await writable(rig, state.disks, leaks=leaks)

    return judge


_IN_VAIN: Final = 30
"""After so many samples in a row that were nothing new a moment has no more to tell."""


async def explore_crashes(
    journal: Journal,
    judge: Judge,
    *,
    states: int = 1000,
    seed: int = 0,
    unit: int = SECTOR,
    stop_after: int = 1,
) -> CrashReport:
    """Judge up to *states* different states that a crash may leave of what *journal* recorded.

    *unit* is what the disks write atomically (512: the least any disk promises; more makes fewer torn writes).
    After *stop_after* failures the search ends; each failure is reduced to fewer lost changes first. A judge's failure
    is an Exception; what is none (a cancellation) goes through.
    """
    rnd = random.Random(seed)
    budgets = _shares([_Legal(moment, unit).count for moment in journal.moments()], states)
    images: set[int] = set()
    judged = 0
    exhaustive = True
    failures: list[CrashFailure] = []

    def report(reached: int, exhaustive: bool) -> CrashReport:
        return CrashReport(seed, judged, len(images), reached, exhaustive, tuple(failures))

    spare = 0
    for number, (moment, share) in enumerate(zip(journal.moments(), budgets, strict=True), 1):
        legal = _Legal(moment, unit)
        budget = share + spare
        chosen, whole = legal.choices(rnd, budget)
        seen: set[int] = set()
        in_vain = 0
        for choice in map(legal.closed, chosen):
            if len(seen) == budget or (in_vain > _IN_VAIN and not whole):
                break
            state = legal.state(choice)
            if state.digest in seen:
                in_vain += 1
                continue
            in_vain = 0
            seen.add(state.digest)
            images.add(state.digest)
            judged += 1
            try:
                await judge(state)
            except Exception as error:  # whatever the judge finds, also the driver's own errors
                failures.append(await _reduced(legal, choice, error, judge))
                if len(failures) == stop_after:
                    return report(number, False)
        spare = budget - len(seen)  # equal states leave time for later moments
        exhaustive &= whole
    return report(len(budgets), exhaustive)


def _shares(counts: list[int], states: int) -> list[int]:
    """*states* shared out evenly, but to none more than its count."""
    shares = [0] * len(counts)
    for place, index in enumerate(sorted(range(len(counts)), key=counts.__getitem__)):
        shares[index] = min(counts[index], (states - sum(shares)) // (len(counts) - place))
    return shares


def crash_state(journal: Journal, name: str, *, unit: int = SECTOR) -> CrashState:
    """The state of that name, which an equal journal made with the same *unit*."""
    at, _, chosen = name.partition(":")
    for moment in journal.moments():
        if moment.at == int(at):
            return _Legal(moment, unit).state(_choice(chosen, len(moment.pending)))
    raise ValueError(f"this journal has no moment {at}")


def _choice(text: str, count: int) -> Choice:
    """``7x1*3`` in words: changes have 1, 1, 1, and 7 before. See ``_Legal.name``."""
    choice = tuple(
        int(bits, 16)
        for run in text.split(",")
        if run
        for bits, _, times in [run.partition("*")]
        for _ in range(int(times or 1))
    )
    if len(choice) != count:
        raise ValueError(f"the moment has {count} pending changes, the name {len(choice)}")
    return choice


class _Legal:
    """The legal states of one moment."""

    def __init__(self, moment: Moment, unit: int) -> None:
        self.moment = moment
        self.unit = unit
        self.pieces = [self._units(change.offset, change.nbytes) for change in moment.pending]
        self.full = tuple((1 << len(pieces)) - 1 for pieces in self.pieces)
        self.bits = [
            len(pieces) + (change.kind is ChangeKind.DISCARD)
            for change, pieces in zip(moment.pending, self.pieces, strict=True)
        ]
        self._carried = self._carry()
        self._base: _Digest | None = None

    def _carry(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Which units of earlier changes come along with a unit that is written in part: the disk writes whole ones."""
        written: dict[tuple[str, int], list[tuple[int, int]]] = {}
        carried = {}
        for number, (change, pieces) in enumerate(zip(self.moment.pending, self.pieces, strict=True)):
            if change.kind is ChangeKind.TRUNCATE:
                continue
            for bit, (at, end) in enumerate(pieces):
                earlier = written.setdefault((change.disk, at // self.unit), [])
                if earlier and end - at < self.unit and change.kind is not ChangeKind.DISCARD:
                    carried[number, bit] = list(earlier)
                earlier.append((number, bit))
        return carried

    @property
    def count(self) -> int:
        """How many choices there are; no less than there are states."""
        return 1 << sum(self.bits)

    def _units(self, offset: int, nbytes: int) -> Sequence[tuple[int, int]]:
        """The parts of a range that lie in one unit each; a truncate counts as one."""
        end = offset + nbytes
        cuts = [offset, *range(offset // self.unit * self.unit + self.unit, end, self.unit), end]
        return list(itertools.pairwise(cuts))

    # -- choices

    def choices(self, rnd: random.Random, budget: int) -> tuple[Iterator[Choice], bool]:
        """Choices in the order they are worth trying, and whether they are all there are. They may be equal."""
        if self.count <= budget:
            return itertools.product(*(range(1 << count) for count in self.bits)), True
        return self._sampled(rnd, budget), False

    def _sampled(self, rnd: random.Random, budget: int) -> Iterator[Choice]:
        telling = list(self._telling())
        if len(telling) > budget // 2:
            telling = rnd.sample(telling, budget // 2)
        yield from telling
        while True:
            yield self._random(rnd)

    def _telling(self) -> Iterator[Choice]:
        """Nothing, everything, all but one, one alone, the first so many."""
        full = self.full
        count = len(full)
        yield (0,) * count
        yield full
        for at in range(count):
            yield (*full[:at], 0, *full[at + 1 :])
            yield (*(0,) * at, full[at], *(0,) * (count - at - 1))
            yield (*full[: at + 1], *(0,) * (count - at - 1))

    def _random(self, rnd: random.Random) -> Choice:
        count = len(self.full)
        until = count if rnd.random() < 0.4 else rnd.randint(0, count)
        likely = rnd.choice((0.1, 0.5, 0.9))
        torn = rnd.choice((0.0, 0.2, 0.5))
        choice = []
        for number, (bits, full) in enumerate(zip(self.bits, self.full, strict=True)):
            if number >= until:
                choice.append(0)
            elif rnd.random() < torn:
                choice.append(sum((rnd.random() < likely) << bit for bit in range(bits)))
            else:
                choice.append((full if rnd.random() < likely else 0) | rnd.getrandbits(bits) & ~full)
        return tuple(choice)

    def closed(self, choice: Choice) -> Choice:
        """*choice* and all that comes along with it."""
        if not self._carried:
            return choice
        bits = list(choice)
        for (number, bit), earlier in reversed(self._carried.items()):
            if bits[number] >> bit & 1:
                for other, its in earlier:
                    bits[other] |= 1 << its
        return tuple(bits)

    # -- states

    def name(self, choice: Choice) -> str:
        """The moment's event number and the bits of each change, runs of equal ones written ``BITS*TIMES``."""
        runs = [(bits, len(list(run))) for bits, run in itertools.groupby(choice)]
        return f"{self.moment.at}:" + ",".join(f"{bits:x}" + (f"*{times}" if times > 1 else "") for bits, times in runs)

    def state(self, choice: Choice) -> CrashState:
        """The disks with what *choice* says."""
        disks = {name: bytearray(data) for name, data in self.moment.durable.items()}
        touched: dict[str, set[int]] = {name: set() for name in disks}
        for change, pieces, bits, full in zip(self.moment.pending, self.pieces, choice, self.full, strict=True):
            if not bits & full:
                continue
            data = disks[change.disk]
            units = touched[change.disk]
            if change.kind is ChangeKind.TRUNCATE:
                shorter, longer = sorted((len(data), change.offset))
                units.update(range(shorter // self.unit, -(-longer // self.unit)))
                resize(data, change.offset)
                continue
            garbage = bits > full
            if change.kind is not ChangeKind.DISCARD and bits == full:
                units.update(at // self.unit for at, _ in pieces)
                apply_change(data, change)
                continue
            for bit, (at, end) in enumerate(pieces):
                if not bits >> bit & 1:
                    continue
                units.add(at // self.unit)
                if change.kind is ChangeKind.WRITE:
                    put(data, at, change.payload[at - change.offset : end - change.offset], grows=change.grows)
                elif change.kind is ChangeKind.ZERO:
                    put(data, at, bytes(end - at), grows=change.grows)
                else:
                    put(data, at, (DISCARDED if garbage else b"\0") * (end - at), grows=False)
        if self._base is None:
            self._base = _Digest(self.moment.durable, self.unit)
        return CrashState(self.name(choice), self.moment.tick, disks, self._base.changed(disks, touched))

    def story(self, choice: Choice) -> str:
        """What of the pending changes had happened, and what had not, for people."""
        lines = [f"before event {self.moment.at}, of the changes that no flush had covered:"]
        for change, pieces, bits, full in zip(self.moment.pending, self.pieces, choice, self.full, strict=True):
            there = bits & full
            if there == 0:
                what = "lost"
            elif there == full:
                what = "there"
            else:
                units = [at for bit, (at, _) in enumerate(pieces) if there >> bit & 1]
                what = f"torn, there at {', '.join(map(str, units))}"
            if there and change.kind is ChangeKind.DISCARD:
                what += ", now garbage" if bits > full else ", now zeroes"
            lines.append(f"  {change}: {what}")
        return "\n".join(lines)


class _Digest:
    """The digest of the disks of one moment, kept up when units change: a sum over all units that are not zeroes."""

    def __init__(self, disks: Mapping[str, bytes], unit: int) -> None:
        self.disks = disks
        self.unit = unit
        self.total = sum(
            self._of(name, data, number) for name, data in disks.items() for number in range(-(-len(data) // unit))
        )

    def _of(self, name: str, data: bytes | bytearray, number: int) -> int:
        content = data[number * self.unit : (number + 1) * self.unit].rstrip(b"\0")
        if not content:
            return 0
        return _hash(content, f"{name}@{number}")

    def changed(self, disks: Mapping[str, bytearray], touched: Mapping[str, set[int]]) -> int:
        """The digest of *disks*, which differ from the moment's in the *touched* units and in their lengths."""
        total = self.total
        for name, units in touched.items():
            old, new = self.disks[name], disks[name]
            for number in units:
                total += self._of(name, new, number) - self._of(name, old, number)
            total += _hash(b"length", f"{name}={len(new)}")
        return total % _MODULUS


_MODULUS: Final = 1 << 128


def _hash(content: bytes | bytearray, where: str) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=16, key=where.encode()[-64:]).digest(), "big")


async def _reduced(legal: _Legal, choice: Choice, error: Exception, judge: Judge) -> CrashFailure:
    """The failure with as few changes lost as still make one, of as short a run as does."""

    async def fails(candidate: Choice) -> Exception | None:
        try:
            await judge(legal.state(candidate))
        except Exception as found:
            return found
        return None

    count = len(choice)
    for until in range(count):  # the shortest run that fails, with nothing after it
        shorter = legal.closed((*choice[:until], *(0,) * (count - until)))
        if shorter != choice and (found := await fails(shorter)) is not None:
            choice, error = shorter, found
            break
    last = max((at for at, bits in enumerate(choice) if bits), default=-1)
    for at in range(last + 1):  # then as few lost before its end as still fail
        if choice[at] & legal.full[at] == legal.full[at]:
            continue
        fuller = legal.closed((*choice[:at], legal.full[at], *choice[at + 1 :]))
        if (found := await fails(fuller)) is not None:
            choice, error = fuller, found
    return CrashFailure(legal.name(choice), error, legal.story(choice))
