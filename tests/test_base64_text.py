"""Base64 of chunks: one spelling for each sequence of bytes, and every other text is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tsupervise_protocol.base64_text import decode_base64, encode_base64, encode_base64_str


@settings(deadline=None)
@given(data=st.binary(max_size=100))
def test_bytes_survive_and_have_the_standard_spelling(data: bytes) -> None:
    """What is encoded is what the standard library encodes, and decodes to the same bytes."""
    text = encode_base64_str(data)
    assert text.encode() == encode_base64(data) == base64.b64encode(data)
    assert decode_base64(text) == data


@pytest.mark.case(82)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("aGk", id="no padding"),
        pytest.param("aGk==", id="too much padding"),
        pytest.param("aGk=aGk=", id="padding in the middle"),
        pytest.param("aGk=\n", id="a line end"),
        pytest.param("aG k=", id="a blank"),
        pytest.param("-_-_", id="the URL-safe alphabet"),
        pytest.param("aGl=", id="bits set behind the last byte"),
        pytest.param("aB==", id="bits set behind the only byte"),
        pytest.param("a", id="a lone digit"),
        pytest.param("=", id="padding alone"),
        pytest.param("====", id="a group of padding"),
        pytest.param("aGk\N{FULLWIDTH EQUALS SIGN}", id="outside ASCII"),
        pytest.param("\ud800aGk", id="half a surrogate pair"),
        pytest.param("aGk\0", id="a NUL"),
    ],
)
def test_what_only_resembles_base64_is_refused(text: str) -> None:
    """Each near miss is a ValueError that says what was expected."""
    with pytest.raises(ValueError, match="not base64"):
        decode_base64(text)


NEAR_BASE64 = st.text(alphabet="aAgGlQ01+/=-_ \n", max_size=13)


@settings(deadline=None)
@given(text=st.one_of(NEAR_BASE64, st.text(max_size=9)))
@example(text="")
@example(text="aGk=")
def test_a_text_is_accepted_only_if_it_is_the_one_spelling(text: str) -> None:
    """Decoding is the exact inverse: it accepts what encoding makes and nothing else."""
    try:
        data = decode_base64(text)
    except ValueError:
        accepted = False
    else:
        accepted = True
        assert encode_base64_str(data) == text
    assert accepted == is_canonical(text)


def is_canonical(text: str) -> bool:
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except ValueError:
        return False
