"""What every test of the harness leaves behind, taken away again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blockio.objects import delete_object, object_ids


@pytest.fixture(autouse=True)
def objects_of_scratch_disks_go() -> Iterator[None]:
    """The secret of an encrypted scratch disk lives as long as its process, which here is that of other tests too."""
    before = set(object_ids())
    yield
    for name in set(object_ids()) - before:
        delete_object(name)
