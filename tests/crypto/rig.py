"""Volumes for the tests: made quickly, unlocked by secrets that are gone after the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blockio.driver.secret import Secret
from blockio.objects import delete_object
from blockio_drivers.crypto import volume
from blockio_drivers.crypto.header import CipherSpec
from blockio_drivers.crypto.volume import LuksVolume, format_volume

SPEC = CipherSpec("aes-256", "xts", "plain64", None, "sha256")
PASSPHRASE = "a passphrase that nobody may see"


@contextmanager
def secrets(**values: str) -> Iterator[None]:
    """Secrets by id, while the block runs."""
    made: list[str] = []
    try:
        for id, value in values.items():
            Secret.define(id, data=value)
            made.append(id)
        yield
    finally:
        for id in made:
            delete_object(id)


def unsplit_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first stripe is the key: splitting takes most of the time that opening does, and does no I/O."""
    monkeypatch.setattr(volume, "split", lambda key, stripes, _hash: key * stripes)
    monkeypatch.setattr(volume, "merge", lambda material, stripes, _hash: material[: len(material) // stripes])


class MemoryPlace:
    """A ``Place`` in memory that remembers what was written since the last flush, and can fail."""

    def __init__(self) -> None:
        self.data = bytearray(4 << 20)
        self.stable = bytes(self.data)
        self.pending: list[tuple[int, bytes]] = []
        self.history: list[tuple[bytes, list[tuple[int, bytes]]]] = []
        self.fail_after = -1

    def _count(self) -> None:
        if self.fail_after == 0:
            raise OSError(5, "injected")
        self.fail_after -= 1

    async def read(self, offset: int, nbytes: int) -> bytes:
        return bytes(self.data[offset : offset + nbytes])

    async def write(self, offset: int, data: bytes) -> None:
        self._count()
        self.data[offset : offset + len(data)] = data
        self.pending.append((offset, data))

    async def flush(self) -> None:
        self._count()
        self.history.append((self.stable, self.pending))
        self.stable, self.pending = bytes(self.data), []

    def at(self, data: bytes | bytearray) -> MemoryPlace:
        """A place that holds *data*."""
        place = MemoryPlace()
        place.data[:] = data
        return place


async def volume_in(place: MemoryPlace, secret: str = "s") -> LuksVolume:
    """A new volume in *place*."""
    return await format_volume(place, SPEC, secret, 1)
