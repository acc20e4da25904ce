"""What may be said about a new image: the create options of formats and protocols, and how ``-o`` writes them.

The order of a table is the order in which the tools print options; a protocol's follow its format's, and of two of
the same name the first counts. Formats that are not in the table are described by their ``CreateOptions``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.options import parse_bool, parse_size
from blockio.errors import OptionError, UnsupportedFeature

if TYPE_CHECKING:
    from blockio.driver.base import BlockDriver

__all__ = [
    "CreateOption",
    "amend_options",
    "help_lines",
    "is_option_list",
    "known_options",
    "merged",
    "split_options",
    "typed",
]

_SIZE_BITS: Final = 64


class CreateOption(msgspec.Struct, frozen=True):
    """One option. ``kind`` is ``str``, ``bool``, ``size`` (bytes, with suffixes) or ``num``."""

    name: str
    kind: str
    help: str = ""
    default: str | None = None
    """As users would write it; None: the option is absent unless given."""


_SIZE: Final = CreateOption("size", "size", "Virtual disk size")

_QCOW2: Final = (
    CreateOption(
        "encryption", "bool", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"
    ),
    CreateOption("encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"),
    CreateOption("encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase"),
    CreateOption("encrypt.cipher-alg", "str", "Name of encryption cipher algorithm"),
    CreateOption("encrypt.cipher-mode", "str", "Name of encryption cipher mode"),
    CreateOption("encrypt.ivgen-alg", "str", "Name of IV generator algorithm"),
    CreateOption("encrypt.ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    CreateOption("encrypt.hash-alg", "str", "Name of encryption hash algorithm"),
    CreateOption("encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    CreateOption("cluster_size", "size", "qcow2 cluster size", "65536"),
    CreateOption("extended_l2", "bool", "Extended L2 tables", "off"),
    CreateOption("preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    CreateOption("compression_type", "str", "Compression method used for image cluster compression", "zlib"),
    _SIZE,
    CreateOption("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    CreateOption("backing_file", "str", "File name of a base image"),
    CreateOption("backing_fmt", "str", "Image format of the base image"),
    CreateOption("data_file", "str", "File name of an external data file"),
    CreateOption("data_file_raw", "bool", "The external data file must stay valid as a raw image"),
    CreateOption("lazy_refcounts", "bool", "Postpone refcount updates", "off"),
    CreateOption("refcount_bits", "num", "Width of a reference count entry in bits", "16"),
)

_FILE: Final = (
    _SIZE,
    CreateOption("nocow", "bool", "Turn off copy-on-write (valid only on btrfs)"),
    CreateOption("preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"),
    CreateOption("extent_size_hint", "size", "Extent size hint for the image file, 0 to disable"),
)

_LUKS: Final = (
    _SIZE,
    CreateOption("key-secret", "str", "ID of the secret that provides the keyslot passphrase"),
    CreateOption("cipher-alg", "str", "Name of encryption cipher algorithm"),
    CreateOption("cipher-mode", "str", "Name of encryption cipher mode"),
    CreateOption("ivgen-alg", "str", "Name of IV generator algorithm"),
    CreateOption("ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    CreateOption("hash-alg", "str", "Name of encryption hash algorithm"),
    CreateOption("iter-time", "num", "Time to spend in PBKDF in milliseconds"),
)

_HOST_DEVICE: Final = (_SIZE, CreateOption("preallocation", "str", "Preallocation mode (allowed values: off)"))

_TABLE: Final = {"luks": _LUKS, "qcow2": _QCOW2, "raw": (_SIZE,), "file": _FILE, "host_device": _HOST_DEVICE}


_ENCRYPT_CHANGES: Final = (
    CreateOption("state", "str", "Select new state of affected keyslots (active/inactive)"),
    CreateOption("keyslot", "num", "Select a single keyslot to modify explicitly"),
    CreateOption("old-secret", "str", "Select all keyslots that match this password"),
    CreateOption("new-secret", "str", "New secret to set in the matching keyslots. Empty string to erase"),
    CreateOption("iter-time", "num", "Time to spend in PBKDF in milliseconds"),
)

_QCOW2_CHANGES: Final = frozenset(
    ("backing_file", "backing_fmt", "compat", "data_file", "data_file_raw", "lazy_refcounts", "refcount_bits", "size")
)

_AMEND_TABLE: Final = {
    "luks": _ENCRYPT_CHANGES,
    "qcow2": (
        *(CreateOption(f"encrypt.{option.name}", option.kind, option.help) for option in _ENCRYPT_CHANGES),
        *(option for option in _QCOW2 if option.name in _QCOW2_CHANGES),
    ),
}


def amend_options(cls: type[BlockDriver]) -> tuple[CreateOption, ...]:
    """What can be changed of images of that driver. UnsupportedFeature where nothing can."""
    if cls.AmendOptions is None:
        raise UnsupportedFeature(f"Format driver '{cls.name}' does not support option amendment")
    return _AMEND_TABLE.get(cls.name) or tuple(_described(cls.AmendOptions))


def known_options(cls: type[BlockDriver]) -> tuple[CreateOption, ...] | None:
    """What images of that driver can be created with; None where it cannot create any."""
    known = _TABLE.get(cls.name)
    if known is not None:
        return known
    if cls.CreateOptions is None:
        return None
    return tuple(_described(cls.CreateOptions))


def _described(struct: type[msgspec.Struct]) -> Iterator[CreateOption]:
    for field in msgspec.structs.fields(struct):
        text = str(field.type)
        kind = "bool" if "bool" in text else "size" if "blockio-size" in text else "num" if "int" in text else "str"
        default = None
        if field.default is not msgspec.NODEFAULT and field.default is not None:
            default = _written(field.default)
        yield CreateOption(field.encode_name, kind, "", default)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def merged(*tables: Iterable[CreateOption]) -> dict[str, CreateOption]:
    """All options by name; of two of the same name the first counts."""
    result: dict[str, CreateOption] = {}
    for table in tables:
        for option in table:
            result.setdefault(option.name, option)
    return result


def help_lines(options: Mapping[str, CreateOption]) -> list[str]:
    """One line for each option, sorted by name."""
    kinds = {"str": "<str>", "bool": "<bool (on/off)>", "size": "<size>", "num": "<num>"}
    lines = []
    for name in sorted(options):
        option = options[name]
        left = f"  {name}={kinds[option.kind]}"
        lines.append(f"{left:<24} - {option.help}" if option.help else left)
    return lines


def is_option_list(text: str) -> bool:
    """Whether *text* may be joined with others by commas: not empty, and no comma is left open at either end."""
    if not text or text.startswith(","):
        return False
    trailing = len(text) - len(text.rstrip(","))
    return trailing % 2 == 0


def split_options(text: str) -> list[tuple[str, str]]:
    """The names and values of an ``-o`` list, in order. A name alone is a switch: ``x`` is on, ``nox`` is off.

    In a value a comma is written twice.
    """
    result: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        stop = at
        while stop < len(text) and text[stop] not in "=,":
            stop += 1
        name = text[at:stop]
        if stop == len(text) or text[stop] == ",":
            result.append((name[2:], "off") if name.startswith("no") else (name, "on"))
            at = stop + 1
            continue
        value: list[str] = []
        at = stop + 1
        while at < len(text):
            if text[at] == ",":
                if text[at + 1 : at + 2] != ",":
                    break
                at += 1
            value.append(text[at])
            at += 1
        result.append((name, "".join(value)))
        at += 1
    return result


def typed(option: CreateOption, text: str) -> Any:
    """*text* as the option's kind wants it. OptionError in QEMU's words."""
    if option.kind == "bool":
        return parse_bool(text, option.name)
    if option.kind == "size":
        return parse_size(text, option.name)
    if option.kind == "num":
        return _number(option.name, text)
    return text


def _number(name: str, text: str) -> int:
    try:
        # As the C library reads it: 0x is hexadecimal, a leading 0 octal.
        digits = text.strip()
        sign = -1 if digits.startswith("-") else 1
        body = digits.lstrip("+-")
        octal = len(body) > 1 and body[0] == "0" and body.isdigit()
        value = sign * int(body, 8 if octal else 0)
    except ValueError:
        raise OptionError(f"Parameter '{name}' expects a number") from None
    if abs(value) >= 1 << _SIZE_BITS:
        raise OptionError(f"Value '{text}' is too large for parameter '{name}'")
    return value
