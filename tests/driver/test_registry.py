"""Drivers are found lazily, and a broken plugin is nobody's problem but its user's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blockio.buffers import IoVector
from blockio.driver import registry
from blockio.driver.base import ChildOpener, ProtocolDriver
from blockio.driver.registry import driver_names, drivers, find_driver, find_protocol, register, unregister
from blockio.errors import OptionError
from blockio.types import RequestFlags


class Toy(ProtocolDriver):
    name = "toy-registry"
    protocols = ("toyreg", "toyreg+tls")

    async def open(self, options: Any, opener: ChildOpener) -> None: ...
    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None: ...
    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None: ...


@pytest.fixture
def toy() -> Iterator[type[Toy]]:
    register(Toy)
    yield Toy
    unregister(Toy)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An environment with one good and two broken plugins, seen by a fresh registry."""
    (tmp_path / "plug-1.0.dist-info").mkdir()
    (tmp_path / "plug-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (tmp_path / "plug-1.0.dist-info" / "entry_points.txt").write_text(
        "[console_scripts]\nraw = nowhere:main\n\n[blockio.drivers]\n# a comment\nplugged = plug_good:Plugged\n"
        "broken = plug_broken:Nothing\nno-driver = plug_good:NOT_A_DRIVER\nraw = plug_good:Plugged\n"
    )
    (tmp_path / "plug_good.py").write_text(
        "from blockio.driver.base import FilterDriver\nNOT_A_DRIVER = 5\n"
        "class Plugged(FilterDriver):\n    name = 'plugged'\n"
    )
    (tmp_path / "plug_broken.py").write_text("raise RuntimeError('I am broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    yield tmp_path
    sys.modules.pop("plug_good", None)


def test_a_registered_class_is_found(toy: type[Toy]) -> None:
    assert find_driver("toy-registry") is toy
    assert "toy-registry" in driver_names()


def test_a_name_is_registered_once(toy: type[Toy]) -> None:
    register(toy)  # again is fine
    with pytest.raises(ValueError, match="toy-registry"):
        register(type("Other", (Toy,), {}))


def test_nobody_has_it() -> None:
    with pytest.raises(OptionError, match=r"^Unknown driver 'xyz'$"):
        find_driver("xyz")


@pytest.mark.parametrize("filename", ["toyreg:x", "toyreg+tls://host/x"])
def test_protocols_by_prefix(toy: type[Toy], filename: str) -> None:
    assert find_protocol(filename) is toy


def test_an_unknown_protocol() -> None:
    with pytest.raises(OptionError, match=r"^Unknown protocol 'foo'$"):
        find_protocol("foo:bar")


def test_plugins_are_found(plugins: Path) -> None:
    assert find_driver("plugged").name == "plugged"


def test_a_broken_plugin_fails_only_who_asks_for_it(plugins: Path) -> None:
    with pytest.raises(OptionError, match=r"Driver 'broken' cannot be loaded.*I am broken"):
        find_driver("broken")
    with pytest.raises(OptionError, match="it is not a BlockDriver"):
        find_driver("no-driver")
    assert {"broken", "no-driver", "plugged"} <= set(driver_names())
    loadable = drivers()
    assert "plugged" in loadable
    assert not {"broken", "no-driver"} & set(loadable)


def test_a_plugin_does_not_displace_what_comes_with_blockio(plugins: Path) -> None:
    assert registry._registry.everything()["raw"].startswith("blockio_drivers.")


def test_one_driver_loads_no_other_and_searches_no_metadata() -> None:
    code = (
        "import sys; from blockio.driver.registry import find_driver; find_driver('null-co')\n"
        "loaded = [m for m in sys.modules if m.startswith('blockio_drivers.')]\n"
        "assert loaded == ['blockio_drivers.null'], loaded\n"
        "assert 'importlib.metadata' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
