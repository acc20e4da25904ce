from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.aio.grace import GracePeriod


def test_without_readers_everything_is_free_at_once() -> None:
    grace: GracePeriod[str] = GracePeriod()
    grace.retire("a")
    grace.retire("b")
    assert grace.reclaim() == ["a", "b"]
    assert grace.reclaim() == []


def test_an_item_waits_for_the_readers_who_were_inside() -> None:
    grace: GracePeriod[str] = GracePeriod()
    early = grace.enter()
    grace.retire("a")
    late = grace.enter()
    grace.retire("b")
    assert grace.reclaim() == []
    grace.exit(early)
    assert grace.reclaim() == ["a"]  # the late reader cannot have found it
    grace.exit(late)
    assert grace.reclaim() == ["b"]
    assert (grace.readers, grace.pending) == (0, 0)


def test_a_later_reader_that_leaves_first_frees_nothing_early() -> None:
    grace: GracePeriod[str] = GracePeriod()
    early = grace.enter()
    grace.retire("a")
    late = grace.enter()
    grace.exit(late)
    assert grace.reclaim() == []
    grace.exit(early)
    assert grace.reclaim() == ["a"]


def test_a_token_counts_once() -> None:
    grace: GracePeriod[str] = GracePeriod()
    token = grace.enter()
    grace.exit(token)
    with pytest.raises(KeyError):
        grace.exit(token)


@given(st.lists(st.sampled_from(["enter", "exit-first", "exit-last", "retire", "reclaim"]), max_size=60))
def test_nothing_is_reclaimed_while_a_reader_may_hold_it(steps: list[str]) -> None:
    grace: GracePeriod[int] = GracePeriod()
    readers: list[tuple[int, set[int]]] = []  # token, and the items that reader may hold
    visible: set[int] = set()
    count = 0
    reclaimed: list[int] = []
    for step in steps:
        if step == "enter":
            readers.append((grace.enter(), set(visible) | {count}))
        elif step.startswith("exit") and readers:
            grace.exit(readers.pop(0 if step == "exit-first" else -1)[0])
        elif step == "retire":
            grace.retire(count)
            count += 1
        elif step == "reclaim":
            free = grace.reclaim()
            for _, held in readers:
                assert not held & set(free)
            reclaimed += free
    for token, _ in readers:
        grace.exit(token)
    assert reclaimed + grace.reclaim() == list(range(count))
