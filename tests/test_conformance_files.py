"""fs/*: whole files and folders, each promise against this daemon and, where there is one, the reference."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon, command_of, running, start_daemon
from tsupervise_protocol.path_uri import file_uri
from wire import Answer, Peer, connect

INVALID_REQUEST = -32600
INVALID_PARAMS = -32602
SYSTEM = -32603
NOT_FOUND = -32004

READ_LIMIT = 512 << 20


@dataclass
class Folder:
    """A folder of the test's own, and a peer to ask about what is in it."""

    peer: Peer
    path: Path

    def uri(self, name: str | bytes = "") -> str:
        return file_uri(os.fsencode(self.path) + b"/" + os.fsencode(name))

    async def ask(self, method: str, name: str | bytes = "", **members: Any) -> Answer:
        return await self.peer.request(f"fs/{method}", {"path": self.uri(name), **members})

    async def read(self, name: str | bytes, **members: Any) -> bytes:
        return base64.b64decode((await self.ask("readFile", name, **members)).ok()["dataBase64"])

    async def write(self, name: str | bytes, data: bytes, **members: Any) -> Answer:
        return await self.ask("writeFile", name, dataBase64=base64.b64encode(data).decode(), **members)

    async def copy(self, source: str, target: str, **members: Any) -> Answer:
        return await self.peer.request(
            "fs/copy", {"sourcePath": self.uri(source), "destinationPath": self.uri(target), **members}
        )


@pytest.fixture
async def folder(daemon: Daemon, tmp_path: Path) -> Any:
    async with connect(daemon.url) as peer:
        yield Folder(peer, tmp_path)


@pytest.mark.case(201, 202)
async def test_a_file_is_read_whole(folder: Folder) -> None:
    """Its bytes come as base64, of an empty one none; up to a megabyte and beyond, and through a link."""
    for name, data in (("a", b"hello"), ("empty", b""), ("large", os.urandom(3 << 20))):
        (folder.path / name).write_bytes(data)
        assert await folder.read(name) == data
    (folder.path / "link").symlink_to("a")
    assert await folder.read("link") == b"hello"
    assert (await folder.ask("readFile", "empty")).ok() == {"dataBase64": ""}


@pytest.mark.case(202)
async def test_a_file_of_the_kernel_is_read_to_its_end(folder: Folder) -> None:
    """Its size says nothing: it is 0."""
    answer = await folder.peer.request("fs/readFile", {"path": "file:///proc/self/status"})
    assert base64.b64decode(answer.ok()["dataBase64"]).startswith(b"Name:")


@pytest.mark.case(203, 204)
async def test_what_is_no_file_is_not_read(folder: Folder) -> None:
    """A folder, a pipe that nobody writes to and a device are refused at once."""
    os.mkfifo(folder.path / "fifo")
    for uri in (folder.uri(), folder.uri("fifo"), "file:///dev/null"):
        answer = await folder.peer.request("fs/readFile", {"path": uri})
        assert answer.code == INVALID_REQUEST
        assert "is not a file" in answer.message


@pytest.mark.case(204)
@pytest.mark.ours_only("the reference passes on that a socket cannot be opened")
async def test_a_socket_is_not_read(folder: Folder) -> None:
    """It is refused as everything else that is no file."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.path / "socket"))
        assert (await folder.ask("readFile", "socket")).code == INVALID_REQUEST


@pytest.mark.case(205, 206, 207)
async def test_errors_of_the_system_are_told_by_class_and_number(folder: Folder) -> None:
    """What is missing has a code of its own; text and number are those of the system."""
    (folder.path / "a").touch()
    (folder.path / "loop").symlink_to("loop")
    missing = await folder.ask("readFile", "missing")
    assert (missing.code, "(os error 2)" in missing.message) == (NOT_FOUND, True)
    below = await folder.ask("readFile", "a/x")
    assert (below.code, "(os error 20)" in below.message) == (SYSTEM, True)
    loop = await folder.ask("readFile", "loop")
    assert (loop.code, "(os error 40)" in loop.message) == (SYSTEM, True)


@pytest.fixture
def unprivileged(target: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    """A server that may not read everything."""
    if os.geteuid() != 0:
        with running(start_daemon(target)) as daemon:
            yield daemon
        return
    options = ["--reuid=65534", "--regid=65534", "--clear-groups"]
    arguments = ("--allow-other-users",) if target == "ours" else ()
    home = tmp_path_factory.mktemp("home")
    os.chown(home, 65534, 65534)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home)}
    command = ["setpriv", *options, *command_of(target)]
    with running(start_daemon(target, *arguments, command=command, env=env)) as daemon:
        yield daemon


@pytest.mark.case(208)
async def test_what_may_not_be_read_is_told(unprivileged: Daemon) -> None:
    """A file that is closed to the server's user is an invalid request, with the system's number."""
    path = f"/tmp/tsupervise-closed-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT, 0o000))
    try:
        async with connect(unprivileged.url) as peer:
            answer = await peer.request("fs/readFile", {"path": file_uri(path)})
    finally:
        os.unlink(path)
    assert (answer.code, "(os error 13)" in answer.message) == (INVALID_REQUEST, True)


@pytest.mark.case(209)
async def test_a_file_that_is_too_large_is_not_read(folder: Folder) -> None:
    """One byte above the limit, and the limit is named."""
    with (folder.path / "large").open("wb") as file:
        file.truncate(READ_LIMIT + 1)
    answer = await folder.ask("readFile", "large")
    assert (answer.code, str(READ_LIMIT) in answer.message) == (INVALID_REQUEST, True)


@pytest.mark.case(210, 211)
async def test_names_of_any_bytes_can_be_said(folder: Folder) -> None:
    """What is no UTF-8, line ends, and what means something in a URI: read, and named again."""
    for name, ending in (
        (b"n\xff\xfe", "n%FF%FE"),
        (b"sp ace#?%.txt", "sp%20ace%23%3F%25.txt"),
        (b"two\nlines", "two%0Alines"),
    ):
        (folder.path / os.fsdecode(name)).write_bytes(name)
        assert await folder.read(name) == name
        assert (await folder.ask("canonicalize", name)).ok()["path"].endswith(f"/{ending}")


@pytest.mark.case(219)
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a folder in the root")
async def test_a_path_without_a_plain_uri_is_told_in_the_opaque_form(folder: Folder) -> None:
    """Where links lead to a path that looks like one of Windows, its bytes are in base64."""
    target = f"/C:/{folder.path.name}"
    os.makedirs("/C:", exist_ok=True)  # of several who run this at a time, the last one removes it
    os.mkdir(target)
    try:
        (folder.path / "link").symlink_to(target)
        answer = await folder.ask("canonicalize", "link")
    finally:
        os.rmdir(target)
        with suppress(OSError):
            os.rmdir("/C:")
    text = base64.urlsafe_b64encode(target.encode()).decode().rstrip("=")
    assert answer.ok() == {"path": f"file:///%00/bad/path/{text}"}


@pytest.mark.case(221, 222, 223)
async def test_metadata_tells_of_the_target_and_whether_there_is_a_link(folder: Folder) -> None:
    """Kind, size and times are those of what the path leads to; what leads nowhere is not found."""
    (folder.path / "a").write_bytes(b"hello")
    os.utime(folder.path / "a", ns=(0, 1_234_567_890))
    (folder.path / "link").symlink_to("a")
    (folder.path / "dangling").symlink_to("nowhere")
    os.mkfifo(folder.path / "fifo")
    for name in ("a", "link"):
        found = (await folder.ask("getMetadata", name)).ok()
        assert (found["isDirectory"], found["isFile"], found["size"]) == (False, True, 5)
        assert (found["isSymlink"], found["modifiedAtMs"]) == (name == "link", 1234)
    found = (await folder.ask("getMetadata")).ok()
    assert (found["isDirectory"], found["isFile"], found["isSymlink"]) == (True, False, False)
    found = (await folder.ask("getMetadata", "fifo")).ok()
    assert (found["isDirectory"], found["isFile"]) == (False, False)
    assert (await folder.ask("getMetadata", "dangling")).code == NOT_FOUND


@pytest.mark.case(224, 225)
async def test_a_file_is_rewritten_in_its_place(folder: Folder) -> None:
    """Other names of it have the new content, inode and mode stay; a link that leads nowhere gets its target."""
    (folder.path / "a").write_bytes(b"a long old content")
    (folder.path / "a").chmod(0o640)
    os.link(folder.path / "a", folder.path / "b")
    before = (folder.path / "a").stat()
    assert (await folder.write("a", b"new")).ok() == {}
    after = (folder.path / "b").stat()
    assert (folder.path / "b").read_bytes() == b"new"
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    (folder.path / "dangling").symlink_to("target")
    (await folder.write("dangling", b"made")).ok()
    assert (folder.path / "target").read_bytes() == b"made"
    (await folder.write("a", b"")).ok()
    assert (folder.path / "a").read_bytes() == b""


@pytest.mark.case(226)
@pytest.mark.parametrize("text", ["aGk", "aGk=\n", "aGl=", "aG-="])
async def test_what_is_no_base64_is_not_written(folder: Folder, text: str) -> None:
    """Without padding, with a line end, with stray bits: refused, and the file is as it was."""
    (folder.path / "a").write_bytes(b"old")
    assert (await folder.ask("writeFile", "a", dataBase64=text)).code == INVALID_REQUEST
    assert (folder.path / "a").read_bytes() == b"old"


@pytest.mark.case(228, 229, 230)
async def test_folders_are_made_with_those_above_or_alone(folder: Folder) -> None:
    """By default all that are missing, and twice is no error; alone, the one above has to be there, itself not."""
    assert (await folder.ask("createDirectory", "a/b/c")).ok() == {}
    assert (await folder.ask("createDirectory", "a/b/c", recursive=None)).ok() == {}
    assert (folder.path / "a/b/c").is_dir()
    assert (await folder.ask("createDirectory", "x/y", recursive=False)).code == NOT_FOUND
    answer = await folder.ask("createDirectory", "a", recursive=False)
    assert (answer.code, "(os error 17)" in answer.message) == (SYSTEM, True)


@pytest.mark.case(230)
async def test_what_is_in_the_way_of_a_folder_is_told(folder: Folder) -> None:
    """A file, or a link that leads nowhere, is there already; a link to a folder will do."""
    (folder.path / "file").touch()
    (folder.path / "dangling").symlink_to("nowhere")
    (folder.path / "folder").mkdir()
    (folder.path / "link").symlink_to("folder")
    for name in ("file", "dangling"):
        answer = await folder.ask("createDirectory", name)
        assert (answer.code, "(os error 17)" in answer.message) == (SYSTEM, True)
    (await folder.ask("createDirectory", "link")).ok()


@pytest.mark.case(231, 232, 234)
async def test_remove_says_what_it_cannot_remove(folder: Folder) -> None:
    """A folder that is not empty, unless asked; what is missing, if asked; a way that is none, always."""
    (folder.path / "full").mkdir()
    (folder.path / "full/a").touch()
    full = await folder.ask("remove", "full", recursive=False)
    assert (full.code, "(os error 39)" in full.message) == (SYSTEM, True)
    assert (await folder.ask("remove", "missing")).ok() == {}
    assert (await folder.ask("remove", "missing", force=False)).code == NOT_FOUND
    assert (await folder.ask("remove", "full/a/x")).code == SYSTEM
    assert (await folder.ask("remove", "full")).ok() == {}
    assert os.listdir(folder.path) == []


@pytest.mark.case(233)
async def test_of_a_link_only_the_link_is_removed(folder: Folder) -> None:
    """The folder that it leads to stays with all that is in it; so does one that a tree links to."""
    (folder.path / "kept").mkdir()
    (folder.path / "kept/a").touch()
    (folder.path / "link").symlink_to("kept")
    (folder.path / "tree").mkdir()
    (folder.path / "tree/link").symlink_to("../kept")
    (await folder.ask("remove", "link")).ok()
    (await folder.ask("remove", "tree")).ok()
    assert os.listdir(folder.path) == ["kept"]
    assert os.listdir(folder.path / "kept") == ["a"]


@pytest.mark.case(235, 236)
async def test_a_folder_is_copied_if_it_is_said_and_not_into_itself(folder: Folder) -> None:
    """`recursive` has to be there, and be true for a folder; no target lies in the source, by whatever name."""
    (folder.path / "a").mkdir()
    (folder.path / "link").symlink_to("a")
    assert (await folder.copy("a", "b")).code == INVALID_PARAMS
    assert (await folder.copy("a", "b", recursive=None)).code == INVALID_PARAMS
    assert (await folder.copy("a", "b", recursive=False)).code == INVALID_REQUEST
    for target in ("a", "a/b/c", "link", "link/b"):
        assert (await folder.copy("a", target, recursive=True)).code == INVALID_REQUEST
    assert os.listdir(folder.path / "a") == []


@pytest.mark.case(237)
@pytest.mark.ours_only("the reference empties the file and calls it a success")
@pytest.mark.parametrize("other", ["a", "hard", "soft"])
async def test_a_file_is_not_copied_onto_itself(folder: Folder, other: str) -> None:
    """By its own name, another one or a link: refused, and it keeps its content."""
    (folder.path / "a").write_bytes(b"kept")
    os.link(folder.path / "a", folder.path / "hard")
    (folder.path / "soft").symlink_to("a")
    assert (await folder.copy("a", other, recursive=False)).code == INVALID_REQUEST
    assert (folder.path / "a").read_bytes() == b"kept"


@pytest.mark.case(238)
async def test_a_tree_is_copied_with_modes_and_links(folder: Folder) -> None:
    """Content and mode of files, the text of links; a pipe is left out; folders are merged, files overwritten."""
    source = folder.path / "source"
    (source / "sub").mkdir(parents=True)
    os.mkfifo(source / "fifo")
    (source / "file").write_bytes(b"content")
    (source / "file").chmod(0o741)
    (source / "sub/dangling").symlink_to("no/where")
    (folder.path / "target").mkdir()
    (folder.path / "target/file").write_bytes(b"a longer one that was there")
    (folder.path / "target/other").touch()
    (await folder.copy("source", "target", recursive=True)).ok()
    target = folder.path / "target"
    assert sorted(os.listdir(target)) == ["file", "other", "sub"]
    assert (target / "file").read_bytes() == b"content"
    assert (target / "file").stat().st_mode & 0o7777 == 0o741
    assert os.readlink(target / "sub/dangling") == "no/where"
    again = await folder.copy("source", "target", recursive=True)
    assert (again.code, "(os error 17)" in again.message) == (SYSTEM, True)


@pytest.mark.case(238)
async def test_single_things_are_copied_as_what_they_are(folder: Folder) -> None:
    """A link as a link, a file with its mode, also an empty-looking one of the kernel; a pipe not at all."""
    (folder.path / "file").write_bytes(b"x")
    (folder.path / "file").chmod(0o4751)
    (folder.path / "link").symlink_to("file")
    (folder.path / "folder").mkdir()
    os.mkfifo(folder.path / "fifo")
    (await folder.copy("file", "file2", recursive=False)).ok()
    assert (folder.path / "file2").stat().st_mode & 0o7777 == 0o4751
    (await folder.copy("link", "link2", recursive=False)).ok()
    assert os.readlink(folder.path / "link2") == "file"
    assert (await folder.copy("fifo", "fifo2", recursive=True)).code == INVALID_REQUEST
    assert (await folder.copy("file", "folder", recursive=True)).code == SYSTEM
    assert (await folder.copy("file", "no/file", recursive=True)).code == NOT_FOUND
    params = {"sourcePath": "file:///proc/self/status", "destinationPath": folder.uri("status")}
    (await folder.peer.request("fs/copy", {**params, "recursive": False})).ok()
    assert (folder.path / "status").read_bytes().startswith(b"Name:")


@pytest.mark.case(256)
async def test_a_folder_with_too_many_entries_is_not_listed(folder: Folder) -> None:
    """50,000 are; with one more both numbers are told."""
    for number in range(50_000):
        os.close(os.open(folder.path / str(number), os.O_CREAT | os.O_WRONLY))
    (folder.path / "dangling").symlink_to("nowhere")
    entries = (await folder.ask("readDirectory")).ok()["entries"]
    assert {entry["fileName"] for entry in entries} == {str(number) for number in range(50_000)}
    (folder.path / "one more").touch()
    answer = await folder.ask("readDirectory")
    assert answer.code == SYSTEM
    assert "50001" in answer.message
    assert "50000" in answer.message


@pytest.mark.case(257)
async def test_a_folder_is_listed_by_what_its_entries_lead_to(folder: Folder) -> None:
    """Links count as their targets, and are left out if they have none; what is no UTF-8 is replaced."""
    (folder.path / "folder").mkdir()
    (folder.path / "file").touch()
    (folder.path / os.fsdecode(b"\xff\n")).touch()
    os.mkfifo(folder.path / "fifo")
    (folder.path / "to folder").symlink_to("folder")
    (folder.path / "to file").symlink_to("file")
    (folder.path / "dangling").symlink_to("nowhere")
    (folder.path / "loop").symlink_to("loop")
    entries = (await folder.ask("readDirectory")).ok()["entries"]
    assert {entry["fileName"]: (entry["isDirectory"], entry["isFile"]) for entry in entries} == {
        "folder": (True, False),
        "file": (False, True),
        "\ufffd\n": (False, True),
        "fifo": (False, False),
        "to folder": (True, False),
        "to file": (False, True),
    }
    assert (await folder.ask("readDirectory", "file")).code == SYSTEM
    assert (await folder.ask("readDirectory", "missing")).code == NOT_FOUND


# --- without following links -------------------------------------------------------------------------


LINKED: dict[str, tuple[dict[str, Any], int, int]] = {
    # The method and its members; the codes for a link as the last name, and for one before it.
    "readFile": ({}, SYSTEM, SYSTEM),
    "writeFile": ({"dataBase64": "aGk="}, SYSTEM, SYSTEM),
    "createDirectory": ({}, SYSTEM, SYSTEM),
    "getMetadata": ({}, INVALID_REQUEST, SYSTEM),
    "remove": ({"recursive": False}, INVALID_REQUEST, SYSTEM),
}


@pytest.mark.case(300)
@pytest.mark.parametrize("method", list(LINKED))
async def test_with_follow_symlinks_false_no_link_is_gone_through(folder: Folder, method: str) -> None:
    """Neither at the end of a path nor before it; nothing is read, made, written or removed behind one."""
    members, last, before = LINKED[method]
    (folder.path / "folder").mkdir()
    (folder.path / "folder/file").write_bytes(b"kept")
    (folder.path / "link").symlink_to("folder/file")
    (folder.path / "way").symlink_to("folder")
    for name, code in (("link", last), ("way", last), ("way/file", before), ("way/new", before)):
        assert (await folder.ask(method, name, followSymlinks=False, **members)).code == code, name
    assert os.listdir(folder.path / "folder") == ["file"]
    assert (folder.path / "folder/file").read_bytes() == b"kept"
    assert (folder.path / "link").is_symlink()
    assert (folder.path / "way").is_symlink()


@pytest.mark.case(300)
async def test_with_follow_symlinks_false_plain_paths_are_as_ever(folder: Folder) -> None:
    """Made, written, read, looked at and removed; what is no file is refused."""
    (await folder.ask("createDirectory", "a/b", followSymlinks=False)).ok()
    (await folder.write("a/b/c", b"hello", followSymlinks=False)).ok()
    assert await folder.read("a/b/c", followSymlinks=False) == b"hello"
    found = (await folder.ask("getMetadata", "a/b/c", followSymlinks=False)).ok()
    assert (found["isFile"], found["isSymlink"], found["size"]) == (True, False, 5)
    born = os.stat(folder.path / "a/b/c").st_ctime_ns // 1_000_000
    assert abs(found["createdAtMs"] - born) < 60_000
    for name in ("a/b/c", "a/b", "a", "a"):
        (await folder.ask("remove", name, followSymlinks=False, recursive=False)).ok()
    missing = {"followSymlinks": False, "recursive": False, "force": False}
    assert (await folder.ask("remove", "a", **missing)).code == NOT_FOUND
    assert (await folder.ask("readFile", followSymlinks=False)).code == INVALID_REQUEST
    assert (await folder.write("", b"", followSymlinks=False)).code == SYSTEM
    found = await folder.peer.request("fs/getMetadata", {"path": "file:///", "followSymlinks": False})
    assert found.ok()["isDirectory"]


@pytest.mark.case(300)
@pytest.mark.ours_only("the reference refuses this for every path")
async def test_a_tree_is_removed_without_following_links(folder: Folder) -> None:
    """`recursive` goes with `followSymlinks: false`: the tree goes, and nothing through a link."""
    (folder.path / "tree/sub").mkdir(parents=True)
    (folder.path / "kept").mkdir()
    (folder.path / "kept/a").touch()
    (folder.path / "tree/sub/link").symlink_to("../../kept")
    (folder.path / "way").symlink_to("kept")
    (await folder.ask("remove", "tree", followSymlinks=False)).ok()
    assert (await folder.ask("remove", "way", followSymlinks=False)).code == INVALID_REQUEST
    assert (await folder.ask("remove", "way/a", followSymlinks=False)).code == SYSTEM
    assert sorted(os.listdir(folder.path)) == ["kept", "way"]
    assert os.listdir(folder.path / "kept") == ["a"]


# --- params ------------------------------------------------------------------------------------------


@pytest.mark.case(301)
async def test_null_is_the_same_as_nothing_where_it_may_stand(folder: Folder) -> None:
    """`sandbox`, `followSymlinks`, `recursive` and `force` may be null; unknown members do not matter."""
    (await folder.ask("createDirectory", "a/b", recursive=None, followSymlinks=None, sandbox=None)).ok()
    (await folder.write("a/b/c", b"x", followSymlinks=None, more={"deep": [1]})).ok()
    assert await folder.read("a/b/c", followSymlinks=None, sandbox=None) == b"x"
    (await folder.ask("getMetadata", "a", followSymlinks=None)).ok()
    (await folder.ask("remove", "a", recursive=None, force=None, followSymlinks=None)).ok()
    assert os.listdir(folder.path) == []


@pytest.mark.case(301)
@pytest.mark.parametrize(
    ("method", "members"),
    [
        ("readFile", {"followSymlinks": 1}),
        ("readFile", {"path": None}),
        ("readFile", {"path": 7}),
        ("readFile", {"path": "/tmp"}),
        ("writeFile", {}),
        ("writeFile", {"dataBase64": None}),
        ("createDirectory", {"recursive": "yes"}),
        ("remove", {"force": 0}),
        ("canonicalize", {"path": ["file:///"]}),
        ("copy", {}),
    ],
)
async def test_params_of_the_wrong_shape_are_told(
    folder: Folder, method: str, members: dict[str, Any]
) -> None:
    """A member that is missing or of another type is an invalid parameter, and nothing is done."""
    assert (await folder.ask(method, "a", **members)).code == INVALID_PARAMS
    assert os.listdir(folder.path) == []


@pytest.mark.case(301)
@pytest.mark.ours_only("the reference can confine these")
@pytest.mark.parametrize("method", ["readFile", "remove", "canonicalize", "readDirectory"])
async def test_a_sandbox_that_cannot_be_kept_is_refused(folder: Folder, method: str) -> None:
    """Nothing is done without the confinement that was asked for; asking for none is fine."""
    (folder.path / "a").mkdir()
    sandbox = {"type": "managed"}
    assert (await folder.ask(method, "a", sandbox=sandbox)).code == INVALID_PARAMS
    assert os.listdir(folder.path) == ["a"]
    (await folder.ask("getMetadata", "a", sandbox={"type": "disabled"})).ok()


# --- faults ------------------------------------------------------------------------------------------


@pytest.mark.case(302)
async def test_a_full_disk_is_told(folder: Folder) -> None:
    """A device that takes nothing says so."""
    params = {"path": "file:///dev/full", "dataBase64": "aGk="}
    answer = await folder.peer.request("fs/writeFile", params)
    assert (answer.code, "(os error 28)" in answer.message) == (SYSTEM, True)
    (await folder.peer.request("fs/writeFile", {**params, "path": "file:///dev/null"})).ok()


@pytest.mark.case(302)
@pytest.mark.ours_only("the reference waits until somebody reads")
async def test_a_pipe_that_nobody_reads_is_not_waited_for(folder: Folder) -> None:
    """Writing to it, or copying to it, is an error at once."""
    os.mkfifo(folder.path / "fifo")
    (folder.path / "a").touch()
    with trio.fail_after(10):
        assert (await folder.write("fifo", b"x")).code == SYSTEM
        assert (await folder.copy("a", "fifo", recursive=False)).code == SYSTEM
