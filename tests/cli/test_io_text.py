"""The language's pure parts: numbers, reports, dumps, getopt. What is expected was taken from the real tool."""

from __future__ import annotations

import pytest

from blockio.cli.io import tool as _tool  # noqa: F401  # fills the table of commands
from blockio.cli.io.figures import FigureError, dump, lengths, number, pattern_byte, report, size_text, time_text
from blockio.cli.io.getopt import GetOpt, OptionMistake
from blockio.cli.io.language import commands, find, usage
from blockio.cli.io.session import differs, fill


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("512", 512),
        ("010", 10),
        ("+5", 5),
        ("0x200", 512),
        ("0x1b", 27),
        ("1b", 1),
        ("1B", 1),
        ("1K", 1024),
        ("1.5k", 1536),
        ("1.k", 1024),
        ("0.3k", 307),
        ("1.0", 1),
        ("7E", 7 << 60),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_numbers(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text", ["x", "", "-1", "1kb", "1.5", "1.5b", ".5k", "1e3", "0x", "0x1.8k", "k", "5%", "inf", "1,5", "00x1", '"0"']
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(FigureError) as caught:
        number(text)
    assert str(caught.value) == f"Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"


@pytest.mark.parametrize("text", ["9223372036854775808", "8E", "99999999999999999999999"])
def test_numbers_that_are_too_large(text: str) -> None:
    with pytest.raises(FigureError, match=f"^Parsing error: argument too large -- {text}$"):
        number(text)


def test_lengths_of_a_vector() -> None:
    assert lengths(["512", "1k", "0"]) == [512, 1024, 0]
    with pytest.raises(FigureError, match=r"^Argument '2G' exceeds maximum size 2147483136$"):
        lengths(["2G"])
    with pytest.raises(FigureError, match=r"^The total number of bytes exceed the maximum size 2147483136$"):
        lengths(["1G", "1G", "1G"])


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("255", 255), ("0x41", 65), ("010", 8), ("+1", 1), ("-0", 0)])
def test_pattern_bytes(text: str, value: int) -> None:
    assert pattern_byte(text) == value


@pytest.mark.parametrize("text", ["256", "-1", "zz", "1k", "09", "0x", ""])
def test_what_is_no_pattern_byte(text: str) -> None:
    with pytest.raises(FigureError) as caught:
        pattern_byte(text)
    assert str(caught.value) == f"{text} is not a valid pattern byte"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (0.307264, "0.307264 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.500 KiB"),
        (4096, "4 KiB"),
        (100000, "97.656 KiB"),
        (1048575, "1023.999 KiB"),
        (3 << 20, "3 MiB"),
        (7 << 60, "7 EiB"),
    ],
)
def test_sizes_for_people(value: float, text: str) -> None:
    assert size_text(value) == text


def test_times() -> None:
    assert time_text(0.129) == "00.12 sec"
    assert time_text(59.999) == "59.99 sec"
    assert time_text(62.25) == "0:01:02.25"
    assert time_text(3 * 3600 + 5) == "3:00:05.00"
    assert time_text(0.5, fixed=True) == "0:00:00.50"


def test_reports() -> None:
    assert report("read", 0.5, 512, 4096, 4096) == (
        "read 4096/4096 bytes at offset 512\n4 KiB, 1 ops; 00.50 sec (8 KiB/sec and 2.0000 ops/sec)\n"
    )
    assert report("wrote", 0.5, 0, 512, 512, machine=True) == "512,1,0:00:00.50,1024.000,2.000\n"
    assert "inf" not in report("read", 0.0, 0, 1, 1), "a clock that did not move divides nothing by zero"


def test_a_dump() -> None:
    assert dump(b"Az09_~ \n" + bytes([200]) * 8 + b"tail", 0x24E) == (
        "0000024e:  41 7a 30 39 5f 7e 20 0a c8 c8 c8 c8 c8 c8 c8 c8  Az09............\n0000025e:  74 61 69 6c  tail\n"
    )
    assert dump(b"", 0) == ""


def test_patterns_repeat_and_differences_show() -> None:
    view = memoryview(bytearray(10))
    fill(view, b"abc")
    assert bytes(view) == b"abcabcabca"
    big = memoryview(bytearray(3 << 20))
    fill(big, b"x")
    assert not differs(big, ord("x"))
    big[-1] = 0
    assert differs(big, ord("x"))
    assert not differs(big[:0], 7)


_NAMES = {"cmd=": "c", "cache=": "t", "read-only": "r", "copy-on-read": "C"}


def test_getopt_permutes_and_gathers() -> None:
    options = GetOpt(["0", "-qP1", "512", "-v", "--", "-x"], "qP:v")
    assert list(options) == [("q", ""), ("P", "1"), ("v", "")]
    assert options.operands == ["0", "512", "-x"]


def test_getopt_long_names_may_be_shortened() -> None:
    options = GetOpt(["--cm", "length", "--read", "--cache=none", "f"], "c:t:rC", _NAMES)
    assert list(options) == [("c", "length"), ("r", ""), ("t", "none")]
    assert options.operands == ["f"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-Z"], "invalid option -- 'Z'"),
        (["-P"], "option requires an argument -- 'P'"),
        (["--bogus"], "unrecognized option '--bogus'"),
        (["--cmd"], "option '--cmd' requires an argument"),
        (["--read-only=3"], "option '--read-only' doesn't allow an argument"),
        (["--c"], "option '--c' is ambiguous; possibilities: '--cmd' '--cache' '--copy-on-read'"),
    ],
)
def test_getopt_complains_as_the_c_library(words: list[str], text: str) -> None:
    with pytest.raises(OptionMistake) as caught:
        list(GetOpt(words, "qP:", _NAMES))
    assert str(caught.value) == text


def test_getopt_has_yielded_what_came_before_the_mistake() -> None:
    options = iter(GetOpt(["-q", "-Z"], "q"))
    assert next(options) == ("q", "")
    with pytest.raises(OptionMistake):
        next(options)


def test_every_command_has_its_usage_line() -> None:
    names = [command.name for command in commands()]
    assert names == sorted(names)
    assert {"read", "write", "readv", "writev", "aio_read", "aio_write", "aio_flush", "flush", "discard"} < set(names)
    assert {"truncate", "length", "map", "alloc", "open", "close", "reopen", "sleep", "quit", "help"} < set(names)
    read = find("r")
    assert read is find("read")
    assert read is not None
    assert usage(read, "r").startswith("r [-abCqv] [-P pattern")
