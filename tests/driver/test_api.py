"""What a driver author imports is there, and costs only what it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import blockio.driver


def test_every_name_is_there() -> None:
    for name in blockio.driver.__all__:
        assert getattr(blockio.driver, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        blockio.driver.nonsense  # noqa: B018  # looking is the test


def test_a_name_loads_its_own_module_only() -> None:
    code = (
        "import sys; from blockio.driver import OpenGate\n"
        "assert 'blockio.driver.gate' in sys.modules; assert 'blockio.driver.base' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
