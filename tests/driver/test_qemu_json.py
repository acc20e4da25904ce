"""JSON with single quotes, and what is said of text that is none."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.driver.qemu_json import JsonError, read_json

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\"'\\\n"), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def single_quoted(value: Any) -> str:
    """As JSON, but with the other quotes."""
    if isinstance(value, str):
        return "'" + json.dumps(value)[1:-1].replace('\\"', '"').replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{', '.join(map(single_quoted, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{single_quoted(key)} : {single_quoted(member)}" for key, member in value.items()) + "}"
    return json.dumps(value)


@given(VALUES)
def test_the_other_quotes_hold_the_same(value: Any) -> None:
    for text in (json.dumps(value), single_quoted(value), f" {single_quoted([value])}"):
        assert read_json(text) in (value, [value])


@given(st.text("{}[]:,'\"\\ua01.-+eE \ntrunl\0\ud800é"))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(JsonError):
        read_json(text)


def test_a_number_too_long_for_an_integer_is_near_it() -> None:
    assert read_json(f"['a', 1{'0' * 300}]") == ["a", 1e300]
    assert read_json(f"['a', {'9' * 9999}]") == ["a", float("inf")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting a JSON value"),
        ("[]]", "Expecting at most one JSON value"),
        ("[" * 100_000, "JSON parse error, it is nested too deeply"),
        ("{'a':01}", "JSON parse error, stray '01'"),
        ("['a' 'b']", "JSON parse error, expected separator in list"),
        ("{'a':1 'b':2}", "JSON parse error, expected separator in dict"),
        ("['\\x']", "JSON parse error, invalid escape sequence in string"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(JsonError) as caught:
        read_json(text)
    assert str(caught.value) == message
