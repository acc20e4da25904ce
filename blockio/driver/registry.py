"""Which drivers there are, loaded only when asked for.

Drivers are found through the entry-point group ``blockio.drivers``; a program may also ``register`` one of its own.
Loading a driver imports its module and no other driver's. A plugin that cannot be loaded is an error for whoever
asks for it by name and is skipped by everything that looks at all of them.

Start-up matters: ``importlib.metadata`` alone costs more than the rest of a small command. So the ``entry_points.txt``
files on the path are read directly, this project's own first and the others only when a name is not among them or
somebody asks for all. Distributions that are not folders on the path (in a zip, behind a finder of their own) are
found by ``importlib.metadata``, when a name is found nowhere else.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from blockio.driver.options import split_protocol
from blockio.errors import BlockError, OptionError

if TYPE_CHECKING:
    from blockio.driver.base import BlockDriver

__all__ = [
    "GROUP",
    "driver_names",
    "drivers",
    "find_driver",
    "find_protocol",
    "loadable",
    "own_names",
    "register",
    "unregister",
]

GROUP: Final = "blockio.drivers"

_METADATA: Final = (".dist-info", ".egg-info")
_LIBRARY: Final = os.path.dirname(os.__file__)
"""Python's own modules: hundreds of names, and no distribution among them."""


class _Registry:
    """Names, where they come from, and what has been loaded.

    Invariant: a name means one class for the life of the process, unless it was registered and taken back.
    Registered classes win over this project's, and those over other plugins. ``_lock`` is never held while importing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registered: dict[str, type[BlockDriver]] = {}
        self._loaded: dict[str, type[BlockDriver]] = {}
        self._own: dict[str, str] | None = None
        self._all: dict[str, str] | None = None

    def register(self, cls: type[BlockDriver]) -> None:
        with self._lock:
            if cls.name in self._registered and self._registered[cls.name] is not cls:
                raise ValueError(f"a driver named '{cls.name}' is already registered")
            self._registered[cls.name] = cls

    def unregister(self, cls: type[BlockDriver]) -> None:
        with self._lock:
            if self._registered.get(cls.name) is cls:
                del self._registered[cls.name]

    def find(self, name: str) -> type[BlockDriver]:
        with self._lock:
            known = self._registered.get(name) or self._loaded.get(name)
        if known is not None:
            return known
        target = self.own().get(name) or self.everything().get(name) or _last_resort(name)
        if target is None:
            raise OptionError(f"Unknown driver '{name}'")
        cls = _load(name, target)
        with self._lock:
            return self._loaded.setdefault(name, cls)

    def names(self) -> list[str]:
        with self._lock:
            registered = set(self._registered)
        return sorted(registered | set(self.everything()))

    def quick_names(self) -> list[str]:
        with self._lock:
            registered = set(self._registered)
        return sorted(registered | set(self.own()))

    def own_names(self) -> frozenset[str]:
        with self._lock:
            return frozenset(self.own()).difference(self._registered)

    def own(self) -> dict[str, str]:
        if self._own is None:
            self._own = _read_entry_points("blockio-", first=True)
        return self._own

    def everything(self) -> dict[str, str]:
        if self._all is None:
            self._all = {**_read_entry_points(""), **self.own()}
        return self._all


def _read_entry_points(prefix: str, *, first: bool = False) -> dict[str, str]:
    """The drivers of the distributions on the path whose folders begin with *prefix*; the first of a name counts.

    *first*: only of those in the first folder of the path that has any.
    """
    found: dict[str, str] = {}
    for directory in sys.path:
        if directory == _LIBRARY or (found and first):
            continue
        try:
            with os.scandir(directory or ".") as entries:
                folders = sorted(e.path for e in entries if e.name.startswith(prefix) and e.name.endswith(_METADATA))
        except OSError:
            continue
        for folder in folders:
            try:
                with open(os.path.join(folder, "entry_points.txt"), encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            if GROUP in text:
                found = {**_parse_group(text), **found}
    return found


def _last_resort(name: str) -> str | None:
    from importlib.metadata import entry_points  # costs as much as asyncio; see above

    return next((entry.value for entry in entry_points(group=GROUP, name=name)), None)


def _parse_group(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    inside = False
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, target = line.partition("=")
            found[name.strip()] = target.strip()
    return found


def _load(name: str, target: str) -> type[BlockDriver]:
    from importlib import import_module

    from blockio.driver.base import BlockDriver  # the registry alone needs no driver API

    module, _, attribute = target.partition("[")[0].strip().partition(":")
    try:
        found: object = import_module(module.strip())
        for part in attribute.strip().split("."):
            found = getattr(found, part)
    except Exception as error:
        # A plugin may fail in any way at import; all of them mean the same to the caller.
        raise OptionError(f"Driver '{name}' cannot be loaded from '{target}': {error}") from error
    if not (isinstance(found, type) and issubclass(found, BlockDriver)):
        raise OptionError(f"Driver '{name}' cannot be loaded from '{target}': it is not a BlockDriver")
    return found


_registry: Final = _Registry()


def register(cls: type[BlockDriver]) -> type[BlockDriver]:
    """Make *cls* a driver of this process under ``cls.name``; usable as a decorator.

    It hides a plugin of the same name. ValueError where another registered class has the name.
    """
    _registry.register(cls)
    return cls


def unregister(cls: type[BlockDriver]) -> None:
    """Take back ``register``; nodes that use *cls* go on using it."""
    _registry.unregister(cls)


def find_driver(name: str) -> type[BlockDriver]:
    """The driver class that users call *name*. OptionError: nobody has it, or its plugin is broken."""
    return _registry.find(name)


def driver_names() -> list[str]:
    """The names of all drivers, sorted, without loading any."""
    return _registry.names()


def own_names() -> frozenset[str]:
    """The names of this project's own drivers that nobody has registered another class for."""
    return _registry.own_names()


def drivers() -> Mapping[str, type[BlockDriver]]:
    """Every driver that can be loaded, by name; broken plugins are left out."""
    return dict(loadable(driver_names()))


def loadable(names: Iterable[str]) -> Iterator[tuple[str, type[BlockDriver]]]:
    """Those of *names* that can be loaded, with their classes, each loaded when its turn comes."""
    for name in names:
        try:
            yield name, find_driver(name)
        except BlockError:
            continue


def find_protocol(filename: str, *, allow_prefix: bool = True, is_device: bool = False) -> type[BlockDriver]:
    """The protocol driver for *filename*: by its prefix, else ``host_device`` for a device, else ``file``.

    *is_device*: the caller knows that the path is a block or character device. OptionError ``Unknown protocol 'x'``.
    """
    prefix = split_protocol(filename) if allow_prefix else None
    if prefix is None:
        return find_driver("host_device" if is_device else "file")
    for names in (_registry.quick_names, _registry.names):
        for _, cls in loadable([name for name in names() if name == prefix]):
            if prefix in _prefixes(cls):
                return cls
        for _, cls in loadable(names()):
            if prefix in _prefixes(cls):
                return cls
    raise OptionError(f"Unknown protocol '{prefix}'")


def _prefixes(cls: type[BlockDriver]) -> tuple[str, ...]:
    # ``file:x`` is a plain path said explicitly, whether or not the driver lists the prefix.
    return (*cls.protocols, "file") if cls.name == "file" else cls.protocols
