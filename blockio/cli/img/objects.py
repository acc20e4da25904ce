"""``--object``: what it defines is read and checked; no format here needs a secret yet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from blockio.cli.img.tool import Failure, fail
from blockio.img.options import split_options

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
_SECRET: Final = frozenset(("qom-type", "id", "data", "file", "format", "keyid", "iv", "loaded"))


def define_object(text: str, output: Output) -> None:
    """Check the definition *text*; ends the command where it is wrong, and after ``help``."""
    values = _values(text, output)
    kind = values.get("qom-type")
    if kind is None:
        fail(output, "Parameter 'qom-type' is missing")
    if kind in ("help", "?"):
        output.out("List of user creatable objects:\n" + "".join(f"  {name}\n" for name in _TYPES))
        raise Failure(0)
    if kind not in _TYPES:
        fail(output, f"Parameter 'qom-type' does not accept value '{kind}'")
    if "id" not in values:
        fail(output, "Parameter 'id' is missing")
    if kind == "secret":
        _check_secret(values, output)


def _values(text: str, output: Output) -> dict[str, str]:
    if text.startswith("{"):
        import msgspec  # noqa: PLC0415  # few command lines have JSON in them

        try:
            return {str(key): str(value) for key, value in msgspec.json.decode(text, type=dict[str, object]).items()}
        except msgspec.DecodeError:
            fail(output, "JSON parse error, invalid object definition")
    pairs = split_options(text)
    first = text.split(",", 1)[0]
    if pairs and "=" not in first:
        pairs[0] = ("qom-type", first)
    return dict(pairs)


def _check_secret(values: dict[str, str], output: Output) -> None:
    for name in values:
        if name not in _SECRET:
            fail(output, f"Parameter '{name}' is unexpected")
    if "data" in values and "file" in values:
        fail(output, "'file' and 'data' are mutually exclusive")
    if "data" not in values and "file" not in values:
        fail(output, "Either 'file' or 'data' must be provided")
    path = values.get("file")
    if path is not None:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            fail(output, f"Unable to read {path}: Failed to open file “{path}”: {reason}")
