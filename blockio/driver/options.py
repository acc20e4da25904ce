"""How options are written, and how they become a driver's typed ``Options``.

There is one form inside: a nested ``dict`` whose leaves are ``str``, ``int``, ``float``, ``bool`` or ``None``. People
and images write it in five ways:

* keyword arguments (``lazy_refcounts=True``): underscores become hyphens;
* nested mappings (``{"driver": "qcow2", "file": {"filename": "x"}}``), where dotted keys may be mixed in;
* dotted strings (``driver=qcow2,file.filename=x``), QEMU's ``--image-opts``; a comma in a value is doubled;
* ``json:{…}`` names, which may stand wherever a file name may;
* plain file names, with or without a protocol prefix (``nbd:…``, ``file:…``).

Values that came from text are text until a driver's ``Options`` (a ``msgspec.Struct``) says what they are:
``convert_options`` then reads ``on``/``off`` and sizes such as ``1.5G``. Nothing here touches a file.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec

from blockio.errors import OptionError

__all__ = [
    "MAX_SPEC_BYTES",
    "MAX_SPEC_DEPTH",
    "OptionDict",
    "Size",
    "convert_options",
    "flatten",
    "nest",
    "parse_bool",
    "parse_image_opts",
    "parse_json_name",
    "parse_size",
    "parse_spec",
    "quote_value",
    "refuse_both_ways",
    "required_options",
    "split_protocol",
]

MAX_SPEC_BYTES: Final = 1 << 20
"""The longest text that is parsed as options; a longer one is refused before anything else looks at it."""

MAX_SPEC_DEPTH: Final = 256
"""How deep options may nest; a chain of explicit backing files costs one level each."""

OptionDict: TypeAlias = dict[str, Any]

SIZE_MARK: Final = "blockio-size"
Size = Annotated[int, msgspec.Meta(ge=0, extra={SIZE_MARK: True})]
"""The type of an option that is a number of bytes: text may have a suffix (``64k``, ``1.5G``)."""

_SUFFIXES: Final = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_TRUE: Final = frozenset(("on", "yes", "true", "y"))
_FALSE: Final = frozenset(("off", "no", "false", "n"))
_SIZE_HINT: Final = (
    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
)


# -- reading text


def parse_spec(spec: str | Mapping[str, Any] | None = None, /, **options: Any) -> OptionDict:
    """The nested form of *spec* (a file name, a ``json:`` name or a mapping) joined with keyword *options*.

    A plain file name becomes ``{"filename": …}``. Keywords win over *spec*. OptionError for text that is not JSON,
    too long or too deep, and for a child that is given both as a reference and by options; TypeError for
    values that no option can have.
    """
    if spec is None:
        base: Mapping[str, Any] = {}
    elif isinstance(spec, str):
        base = parse_json_name(spec) if spec.startswith("json:") else {"filename": spec}
    else:
        base = spec
    flat = flatten(base)
    for key, value in options.items():
        name = key.replace("_", "-")
        given = flatten({name: value})
        for old in [k for k in flat if k == name or k.startswith(name + ".")]:
            if not isinstance(value, Mapping) or old in given or old == name:
                del flat[old]
        flat.update(given)
    return nest(flat)


def parse_json_name(name: str) -> OptionDict:
    """The options that a ``json:{…}`` name holds. OptionError (EINVAL) where it holds none."""
    text = name.removeprefix("json:")
    if len(text) > MAX_SPEC_BYTES:
        raise OptionError(f"Could not parse the JSON options: more than {MAX_SPEC_BYTES} bytes")
    from blockio.driver.qemu_json import JsonError, read_json  # few options are written so

    try:
        value = read_json(text)
    except JsonError as error:
        raise OptionError(f"Could not parse the JSON options: {error}") from error
    if not isinstance(value, dict):
        raise OptionError("Invalid JSON object given")
    return nest(flatten(value))


def parse_image_opts(text: str, *, implied: str = "file") -> OptionDict:
    """The options that a dotted string stands for, as QEMU's ``--image-opts`` reads it.

    ``a,,b`` in a value is ``a,b``. A first part without ``=`` is the value of *implied*; a later one is a switch
    (``read-only`` is on, ``noread-only`` off). Of repeated keys the last counts.
    """
    if len(text) > MAX_SPEC_BYTES:
        raise OptionError(f"Options are longer than {MAX_SPEC_BYTES} bytes")
    flat: OptionDict = {}
    for index, part in enumerate(_split_commas(text)):
        key, equals, value = part.partition("=")
        if equals:
            if not key:
                raise OptionError("Invalid parameter ''")
        elif index == 0:
            key, value = implied, part
        elif key.startswith("no") and len(key) > 2:
            key, value = key[2:], "off"
        else:
            value = "on"
        flat[key] = value
    return nest(flat)


def _split_commas(text: str) -> Iterator[str]:
    if not text:
        return
    at = 0
    part: list[str] = []
    while True:
        comma = text.find(",", at)
        if comma < 0:
            part.append(text[at:])
            yield "".join(part)
            return
        part.append(text[at:comma])
        if text.startswith(",", comma + 1):
            part.append(",")
            at = comma + 2
            continue
        yield "".join(part)
        part = []
        at = comma + 1
        if at == len(text):
            return


def quote_value(value: str) -> str:
    """*value* as it is written in a dotted string: commas doubled."""
    return value.replace(",", ",,")


def split_protocol(filename: str) -> str | None:
    """The protocol prefix of *filename* (``nbd`` of ``nbd:host:1``), or None for a plain path.

    A colon counts only before the first slash, so ``./a:b`` and ``/dev/disk/by-path/pci-0:1`` are plain paths.
    """
    for index, char in enumerate(filename):
        if char == ":":
            return filename[:index]
        if char == "/":
            return None
    return None


# -- flat and nested


def flatten(options: Mapping[str, Any]) -> OptionDict:
    """Dotted keys and leaf values, in order. Lists become ``key.0``, ``key.1`` …; empty ones stay as they are."""
    flat: OptionDict = {}
    # An explicit stack: hostile input may nest deeper than Python likes to recurse.
    stack: list[tuple[str, int, Any]] = [("", 0, options)]
    while stack:
        prefix, depth, value = stack.pop()
        if depth > MAX_SPEC_DEPTH:
            raise OptionError(f"Options nest deeper than {MAX_SPEC_DEPTH} levels")
        items: list[tuple[str, Any]]
        if isinstance(value, Mapping) and (value or not prefix):
            items = []
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"option names are strings, not {type(key).__name__}")
                items.append((key, item))
        elif isinstance(value, (list, tuple)) and value:
            items = [(str(index), item) for index, item in enumerate(value)]
        else:
            flat[prefix] = _leaf(prefix, value)
            continue
        dot = prefix + "." if prefix else ""
        for key, item in reversed(items):
            stack.append((dot + key if key or isinstance(item, Mapping) else prefix, depth + 1, item))
    return flat


def _leaf(name: str, value: Any) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (Mapping, list, tuple)):
        return {} if isinstance(value, Mapping) else []
    if hasattr(value, "__fspath__"):
        path = value.__fspath__()
        if isinstance(path, str):
            return path
    raise TypeError(f"option '{name}' cannot be a {type(value).__name__}")


def nest(flat: Mapping[str, Any]) -> OptionDict:
    """The inverse of ``flatten``: dotted keys become nested dicts, and ``0``, ``1`` … without gaps become lists.

    The value of an option that has parts as well (``overlap-check=all,overlap-check.main-header=off``) is named ``""``
    among them. What a child is made of may not be written so; see ``refuse_both_ways``.
    """
    root: OptionDict = {}
    branches: dict[str, OptionDict] = {"": root}
    for dotted, value in flat.items():
        if dotted.count(".") >= MAX_SPEC_DEPTH:
            raise OptionError(f"Options nest deeper than {MAX_SPEC_DEPTH} levels")
        parts = dotted.split(".")
        here = root
        path = ""
        for part in parts[:-1]:
            path = f"{path}.{part}" if path else part
            branch = branches.get(path)
            if branch is None:
                branch = branches[path] = {"": here[part]} if part in here else {}
                here[part] = branch
            here = branch
        both = branches.get(dotted)
        if both is None:
            here[parts[-1]] = value
        else:
            both[""] = value
    # Deepest first, so that a list inside a list is whole before the outer one is looked at.
    for path in sorted(branches, key=lambda p: p.count("."), reverse=True):
        if path:
            above, _, last = path.rpartition(".")
            branches[above][last] = _as_list(branches[path])
    return root


def refuse_both_ways(options: Mapping[str, Any]) -> None:
    """Raise OptionError where a child is given by *options* and as the name of a node as well."""
    if "" in options and not isinstance(options[""], Mapping):
        raise OptionError("Cannot reference an existing block device with additional options or a new filename")


def _as_list(branch: OptionDict) -> OptionDict | list[Any]:
    if branch and all(key == str(index) for index, key in enumerate(branch)):
        return list(branch.values())
    return branch


# -- scalars


def parse_bool(value: str, name: str = "value") -> bool:
    """``on``, ``yes``, ``true``, ``y`` or their opposites; OptionError for anything else."""
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise OptionError(f"Parameter '{name}' expects 'on' or 'off'")


def parse_size(text: str, name: str = "size") -> int:
    """Bytes from ``4096``, ``64k``, ``1.5G`` or ``0x1000``.

    The suffixes b k M G T P E, in either case, mean powers of 1024. A fraction needs a suffix; it is rounded to whole
    bytes. OptionError in QEMU's words for anything else and for 2^64 and more.
    """
    number = text.strip()
    try:
        value = _parse_hex(number) if number[:2].lower() == "0x" else _parse_decimal(number)
    except ValueError:
        raise not_a_size(name) from None
    if value >= 1 << 64:
        raise OptionError(f"Value '{text}' is out of range for parameter '{name}'", errno.ERANGE)
    return value


def not_a_size(name: str) -> OptionError:
    """What QEMU says when option *name* should be a number of bytes."""
    return OptionError(f"Parameter '{name}' expects a non-negative number below 2^64", hint=_SIZE_HINT)


def _parse_hex(number: str) -> int:
    # ``b`` and ``e`` are digits here, so only the other suffixes can follow.
    shift = _SUFFIXES.get(number[-1].lower()) if number[-1].lower() not in "be" else None
    digits = number[2:] if shift is None else number[2:-1]
    if not digits.isalnum() or not digits.isascii() or len(digits) > 64:
        raise ValueError(number)
    return int(digits, 16) << (shift or 0)


def _parse_decimal(number: str) -> int:
    shift = _SUFFIXES.get(number[-1:].lower())
    body = (number if shift is None else number[:-1]).removeprefix("+")
    whole, _, fraction = body.partition(".")
    if not whole or not (whole + fraction).isdecimal() or not body.isascii() or len(body) > 64:
        raise ValueError(number)
    if not shift and fraction.strip("0"):
        raise ValueError(number)
    # Only the fraction is a float: it has too few digits for a whole size, and QEMU's are just those.
    return (int(whole) << (shift or 0)) + int(float(f"0.{fraction}") * (1 << (shift or 0)) + 0.5)


# -- typed options


def convert_options(
    cls: type[msgspec.Struct], options: Mapping[str, Any], driver: str, *, creating: bool = False
) -> Any:
    """An instance of *cls* from nested *options* whose leaves may be text.

    Fields are matched by their encoded names (``rename="kebab"`` gives QEMU's). OptionError names the option that is
    wrong in QEMU's words, which differ between opening and *creating* an image.
    """
    if not options and not required_options(cls):
        return cls()  # what is to be converted would have to be worked out first, and here is nothing
    words = _Words(driver, creating)
    try:
        return msgspec.convert(_coerce_struct(cls, options, words, ""), cls, strict=False)
    except msgspec.ValidationError as error:
        raise _translated(error, options, words) from error


def required_options(cls: type[msgspec.Struct]) -> list[str]:
    """The encoded names of the fields of *cls* that have no default."""
    names, defaults = cls.__struct_encode_fields__, cls.__struct_defaults__
    first = len(names) - len(defaults)
    return [
        *names[:first],
        *(name for name, value in zip(names[first:], defaults, strict=True) if value is msgspec.NODEFAULT),
    ]


class _Words(msgspec.Struct, frozen=True):
    """What QEMU says of wrong options of *driver*, opening or *creating*."""

    driver: str
    creating: bool

    def unknown(self, name: str) -> OptionError:
        if self.creating:
            return OptionError(f"Invalid parameter '{name}'")
        return OptionError(f"Block format '{self.driver}' does not support the option '{name}'")

    def no_such_value(self, name: str, value: object) -> OptionError:
        if self.creating:
            return OptionError(f"Parameter '{name}' does not accept value '{value}'")
        return OptionError(f"invalid parameter value: {value}")


def _coerce_struct(cls: type[msgspec.Struct], options: Mapping[str, Any], words: _Words, prefix: str) -> OptionDict:
    hints = _hints(cls)
    result: OptionDict = {}
    for name, value in options.items():
        hint = hints.get(name)
        if hint is None:
            raise words.unknown(prefix + next(iter(flatten({name: value})), name))
        result[name] = _coerce(hint, value, words, prefix + name)
    return result


_hint_cache: dict[type[msgspec.Struct], dict[str, Any]] = {}


def _hints(cls: type[msgspec.Struct]) -> dict[str, Any]:
    hints = _hint_cache.get(cls)
    if hints is None:
        by_field = get_type_hints(cls, include_extras=True)
        hints = {
            encoded: by_field[field]
            for field, encoded in zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True)
        }
        _hint_cache[cls] = hints
    return hints


def _alternatives(hint: Any) -> Iterator[tuple[Any, bool]]:
    """The plain types that *hint* allows, each with whether it is marked as a size."""
    origin = get_origin(hint)
    if origin is Annotated:
        marked = any(isinstance(m, msgspec.Meta) and (m.extra or {}).get(SIZE_MARK) for m in hint.__metadata__)
        for plain, size in _alternatives(hint.__origin__):
            yield plain, size or marked
    elif origin is Union or origin is UnionType:
        for part in get_args(hint):
            yield from _alternatives(part)
    else:
        yield hint, False


def _coerce(hint: Any, value: Any, words: _Words, name: str) -> Any:
    kinds = list(_alternatives(hint))
    types = [plain for plain, _ in kinds]
    if isinstance(value, Mapping):
        for plain in types:
            if isinstance(plain, type) and issubclass(plain, msgspec.Struct):
                return _coerce_struct(plain, value, words, name + ".")
        if not any(plain is Any or get_origin(plain) in (dict, Mapping) or plain is dict for plain in types):
            raise words.unknown(f"{name}.{next(iter(flatten(value)), '')}")
        return value
    if not isinstance(value, str) or str in types or Any in types:
        return value
    if bool in types:
        return parse_bool(value, name)
    if any(plain is int and size for plain, size in kinds):
        return parse_size(value, name)
    if int in types:
        return _parse_number(value, name)
    return value


def _parse_number(text: str, name: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        pass
    try:
        # A plain ``int`` field also takes a suffix: refusing ``64k`` where no harm is possible helps nobody.
        return parse_size(text, name)
    except OptionError:
        raise OptionError(f"Parameter '{name}' expects a number") from None


def _translated(error: msgspec.ValidationError, options: Mapping[str, Any], words: _Words) -> OptionError:
    reason, _, where = str(error).partition(" - at `")
    path = where.removesuffix("`").removeprefix("$").removeprefix(".")
    if reason.startswith("Object missing required field `"):
        name = reason.split("`")[1]
        return OptionError(f"Parameter '{path + '.' if path else ''}{name}' is missing")
    value = flatten(options).get(path)
    if reason.startswith("Invalid enum value"):
        return words.no_such_value(path, value)
    expected = reason.removeprefix("Expected `").split("`")[0].split(" | ")
    if "bool" in expected:
        return OptionError(f"Parameter '{path}' expects 'on' or 'off'")
    if "int" in expected and isinstance(value, (bool, int, float)):
        return not_a_size(path)
    return OptionError(f"Invalid parameter '{path}': {reason}" if path else f"Invalid options: {reason}")
