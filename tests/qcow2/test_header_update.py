"""Replacing a header: after any crash it is the old one or the new one, whole."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from blockio.types import HostOffset
from blockio_drivers.qcow2.extensions import BitmapsExtension, FeatureName, UnknownExtension
from blockio_drivers.qcow2.header import Autoclear, Header
from blockio_drivers.qcow2.header_update import plan_header

SECTOR = 512


def header(bits: int, **fields: object) -> Header:
    base = Header(
        version=3,
        cluster_bits=bits,
        size=1 << 20,
        l1_size=1 << 10,
        l1_table_offset=HostOffset(3 << bits),
        refcount_table_offset=HostOffset(1 << bits),
        refcount_table_clusters=1,
    )
    return base.with_(**fields)


@st.composite
def headers(draw: st.DrawFn, bits: int) -> Header:
    version = draw(st.sampled_from((2, 3)))
    fields: dict[str, object] = {"version": version}
    longest = 100 if bits == 9 else 400 if bits < 12 else 1023
    name = draw(st.none() | st.integers(1, longest).map(lambda n: "n" * n) | st.sampled_from(("a", "base.qcow2")))
    fields["backing_file"] = name
    fields["backing_format"] = draw(st.none() | st.sampled_from(("", "raw", "qcow2", "a-longer-one")))
    if draw(st.booleans()):
        data = draw(st.binary(max_size=80 if bits == 9 else 300))
        fields["unknown_extensions"] = (UnknownExtension(0x11223344, data),)
    if version == 3 and bits > 9:
        if draw(st.booleans()):
            fields["bitmaps"] = BitmapsExtension(1, 100, HostOffset(5 << bits))
            fields["autoclear"] = int(Autoclear.BITMAPS)
        if draw(st.booleans()):
            fields["feature_names"] = (FeatureName(0, 9, "something new"),)
        fields["unknown_fields"] = bytes(draw(st.sampled_from((0, 8, 48))))
        fields["compatible"] = draw(st.sampled_from((0, 1)))
    return header(bits, **fields)


def seen(area: bytes) -> Header:
    """What a reader makes of it. Names of feature bits mean nothing."""
    found = Header.decode(area, check=True)
    return found.with_(feature_names=())


@given(st.data())
def test_a_crash_leaves_the_one_or_the_other(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from((9, 12, 13, 16)))
    old, new = data.draw(headers(bits)), data.draw(headers(bits))
    area = bytearray(old.encode().ljust(1 << bits, b"\0"))
    if data.draw(st.booleans()):  # as other programs, and steps before, leave it
        area[len(old.encode()) :] = data.draw(st.binary(max_size=600)).ljust(len(area), b"x")[len(old.encode()) :]
    before, after = seen(bytes(area)), seen(new.encode())
    steps = plan_header(bytes(area), new.encode())
    room = 2 * max(len(old.encode()), len(new.encode())) + 2 * SECTOR <= len(area)
    for number, step in enumerate(steps):
        assert step.offset % SECTOR == 0
        assert step.offset + len(step.data) <= len(area)
        parts = [step.data[at : at + SECTOR] for at in range(0, len(step.data), SECTOR)]
        assert step.offset or len(parts) == 1 or not room, "the first sector is written alone"
        if len(parts) == 1 or room:
            few = parts if len(parts) <= 4 else parts[:4]
            for there in itertools.product((False, True), repeat=len(few)):
                torn = bytearray(area)
                for index, part in enumerate(parts):
                    if index < len(there) and there[index]:
                        at = step.offset + index * SECTOR
                        torn[at : at + len(part)] = part
                found = seen(bytes(torn))
                shown = any(step.offset == 0 for step in steps[:number])
                assert found == after or (found == before and not shown)
        area[step.offset : step.offset + len(step.data)] = step.data
    assert seen(bytes(area)) == after
    assert bytes(area).startswith(new.encode())
    assert plan_header(bytes(area), new.encode()) == []
