"""The keys that leave an attached process: how they are written, and that they are found however they arrive."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsupervise._detach_keys import DEFAULT_KEYS, BadKeys, DetachKeys, keys_text, parse_keys


@pytest.mark.parametrize(
    ("text", "keys", "read"),
    [
        (DEFAULT_KEYS, b"\x10\x11", "ctrl-p ctrl-q"),
        ("ctrl-P,CTRL-q", b"\x10\x11", "ctrl-p ctrl-q"),
        ("ctrl-]", b"\x1d", "ctrl-]"),
        ("ctrl-@", b"\0", "ctrl-@"),
        ("~,.", b"~.", "~ ."),
        ("-", b"-", "-"),
    ],
)
def test_keys_are_written_as_people_call_them(text: str, keys: bytes, read: str) -> None:
    """One character, or ctrl- and one; and they are told in the same words."""
    assert parse_keys(text) == keys
    assert keys_text(keys) == read


@pytest.mark.parametrize(
    "text", ["", "ctrl-", "ctrl-1", "ctrl-pq", "ab", "ctrl-p,", "alt-x", "ä", "ctrl-ä", "\t"]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    """With what was wrong, and an example."""
    with pytest.raises(BadKeys, match=r"is no key: .*, as in ctrl-p,ctrl-q"):
        parse_keys(text)


SMALL = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=24).map(b"".join)


@given(SMALL.filter(bool).map(lambda keys: keys[:4]), SMALL, st.lists(st.integers(0, 24), max_size=6))
def test_keys_are_found_wherever_what_is_typed_is_cut(sequence: bytes, typed: bytes, cuts: list[int]) -> None:
    """All before the first occurrence is passed on, nothing after it, and of the rest only a beginning is held."""
    keys = DetachKeys(sequence)
    places = [0, *sorted(cut for cut in cuts if cut <= len(typed)), len(typed)]
    passed, found = b"", False
    for start, stop in pairwise(places):
        data, found = keys.feed(typed[start:stop])
        passed += data
        if found:
            break
    place = typed.find(sequence)
    assert found == (place >= 0)
    if found:
        assert passed == typed[:place]
    else:
        assert typed.startswith(passed)
        assert sequence.startswith(typed[len(passed) :])
