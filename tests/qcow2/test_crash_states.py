"""Every file that a crash could leave opens, is at worst leaky, holds what was flushed, and can be written on.

The scenarios share a budget of more than 20,000 different images in a test run. ``make crash`` spends as much as it is
told: CRASH_STATES and CRASH_SEED are for all of them together.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.qcow2.crash import explore, show_qemu
from tests.qcow2.scenarios import SCENARIOS

IN_A_TEST_RUN = sum(scenario.states for scenario in SCENARIOS.values())


def test_the_budget() -> None:
    assert IN_A_TEST_RUN >= 20_000


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_crash(name: str) -> None:
    """Not an async test: a loop in debug mode would judge half as many in the same time."""
    scenario = SCENARIOS[name]
    states = scenario.states * int(os.environ.get("CRASH_STATES", IN_A_TEST_RUN)) // IN_A_TEST_RUN
    done, sample = asyncio.run(explore(scenario, states, int(os.environ.get("CRASH_SEED", "1"))))
    print(f"{name}: {done}")
    assert not done.failure, f"\n{done.failure}"
    assert done.images >= states
    show_qemu(sample)
