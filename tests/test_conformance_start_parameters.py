"""What process/start makes of cwd, env, envPolicy, argv[0] and arg0, and what is told of the place before.

The servers here run in an environment that the tests know in full; HOME and TMPDIR are folders that exist.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemons import Daemon, start_daemon
from wire import Peer, connect, env_policy

ENV = ("/usr/bin/env", "-0")
PWD = ("/bin/pwd",)
SHOW_NAME = ("/bin/sh", "-c", 'printf "[%s]" "$0"')

SERVER_PATH = "/usr/local/bin:/usr/bin:/bin"
TMP = os.fsencode(os.path.realpath("/tmp"))


@pytest.fixture(scope="module")
def server_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the servers of this module."""
    home = tmp_path_factory.mktemp("home").resolve() / "h me"
    temporary = home / "t%mp"
    temporary.mkdir(parents=True)
    return {
        "PATH": SERVER_PATH,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"],
        "user": "me",
        "PATHX": "no core name",
        "API_KEY": "1",
        "my_secret": "2",
        "A[b": "bracket",
        "AxB": "one",
        "AxxB": "two",
    }


@pytest.fixture(scope="module")
def server(target: str, server_environment: dict[str, str]) -> Iterator[Daemon]:
    """A server whose environment is `server_environment`."""
    running = start_daemon(target, env=server_environment)
    yield running
    assert running.stop() == 0


async def child_environment(peer: Peer, server: Daemon, **fields: Any) -> dict[str, str]:
    """What a child started with these members sees."""
    code, output = await peer.run("env", *ENV, **fields)
    assert code == 0
    seen = dict(line.split("=", 1) for line in output.decode().split("\0")[:-1])
    if not server.is_ours and seen.get("PATH", "").endswith(f":{SERVER_PATH}"):
        # The reference puts folders of its own in front when it starts.
        seen["PATH"] = SERVER_PATH
    return seen


# --- the place ---------------------------------------------------------------------------------------


@pytest.mark.case(51)
async def test_the_place_is_described_the_same_way_at_any_time(server: Daemon) -> None:
    """The answer to initialize carries what environment/info answers, now and later."""
    async with connect(server.url, handshake=False) as peer:
        described = (await peer.handshake())["environmentInfo"]
        assert (await peer.request("environment/info")).ok() == described
        (await peer.start("p", "true")).ok()
        assert (await peer.request("environment/info", {})).ok() == described


@pytest.mark.case(51)
async def test_the_shell_that_is_named_runs_a_command(
    server: Daemon, server_environment: dict[str, str]
) -> None:
    """A client can run `PATH -lc COMMAND` with the shell as it was told."""
    env = {"PATH": SERVER_PATH, "HOME": server_environment["HOME"]}
    async with connect(server.url) as peer:
        shell = (await peer.request("environment/info")).ok()["shell"]
        assert shell["name"] in ("bash", "zsh", "sh", "powershell")
        code, _ = await peer.run("p", shell["path"], "-lc", "printf hello", env=env)
        assert (code, peer.output("p", "stdout")) == (0, b"hello")


@pytest.mark.case(51)
async def test_the_folders_that_are_named_can_be_worked_in(
    server: Daemon, server_environment: dict[str, str]
) -> None:
    """Working, home and temporary directories are told as URIs that process/start takes."""
    async with connect(server.url) as peer:
        info = (await peer.request("environment/info")).ok()
        assert info["temporaryDirectories"] == [info["tempDir"]]
        for member, folder in (
            ("cwd", os.getcwd()),
            ("userHomeDir", server_environment["HOME"]),
            ("tempDir", server_environment["TMPDIR"]),
        ):
            _, output = await peer.run(member, *PWD, cwd=info[member])
            assert output == os.fsencode(folder) + b"\n"


@pytest.mark.case(51)
async def test_the_platform_and_each_capability_are_plain_values(server: Daemon) -> None:
    """The platform and the version are strings; every capability is true or false."""
    async with connect(server.url) as peer:
        info = (await peer.request("environment/info")).ok()
        assert info["platformOs"] in ("linux", "macos")
        assert info["executorVersion"]
        assert info["capabilities"]
        assert {type(value) for value in info["capabilities"].values()} == {bool}


# --- cwd ---------------------------------------------------------------------------------------------

ODD_NAMES = (b"a b", b"q?r#s%", b"x\\y", b"tab\t", b"\xff\xfe", "é".encode(), b"C:", b"%2e")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with folders of odd names in it."""
    path = tmp_path_factory.mktemp("cwd").resolve()
    for name in ODD_NAMES:
        os.mkdir(os.path.join(os.fsencode(path), name))
    return str(path)


@pytest.mark.case(57)
@pytest.mark.parametrize(
    "uri",
    [
        "file:/tmp",
        "file:tmp",
        "file:////tmp",
        "file://localhost/tmp",
        "file://LocalHost/tmp",
        "FILE:///tmp",
        "file:\\\\\\tmp",
        " file:///tmp\n",
        "fi\tle:///t\nmp",
        "file:///tmp/",
        "file:///%2Ftmp",
        "file:///%74mp",
        "file:///./tmp/.",
        "file:///../tmp",
        "file:///no/such/../../tmp",
        "file:///no/%2e%2E/tmp",
        "file:///tmp/..%2Ftmp",
    ],
)
async def test_every_spelling_of_a_folder_is_that_folder(server: Daemon, uri: str) -> None:
    """The working directory is read as a URL: dots resolved by the text alone, slashes supplied."""
    async with connect(server.url) as peer:
        assert await peer.run("p", *PWD, cwd=uri) == (0, TMP + b"\n")


@pytest.mark.case(57)
@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("a b", b"a b"),
        ("a%20b", b"a b"),
        ("q%3Fr%23s%", b"q?r#s%"),
        ("q%3fr%23s%25", b"q?r#s%"),
        ("x%5Cy", b"x\\y"),
        ("tab%09", b"tab\t"),
        ("%FF%fe", b"\xff\xfe"),
        ("é", "é".encode()),
        ("%C3%A9", "é".encode()),
        ("C:", b"C:"),
        ("%252e", b"%2e"),
    ],
)
async def test_any_bytes_can_be_a_folder(server: Daemon, folder: str, spelling: str, name: bytes) -> None:
    """Escapes are decoded byte by byte, so that every name can be worked in."""
    async with connect(server.url) as peer:
        expected = os.path.join(os.fsencode(folder), name) + b"\n"
        assert await peer.run("p", *PWD, cwd=f"file://{folder}/{spelling}") == (0, expected)


@pytest.mark.case(57)
async def test_a_path_without_a_plain_uri_has_an_opaque_one(server: Daemon) -> None:
    """A path that begins like a Windows drive is understood in base64: here it is merely missing."""
    async with connect(server.url) as peer:
        answer = await peer.start("p", *PWD, cwd="file:///%00/bad/path/L0M6L3RzdXBlcnZpc2UvbWlzc2luZw")
        assert answer.code == -32603
        assert answer.message.startswith("No such file or directory (os error 2)")


@pytest.mark.case(57)
@pytest.mark.parametrize(
    "cwd",
    [
        "",
        "/tmp",
        "tmp",
        "http://localhost/tmp",
        "C:\\tmp",
        "file:///tmp?",
        "file:///tmp?x=1",
        "file:///tmp#",
        "file:///tmp#x",
        "file://host/tmp",
        "file://127.0.0.1/tmp",
        "file://user@localhost/tmp",
        "file://localhost:80/tmp",
        "file:///C:/tmp",
        "file:///c:",
        "file:///C%3A/tmp",
        "file:///tmp/%00",
        "file:///%00/bad/path/L3RtcA",
        "file:///%00/bad/path/!",
        5,
        None,
        ["file:///tmp"],
    ],
)
async def test_what_names_no_folder_of_this_system_is_refused(server: Daemon, cwd: Any) -> None:
    """A cwd that is no usable file URI is a fault of the request, and nothing starts."""
    async with connect(server.url) as peer:
        assert (await peer.start("p", *PWD, cwd=cwd)).code == -32602
        assert (await peer.process_read("p")).code == -32600


# --- env and envPolicy -------------------------------------------------------------------------------


@pytest.mark.case(58)
@pytest.mark.parametrize("env", [{}, {"B": "2", "A": "", "C": "x=y\nz"}])
async def test_the_environment_is_exact(server: Daemon, env: dict[str, str]) -> None:
    """Without a policy a child has the variables of the request and no other."""
    async with connect(server.url) as peer:
        assert await child_environment(peer, server, env=env) == env


THREAD = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.mark.case(60)
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "tty"])
@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        (None, {"CODEX_THREAD_ID": "env"}),
        ({}, {}),
        (
            {"threadId": THREAD, "toolCallId": "call 1", "other": "x"},
            {"CODEX_THREAD_ID": THREAD, "CODEX_TOOL_CALL_ID": "call 1"},
        ),
        ({"threadId": "{" + THREAD.upper() + "}"}, {"CODEX_THREAD_ID": THREAD}),
        ({"toolCallId": ""}, {"CODEX_TOOL_CALL_ID": ""}),
        ({"threadId": None, "toolCallId": None}, {}),
    ],
)
async def test_a_child_learns_the_labels_of_its_start(
    server: Daemon, metadata: dict[str, Any] | None, labels: dict[str, str], tty: bool
) -> None:
    """Two labels are told in the environment, last of all, and those of another start are not passed on."""
    env = {"SHELL": "/bin/sh", "CODEX_THREAD_ID": "env", "CODEX_TOOL_CALL_ID": "env"}
    policy = env_policy("none", set={"CODEX_THREAD_ID": "set"}, includeOnly=["SHELL"])
    async with connect(server.url) as peer:
        seen = await child_environment(peer, server, env=env, envPolicy=policy, metadata=metadata, tty=tty)
        assert seen == {"SHELL": "/bin/sh", **labels}


@pytest.mark.case(58)
@pytest.mark.ours_only("the reference adds SHELL when there is a terminal")
@pytest.mark.parametrize("env", [{}, {"A": "1"}])
async def test_the_environment_is_exact_with_a_terminal(server: Daemon, env: dict[str, str]) -> None:
    """A terminal adds neither SHELL nor TERM nor anything else."""
    async with connect(server.url) as peer:
        assert await child_environment(peer, server, env=env, tty=True) == env


EVERYTHING = {
    "PATH", "HOME", "TMPDIR", "LANG", "XDG_RUNTIME_DIR", "user", "PATHX", "API_KEY", "my_secret", "A[b", "AxB",
    "AxxB"
}  # fmt: skip


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (env_policy("none"), set[str]()),
        (env_policy("all"), EVERYTHING),
        (env_policy("core"), {"PATH", "HOME", "TMPDIR", "LANG", "user"}),
        (env_policy("all", ignoreDefaultExcludes=False), EVERYTHING - {"API_KEY", "my_secret"}),
        (env_policy("all", exclude=["HOM", "OME", ""]), EVERYTHING),
        (env_policy("all", exclude=["home", "USER"]), EVERYTHING - {"HOME", "user"}),
        (env_policy("all", exclude=["a?b"]), EVERYTHING - {"A[b", "AxB"}),
        (env_policy("all", exclude=["a*b"]), EVERYTHING - {"A[b", "AxB", "AxxB"}),
        (env_policy("all", exclude=["a[B", "[A]*", "A\\*", ".*"]), EVERYTHING - {"A[b"}),
        (env_policy("all", exclude=["*"]), set[str]()),
        (env_policy("all", includeOnly=["*"]), EVERYTHING),
        (env_policy("all", includeOnly=["path*", "a??b"]), {"PATH", "PATHX", "AxxB"}),
        (env_policy("all", includeOnly=[""]), set[str]()),
        (env_policy("core", exclude=["PATH"], includeOnly=["P*", "u*", "ax*"]), {"user"}),
        (
            env_policy("all", ignoreDefaultExcludes=False, includeOnly=["*_*", "H*"]),
            {"HOME", "XDG_RUNTIME_DIR"},
        ),
    ],
    ids=lambda value: "" if isinstance(value, set) else None,
)
async def test_a_policy_takes_from_the_servers_environment(
    server: Daemon, server_environment: dict[str, str], policy: dict[str, Any], names: set[str]
) -> None:
    """The base, the default exclusions, the own exclusions and the inclusions, alone and together."""
    async with connect(server.url) as peer:
        expected = {name: server_environment[name] for name in names}
        assert await child_environment(peer, server, env={}, envPolicy=policy) == expected


@pytest.mark.case(59)
async def test_all_steps_of_a_policy_follow_one_another(
    server: Daemon, server_environment: dict[str, str]
) -> None:
    """Inherit, exclude, set, include, then the request on top: each sees what the one before has left."""
    policy = env_policy(
        "core",
        ignoreDefaultExcludes=False,
        exclude=["LANG"],
        set={"LANG": "set", "MY_TOKEN": "set", "OTHER": "set", "USER": "set"},
        includeOnly=["lang", "home", "*token", "user"],
    )
    async with connect(server.url) as peer:
        assert await child_environment(
            peer, server, env={"EXTRA": "env", "HOME": "env"}, envPolicy=policy
        ) == {
            "LANG": "set",
            "HOME": "env",
            "MY_TOKEN": "set",
            "USER": "set",
            "user": server_environment["user"],
            "EXTRA": "env",
        }


@pytest.mark.case(60)
async def test_what_a_policy_sets_is_not_excluded_but_must_be_included(server: Daemon) -> None:
    """Exclusions are about what is inherited; inclusions are about everything but the request's own."""
    own = {"MY_KEY": "1", "OWN": "2"}
    excluding = env_policy("none", ignoreDefaultExcludes=False, exclude=["OWN"], set=own)
    including = env_policy("none", ignoreDefaultExcludes=False, set=own, includeOnly=["O*"])
    async with connect(server.url) as peer:
        assert await child_environment(peer, server, env={}, envPolicy=excluding) == own
    async with connect(server.url) as peer:
        assert await child_environment(peer, server, env={}, envPolicy=including) == {"OWN": "2"}


@pytest.mark.case(60)
async def test_the_environment_of_the_request_passes_every_filter(server: Daemon) -> None:
    """`env` has the last word over names and values."""
    policy = env_policy(
        "all", ignoreDefaultExcludes=False, exclude=["*"], set={"A_KEY": "set"}, includeOnly=["NOTHING"]
    )
    env = {"A_KEY": "env", "PATH": "env", "B": "env"}
    async with connect(server.url) as peer:
        assert await child_environment(peer, server, env=env, envPolicy=policy) == env


@pytest.mark.case(60)
@pytest.mark.parametrize("missing", env_policy())
async def test_a_policy_without_one_of_its_members_is_refused(server: Daemon, missing: str) -> None:
    """All five members are required."""
    policy = {name: value for name, value in env_policy().items() if name != missing}
    async with connect(server.url) as peer:
        assert (await peer.start("p", "true", envPolicy=policy)).code == -32602


@pytest.mark.case(60)
@pytest.mark.parametrize(
    "wrong",
    [
        {"inherit": "ALL"},
        {"inherit": "some"},
        {"inherit": None},
        {"ignoreDefaultExcludes": None},
        {"exclude": None},
        {"exclude": "A"},
        {"set": {"A": 1}},
        {"includeOnly": [1]},
    ],
    ids=str,
)
async def test_a_policy_with_a_wrong_member_is_refused(server: Daemon, wrong: dict[str, Any]) -> None:
    """A word that is no base and a value of the wrong type are faults of the request."""
    async with connect(server.url) as peer:
        assert (await peer.start("p", "true", envPolicy={**env_policy(), **wrong})).code == -32602


@pytest.mark.case(60)
async def test_no_policy_is_the_same_as_none_and_unknown_members_are_ignored(server: Daemon) -> None:
    """Null means no policy, and a policy may have members that are not known yet."""
    async with connect(server.url) as peer:
        assert await child_environment(peer, server, env={"A": "1"}, envPolicy=None) == {"A": "1"}
    async with connect(server.url) as peer:
        policy = env_policy(set={"B": "2"}, someday=True)
        assert await child_environment(peer, server, env={}, envPolicy=policy) == {"B": "2"}


# --- argv[0] and arg0 --------------------------------------------------------------------------------

with_a_terminal = pytest.mark.ours_only("the reference looks up programs otherwise when there is a terminal")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with the program `greet` in `one` and `two`, and a `greet` that cannot be run in `plain`."""
    for name in ("one", "two", "plain"):
        path = tmp_path / name / "greet"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\nprintf '%s' {name}\n")
        path.chmod(0o644 if name == "plain" else 0o755)
    return tmp_path


async def look_up_a_bare_name(server: Daemon, programs: Path, **fields: Any) -> None:
    one, two, plain = (str(programs / name) for name in ("one", "two", "plain"))
    async with connect(server.url) as peer:
        for search_path, outcome in (
            (f"{one}:{two}", b"one"),
            (f"{programs}:/no/such/folder:{two}:{one}", b"two"),
            (f"{plain}:{one}", b"one"),
            (plain, "Permission denied (os error 13)"),
            ("/no/such/folder", "No such file or directory (os error 2)"),
        ):
            name, env = search_path, {"PATH": search_path}
            if isinstance(outcome, bytes):
                assert await peer.run(name, "greet", env=env, **fields) == (0, outcome)
            else:
                answer = await peer.start(name, "greet", env=env, **fields)
                assert answer.code == -32603
                assert answer.message.startswith(outcome)


async def find_by_the_default_path(server: Daemon, **fields: Any) -> None:
    async with connect(server.url) as peer:
        assert await peer.run("p", "sh", "-c", "printf found", env={}, **fields) == (0, b"found")


async def look_up_from_the_working_directory(server: Daemon, programs: Path, **fields: Any) -> None:
    async with connect(server.url) as peer:
        for name, cwd in (("./greet", "one"), ("one/greet", ""), ("../one/greet", "two")):
            uri = (programs / cwd).as_uri()
            assert await peer.run(name, name, cwd=uri, env={"PATH": "/bin"}, **fields) == (0, b"one")


@pytest.mark.case(61)
async def test_a_bare_name_is_searched_in_the_childs_path(server: Daemon, programs: Path) -> None:
    """The first folder of the child's PATH that has a program of this name; a plain file is passed over."""
    await look_up_a_bare_name(server, programs)


@pytest.mark.case(61)
@with_a_terminal
async def test_a_bare_name_is_searched_the_same_way_with_a_terminal(server: Daemon, programs: Path) -> None:
    """Whether there is a terminal changes neither what is found nor what is answered."""
    await look_up_a_bare_name(server, programs, tty=True)


@pytest.mark.case(61)
async def test_a_bare_name_without_a_path_is_searched_in_the_default_one(server: Daemon) -> None:
    """A child without PATH is found where the C library looks by default."""
    await find_by_the_default_path(server)


@pytest.mark.case(61)
@with_a_terminal
async def test_the_default_path_is_searched_with_a_terminal_too(server: Daemon) -> None:
    """A terminal does not make PATH a must."""
    await find_by_the_default_path(server, tty=True)


@pytest.mark.case(61)
async def test_the_path_that_counts_is_the_one_the_policy_makes(server: Daemon, programs: Path) -> None:
    """The search uses the finished environment, not the server's and not the policy's parts."""
    one, two = (str(programs / name) for name in ("one", "two"))
    policy = env_policy("all", set={"PATH": two})
    async with connect(server.url) as peer:
        assert await peer.run("set", "greet", env={}, envPolicy=policy) == (0, b"two")
        assert await peer.run("env", "greet", env={"PATH": one}, envPolicy=policy) == (0, b"one")
        assert (await peer.start("inherited", "greet", env={}, envPolicy=env_policy("all"))).code == -32603


@pytest.mark.case(61)
async def test_a_name_with_a_slash_is_relative_to_the_working_directory(
    server: Daemon, programs: Path
) -> None:
    """The child's working directory, not the server's, and never PATH."""
    await look_up_from_the_working_directory(server, programs)


@pytest.mark.case(61)
@with_a_terminal
async def test_a_name_with_a_slash_is_relative_with_a_terminal_too(server: Daemon, programs: Path) -> None:
    """One rule for both ways to start."""
    await look_up_from_the_working_directory(server, programs, tty=True)


@pytest.mark.case(62)
@pytest.mark.parametrize(
    ("arg0", "shown"), [("myname", b"[myname]"), ("", b"[]"), ("false", b"[false]"), (None, b"[/bin/sh]")]
)
async def test_arg0_is_only_the_name_that_a_program_sees(
    server: Daemon, arg0: str | None, shown: bytes
) -> None:
    """What is run is argv[0], whatever it is called."""
    async with connect(server.url) as peer:
        assert await peer.run("p", *SHOW_NAME, arg0=arg0) == (0, shown)


@pytest.mark.case(62)
@pytest.mark.ours_only("the reference runs arg0 instead of argv[0] when there is a terminal")
@pytest.mark.parametrize(
    ("arg0", "shown"), [("myname", b"[myname]"), ("", b"[]"), ("false", b"[false]"), (None, b"[/bin/sh]")]
)
async def test_arg0_is_only_a_name_with_a_terminal_too(
    server: Daemon, arg0: str | None, shown: bytes
) -> None:
    """A terminal does not turn a name into a program."""
    async with connect(server.url) as peer:
        assert await peer.run("p", *SHOW_NAME, arg0=arg0, tty=True) == (0, shown)


@pytest.mark.case(62)
async def test_arg0_does_not_change_what_is_searched(server: Daemon, programs: Path) -> None:
    """A bare argv[0] is looked up by its own name."""
    async with connect(server.url) as peer:
        env = {"PATH": str(programs / "one")}
        assert await peer.run("p", "greet", arg0="sh", env=env) == (0, b"one")
