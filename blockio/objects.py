"""Objects that stand beside the nodes and are found by their id (QEMU's user creatable objects).

A program that knows a kind makes its objects directly (``ThrottleGroup("gold", …)``). This is the way for definitions
that come from outside: ``--object`` of the tools, a management program's ``object-add``. A kind is a class with
``kind``, a ``schema`` of its properties and a ``create``; ``_KINDS`` says where it is, and it is loaded when asked for.
"""

from __future__ import annotations

import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar, Final, TypeAlias

from blockio.errors import OptionError

__all__ = ["Schema", "UserObject", "create_object", "delete_object", "find_object", "object_ids"]

Schema: TypeAlias = "Mapping[str, type[int] | type[str] | type[bool] | Schema]"
"""The properties of a kind, by name: plain ones and groups of them."""

_KINDS: Final = {
    "secret": "blockio.driver.secret:Secret",
    "throttle-group": "blockio.throttle.user_object:ThrottleGroupObject",
}
_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_INT64: Final = range(-(2**63), 2**63)
_EXPECTED: Final[dict[Any, str]] = {int: "integer", str: "string", bool: "boolean"}

_objects: Final[dict[str, UserObject]] = {}
_lock: Final = threading.Lock()


class UserObject(ABC):
    """One object. Made by ``create_object``, found by ``find_object`` until ``delete_object``."""

    kind: ClassVar[str]
    """``qom-type``."""
    schema: ClassVar[Schema]
    id: str

    @classmethod
    @abstractmethod
    def create(cls, id: str, properties: Mapping[str, Any]) -> UserObject:
        """Make one with *properties* that fit the schema. Raises OptionError for what they cannot be together."""

    @abstractmethod
    def delete(self) -> None:
        """Give up what the object holds. RuntimeError while somebody uses it."""


def create_object(definition: Mapping[str, Any], *, text: bool = False) -> UserObject:
    """The object that *definition* describes: ``qom-type``, ``id`` and properties, nested or with dots in their names.

    With *text* all values are words, as on a command line; else they have their types, as in JSON. OptionError with
    QEMU's message for a wrong definition and for an id in use.
    """
    values = _nested(definition)
    kind, id = _required(values, "qom-type"), _required(values, "id")
    where = _KINDS.get(kind)
    if where is None:
        raise OptionError(f"Parameter 'qom-type' does not accept value '{kind}'")
    module, _, name = where.partition(":")
    cls: type[UserObject] = getattr(import_module(module), name)
    properties = _checked(values, cls.schema, text, "")
    if not _ID.fullmatch(id):
        raise OptionError(
            "Parameter 'id' expects an identifier\n"
            "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
        )
    if id in _objects:
        raise OptionError(f"attempt to add duplicate property '{id}' to object (type 'container')")
    made = cls.create(id, properties)
    with _lock:
        _objects[id] = made
    return made


def find_object(id: str) -> UserObject | None:
    """The object of that id, or None."""
    with _lock:
        return _objects.get(id)


def object_ids() -> tuple[str, ...]:
    """The ids of all objects, the oldest first."""
    with _lock:
        return tuple(_objects)


def delete_object(id: str) -> None:
    """Delete the object of that id. OptionError where there is none, or where it is in use: then it stays."""
    found = find_object(id)
    if found is None:
        raise OptionError(f"object '{id}' not found")
    try:
        found.delete()
    except RuntimeError as error:
        raise OptionError(f"object '{id}' is in use, can not be deleted") from error
    with _lock:
        _objects.pop(id, None)


def _required(values: dict[str, Any], name: str) -> str:
    value = values.pop(name, None)
    if value is None:
        raise OptionError(f"Parameter '{name}' is missing")
    if not isinstance(value, str):
        raise OptionError(f"Invalid parameter type for '{name}', expected: string")
    return value


def _nested(definition: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in definition.items():
        *groups, last = name.split(".")
        here = values
        for group in groups:
            inner = here.setdefault(group, {})
            if not isinstance(inner, dict):
                raise OptionError(f"Parameters '{group}.*' used inconsistently")
            here = inner
        here[last] = dict(value) if isinstance(value, Mapping) else value
    return values


def _checked(values: Mapping[str, Any], schema: Schema, text: bool, prefix: str) -> dict[str, Any]:
    unknown = next((path for name, value in values.items() if name not in schema for path in _paths(name, value)), None)
    checked = {name: _value(schema[name], values[name], text, prefix + name) for name in values if name in schema}
    if unknown is not None:
        raise OptionError(f"Parameter '{prefix}{unknown}' is unexpected")
    return checked


def _paths(name: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for inner, below in value.items():
            yield from (f"{name}.{path}" for path in _paths(inner, below))
    else:
        yield name


def _value(wanted: Any, value: Any, text: bool, name: str) -> Any:
    if isinstance(wanted, Mapping):
        if not isinstance(value, Mapping):
            raise OptionError(f"Invalid parameter type for '{name}', expected: object")
        return _checked(value, wanted, text, name + ".")
    if text and isinstance(value, str):
        return _from_text(wanted, value, name)
    if type(value) is not wanted or (wanted is int and value not in _INT64):
        raise OptionError(f"Invalid parameter type for '{name}', expected: {_EXPECTED[wanted]}")
    return value


def _from_text(wanted: Any, value: str, name: str) -> Any:
    if wanted is int:
        try:
            number = int(value, 0)
        except ValueError:
            number = _INT64.stop
        if number not in _INT64:
            raise OptionError(f"Parameter '{name}' expects integer")
        return number
    if wanted is bool:
        if value not in ("on", "off", "yes", "no", "true", "false", "y", "n"):
            raise OptionError(f"Parameter '{name}' expects 'on' or 'off'")
        return value in ("on", "yes", "true", "y")
    return value
