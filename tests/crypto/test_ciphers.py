"""Runs of sectors against ``cryptography``'s own modes, one sector at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blockio.errors import UnsupportedFeature
from blockio_drivers.crypto.ciphers import SECTOR, SectorCipher, make_iv_generator
from blockio_drivers.crypto.split import merge, split

MODES: Mapping[str, Any] = {"xts": modes.XTS, "cbc": modes.CBC, "ctr": modes.CTR}


def one_by_one(mode: str, key: bytes, data: bytes, sector: int) -> bytes:
    result = b""
    for at in range(0, len(data), SECTOR):
        iv = (sector + at // SECTOR).to_bytes(16, "little")
        made: Any = MODES[mode](iv)
        result += Cipher(algorithms.AES(key), made).encryptor().update(data[at : at + SECTOR])
    return result


@pytest.mark.parametrize(
    ("mode", "nbytes"), [("xts", 32), ("xts", 64), ("cbc", 16), ("cbc", 24), ("cbc", 32), ("ctr", 32)]
)
@pytest.mark.parametrize("sectors", [1, 2, 63, 64, 200])
def test_runs_are_what_single_sectors_are(mode: str, nbytes: int, sectors: int) -> None:
    source = random.Random(sectors)
    key, data = source.randbytes(nbytes), source.randbytes(sectors * SECTOR)
    first = 2**32 - 3
    cipher = SectorCipher(mode, key, make_iv_generator("plain64", key))
    encrypted = cipher.encrypt(data, first)
    assert encrypted == one_by_one(mode, key, data, first)
    assert cipher.decrypt(encrypted, first) == data
    assert key.hex() not in repr(cipher)
    assert repr(key) not in repr(cipher)


def test_iv_generators() -> None:
    assert make_iv_generator("plain64", b"")(2**32, 1) == (2**32).to_bytes(16, "little")
    assert make_iv_generator("plain", b"")(2**32, 2) == bytes(16) + (1).to_bytes(16, "little")
    assert len(make_iv_generator("essiv", bytes(32), "sha256")(5, 3)) == 48
    with pytest.raises(UnsupportedFeature):
        make_iv_generator("essiv", bytes(32), "sha512")
    with pytest.raises(UnsupportedFeature):
        make_iv_generator("benbi", bytes(32))


@pytest.mark.parametrize("hash_name", ["sha1", "sha256", "sha512"])
def test_a_split_key_is_merged_and_one_bit_destroys_it(hash_name: str) -> None:
    key = random.Random(1).randbytes(64)
    stripes = split(key, 400, hash_name)
    assert len(stripes) == 64 * 400
    assert merge(stripes, 400, hash_name) == key
    damaged = bytearray(stripes)
    damaged[1000] ^= 1
    assert merge(bytes(damaged), 400, hash_name) != key
