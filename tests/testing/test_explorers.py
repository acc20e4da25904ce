"""The explorers of crashes, faults and cancellations: a sound driver passes, and each mistake is found and told."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import pytest

from blockio.buffers import IoVector
from blockio.errors import BlockError
from blockio.testing.cancel import explore_cancellations
from blockio.testing.crash import CrashState, crash_state, explore_crashes, record, survives
from blockio.testing.faults import FaultPlan, FaultyChild, explore_faults
from blockio.testing.guest import SECTOR, Guest, Promises
from blockio.testing.journal import Journal
from blockio.testing.memory import MemoryChild
from blockio.testing.rig import StackRig
from blockio.types import RequestFlags
from tests.testing.shadow import FRESH, ShadowRig

A, B, C = (bytes((letter,)) * SECTOR for letter in b"ABC")


async def two_writes(guest: Guest) -> None:
    await guest.write(0, A)
    await guest.flush()
    await guest.write(0, B)
    await guest.write(10, b"in the middle")


# -- crashes


async def test_a_sound_driver_survives_every_crash() -> None:
    run = await record(ShadowRig(), {"file": FRESH}, two_writes)
    report = await explore_crashes(run.journal, survives(ShadowRig(), run.promises, rewrite=1))
    assert report.ok, report
    assert report.exhaustive
    assert report.images == 7, "each of three writes adds its content and then its header; nothing else is possible"
    assert "all there are): 0 bad" in str(report)


async def test_a_missing_barrier_is_found_and_told() -> None:
    rig = ShadowRig("no barrier")
    run = await record(rig, {"file": FRESH}, two_writes)
    report = await explore_crashes(run.journal, survives(rig, run.promises))
    (failure,) = report.failures
    assert "holds zeroes, not one of" in str(failure.error)
    assert failure.story.splitlines()[1:] == ["  #3 write file 512+512: lost", "  #4 write file 0+512: there"]
    again = crash_state(run.journal, failure.name)
    assert again.disks["file"] == bytes(2 * SECTOR) + A, "the header without its content"


async def test_a_flush_that_does_nothing_is_found() -> None:
    for mistakes in (["no barrier after"], ["no flush"], ["no barrier after", "no flush"]):
        rig = ShadowRig(*mistakes)
        run = await record(rig, {"file": FRESH}, two_writes)
        report = await explore_crashes(run.journal, survives(rig, run.promises))
        assert report.ok == (len(mistakes) == 1), "one of the two is enough"


async def note(journal: Journal, *, flush: bool) -> None:
    """Something of everything, on a disk of four sectors."""
    journal.add("file", A * 4)
    child = journal.over("file", MemoryChild(A * 4))
    await child.co_pwritev(256, IoVector.of(B))
    if flush:
        await child.co_flush()
    await child.co_pwrite_zeroes(512, 512)
    await child.co_pdiscard(1024, 512)
    await child.co_truncate(1536)


async def states(journal: Journal, **options: Any) -> dict[str, bytes]:
    """Every state by its name."""
    found: dict[str, bytes] = {}

    async def judge(state: CrashState) -> None:
        found[state.name] = bytes(state.disks["file"])

    report = await explore_crashes(journal, judge, **options)
    assert report.exhaustive
    assert report.states == len(found)
    return found


async def test_the_states_are_those_that_a_crash_may_leave() -> None:
    journal = Journal()
    await note(journal, flush=True)
    found = await states(journal)
    half = A[:256] + B[:256]
    torn = {(A + A), half + A, A + B[:256] + A[:256], half + B[256:] + A[256:]}
    before = {content for name, content in found.items() if name.startswith("1:")}
    assert before == {first + A * 2 for first in torn}
    after = {content for name, content in found.items() if not name.startswith("1:")}
    second = (B[256:] + A[256:], bytes(512))
    third = (A, bytes(512), b"\xdd" * 512)
    assert after == {half + s + t + end for s in second for t in third for end in (A, b"")}


async def test_a_larger_unit_makes_fewer_torn_states_and_fua_is_durable_at_once() -> None:
    journal = Journal()
    await note(journal, flush=False)
    assert len(await states(journal)) > len(await states(journal, unit=4096)) == 3 * 3 * 2
    journal = Journal()
    journal.add("file", A)
    await journal.over("file", MemoryChild(A)).co_pwritev(0, IoVector.of(B), RequestFlags.FUA)
    assert set((await states(journal)).values()) == {A, B}
    assert [len(moment.pending) for moment in journal.moments()] == [1, 0]


async def test_a_sample_is_the_same_for_the_same_seed() -> None:
    async def sample(seed: int) -> list[str]:
        names: list[str] = []

        async def judge(state: CrashState) -> None:
            names.append(state.name)
            assert crash_state(journal, state.name).digest == state.digest

        journal = Journal()
        journal.add("file", bytes(8192))
        child = journal.over("file", MemoryChild(bytes(8192)))
        for number in range(8):
            await child.co_pwritev(number * 700, IoVector.of(A + B + C))
        report = await explore_crashes(journal, judge, states=60, seed=seed)
        assert not report.exhaustive
        assert report.states == report.images == len(set(names)) == 60
        return names

    assert await sample(1) == await sample(1) != await sample(2)


async def test_a_unit_written_in_part_comes_with_what_was_written_to_it_before() -> None:
    journal = Journal()
    journal.add("file", A * 2)
    child = journal.over("file", MemoryChild(A * 2))
    await child.co_pwritev(0, IoVector.of(B[:1]))
    await child.co_pwritev(256, IoVector.of(C))
    both, only = B[:1] + A[:255] + C[:256], B[:1] + A[1:]
    assert set((await states(journal)).values()) == {
        *(first + A for first in (A, only, both)),
        *(first + C[256:] + A[256:] for first in (A, only, both)),
    }


async def test_a_write_that_failed_may_have_happened_until_a_flush() -> None:
    journal = Journal()
    journal.add("file", A * 2)
    plan = FaultPlan(1)
    child = journal.over("file", FaultyChild(MemoryChild(A * 2), plan))
    with pytest.raises(BlockError):
        await child.co_pwritev(0, IoVector.of(B))
    await child.co_pwritev(512, IoVector.of(C))
    await child.co_flush()
    found = await states(journal)
    assert {content for name, content in found.items() if name.startswith("2:")} == {A + A, A + C, B + A, B + C}
    assert {content for name, content in found.items() if not name.startswith("2:")} == {A + C}


# -- promises


async def test_a_reader_may_find_what_no_later_write_has_surely_replaced() -> None:
    promises = Promises(A + A)
    with promises.writing(0, B), promises.writing(0, C):
        assert promises.now().loose[0] == {A, B, C}
    assert promises.now().loose[0] == {B, C}, "side by side: either may be the last"
    with pytest.raises(OSError, match="no"), promises.writing(256, A[:256]):
        raise OSError("no")
    assert promises.now().loose[0] == {B, C, B[:256] + A[:256], C[:256] + A[:256]}, "a failed write may have happened"
    with promises.flushing(), promises.writing(0, A):
        pass
    assert promises.now().content == A + A
    assert len(promises.after_crash().loose[0]) == 5, "the write was not flushed, since it ended after the flush began"
    with promises.flushing():
        pass
    promises.after_crash().judge(A + A)
    with pytest.raises(AssertionError, match=r"sector 0 \(offset 0\) holds 42424242…4242, not 41414141…4141"):
        promises.after_crash().judge(B + A)


async def test_a_length_is_promised_too() -> None:
    promises = Promises(A + A)
    with promises.resizing(512):
        pass
    assert promises.length == 512
    for found in (A, A + A, A + bytes(512)):
        promises.after_crash().judge(found)
    with promises.flushing():
        pass
    with pytest.raises(AssertionError, match=r"1024 bytes, not \[512\]"):
        promises.after_crash().judge(A + A)
    with promises.resizing(1536):
        pass
    promises.now().judge(A + bytes(1024))
    with promises.forgetting(512, 512):
        pass
    promises.now().judge(A + B + bytes(512))


# -- faults and cancellations


async def test_a_sound_driver_meets_every_fault() -> None:
    report = await explore_faults(ShadowRig(), {"file": FRESH}, two_writes)
    assert report.ok, report
    assert report.faults == 4 * (1 + 16), "opening reads once; a flush and three writes of five operations"


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("switches too early", "while working, operation 8, a write, fails with EIO: AssertionError: sector 0"),
        ("forgets its count", "while working, operation 1, a read, fails with EIO: AssertionError: still busy"),
    ],
)
async def test_a_mistake_in_an_error_path_is_found_and_told(mistake: str, said: str) -> None:
    report = await explore_faults(ShadowRig(mistake), {"file": FRESH}, two_writes, errors=[errno.EIO])
    assert not report.ok
    assert said in str(report)


async def test_cancellations() -> None:
    assert await explore_cancellations(ShadowRig(), {"file": FRESH}, two_writes) == 32
    with pytest.raises(AssertionError, match="after a cancellation at await 1: AssertionError: still busy"):
        await explore_cancellations(ShadowRig("forgets cancellations"), {"file": FRESH}, two_writes)


# -- a whole graph


def throttled(disks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return {"driver": "raw", "file": disks["file"]}


async def test_a_stack_of_nodes() -> None:
    async def workload(guest: Guest) -> None:
        await guest.write(0, A + B)
        await guest.zero(1024, 1024)
        await guest.flush()
        await guest.discard(0, 512)
        await guest.truncate(4096)
        await guest.write(3000, b"unaligned")

    rig = StackRig(throttled)
    disks = {"file": C * 4}
    run = await record(rig, disks, workload)
    report = await explore_crashes(run.journal, survives(rig, run.promises, rewrite=3))
    assert report.ok, report
    assert report.states > 10
    faults = await explore_faults(rig, disks, workload)
    assert faults.ok, faults
    assert await explore_cancellations(rig, disks, workload) > 10
