"""The limits on JSON text, each at its exact boundary, with the bounds that may skip the exact count."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsupervise_protocol import json_limits
from tsupervise_protocol.errors import MalformedMessage
from tsupervise_protocol.json_limits import MAX_NESTING, MAX_VALUES, check_limits


def refusal(text: bytes) -> str | None:
    """Why the text is refused, or None."""
    try:
        check_limits(text)
    except MalformedMessage as error:
        return str(error)
    return None


def object_with_values(count: int) -> bytes:
    """A message of exactly `count` values, itself and the array in it included."""
    return b'{"method":"m","params":[' + b",".join([b"0"] * (count - 3)) + b"]}"


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """A message of exactly `depth` containers inside one another."""
    return b'{"p":' + opening * (depth - 1) + b"0" + closing * (depth - 1) + b"}"


@pytest.mark.case(25)
def test_the_bound_on_values_is_exact() -> None:
    """262,144 values pass, one more does not, and the text names the number."""
    assert MAX_VALUES == 262_144
    assert refusal(object_with_values(MAX_VALUES)) is None
    assert (
        refusal(object_with_values(MAX_VALUES + 1)) == "the message exceeds the limit of 262144 JSON values"
    )


@pytest.mark.case(25)
@pytest.mark.parametrize(
    ("element", "values"),
    [
        (b"{}", 1),
        (b"[]", 1),
        (b'"a,b[{:"', 1),
        (b"null", 1),
        (b"-1.5e+3", 1),
        (b'{"a":0}', 2),
        (b"[0, 0]", 3),
    ],
)
def test_every_kind_of_value_counts_once(element: bytes, values: int) -> None:
    """Containers and scalars cost one each, members' names nothing, whatever stands inside strings."""
    count = (MAX_VALUES - 1) // values
    assert refusal(b"[" + b",".join([element] * count) + b"]") is None
    assert refusal(b"[" + b" , ".join([element] * (count + 1)) + b"]") is not None


@pytest.mark.case(25)
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b" [ ", b" ] ")])
def test_the_bound_on_nesting_is_exact(opening: bytes, closing: bytes) -> None:
    """127 containers inside one another pass, 128 do not, objects and arrays alike."""
    assert MAX_NESTING == 127
    assert refusal(nested(MAX_NESTING, opening, closing)) is None
    assert refusal(nested(MAX_NESTING + 1, opening, closing)) == (
        "the message exceeds the limit of 127 nested containers"
    )


def test_containers_beside_one_another_do_not_nest() -> None:
    """A thousand brackets are no depth if each is closed before the next is opened."""
    assert refusal(b'{"p":[' + b",".join([b"[[]]"] * 1000) + b"]}") is None


@pytest.mark.case(25)
@pytest.mark.parametrize("content", [b"[", b"{", b",", b'\\"[', b"\\\\", b"]", b":"])
def test_what_stands_in_a_string_is_one_value(content: bytes) -> None:
    """A string full of brackets or commas sends the message to the exact count, which lets it pass."""
    text = b'{"method":"m","params":{"chunk":"' + content * (MAX_VALUES + 10) + b'"}}'
    assert refusal(text) is None


@pytest.mark.case(26)
@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":{"b":1,"c":2,"b":3}}', "b"),
        (b'{"a":[[{"x":1},{"y":1,"y":2}]]}', "y"),
        (b'{"a":1,"\\u0061":2}', "a"),
        (b'{"":1,"":2}', ""),
        ('{"\N{EURO SIGN}":1,"\\u20ac":2}'.encode(), "\N{EURO SIGN}"),
        (b'{"\\ud800":1,"\\ud800":2}', "\ud800"),
    ],
)
def test_a_member_that_comes_twice_is_refused_by_name(text: bytes, name: str) -> None:
    """At any depth, and however the name is spelled."""
    assert refusal(text) == f"duplicate member {name!r}"


def test_a_refused_name_is_not_repeated_at_length() -> None:
    """A name of a megabyte makes a short text."""
    text = refusal(b'{"%b":1,"%b":2}' % (b"n" * 1_000_000, b"n" * 1_000_000))
    assert text is not None
    assert len(text) < 200


@pytest.mark.case(26)
def test_the_same_name_in_different_objects_is_fine() -> None:
    """Only members of one object compete."""
    assert refusal(b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}],"A":0}') is None


@pytest.mark.parametrize(
    "number", [b"9" * 5000, b"-" + b"9" * 5000, b"1e999999", b"0." + b"1" * 5000, b"1E-400", b"-0"]
)
def test_numbers_are_not_read(number: bytes) -> None:
    """Numbers that no type holds are the business of whoever reads the member."""
    assert refusal(b'{"n":' + number + b"}") is None


def count(value: Any, depth: int = 1) -> tuple[int, int]:
    """Values and deepest nesting, the slow way."""
    match value:
        case dict():
            below = [count(member, depth + 1) for member in cast("dict[str, Any]", value).values()]
        case list():
            below = [count(element, depth + 1) for element in cast("list[Any]", value)]
        case _:
            return 1, depth - 1
    return 1 + sum(values for values, _ in below), max([depth, *(deepest for _, deepest in below)])


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text('a",[]{}:\\')
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text('a",[]{}:\\', max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(value=JSON, spaced=st.booleans(), max_values=st.integers(1, 14), max_nesting=st.integers(0, 5))
def test_small_limits_agree_with_a_slow_count(
    value: Any, spaced: bool, max_values: int, max_nesting: int
) -> None:
    """With the limits turned down to where random values pass them, each is refused exactly when it should."""
    separators = (" , ", " : ") if spaced else (",", ":")
    text = json.dumps(value, separators=separators).encode()
    values, depth = count(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_limits, "MAX_VALUES", max_values)
        patch.setattr(json_limits, "MAX_NESTING", max_nesting)
        refused = refusal(text) is not None
    assert refused == (values > max_values or depth > max_nesting)
