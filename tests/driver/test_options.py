"""Options: written in five ways, one form inside."""

from __future__ import annotations

import errno
import pathlib
from contextlib import suppress
from enum import StrEnum
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.driver.options import (
    MAX_SPEC_BYTES,
    MAX_SPEC_DEPTH,
    Size,
    convert_options,
    flatten,
    nest,
    parse_bool,
    parse_image_opts,
    parse_json_name,
    parse_size,
    parse_spec,
    quote_value,
    refuse_both_ways,
    split_protocol,
)
from blockio.errors import OptionError

names = st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True)
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=12)
nested = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda inner: st.dictionaries(
        names, leaves | inner | st.lists(inner | st.text(), min_size=1, max_size=3), max_size=4
    ),
    max_leaves=12,
)


# -- the same options, however they are written

QCOW2 = {"driver": "qcow2", "file": {"filename": "a,b", "cache": {"direct": "on"}}}


@pytest.mark.parametrize(
    "written",
    [
        parse_spec(QCOW2),
        parse_spec(driver="qcow2", file={"filename": "a,b", "cache.direct": "on"}),
        parse_spec({"driver": "qcow2", "file.filename": "a,b", "file.cache": {"direct": "on"}}),
        parse_spec('json:{"driver": "qcow2", "file": {"filename": "a,b", "cache.direct": "on"}}'),
        parse_image_opts("driver=qcow2,file.filename=a,,b,file.cache.direct=on"),
    ],
)
def test_five_ways_to_say_it(written: dict[str, Any]) -> None:
    assert written == QCOW2


def test_a_plain_name_is_a_filename() -> None:
    assert parse_spec("disk.img") == {"filename": "disk.img"}
    assert parse_spec(None) == {}


def test_keywords_win_over_what_they_are_joined_with() -> None:
    base = {"driver": "qcow2", "lazy-refcounts": "off", "file": {"filename": "a", "locking": "on"}}
    joined = parse_spec(base, lazy_refcounts=True, file={"locking": "off"})
    assert joined == {"driver": "qcow2", "lazy-refcounts": True, "file": {"filename": "a", "locking": "off"}}


def test_a_keyword_reference_replaces_nested_options() -> None:
    assert parse_spec({"file": {"filename": "a"}}, file="node0") == {"file": "node0"}


def test_paths_and_enumerations_are_leaves() -> None:
    class Mode(StrEnum):
        FAST = "fast"

    assert parse_spec(filename=pathlib.Path("/a/b"), mode=Mode.FAST) == {"filename": "/a/b", "mode": "fast"}


@pytest.mark.parametrize("bad", [b"bytes", object(), {1: 2}])
def test_what_no_option_can_be(bad: object) -> None:
    with pytest.raises(TypeError):
        parse_spec({"x": bad})


# -- round trips


@given(nested)
def test_flat_and_nested_are_the_same(options: dict[str, Any]) -> None:
    flat = flatten(options)
    assert nest(flat) == options
    assert flatten(nest(flat)) == flat


@given(st.dictionaries(names, st.text(max_size=12), max_size=6))
def test_dotted_strings_come_back(options: dict[str, str]) -> None:
    text = ",".join(f"{key}={quote_value(value)}" for key, value in options.items())
    assert parse_image_opts(text) == options


@given(nested)
def test_json_names_come_back(options: dict[str, Any]) -> None:
    try:
        name = "json:" + msgspec.json.encode(options).decode()
    except (OverflowError, UnicodeEncodeError):
        return  # an integer or a surrogate that JSON has no way to say
    assert flatten(parse_json_name(name)) == flatten(options)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    for parse in (parse_image_opts, parse_json_name, parse_size):
        with suppress(OptionError):
            parse(text)


# -- dotted strings as QEMU reads them


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("node0", {"file": "node0"}),
        ("driver=raw,read-only,nolocking", {"driver": "raw", "read-only": "on", "locking": "off"}),
        ("a=1,a=2", {"a": "2"}),
        ("a=x=y", {"a": "x=y"}),
        ("a=,,,b=", {"a": ",", "b": ""}),
        ("a=1,", {"a": "1"}),
        ("children.0=x,children.1.driver=raw", {"children": ["x", {"driver": "raw"}]}),
        ("children.1=x", {"children": {"1": "x"}}),
    ],
)
def test_dotted_strings(text: str, options: dict[str, Any]) -> None:
    assert parse_image_opts(text) == options


def test_a_child_cannot_be_given_both_ways() -> None:
    message = "Cannot reference an existing block device with additional options or a new filename"
    for text in ("file=node0,file.locking=on", "file.locking=on,file=node0"):
        options = parse_image_opts(text)
        assert options["file"] == {"": "node0", "locking": "on"}
        assert nest(flatten(options)) == options
        with pytest.raises(OptionError, match=message):
            refuse_both_ways(options["file"])
    refuse_both_ways(parse_image_opts("file..x=1")["file"])


# -- bounds


def test_deep_and_long_input_is_refused_at_once() -> None:
    deep: dict[str, Any] = {}
    for _ in range(MAX_SPEC_DEPTH + 1):
        deep = {"a": deep}
    with pytest.raises(OptionError, match="deeper"):
        flatten(deep)
    with pytest.raises(OptionError, match="deeper"):
        parse_image_opts(".".join("a" * (MAX_SPEC_DEPTH + 2)) + "=1")
    with pytest.raises(OptionError):
        parse_json_name("json:" + '{"a":' * 100_000)
    for parse in (parse_image_opts, parse_json_name):
        with pytest.raises(OptionError):
            parse("a" * (MAX_SPEC_BYTES + 6))


@pytest.mark.parametrize(
    ("text", "message"), [("json:{bad", "Could not parse the JSON"), ("json:[1]", "Invalid JSON object")]
)
def test_json_that_is_none(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_json_name(text)


# -- file names


@pytest.mark.parametrize(
    ("filename", "protocol"),
    [
        ("disk.img", None),
        ("/dev/disk/by-path/pci-0:1", None),
        ("./a:b", None),
        ("nbd:localhost:10809", "nbd"),
        ("nbd://host/x", "nbd"),
        ("file:x", "file"),
        (":x", ""),
    ],
)
def test_a_colon_before_any_slash_is_a_protocol(filename: str, protocol: str | None) -> None:
    assert split_protocol(filename) == protocol


# -- scalars


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("512", 512),
        ("00012", 12),
        ("+1k", 1024),
        (" 1k", 1024),
        ("1b", 1),
        ("64k", 65536),
        ("64K", 65536),
        ("1.5k", 1536),
        ("1.", 1),
        ("1.0", 1),
        ("1.M", 1 << 20),
        ("1.0000001k", 1024),
        ("1.7G", 1825361101),
        ("7.9999E", 9223256744704315136),
        ("0x10", 16),
        ("0x10k", 16384),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("15E", 15 << 60),
        (str(2**64 - 1), 2**64 - 1),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "k", "12x", "-1", "1.5", "1.5b", ".5k", "1e3", "1 k", "1kb", "0x", "0x1.8k", "1_000", "\u0661", "9" * 99],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_size(text, "cluster_size")
    assert str(caught.value) == (
        "Parameter 'cluster_size' expects a non-negative number below 2^64\n"
        "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
        "and exabytes, respectively."
    )
    assert caught.value.errno == errno.EINVAL


def test_sizes_end_somewhere() -> None:
    for text in ("16E", "99999999999999999999"):
        with pytest.raises(OptionError, match=rf"^Value '{text}' is out of range for parameter 'offset'$"):
            parse_size(text, "offset")


@given(st.integers(0, 2**64 - 1), st.sampled_from("bkMGTPE"))
def test_sizes_are_exact(value: int, suffix: str) -> None:
    unit = 1024 ** "bkMGTPE".index(suffix)
    if value * unit < 2**64:
        assert parse_size(f"{value}{suffix}") == value * unit


def test_switches() -> None:
    assert [parse_bool(word) for word in ("on", "yes", "true", "y")] == [True] * 4
    assert [parse_bool(word) for word in ("off", "no", "false", "n")] == [False] * 4
    with pytest.raises(OptionError, match=r"^Parameter 'read-only' expects 'on' or 'off'$"):
        parse_bool("maybe", "read-only")


# -- typed options


class Aio(StrEnum):
    THREADS = "threads"
    NATIVE = "native"


class Cache(msgspec.Struct, frozen=True, rename="kebab"):
    l2_size: Size = 0
    clean: bool = True


class Options(msgspec.Struct, frozen=True, rename="kebab"):
    filename: str
    lazy_refcounts: bool | None = None
    offset: Size | None = None
    count: int = 0
    aio: Aio = Aio.THREADS
    cache: Cache = Cache()
    extra: dict[str, Any] | None = None


def test_text_becomes_what_the_driver_asks_for() -> None:
    nested = parse_image_opts(
        "filename=12,lazy-refcounts=on,offset=1.5k,count=0x10,aio=native,cache.l2-size=1M,cache.clean=off,extra.x=y"
    )
    assert convert_options(Options, nested, "toy") == Options(
        "12", True, 1536, 16, Aio.NATIVE, Cache(1 << 20, False), {"x": "y"}
    )


def test_values_that_have_their_type_already() -> None:
    assert convert_options(Options, {"filename": "x", "lazy-refcounts": None, "offset": 7}, "toy").offset == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foo": 1}, "Block format 'toy' does not support the option 'foo'"),
        ({"cache": {"foo": 1}}, "Block format 'toy' does not support the option 'cache.foo'"),
        ({"count": {"foo": {"bar": 1}}}, "Block format 'toy' does not support the option 'count.foo.bar'"),
        ({"lazy-refcounts": "maybe"}, "Parameter 'lazy-refcounts' expects 'on' or 'off'"),
        ({"lazy-refcounts": 5}, "Parameter 'lazy-refcounts' expects 'on' or 'off'"),
        ({"offset": "12x"}, "Parameter 'offset' expects a non-negative number below 2^64"),
        ({"offset": True}, "Parameter 'offset' expects a non-negative number below 2^64"),
        ({"offset": -1}, "Parameter 'offset' expects a non-negative number below 2^64"),
        ({"count": "many"}, "Parameter 'count' expects a number"),
        ({"aio": "zz"}, "invalid parameter value: zz"),
    ],
)
def test_wrong_options_in_the_words_of_qemu(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        convert_options(Options, {"filename": "x", **options}, "toy")
    assert caught.value.message == message


def test_creating_has_words_of_its_own() -> None:
    with pytest.raises(OptionError, match=r"^Invalid parameter 'foo'$"):
        convert_options(Options, {"foo": 1}, "toy", creating=True)
    with pytest.raises(OptionError, match=r"^Parameter 'aio' does not accept value 'abc'$"):
        convert_options(Options, {"filename": "x", "aio": "abc"}, "toy", creating=True)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(OptionError, match=r"^Parameter 'filename' is missing$"):
        convert_options(Options, {}, "toy")


@given(nested)
def test_any_options_convert_or_are_refused(options: dict[str, Any]) -> None:
    with suppress(OptionError):
        assert isinstance(convert_options(Options, options, "toy"), Options)
