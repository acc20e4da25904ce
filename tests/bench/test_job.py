"""Jobs, the places they go to, and the arithmetic of latencies: pure, so tested by value."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.bench.job import Job, Pattern, places, zipf
from blockio.bench.latency import percentile, summed_up
from blockio.errors import OptionError

BLOCK = 4096


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "spiral"}, "Unknown workload 'spiral': there are sequential, strided, random, zipf"),
        ({"block_size": 0}, "Invalid block size 0"),
        ({"read_percent": 101}, "Invalid share of reads 101: 0 to 100 percent"),
        ({"depth": 0}, "Invalid queue depth 0"),
        ({"count": None}, "A job needs a count of requests or a time"),
        ({"count": 0}, "A job sends at least one request and takes some time"),
        ({"seconds": -1.0}, "A job sends at least one request and takes some time"),
        ({"offset": -1}, "Offsets, sizes and intervals cannot be negative"),
        ({"flush_interval": 3}, "Flushes are for jobs that write"),
        ({"pattern": "zipf", "theta": 0.0}, "Invalid zipf exponent 0"),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        Job(**{"count": 1, **fields})  # type: ignore[arg-type]  # wrong on purpose
    assert str(caught.value) == message


def test_a_disk_that_is_too_small_is_refused_with_the_figures() -> None:
    with pytest.raises(OptionError, match="may use 3096 of its 4096 bytes, a request needs 4096"):
        next(places(Job(count=1, offset=1000), 4096))
    assert Job(count=1).blocks(3 * BLOCK + 5) == 3
    assert Job(count=1, offset=BLOCK, size=BLOCK).blocks(3 * BLOCK) == 1


def test_sequential_goes_round() -> None:
    job = Job(count=7, offset=512)
    assert list(places(job, 512 + 3 * BLOCK)) == [512, 512 + BLOCK, 512 + 2 * BLOCK] * 2 + [512]


def test_strided_is_what_qemu_img_bench_does() -> None:
    job = Job(pattern="strided", count=5, step=3 * BLOCK)
    assert list(places(job, 4 * BLOCK)) == [0, 3 * BLOCK, 2 * BLOCK, BLOCK, 0]


@given(
    pattern=st.sampled_from(["sequential", "strided", "random", "zipf"]),
    share=st.integers(0, 100),
    blocks=st.integers(1, 50),
    offset=st.integers(0, 9000),
    step=st.one_of(st.none(), st.integers(0, 20_000)),
    seed=st.integers(0, 5),
)
def test_every_request_stays_inside(
    pattern: Pattern, share: int, blocks: int, offset: int, step: int | None, seed: int
) -> None:
    job = Job(pattern=pattern, count=60, read_percent=share, offset=offset, step=step, seed=seed)
    length = offset + blocks * BLOCK
    found = list(places(job, length))
    assert len(found) == 60
    assert found == list(places(job, length)), "the same for the same seed"
    for place in found:
        at = place if place >= 0 else ~place
        assert offset <= at <= length - BLOCK
        assert (place < 0) is (share == 0) or 0 < share < 100


def test_a_job_with_a_time_only_has_no_end() -> None:
    assert len(list(islice(places(Job(pattern="random", seconds=1.0), 1 << 20), 200_000))) == 200_000


def test_the_mix_is_what_was_asked_for() -> None:
    found = list(places(Job(pattern="random", count=50_000, read_percent=70), 1 << 24))
    assert 0.69 < sum(place >= 0 for place in found) / len(found) < 0.71


@pytest.mark.parametrize("theta", [0.5, 0.99, 1.0, 1.2, 3.0])
def test_zipf_has_its_distribution(theta: float) -> None:
    blocks, draws = 50, 40_000
    draw = zipf(blocks, theta, random.Random(7))
    found = Counter(draw() for _ in range(draws))
    whole = sum(rank**-theta for rank in range(1, blocks + 1))
    assert set(found) <= set(range(blocks))
    # Pearson's test at one in a million; ranks that hardly ever come are taken together.
    chi, freedom, rest_seen, rest_due = 0.0, 0, 0, 0.0
    for rank in range(1, blocks + 1):
        due = draws * rank**-theta / whole
        if due < 10:
            rest_seen, rest_due = rest_seen + found[rank - 1], rest_due + due
            continue
        chi += (found[rank - 1] - due) ** 2 / due
        freedom += 1
    if rest_due:
        chi += (rest_seen - rest_due) ** 2 / rest_due
    assert chi < freedom + 5 * (2 * freedom) ** 0.5 + 10


def test_zipf_needs_no_table_of_the_disk() -> None:
    draw = zipf(1 << 40, 0.9, random.Random(1))
    assert all(0 <= draw() < 1 << 40 for _ in range(1000))
    assert zipf(1, 1.2, random.Random(1))() == 0


def test_hot_blocks_are_all_over_the_disk() -> None:
    found = Counter(places(Job(pattern="zipf", count=5000), 1000 * BLOCK))
    (hottest, _), (second, _) = found.most_common(2)
    assert abs(hottest - second) > 10 * BLOCK


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (1, 1), (1.1, 2), (50, 50), (99, 99), (99.9, 100), (100, 100)])
def test_percentiles(percent: float, value: int) -> None:
    assert percentile(range(1, 101), percent) == value


def test_percentiles_are_exact_whatever_binary_fractions_say() -> None:
    assert percentile(range(1, 1001), 99.9) == 999
    with pytest.raises(ValueError, match="no percentiles"):
        percentile([], 50)
    with pytest.raises(ValueError, match="no percentage"):
        percentile([1], 100.1)


def test_latencies_are_summed_up() -> None:
    found = summed_up([30, 10, 20, 40], bounds=[15, 20, 35])
    assert (found.count, found.least, found.mean, found.most) == (4, 10, 25.0, 40)
    assert found.bins == (1, 0, 2, 1)
    assert found.percentiles["50"] == 20
    with pytest.raises(ValueError, match="no values"):
        summed_up([])
