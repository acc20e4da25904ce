"""Runs of sectors against ``cryptography``'s own modes, one sector at a time."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from blockio.errors import UnsupportedFeature
from blockio_drivers import crypto
from blockio_drivers.crypto import by_arrays, by_numbers, ciphers
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
@pytest.mark.parametrize("sectors", [1, 2, 63, 64, 200, 300])
def test_runs_are_what_single_sectors_are(
    mode: str, nbytes: int, sectors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random.Random(sectors)
    key, data = source.randbytes(nbytes), source.randbytes(sectors * SECTOR)
    first = 2**32 - 3
    cipher = SectorCipher(mode, key, make_iv_generator("plain64", key))
    expected = one_by_one(mode, key, data, first)
    for module in (by_numbers, by_arrays):
        monkeypatch.setattr(ciphers, "_arithmetic", lambda _nbytes, _worth, module=module: module)
        memory = bytearray(data)
        cipher.encrypt(memory, first)
        assert memory == expected, module
        cipher.decrypt(memory, first)
        assert memory == data, module
    assert key.hex() not in repr(cipher)
    assert repr(key) not in repr(cipher)


def test_numpy_is_loaded_when_integers_have_cost_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only by large requests, which are not made on event loops; and once, whether it is there or not."""
    loads = []

    def load() -> Any:
        loads.append(arithmetic(1 << 20, 0))  # others go on meanwhile
        return found.pop()

    monkeypatch.setattr(ciphers, "_load_arrays", load)
    for there in (by_arrays, None):
        found = [there]
        arithmetic = ciphers._Arithmetic()
        for _ in range(10_000):
            assert arithmetic(16 << 10, 0) is by_numbers
        for _ in range(15):
            assert arithmetic(1 << 20, 0) is by_numbers
        assert not loads
        for _ in range(20):
            assert arithmetic(1 << 20, 1 << 20) is (there or by_numbers)
        assert arithmetic(4096, 4096) is (there or by_numbers)
        assert arithmetic(4096, 4097) is by_numbers
        assert loads.pop() is by_numbers


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ciphers._load_arrays() is by_arrays
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, by_arrays.__name__)
    monkeypatch.delattr(crypto, "by_arrays")
    assert ciphers._load_arrays() is None


def test_only_whole_sectors() -> None:
    cipher = SectorCipher("xts", bytes(range(64)), make_iv_generator("plain64", b""))
    with pytest.raises(ValueError, match="513 bytes are no whole sectors"):
        cipher.encrypt(bytearray(513), 0)
    cipher.encrypt(bytearray(), 0)


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
