"""_child_environment: each step of a policy alone, then their order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsupervise._child_environment import child_environment
from tsupervise_protocol.messages import EnvPolicy

SERVER = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "lang": "C",
    "TERM": "xterm",
    "API_KEY": "1",
    "my_secret_x": "2",
    "Token": "3",
    "A[b": "bracket",
    "Ab": "plain",
    "AxB": "5",
    "AxxB": "6",
    "éa": "accent",
}

names = st.text(st.sampled_from("AbK*?[]é_"), max_size=6)
environments = st.dictionaries(names, st.just("value"), max_size=6)


def policy(inherit: Any = "all", **fields: Any) -> EnvPolicy:
    """A policy that filters nothing, but for the fields given."""
    members: dict[str, Any] = {"ignore_default_excludes": True, "exclude": [], "set": {}, "include_only": []}
    return EnvPolicy(inherit=inherit, **(members | fields))


def remaining(inherit: Any = "all", **fields: Any) -> set[str]:
    """The names that a child gets with this policy and an empty `env`."""
    return set(child_environment({}, policy(inherit, **fields), SERVER))


@pytest.mark.parametrize("env", [{}, {"A": "1", "API_KEY": "2"}])
def test_without_a_policy_a_child_has_exactly_what_the_request_says(env: dict[str, str]) -> None:
    """Nothing is inherited, added or dropped."""
    assert child_environment(env, None, SERVER) == env


def test_all_takes_the_whole_environment_of_the_server() -> None:
    """`all` is a copy, with values and all."""
    assert child_environment({}, policy(), SERVER) == SERVER


def test_none_takes_nothing() -> None:
    """`none` starts from an empty environment."""
    assert remaining("none") == set()


def test_core_takes_the_core_names_in_any_case() -> None:
    """`core` keeps the well-known names, however they are written, and no name that merely looks like one."""
    near_misses = {"XPATH": "", "PATHX": "", "LC_TIME": "", "TMPDIR2": "", "": ""}
    upper = [
        "PATH",
        "SHELL",
        "TMPDIR",
        "TEMP",
        "TMP",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LOGNAME",
        "USER",
    ]
    core = dict.fromkeys(upper, "upper") | {name.lower(): "lower" for name in upper}
    assert child_environment({}, policy("core"), core | near_misses) == core


@pytest.mark.parametrize("name", ["KEY", "API_KEY", "keyboard", "A_Secret_B", "TOKENS", "x\ntoken"])
def test_names_that_smell_of_credentials_are_dropped_by_default(name: str) -> None:
    """KEY, SECRET and TOKEN anywhere in a name, in any case, unless the policy keeps them."""
    inherited = {name: "1", "PLAIN": "2"}
    assert child_environment({}, policy(ignore_default_excludes=False), inherited) == {"PLAIN": "2"}
    assert child_environment({}, policy(ignore_default_excludes=True), inherited) == inherited


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("", set[str]()),
        ("TERM", {"TERM"}),
        ("term", {"TERM"}),
        ("TER", set[str]()),
        ("*", set(SERVER)),
        ("**", set(SERVER)),
        ("*e*", {"HOME", "TERM", "API_KEY", "my_secret_x", "Token"}),
        ("a?b", {"A[b", "AxB"}),
        ("a*b", {"A[b", "Ab", "AxB", "AxxB"}),
        ("a??b", {"AxxB"}),
        ("a[b", {"A[b"}),
        ("[A]*", set[str]()),
        ("[!x]b", set[str]()),
        ("A\\*", set[str]()),
        (".*", set[str]()),
        ("TERM|HOME", set[str]()),
        ("??", {"Ab", "éa"}),
        ("ÉA", {"éa"}),
    ],
)
def test_a_pattern_excludes_what_it_includes(pattern: str, matched: set[str]) -> None:
    """A pattern matches whole names in any case; `*` and `?` alone are special, in both filters alike."""
    assert remaining(exclude=[pattern]) == set(SERVER) - matched
    assert remaining(include_only=[pattern]) == matched


def test_several_patterns_match_what_any_of_them_matches() -> None:
    """A filter is a list of alternatives."""
    assert remaining(include_only=["PATH", "h*", "nothing"]) == {"PATH", "HOME"}
    assert remaining(exclude=["PATH", "h*", "nothing"]) == set(SERVER) - {"PATH", "HOME"}


def test_default_and_own_exclusions_add_up() -> None:
    """`exclude` does not replace the default exclusions."""
    left = remaining(ignore_default_excludes=False, exclude=["T*", "A*"])
    assert left == {"PATH", "HOME", "lang", "éa"}


def test_what_is_set_replaces_what_is_inherited() -> None:
    """`set` has the last word over the server's value, not over other names."""
    assert child_environment({}, policy(set={"TERM": "dumb"}), SERVER) == SERVER | {"TERM": "dumb"}


def test_what_is_set_is_not_excluded() -> None:
    """Neither kind of exclusion reaches the variables that the policy itself sets."""
    own = {"MY_KEY": "1", "OWN": "2", "PATH": "/own"}
    result = child_environment(
        {}, policy(set=own, ignore_default_excludes=False, exclude=["OWN", "PATH", "*"]), SERVER
    )
    assert result == own


def test_what_is_set_must_be_included_to_stay() -> None:
    """`includeOnly` is the last filter and drops set variables too."""
    assert child_environment({}, policy("none", set={"A": "1", "B": "2"}, include_only=["b"]), {}) == {
        "B": "2"
    }


def test_what_is_excluded_is_not_brought_back_by_being_included() -> None:
    """A name must pass both filters."""
    assert remaining(exclude=["PATH"], include_only=["PATH", "HOME"]) == {"HOME"}


def test_the_request_has_the_last_word() -> None:
    """`env` is never filtered and replaces every other value."""
    env = {"API_KEY": "e", "TERM": "e", "PATH": "e"}
    all_filters = policy(
        ignore_default_excludes=False, exclude=["*"], set={"TERM": "s", "LEFT": "s"}, include_only=["LEFT"]
    )
    assert child_environment(env, all_filters, SERVER) == env | {"LEFT": "s"}


def test_all_steps_follow_one_another() -> None:
    """Inherit, drop credentials, exclude, set, include, overlay: in this order."""
    result = child_environment(
        {"EXTRA": "e"},
        policy(
            "core",
            ignore_default_excludes=False,
            exclude=["LANG"],
            set={"LANG": "s", "MY_TOKEN": "s", "OTHER": "s"},
            include_only=["P*", "LANG", "*TOKEN", "TERM"],
        ),
        SERVER,
    )
    assert result == {"PATH": "/usr/bin", "LANG": "s", "MY_TOKEN": "s", "EXTRA": "e"}


def test_the_arguments_stay_as_they_were() -> None:
    """The result is a new dict, never one of the arguments."""
    env, inherited = {"A": "1"}, {"B": "2"}
    rules = policy(set={"C": "3"})
    result = child_environment(env, rules, inherited)
    result["D"] = "4"
    child_environment(env, None, inherited)["E"] = "5"
    assert (env, inherited, rules.set) == ({"A": "1"}, {"B": "2"}, {"C": "3"})


@given(environments, environments, environments, st.lists(names, max_size=3), st.lists(names, max_size=3))
@settings(deadline=None)
def test_every_variable_has_one_of_three_sources(
    env: dict[str, str],
    own: dict[str, str],
    inherited: dict[str, str],
    exclude: list[str],
    include_only: list[str],
) -> None:
    """Whatever the patterns, nothing is invented, the request stays whole, and filters only take away."""
    rules = policy(exclude=exclude, set=own, include_only=include_only)
    result = child_environment(env, rules, inherited)
    assert env.items() <= result.items()
    assert result.keys() <= env.keys() | own.keys() | inherited.keys()
    assert result.keys() <= child_environment(env, policy(set=own), inherited).keys()


def test_no_pattern_of_a_client_takes_long() -> None:
    """A pattern that makes a backtracking matcher run for years is answered at once."""
    rules = policy(exclude=["*a" * 50 + "b", "*a?" * 50 + "b"])
    inherited = {"a" * 5000: "1"}
    assert child_environment({}, rules, inherited) == inherited


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        (None, {}),
        ({"threadId": "no UUID", "toolCallId": 5}, {}),
        ({"toolCallId": "a\0b"}, {}),
        (
            {"threadId": "urn:uuid:0F8FAD5B-D9CB-469F-A165-70867728950E"},
            {"CODEX_THREAD_ID": "0f8fad5b-d9cb-469f-a165-70867728950e"},
        ),
    ],
)
def test_labels_that_are_none_become_no_variable(
    metadata: dict[str, object] | None, labels: dict[str, str]
) -> None:
    """Metadata is the caller's own: what does not have the form of a label is passed over, not refused."""
    assert child_environment({"A": "1"}, None, {}, metadata) == {"A": "1", **labels}
