"""Which format is this? And who may let the bytes decide?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from blockio.driver.base import ChildOpener, FilterDriver, NoOptions
from blockio.driver.gate import Allow, AllowAll, Deny, DenyAll, Reference, ReferenceKind
from blockio.driver.probe import PROBE_BYTES, guess_format, probe_format
from blockio.driver.registry import find_driver, register, unregister
from blockio.errors import BlockError
from blockio.testing.memory import MemoryChild


def prober(driver: str, magic: bytes, score: int) -> type[FilterDriver]:
    class Prober(FilterDriver):
        name = driver
        Options = NoOptions

        @classmethod
        def probe(cls, head: bytes, filename: str) -> int:
            assert len(head) <= PROBE_BYTES
            return score if head.startswith(magic) else 0

        async def open(self, options: Any, opener: ChildOpener) -> None: ...

    return Prober


@contextmanager
def registered(*classes: type[FilterDriver]) -> Iterator[None]:
    for cls in classes:
        register(cls)
    try:
        yield
    finally:
        for cls in classes:
            unregister(cls)


def test_raw_is_what_is_left() -> None:
    assert guess_format(b"") == "raw"
    assert guess_format(bytes(PROBE_BYTES)) == "raw"


def test_what_bears_no_mark_loads_no_driver_in_vain() -> None:
    """Start-up: most of the time of ``info`` on a raw file would go into a driver that is not used."""
    script = (
        "import sys; from blockio.driver.probe import guess_format; guess_format(bytes(2048)); "
        "print(*sorted(m for m in sys.modules if m.startswith('blockio_drivers.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == ["blockio_drivers.raw"]


def test_a_wrong_mark_is_no_image_of_ours() -> None:
    for head in (b"QFI", b"qfi\xfb", b"\0QFI\xfb" + bytes(100), b"QFI\xfb"):
        assert guess_format(head) == max(("raw", "qcow2"), key=lambda name: find_driver(name).probe(head, ""))


def test_the_surest_wins_and_ties_go_by_name() -> None:
    with registered(prober("b-sure", b"XY", 60), prober("a-sure", b"XY", 60), prober("unsure", b"X", 10)):
        assert guess_format(b"XYZ") == "a-sure"
        assert guess_format(b"XZ") == "unsure"


async def test_only_the_beginning_is_read() -> None:
    child = MemoryChild(b"MAGIC" + bytes(10_000))
    with registered(prober("magic", b"MAGIC", 100)):
        assert await probe_format(child, "x") == "magic"
    assert child.log == [("read", 0, PROBE_BYTES)]


async def test_an_empty_file_is_raw_unread() -> None:
    child = MemoryChild()
    assert await probe_format(child, "x") == "raw"
    assert child.log == []


async def test_a_read_that_fails_says_what_it_was_for() -> None:
    child = MemoryChild(bytes(512))

    def fail(*_: object) -> None:
        raise BlockError("Input/output error")

    child.before = fail
    with pytest.raises(BlockError, match=r"^Could not read image for determining its format: Input/output error$"):
        await probe_format(child, "x")


@pytest.mark.parametrize(
    ("reference", "denied"),
    [
        (Reference(ReferenceKind.PROBE, "", "disk.img"), False),
        (Reference(ReferenceKind.PROBE, "top.qcow2", "base.img"), True),
        (Reference(ReferenceKind.BACKING, "top.qcow2", "/etc/passwd", "raw"), True),
        (Reference(ReferenceKind.DATA_FILE, "top.qcow2", "/etc/passwd", "raw"), True),
    ],
)
async def test_the_default_gate_opens_nothing_that_an_image_names(reference: Reference, denied: bool) -> None:
    decision = await DenyAll()(reference)
    assert isinstance(decision, Deny if denied else Allow)
    assert isinstance(await AllowAll()(reference), Allow)
