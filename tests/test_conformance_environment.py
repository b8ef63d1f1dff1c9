"""What a server tells of its place: status, shell, configuration, and what is in capability roots."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon, command_of, running, start_daemon
from tsupervise import _environment_handlers
from tsupervise._capability_roots import discover
from tsupervise._disk import Disk
from tsupervise._environment_config import read_environment_config
from tsupervise._environment_handlers import discover_all
from tsupervise_protocol.environment_messages import EnvironmentConfigReadParams
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.methods import METHODS
from tsupervise_protocol.path_uri import PathUri, file_uri
from wire import Answer, Peer, connect

REFUSED, BAD_PARAMS, INTERNAL = -32600, -32602, -32603

NOLOGIN_UID = 1


@pytest.mark.case(281)
async def test_status_takes_no_parameters(daemon: Daemon) -> None:
    """Null and an empty object are none, a list is something else."""
    async with connect(daemon.url) as peer:
        nothings: tuple[dict[str, str] | None, ...] = (None, {})
        for nothing in nothings:
            assert (await peer.request("environment/status", nothing)).ok() == {"status": "ready"}
        assert (await peer.request("environment/status", [])).code == BAD_PARAMS


@pytest.mark.case(282)
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv, to start a server as another user",
)
async def test_who_may_not_log_in_has_bash(target: str) -> None:
    """A login shell that clients cannot drive is replaced by bash, whatever SHELL says."""
    user = [f"--reuid={NOLOGIN_UID}", "--clear-groups"]
    may_read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", *user, *may_read, *command_of(target)]
    environ = {**os.environ, "SHELL": "/usr/sbin/nologin", "HOME": "/tmp", "CODEX_HOME": ""}
    with running(start_daemon(target, command=command, env=environ)) as daemon:
        # A server lets its own user in, and root.
        async with connect(daemon.url) as peer:
            shell = (await peer.request("environment/info", None)).ok()["shell"]
    assert shell["name"] == "bash"
    assert shell["path"] == shutil.which("bash")


EARLY: dict[str, dict[str, Any] | None] = {
    "environment/info": None,
    "environment/status": None,
    "environmentConfig/read": {"cwd": "file:///", "configPaths": [["a"]], "requirementsPaths": []},
    "capabilityRoots/discoverV1": {"roots": []},
    "http/request": {"method": "GET", "url": "http://localhost/", "requestId": "1"},
    "fs/readFile": {"path": "file:///x"},
    "fs/writeFile": {"path": "file:///x/y", "dataBase64": ""},
    "fs/createDirectory": {"path": "file:///x/y/z", "recursive": False},
    "fs/getMetadata": {"path": "file:///"},
    "fs/canonicalize": {"path": "file:///"},
    "fs/readDirectory": {"path": "file:///x"},
    "fs/remove": {"path": "file:///x"},
    "fs/copy": {"sourcePath": "file:///x", "destinationPath": "file:///y", "recursive": False},
    "fs/open": {"handleId": "1", "path": "file:///x"},
    "fs/readBlock": {"handleId": "1", "offset": 0, "len": 1},
    "fs/writeBlock": {"handleId": "1", "offset": 0, "chunk": "aGk="},
    "fs/close": {"handleId": "1"},
    "fs/walk": {
        "path": "file:///x",
        "options": {"maxDepth": 1, "maxDirectories": 1, "maxEntries": 1, "followDirectorySymlinks": False},
    },
    "fs/watchMissing": {"watchId": 1, "missing": ["file:///x"]},
}
"""Params that are in order, for each method that is not about processes."""


@pytest.mark.case(290)
@pytest.mark.parametrize("method", [method for method in EARLY if method in METHODS])
async def test_nothing_works_before_the_handshake(daemon: Daemon, method: str) -> None:
    """Each method names its family and the step that is missing."""
    async with connect(daemon.url, handshake=False) as peer:
        for missing in ("initialize", "initialized"):
            answer = await peer.request(method, EARLY[method])
            assert answer.code == REFUSED
            assert f"{missing} " in answer.message
            assert f"{METHODS[method].family} methods" in answer.message
            if missing == "initialize":
                (await peer.request("initialize", {"clientName": "tests"})).ok()


# --- configuration -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("codex").resolve()


@pytest.fixture
def codex_home(shared_home: Path) -> Path:
    """The configuration folder of `configured`, empty."""
    shutil.rmtree(shared_home)
    shared_home.mkdir()
    return shared_home


@pytest.fixture(scope="module")
def configured(target: str, shared_home: Path) -> Iterator[Daemon]:
    """A server whose user has a configuration folder of the tests'."""
    with running(start_daemon(target, env={**os.environ, "CODEX_HOME": str(shared_home)})) as daemon:
        yield daemon


async def read_config(
    daemon: Daemon,
    *key_paths: list[str],
    cwd: str = "file:///tmp",
    requirements: list[list[str]] | None = None,
) -> Answer:
    params = {"cwd": cwd, "configPaths": key_paths, "requirementsPaths": requirements or []}
    async with connect(daemon.url) as peer:
        return await peer.request("environmentConfig/read", params)


def parsed_layers(answer: Answer) -> list[dict[str, Any]]:
    return [tomllib.loads(layer["toml"]) for layer in answer.ok()["config"]["layers"]]


CONFIG = """
model = 5  # not checked
list = [1, {a = 1, b = [{c = 1979-05-27T07:32:00Z}]}]
[one]
secret = "s\u00e9\\nk"
[one.two]
three = {four = 4}
[empty]
[[many]]
x = 1.5
[[many]]
y = inf
"""


@pytest.mark.case(283)
@pytest.mark.parametrize(
    ("key_paths", "told"),
    [
        ([["one"]], {"one": {"secret": "sé\nk", "two": {"three": {"four": 4}}}}),
        ([["one", "two"]], {"one": {"two": {"three": {"four": 4}}}}),
        ([["one", "two"], ["one"]], {"one": {"secret": "sé\nk", "two": {"three": {"four": 4}}}}),
        ([["model"], ["empty"]], {"model": 5, "empty": {}}),
        ([["many", "x"]], {"many": [{"x": 1.5}, {"y": float("inf")}]}),
        ([["model", "x"]], {"model": 5}),
        ([["one", "nothing"]], {"one": {}}),
    ],
    ids=str,
)
async def test_only_what_was_asked_for_is_told(
    configured: Daemon, codex_home: Path, key_paths: list[list[str]], told: dict[str, Any]
) -> None:
    """Of each file only the named parts go out, values of any type as they are; nothing else of it does."""
    (codex_home / "config.toml").write_text(CONFIG)
    answer = await read_config(configured, *key_paths)
    result = answer.ok()
    assert parsed_layers(answer) == [told]
    assert result["codexHomeDir"] == result["config"]["layers"][0]["baseDir"] == file_uri(str(codex_home))
    assert result["config"]["layers"][0]["source"] == f"user ({codex_home}/config.toml)"
    assert result["config"]["cloudInsertionIndex"] == 0
    assert result["requirements"] == {"layers": [], "cloudInsertionIndex": 0}
    assert result["userHomeDir"] == file_uri(os.environ["HOME"])
    assert result["hostname"] == os.uname().nodename


@pytest.mark.case(283)
async def test_values_survive_being_told(configured: Daemon, codex_home: Path) -> None:
    """All types of TOML come through."""
    (codex_home / "config.toml").write_text("\ufeff" + CONFIG, "utf-8")
    [told] = parsed_layers(await read_config(configured, ["list"], ["many"], ["one"]))
    assert told == {key: tomllib.loads(CONFIG)[key] for key in ("list", "many", "one")}


@pytest.mark.case(283)
async def test_what_is_not_there_has_no_layer(configured: Daemon, codex_home: Path) -> None:
    """Neither a file that is missing, nor one that says nothing of it, nor one of another name."""
    (codex_home / "managed_config.toml").write_text("model = 1")
    assert (await read_config(configured, ["model"])).ok()["config"]["layers"] == []
    (codex_home / "config.toml").write_text("other = 1")
    assert (await read_config(configured, ["model"])).ok()["config"]["layers"] == []


@pytest.mark.case(284)
async def test_a_request_that_asks_for_nothing_is_refused(daemon: Daemon) -> None:
    """So is a path of no keys; a folder that does not exist is nothing wrong."""
    assert (await read_config(daemon)).code == BAD_PARAMS
    assert (await read_config(daemon, [])).code == BAD_PARAMS
    assert (await read_config(daemon, ["a"], requirements=[[]])).code == BAD_PARAMS
    assert (await read_config(daemon, ["a"], cwd="/tmp")).code == BAD_PARAMS
    (await read_config(daemon, ["a"], cwd="file:///no/such/folder")).ok()


@pytest.mark.case(294)
@pytest.mark.parametrize(
    "content",
    [
        *(b"model = hunter2", b"a = 1\na = 2", b"a = '\xff hunter2'", b"[a", b"a=" + b"[" * 5000),
        *(b"model=" + b"[" * 350 + b"]" * 350, None),
    ],
    ids=["value", "twice", "bytes", "table", "deep", "deep to write", "folder"],
)
async def test_a_broken_configuration_is_told_by_its_path(
    configured: Daemon, codex_home: Path, content: bytes | None
) -> None:
    """The error names the file, and repeats nothing of it; the server goes on."""
    path = codex_home / "config.toml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    answer = await read_config(configured, ["model"])
    assert answer.code == INTERNAL
    assert str(path) in answer.message
    assert "hunter2" not in answer.message


@pytest.mark.case(294)
@pytest.mark.ours_only("the reference has no bound but memory")
async def test_a_configuration_is_read_up_to_a_bound(configured: Daemon, codex_home: Path) -> None:
    """What is not the size of a configuration is none."""
    (codex_home / "config.toml").write_text("a = 1\n" + "# long\n" * (1 << 18))
    answer = await read_config(configured, ["a"])
    assert answer.code == INTERNAL
    assert "1048576" in answer.message


@pytest.mark.case(294)
async def test_a_codex_home_that_is_none_is_told(target: str, tmp_path: Path) -> None:
    """A setting that leads nowhere is not the same as no configuration."""
    environ = {**os.environ, "CODEX_HOME": str(tmp_path / "nothing")}
    with running(start_daemon(target, env=environ)) as daemon:
        answer = await read_config(daemon, ["a"])
    assert answer.code == INTERNAL
    assert "CODEX_HOME" in answer.message


@pytest.mark.case(283)
def test_layers_are_told_from_the_weakest_to_the_strongest(tmp_path: Path) -> None:
    """The machine's configuration, the user's, and what is managed; a client's own goes behind the machine's."""
    system, codex_home = tmp_path / "etc", tmp_path / "codex"
    system.mkdir()
    codex_home.mkdir()
    files = {
        "config.toml": "a = 1",
        "managed_config.toml": "a = 3",
        "requirements.toml": "a = 4",
    }
    for name, content in files.items():
        (system / name).write_text(content)
    (codex_home / "config.toml").write_text("a = 2")
    params = EnvironmentConfigReadParams(cwd="file:///", config_paths=[["a"]], requirements_paths=[["a"]])

    def read() -> tuple[list[str], int, list[str], int]:
        environ = {"CODEX_HOME": str(codex_home), "HOME": "/home/me"}
        result = read_environment_config(params, environ, os.fsencode(system))
        return (
            [f"{layer.source.replace(str(tmp_path), '')}: {layer.toml}" for layer in result.config.layers],
            result.config.cloud_insertion_index,
            [
                f"{layer.source.replace(str(tmp_path), '')}: {layer.toml}"
                for layer in result.requirements.layers
            ],
            result.requirements.cloud_insertion_index,
        )

    user = "user (/codex/config.toml): a = 2\n"
    managed = "legacy managed_config.toml (/etc/managed_config.toml): a = 3\n"
    requirements = ["/etc/requirements.toml: a = 4\n"]
    assert read() == (["system (/etc/config.toml): a = 1\n", user, managed], 1, requirements, 1)
    (system / "config.toml").unlink()
    assert read() == ([user, managed], 0, requirements, 1)
    (system / "requirements.toml").write_text("b = 1")
    assert read() == ([user, managed], 0, [], 0)
    (system / "requirements.toml").write_text("b = ")
    with pytest.raises(RpcError) as failure:
        read()
    assert failure.value.code == ErrorCode.INTERNAL_ERROR


def test_without_codex_home_the_files_are_in_the_home(tmp_path: Path) -> None:
    """The folder need not exist, and a home that has no URI is not told."""
    params = EnvironmentConfigReadParams(cwd="file:///", config_paths=[["a"]], requirements_paths=[])
    nothing = os.fsencode(tmp_path)
    result = read_environment_config(params, {"HOME": str(tmp_path)}, nothing)
    assert (result.user_home_dir, result.codex_home_dir) == (
        file_uri(str(tmp_path)),
        file_uri(str(tmp_path / ".codex")),
    )
    result = read_environment_config(params, {"HOME": "home"}, nothing)
    assert (result.user_home_dir, result.codex_home_dir) == (None, file_uri(os.path.abspath("home/.codex")))


# --- capability roots --------------------------------------------------------------------------------

Put = Callable[[str, str | bytes], None]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes a file below the test's folder, and the folders that it needs."""

    def write(name: str, content: str | bytes) -> None:
        path = os.fsencode(tmp_path) + b"/" + os.fsencode(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)

    return write


async def discovered(peer: Peer, *paths: Path | str) -> list[dict[str, Any]]:
    roots = [
        {"id": str(n), "path": p if isinstance(p, str) else file_uri(str(p))} for n, p in enumerate(paths)
    ]
    result = (await peer.request("capabilityRoots/discoverV1", {"roots": roots})).ok()
    assert [root["id"] for root in result["roots"]] == [root["id"] for root in roots]
    return result["roots"]


def names(files: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """Each file's contents, by its path below a folder."""
    return {file["path"].removeprefix(f"{file_uri(str(folder))}/"): file["contents"] for file in files}


def skills(root: dict[str, Any], folder: Path) -> dict[str, str]:
    return names([skill["instructions"] for skill in root["skills"]], folder)


@pytest.mark.case(285)
async def test_the_first_manifest_of_a_plugin_is_told(daemon: Daemon, put: Put, tmp_path: Path) -> None:
    """Of three the first; plugins below have theirs told too, and a folder inside a plugin that of the plugin."""
    for kind in ("cursor", "claude", "codex"):
        put(f".{kind}-plugin/plugin.json", json.dumps({"name": kind}))
    put("below/.claude-plugin/plugin.json", "not json")
    put("below/.codex-plugin/plugin.json", "neither")
    put("other/plugin.json", "not a manifest")
    async with connect(daemon.url) as peer:
        root, inner, own = await discovered(peer, tmp_path, tmp_path / "other", tmp_path / ".codex-plugin")
    first = {".codex-plugin/plugin.json": '{"name": "codex"}'}
    assert names([root["plugin"]["manifest"]], tmp_path) == first
    assert names(root["namespaceManifests"], tmp_path) == {
        **first,
        "below/.codex-plugin/plugin.json": "neither",
    }
    assert len(root["namespaceManifests"]) == 2
    for folder in (inner, own):
        assert folder["plugin"] is None
        assert len(folder["namespaceManifests"]) == 1
        assert names(folder["namespaceManifests"], tmp_path) == first


@pytest.mark.case(285)
async def test_what_a_manifest_names_is_told(daemon: Daemon, put: Put, tmp_path: Path) -> None:
    """Its files, or the usual ones; servers that stand in it need none."""
    manifests: dict[str, object] = {
        "named": {"mcpServers": "./m.json", "apps": "././a b%.json/"},
        "inline": {"mcpServers": {}, "apps": {}},
        "usual": {"mcpServers": ["x"], "apps": None},
        "broken": [],
    }
    for name, manifest in manifests.items():
        put(f"{name}/.codex-plugin/plugin.json", json.dumps(manifest))
        for file in ("m.json", "a b%.json", ".mcp.json", ".app.json"):
            put(f"{name}/{file}", file)
    async with connect(daemon.url) as peer:
        roots = await discovered(peer, *(tmp_path / name for name in manifests))
    told = [
        [file and file["contents"] for file in (root["plugin"]["mcpConfig"], root["plugin"]["appsConfig"])]
        for root in roots
    ]
    usual = [".mcp.json", ".app.json"]
    assert told == [["m.json", "a b%.json"], [None, ".app.json"], usual, usual]
    assert roots[0]["plugin"]["appsConfig"]["path"].endswith("/named/a%20b%25.json")
    assert not any(root["warnings"] for root in roots)


@pytest.mark.case(286)
async def test_skills_are_told_and_what_cannot_be_is_a_warning(
    daemon: Daemon, put: Put, tmp_path: Path
) -> None:
    """One that is no text keeps nobody from the others; links to folders are followed, hidden ones looked into."""
    put("a/SKILL.md", "A")
    put("a/agents/openai.yaml", "meta")
    put("b/SKILL.md", b"\xff")
    put("c/SKILL.md", "x" * ((1 << 20) + 1))
    put(".hidden/SKILL.md", "H")
    put("d/skill.md", "no")
    os.mkfifo(tmp_path / "d" / "SKILL.md")
    (tmp_path / "e").symlink_to("a")
    (tmp_path / "z").symlink_to(".")
    put("1/2/3/4/5/6/SKILL.md", "6")
    put("1/2/3/4/5/6/7/SKILL.md", "7")
    async with connect(daemon.url) as peer:
        [root] = await discovered(peer, tmp_path)
    assert skills(root, tmp_path) == {
        ".hidden/SKILL.md": "H",
        "1/2/3/4/5/6/SKILL.md": "6",
        "a/SKILL.md": "A",
    }
    metadata = [skill["metadata"] for skill in root["skills"]]
    assert [file and file["contents"] for file in metadata] == [None, None, "meta"]
    assert root["error"] is None
    assert [next(n for n in "bc" if f"/{n}/SKILL.md" in text) for text in root["warnings"]] == ["b", "c"]


@pytest.mark.case(286)
async def test_files_are_told_in_the_spelling_of_the_root(daemon: Daemon, put: Put, tmp_path: Path) -> None:
    """A client finds its own escapes again."""
    put("skills/a/SKILL.md", "A")
    async with connect(daemon.url) as peer:
        [root] = await discovered(peer, f"{file_uri(str(tmp_path))}/x/../%73kills/")
    assert root["path"] == f"{file_uri(str(tmp_path))}/%73kills/"
    assert root["skills"][0]["instructions"]["path"] == f"{file_uri(str(tmp_path))}/%73kills/a/SKILL.md"


@pytest.mark.case(287)
@pytest.mark.parametrize(
    "declared",
    [
        "../x.json",
        "x.json",
        "",
        "./",
        "/etc/passwd",
        ".//x.json",
        "./a/../x.json",
        "./a\\..\\x.json",
        "./a\0b",
    ],
    ids=ascii,
)
async def test_a_manifest_leads_nowhere_but_below(
    daemon: Daemon, put: Put, tmp_path: Path, declared: str
) -> None:
    """A file that it names elsewhere is passed over with a warning."""
    put("root/.codex-plugin/plugin.json", json.dumps({"apps": declared}))
    put("x.json", "secret")
    put("root/x.json", "own")
    async with connect(daemon.url) as peer:
        [root] = await discovered(peer, tmp_path / "root")
    assert root["plugin"]["appsConfig"] is None
    [warning] = root["warnings"]
    assert "apps" in warning
    assert "/root/.codex-plugin/plugin.json" in warning


@pytest.mark.case(288)
async def test_what_is_wrong_with_a_root_is_its_own(daemon: Daemon, put: Put, tmp_path: Path) -> None:
    """Missing, no folder, of another system: its error tells, and the other roots are searched."""
    put("a/SKILL.md", "A")
    wrong = (tmp_path / "missing", tmp_path / "a" / "SKILL.md", "file:///C:/x", "file://host/x")
    async with connect(daemon.url) as peer:
        *failed, good = await discovered(peer, *wrong, tmp_path)
        for path, root in zip(wrong, failed, strict=True):
            assert (path if isinstance(path, str) else file_uri(str(path))) in root["error"]
            assert root["plugin"] is None
            assert root["skills"] == root["namespaceManifests"] == root["warnings"] == []
        assert list(skills(good, tmp_path)) == ["a/SKILL.md"]
        params = {"roots": [{"id": "x", "path": "/tmp"}]}
        assert (await peer.request("capabilityRoots/discoverV1", params)).code == BAD_PARAMS


@pytest.mark.case(289)
async def test_roots_are_bounded(daemon: Daemon) -> None:
    """128 are taken, one more is not."""
    async with connect(daemon.url) as peer:
        assert len(await discovered(peer, *["file:///no/such/root"] * 128)) == 128
        params = {"roots": [{"id": "x", "path": "file:///no"}] * 129}
        assert (await peer.request("capabilityRoots/discoverV1", params)).code == REFUSED
        assert await discovered(peer) == []


@pytest.mark.case(292)
async def test_the_files_of_a_root_are_bounded(daemon: Daemon, put: Put, tmp_path: Path) -> None:
    """What fits into 16 MiB is told, and a warning for each file that does not."""
    for n in range(17):
        put(f"{n:02}/SKILL.md", "x" * (1 << 20))
    put("99/SKILL.md", "")
    async with connect(daemon.url) as peer:
        [root] = await discovered(peer, tmp_path)
    assert [*skills(root, tmp_path)] == [f"{n:02}/SKILL.md" for n in [*range(16), 99]]
    assert len(root["warnings"]) == 1


@pytest.mark.case(292)
async def test_a_search_is_bounded(daemon: Daemon, put: Put, tmp_path: Path) -> None:
    """Not everything below a root is looked at, and who asked is told so."""
    for n in range(2_001):
        (tmp_path / f"{n:04}").mkdir()
    put("2000/SKILL.md", "too far")
    put("0000/SKILL.md", "near")
    async with connect(daemon.url) as peer:
        [root] = await discovered(peer, tmp_path)
    assert [*skills(root, tmp_path)] == ["0000/SKILL.md"]
    assert len(root["warnings"]) == 1


@pytest.mark.case(292)
async def test_an_answer_is_bounded(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roots that one answer has no room for say so themselves."""
    put("SKILL.md", "x" * 100)
    monkeypatch.setattr(_environment_handlers, "RESULT_BYTES", 150)
    monkeypatch.setattr(_environment_handlers, "ROOTS_AT_ONCE", 1)
    root = PathUri.of(os.fsencode(tmp_path))
    async with trio.open_nursery() as nursery:
        found = await discover_all(Disk(nursery), [(str(n), root) for n in range(4)])
    assert [(root.id, len(root.skills), root.error is None) for root in found] == [
        *(("0", 1, True), ("1", 1, True)),
        *(("2", 0, False), ("3", 0, False)),
    ]


@pytest.mark.case(293)
def test_names_that_are_no_text_are_told_exactly(put: Put, tmp_path: Path) -> None:
    """A skill below bytes that are not UTF-8, or below a line end, is found, and its URI leads there."""
    put("n\udcff\n/SKILL.md", "here")
    found = discover("x", PathUri.of(os.fsencode(tmp_path)), lambda: None)
    [skill] = found.skills
    assert skill.instructions.path == f"{file_uri(str(tmp_path))}/n%FF%0A/SKILL.md"
    assert skill.instructions.contents == "here"
    assert found.warnings == []


@pytest.mark.case(295)
@pytest.mark.ours_only("the reference confines what it does; here nothing is confined")
async def test_a_root_that_is_to_be_confined_is_refused(daemon: Daemon) -> None:
    """A search without the confinement that was asked for does not take place."""
    async with connect(daemon.url) as peer:
        for sandbox, code in (
            ({"type": "workspaceWrite"}, BAD_PARAMS),
            ({"type": "disabled"}, None),
            (None, None),
        ):
            params = {"roots": [{"id": "x", "path": "file:///no", "sandbox": sandbox}]}
            answer = await peer.request("capabilityRoots/discoverV1", params)
            assert (answer.error and answer.code) == code
