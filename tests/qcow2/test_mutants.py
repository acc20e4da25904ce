"""Every field of an image with every telling value: a declared error or a correct reading, as QEMU has it.

"Correct" is what QEMU reads, chunk by chunk; where the two differ, ``ALLOWED`` says why that is right. Whatever an
image says: no other error, no hang, no memory beyond its size's worth, no write where no image can be.
"""

from __future__ import annotations

import asyncio
import re
import tracemalloc
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.qcow2.mutations import Field, Mutant, Reading, abuse, fields, mutant, mutants, ours, sample_image, theirs
from tests.support.explore import exploring

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

BASES: Final = {
    "512": ("cluster_size=512", True, 5),
    "version 2": ("compat=0.10,cluster_size=1024", True, 5),
    "overlay": ("cluster_size=512,backing_file=base.raw,backing_fmt=raw", False, 5),
    "subclusters": ("cluster_size=16384,extended_l2=on", True, 5),
    "64-bit refcounts": ("cluster_size=4096,refcount_bits=64", True, 7),
    "64 KiB, 1-bit refcounts": ("cluster_size=65536,refcount_bits=1,lazy_refcounts=on", False, 17),
}
"""QEMU's options; whether there is a snapshot and more; one in so many mutants is judged in a test run."""

MEMORY: Final = 64 << 20
"""No mutant of an image of 60 KiB may take more; their tables may claim much more."""

ALLOWED: Final = (
    (
        "we refuse",
        r"(l1|refcount|snapshot)s?_(table_)?(offset|size|clusters)|nb_snapshots",
        "a table over the header or another table, or not in the file: writing to such an image would destroy it",
    ),
    (
        "they refuse",
        r"nb_snapshots|snapshots_offset|snapshot extra_data_size",
        "a snapshot's extra data is too long: the active disk does not depend on it",
    ),
)


@cache
def base(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        options, more, _ = BASES[name]
        return sample_image(Path(folder) / "base.qcow2", options, more=more)


def difference(mine: Reading, yours: Reading) -> str:
    """What the two did not agree on; empty: nothing."""
    if mine == yours:
        return ""
    if mine is None or yours is None:
        return "we refuse" if mine is None else "they refuse"
    chunk, one, other = next((n, a, b) for n, (a, b) in enumerate(zip(mine, yours, strict=True)) if a != b)
    how = "they fail to read" if other is None else "we fail to read" if one is None else "other content in"
    return f"{how} chunk {chunk}"


def allowed(what: str, name: str) -> bool:
    return any(what == kind and re.fullmatch(field, name) for kind, field, _ in ALLOWED)


async def judged(candidates: list[Mutant]) -> list[Reading]:
    """What we read of each; AssertionError, naming the mutant, for anything that must not be."""
    found = []
    for candidate in candidates:
        try:
            found.append(await ours(candidate.data))
            await abuse(candidate.data)
        except Exception as error:
            raise AssertionError(f"{candidate}: {type(error).__name__}: {error}") from error
    return found


@pytest.mark.parametrize("name", BASES)
def test_the_sample_reads_as_qemu_reads_it(name: str, tmp_path: Path) -> None:
    mine = asyncio.run(ours(base(name)))
    assert mine is not None
    assert None not in mine
    assert [mine] == theirs(tmp_path, [base(name)])


@pytest.mark.parametrize("name", BASES)
def test_every_field_with_every_telling_value(name: str, tmp_path: Path) -> None:
    corpus = list(mutants(base(name)))
    assert len(corpus) > 500
    corpus = corpus if exploring() else corpus[:: BASES[name][2]]
    mine = asyncio.run(judged(corpus))
    yours = theirs(tmp_path, (candidate.data for candidate in corpus))
    wrong = []
    for candidate, one, other in zip(corpus, mine, yours, strict=True):
        what = difference(one, other)
        if what and not allowed(what, candidate.field.name):
            wrong.append(f"{candidate}: {what}")
    assert not wrong, "\n".join(wrong)


def test_what_a_header_says_costs_no_memory() -> None:
    """Also where it claims the largest tables that are allowed at all."""
    tracemalloc.start(1)
    try:
        for candidate in mutants(base("512")):
            if candidate.field.offset < 104:
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                asyncio.run(ours(candidate.data))
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before < MEMORY, f"{candidate}: {peak - before} bytes of memory"
    finally:
        tracemalloc.stop()


@given(st.sampled_from(sorted(BASES)), st.data())
def test_several_fields_at_random(name: str, data: st.DataObject) -> None:
    """Also numbers that nobody thought of. The last field changed names the mutant."""
    image = base(name)
    places = list(fields(image))
    found: Mutant | None = None
    for place in data.draw(st.lists(st.sampled_from(places), min_size=2, max_size=4, unique=True)):
        value = data.draw(st.integers(0, (1 << 8 * place.size) - 1))
        found = mutant(image, place, value)
        image = found.data
    assert found is not None
    asyncio.run(judged_alone(found))


async def judged_alone(candidate: Mutant) -> None:
    await ours(candidate.data)
    await abuse(candidate.data)


@given(st.sampled_from(sorted(BASES)), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=64))
def test_noise_anywhere(name: str, at: int, noise: bytes) -> None:
    image = base(name)
    at %= len(image)
    noisy = (image[:at] + noise + image[at + len(noise) :])[: len(image)]
    asyncio.run(judged_alone(Mutant(Field("noise", at, len(noise)), 0, noisy)))
