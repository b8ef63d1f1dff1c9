"""The environment of a child: made from the server's own by a policy, and overlaid by the request.

Pure: what may be inherited is passed in, so nothing here reads the process that it runs in.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

from tsupervise_protocol.messages import EnvPolicy

CORE_NAMES = (
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
)
"""What `inherit: core` keeps: where programs, files and the user are, and the locale."""

DEFAULT_EXCLUDES = ("*KEY*", "*SECRET*", "*TOKEN*")
"""Names that tend to hold credentials; not inherited unless the policy says so."""

THREAD_ID_NAME = "CODEX_THREAD_ID"
CALL_ID_NAME = "CODEX_TOOL_CALL_ID"
"""The variables that tell a child of its start's `metadata`: its `threadId`, a UUID, and its `toolCallId`."""


def child_environment(
    env: Mapping[str, str],
    policy: EnvPolicy | None,
    inherited: Mapping[str, str],
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the exact environment of a child.

    Patterns match a whole name in any case; `*` is any run of characters, `?` is one, all else is literal.

    Args:
        env: always part of the result as it is, whatever the policy says.
        policy: what to take from `inherited`, and what to add; without one the result is `env` alone.
        inherited: the server's own environment.
        metadata: the labels of the start; two of them become variables, which nothing filters or overrides.
            A call id from elsewhere never gets through, a thread id only where there is no metadata at all.
    """
    result = _by_policy(env, policy, inherited)
    _label(result, metadata)
    return result


def _label(environment: dict[str, str], metadata: Mapping[str, Any] | None) -> None:
    """Tell the labels of this start, and none of another: programs that clients start look for these names."""
    environment.pop(CALL_ID_NAME, None)
    if metadata is None:
        return
    environment.pop(THREAD_ID_NAME, None)
    thread_id, call_id = metadata.get("threadId"), metadata.get("toolCallId")
    if isinstance(thread_id, str):
        with suppress(ValueError):
            environment[THREAD_ID_NAME] = str(UUID(thread_id))
    if isinstance(call_id, str) and "\0" not in call_id:
        environment[CALL_ID_NAME] = call_id


def _by_policy(
    env: Mapping[str, str], policy: EnvPolicy | None, inherited: Mapping[str, str]
) -> dict[str, str]:
    if policy is None:
        return dict(env)
    result = _inherit(policy, inherited)
    # Between the two filters: the excludes are about what is inherited, the includes about all of it.
    result.update(policy.set)
    if policy.include_only:
        included = _matcher(policy.include_only)
        result = {name: value for name, value in result.items() if included(name)}
    result.update(env)
    return result


def _inherit(policy: EnvPolicy, inherited: Mapping[str, str]) -> dict[str, str]:
    if policy.inherit == "none":
        return {}
    offered = _matcher(CORE_NAMES if policy.inherit == "core" else ["*"])
    excluded = _matcher(
        policy.exclude if policy.ignore_default_excludes else [*DEFAULT_EXCLUDES, *policy.exclude]
    )
    return {name: value for name, value in inherited.items() if offered(name) and not excluded(name)}


def _matcher(patterns: Iterable[str]) -> Callable[[str], object]:
    # fnmatch makes expressions that never backtrack into an earlier `*`, so that no pattern of a client's
    # can hold the event loop. Its brackets are disarmed: a set of one bracket.
    expressions = (fnmatch.translate(pattern.replace("[", "[[]")) for pattern in patterns)
    # The first alternative never matches: without patterns, nothing does.
    return re.compile("|".join(["(?!)", *expressions]), re.IGNORECASE).fullmatch
