"""Crash scenarios of qcow2: an image, what a guest does to it, and how the driver is opened meanwhile.

``explore`` runs one with seed after seed until so many different images were judged. Some of them are kept for QEMU's
verdict, which costs a process each.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from blockio.testing.crash import CrashReport, CrashState, explore_crashes, record, survives
from blockio.testing.faults import FaultPlan
from blockio.testing.guest import Guest, Workload
from blockio.testing.rig import Rig
from tests.qcow2.engine import Qcow2Rig, check_image

__all__ = ["Explored", "MakeImage", "Scenario", "explore"]

MakeImage: TypeAlias = Callable[[random.Random], Awaitable[Mapping[str, bytes | bytearray]]]
Work: TypeAlias = Callable[[random.Random, Guest], Awaitable[None]]

_RUN: Final = 250
"""States of one run: then another seed tells more."""
_SAMPLE: Final = 250
"""One image in so many is shown to QEMU."""


@dataclass(frozen=True)
class Scenario:
    """``image`` makes the disks, ``work`` is done to them; both from a seed. ``states`` is its share of a test run.

    ``repairs``: the image may be dirty. ``turns``: requests overlap. ``faults``: an operation fails, or all from then
    on. See ``blockio.testing.crash``.
    """

    name: str
    states: int
    image: MakeImage
    work: Work
    rig: Rig = field(default_factory=Qcow2Rig)
    repairs: bool = False
    turns: int = 0
    faults: bool = False
    run: int = _RUN

    def workload(self, seed: int) -> Workload:
        """The work of that seed; the same each time."""

        async def workload(guest: Guest) -> None:
            await self.work(random.Random(seed), guest)

        return workload


@dataclass
class Explored:
    """What was looked at so far."""

    images: int = 0
    states: int = 0
    runs: int = 0
    qemu: int = 0
    failure: str = ""

    def __str__(self) -> str:
        return (
            f"{self.images} different crash images ({self.states} states, {self.runs} runs) judged, "
            f"{self.qemu} of them by qemu-img too"
        )


async def explore(scenario: Scenario, states: int, seed: int) -> tuple[Explored, list[bytes]]:
    """Judge at least *states* different images; what was explored, and a sample of images for QEMU's check.

    A failure ends it: ``failure`` tells the scenario, the seed and the state.
    """
    done = Explored()
    sample: list[bytes] = []
    while done.images < states and not done.failure:
        report = await _explore_one(scenario, min(scenario.run, states - done.images + 20), seed + done.runs, sample)
        if not report.ok:
            done.failure = f"{scenario.name}, seed {seed + done.runs}: {report}"
        done.images += report.images
        done.states += report.states
        done.runs += 1
    done.qemu = len(sample)
    return done, sample


async def _explore_one(scenario: Scenario, states: int, seed: int, sample: list[bytes]) -> CrashReport:
    rnd = random.Random(seed)
    disks = await scenario.image(rnd)
    plan = FaultPlan(rnd.randint(1, 60), error=errno.EIO, sticky=rnd.random() < 0.3) if scenario.faults else None
    run = await record(
        scenario.rig,
        disks,
        scenario.workload(seed),
        discard_zeroes=True,
        turns=scenario.turns,
        seed=seed,
        faults=plan,
    )
    judge = survives(scenario.rig, run.promises, repairs=scenario.repairs)

    async def judged(state: CrashState) -> None:
        await judge(state)
        if state.digest % _SAMPLE == 0:
            sample.append(bytes(state.disks["file"]))

    return await explore_crashes(run.journal, judged, states=states, seed=seed)


def show_qemu(sample: list[bytes]) -> None:
    """``qemu-img check`` agrees: leaks at worst."""
    for image in sample:
        check_image(image, leaks=True)
