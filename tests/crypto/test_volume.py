"""Key slots: added and erased by QEMU's rules, through failures and crashes, and headers from strangers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.errors import BlockError, LimitExceeded, OptionError
from blockio.types import Limits
from blockio_drivers.crypto.header import HEADER_BYTES, KeySlot, LuksHeader
from blockio_drivers.crypto.volume import KeySlotChange, LuksVolume
from tests.crypto.rig import PASSPHRASE, MemoryPlace, secrets, volume_in

TRUST = Limits()
ADD = KeySlotChange("active", new_secret="n", iter_time=1)


@pytest.fixture(autouse=True)
def secret() -> Iterator[None]:
    with secrets(s=PASSPHRASE, n="the new one", x="another"):
        yield


async def opens(data: bytes | bytearray, secret: str) -> bool:
    """Whether the volume in *data* opens with *secret*; the wrong passphrase is the only way not to."""
    try:
        await LuksVolume.open(MemoryPlace().at(data), secret, TRUST)
    except OptionError as error:
        if "Invalid password" not in str(error):
            raise
        return False
    return True


async def test_a_passphrase_is_added_and_the_first_one_erased() -> None:
    place = MemoryPlace()
    volume = await volume_in(place)
    await volume.amend(ADD, TRUST, force=False)
    assert await opens(place.data, "s")
    assert await opens(place.data, "n")
    await volume.amend(KeySlotChange("inactive", old_secret="s"), TRUST, force=False)
    assert not await opens(place.data, "s")
    assert await opens(place.data, "n")
    await volume.amend(KeySlotChange("inactive", keyslot=1), TRUST, force=True)
    assert not await opens(place.data, "n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (KeySlotChange("active"), "'new-secret' is required to activate a keyslot"),
        (KeySlotChange("active", "n", "s"), "'old-secret' must not be given when activating keyslots"),
        (KeySlotChange("active", "n", keyslot=9), "Invalid keyslot 9 specified, must be between 0 and 7"),
        (KeySlotChange("active", "n", keyslot=0), "Refusing to overwrite active keyslot 0 - please erase it first"),
        (KeySlotChange("inactive"), "To erase keyslot"),
        (KeySlotChange("inactive", "n"), "'new-secret' must not be given when erasing keyslots"),
        (KeySlotChange("inactive", iter_time=5), "'iter-time' must not be given when erasing keyslots"),
        (KeySlotChange("inactive", keyslot=5), "Given keyslot 5 is already erased"),
        (KeySlotChange("inactive", keyslot=0), "Attempt to erase the only active keyslot 0"),
        (KeySlotChange("inactive", old_secret="s"), "All the active keyslots match"),
        (KeySlotChange("inactive", old_secret="n"), "No keyslots match given"),
        (
            KeySlotChange("inactive", old_secret="n", keyslot=0),
            "Given keyslot 0 doesn't contain the given old password",
        ),
        (KeySlotChange("foo"), "Parameter 'state' does not accept value 'foo'"),
    ],
)
async def test_what_qemu_refuses_is_refused_and_nothing_written(change: KeySlotChange, message: str) -> None:
    place = MemoryPlace()
    volume = await volume_in(place)
    before = bytes(place.data)
    with pytest.raises(OptionError, match=message):
        await volume.amend(change, TRUST, force=False)
    assert place.data == before


async def test_all_slots_in_use() -> None:
    volume = await volume_in(MemoryPlace())
    for _ in range(7):
        await volume.amend(ADD, TRUST, force=False)
    with pytest.raises(OptionError, match="Can't add a keyslot - all keyslots are in use"):
        await volume.amend(ADD, TRUST, force=False)


async def test_no_crash_takes_a_passphrase_that_stays() -> None:
    """Every order in which whole sectors may have reached the disk between two flushes, sampled at its ends."""
    place = MemoryPlace()
    volume = await volume_in(place)
    place.history.clear()
    await volume.amend(KeySlotChange("active", "n", keyslot=6, iter_time=1), TRUST, force=False)  # crosses a sector
    await volume.amend(KeySlotChange("inactive", keyslot=0), TRUST, force=False)
    added = False
    seen: set[bytes] = set()
    for stable, writes in place.history:
        sectors = [
            (offset + at, data[at : at + 512]) for offset, data in writes for at in range(0, min(len(data), 1024), 512)
        ]
        assert len(sectors) <= 4
        for picked in itertools.product((False, True), repeat=len(sectors)):
            image = bytearray(stable)
            for (offset, data), take in zip(sectors, picked, strict=True):
                if take:
                    image[offset : offset + len(data)] = data
            if (head := bytes(image[:HEADER_BYTES])) in seen:
                continue
            seen.add(head)
            LuksHeader.decode(head)
            added = added or await opens(stable, "n")
            assert await opens(image, "n") if added else await opens(image, "s")


async def test_work_is_bounded() -> None:
    place = MemoryPlace()
    volume = await volume_in(place)
    slot = volume.header.slots[0]
    greedy = volume.header.with_slot(0, KeySlot(True, 2**32 - 1, slot.salt, slot.offset))
    await place.write(0, greedy.encode())
    with pytest.raises(LimitExceeded, match="max_kdf_iterations"):
        await LuksVolume.open(place, "s", TRUST)


async def test_a_damaged_slot_is_a_wrong_password() -> None:
    place = MemoryPlace()
    await volume_in(place)
    place.data[70_000] ^= 1
    assert not await opens(place.data, "s")


@given(st.integers(0, HEADER_BYTES - 1), st.binary(min_size=1, max_size=40))
def test_any_header_decodes_or_raises_what_is_declared(offset: int, noise: bytes) -> None:
    fixed = bytearray(_template())
    fixed[offset : offset + len(noise)] = noise
    try:
        header = LuksHeader.decode(bytes(fixed[:HEADER_BYTES]))
        header.spec()
    except BlockError:
        return
    assert header.material_bytes <= 4000 * 64 + 4096


def _template() -> bytes:
    slots = tuple(KeySlot(at == 0, 1000, bytes(32), 4096 + at * 258048) for at in range(8))
    return LuksHeader(
        cipher_name="aes",
        cipher_mode="xts-plain64",
        hash_spec="sha256",
        payload_offset=2068480,
        key_bytes=64,
        digest=bytes(20),
        digest_salt=bytes(32),
        digest_iterations=1000,
        uuid="00000000-0000-0000-0000-000000000000",
        slots=slots,
    ).encode()
