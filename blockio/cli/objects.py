"""``--object``: definitions of objects, for both tools. What they define lives until the tool ends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from blockio.errors import OptionError
from blockio.img.options import split_options
from blockio.objects import create_object, delete_object

if TYPE_CHECKING:
    from blockio.cli.output import Output

__all__ = ["define_object"]

_TYPES: Final = (
    "authz-list",
    "authz-list-file",
    "authz-simple",
    "main-loop",
    "pr-manager-helper",
    "secret",
    "secret_keyring",
    "thread-context",
    "throttle-group",
    "tls-cipher-suites",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
)
_MADE: Final = frozenset(("secret", "throttle-group"))
"""Those there are here; the others are read, and there is nothing yet that would need them."""


def define_object(text: str, output: Output) -> bool:
    """Make the object that *text* defines. False: it asked for ``help``, which was given. OptionError: it is wrong."""
    json = text.startswith("{")
    values = _from_json(text) if json else _from_words(text)
    kind = values.get("qom-type")
    if kind in ("help", "?"):
        output.out("List of user creatable objects:\n" + "".join(f"  {name}\n" for name in _TYPES))
        return False
    if kind in _MADE:
        made = create_object(values, text=not json)
        output.cleanups.append(partial(delete_object, made.id))
        return True
    if kind is None:
        raise OptionError("Parameter 'qom-type' is missing")
    if kind not in _TYPES:
        raise OptionError(f"Parameter 'qom-type' does not accept value '{kind}'")
    if "id" not in values:
        raise OptionError("Parameter 'id' is missing")
    return True


def _from_json(text: str) -> dict[str, object]:
    from blockio.driver.qemu_json import JsonError, read_json  # few command lines have JSON in them

    try:
        value = read_json(text)
    except JsonError as error:
        raise OptionError(str(error)) from None
    assert isinstance(value, dict)  # it begins with a brace
    return value


def _from_words(text: str) -> dict[str, object]:
    pairs = split_options(text)
    first = text.split(",", 1)[0]
    if pairs and "=" not in first:
        pairs[0] = ("qom-type", first)
    return dict(pairs)
