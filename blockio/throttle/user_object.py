"""``throttle-group`` as an object that is defined by text: ``--object throttle-group,id=gold,x-bps-total=1000``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from blockio.errors import OptionError
from blockio.objects import Schema, UserObject
from blockio.throttle.buckets import LENGTH_MAX, ThrottleConfig
from blockio.throttle.groups import ThrottleGroup

__all__ = ["ThrottleGroupObject"]

_LIMITS: Final[Schema] = dict.fromkeys(ThrottleConfig().as_dict(), int)
_LENGTH: Final = "-max-length"


class ThrottleGroupObject(UserObject):
    """Holds the group, which members find by its id. ``limits.X`` and ``x-X`` set the limit X; the former wins."""

    kind = "throttle-group"
    schema: ClassVar[Schema] = {**{f"x-{name}": int for name in _LIMITS}, "limits": _LIMITS}

    def __init__(self, group: ThrottleGroup, id: str) -> None:
        self.group = group
        self.id = id

    @classmethod
    def create(cls, id: str, properties: Mapping[str, Any]) -> ThrottleGroupObject:
        limits: dict[str, int] = {}
        for name, value in properties.items():
            if name == "limits":
                continue
            if value < 0:
                raise OptionError("Property values cannot be negative")
            if name.endswith(_LENGTH) and value > LENGTH_MAX:
                # The missing space is QEMU's.
                raise OptionError(f"{name} value must be in therange [0, {LENGTH_MAX}]")
            limits[name.removeprefix("x-")] = value
        limits.update(properties.get("limits", {}))
        config = ThrottleConfig.of(limits)
        try:
            return cls(ThrottleGroup(id, config), id)
        except ValueError as error:
            raise OptionError(f"attempt to add duplicate property '{id}' to object (type 'container')") from error

    def delete(self) -> None:
        self.group.delete()
