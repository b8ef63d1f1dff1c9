"""Path URIs at a real server: the spellings that name a path, those that do not, and random ones."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import trio
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from daemons import Daemon
from tsupervise_protocol.path_uri import ForeignPathError, PathUri, PathUriError, file_uri
from wire import Peer, connect

NOT_NATIVE, BAD_PARAMS, INTERNAL, NOT_FOUND = -32600, -32602, -32603, -32004


async def code_of(peer: Peer, path: str) -> int:
    answer = await peer.request("fs/getMetadata", {"path": path})
    return answer.code


@pytest.mark.case(212)
@pytest.mark.parametrize("path", ["/tmp", "tmp", "", "C:\\tmp", "http://localhost/tmp"])
async def test_a_path_that_is_no_file_uri_is_refused(daemon: Daemon, path: str) -> None:
    """Paths are URIs on the wire; plain ones are never guessed at."""
    async with connect(daemon.url) as peer:
        assert await code_of(peer, path) == BAD_PARAMS


@pytest.mark.case(213)
@pytest.mark.parametrize("path", ["file:///tmp?", "file:///tmp?a=b", "file:?"])
async def test_a_query_is_refused(daemon: Daemon, path: str) -> None:
    """A question mark that is meant as part of a name is an escape; an empty query is one, too."""
    async with connect(daemon.url) as peer:
        answer = await peer.request("fs/getMetadata", {"path": path})
        assert answer.code == BAD_PARAMS
        assert "query" in answer.message


@pytest.mark.case(214)
@pytest.mark.parametrize("path", ["file:///tmp#", "file:///tmp#a", "file:#"])
async def test_a_fragment_is_refused(daemon: Daemon, path: str) -> None:
    """So is a hash, and an empty fragment."""
    async with connect(daemon.url) as peer:
        answer = await peer.request("fs/getMetadata", {"path": path})
        assert answer.code == BAD_PARAMS
        assert "fragment" in answer.message


@pytest.mark.case(215)
@pytest.mark.parametrize("path", ["file://server/share", "file://127.0.0.1/tmp", "file://[::1]/tmp"])
async def test_another_host_is_not_here(daemon: Daemon, path: str) -> None:
    """A URI with a host names a path, though of another system."""
    async with connect(daemon.url) as peer:
        assert await code_of(peer, path) == NOT_NATIVE


@pytest.mark.case(216)
@pytest.mark.parametrize(
    "path", ["file:///C:/x", "file:///C%3A/x", "file:///c:", "file:C:\\x", "file://C:/x"]
)
async def test_a_drive_is_not_here(daemon: Daemon, path: str) -> None:
    """So does one that begins with a drive, however it is spelled."""
    async with connect(daemon.url) as peer:
        assert await code_of(peer, path) == NOT_NATIVE


@pytest.mark.case(215, 216)
@pytest.mark.parametrize("cwd", ["file://server/share", "file:///C:/x"])
async def test_a_process_starts_in_no_folder_of_another_system(daemon: Daemon, cwd: str) -> None:
    """As the folder of a process or of a configuration such a path is a wrong parameter."""
    async with connect(daemon.url) as peer:
        assert (await peer.start("p", "true", cwd=cwd)).code == BAD_PARAMS
        config = {"cwd": cwd, "configPaths": [["model"]], "requirementsPaths": []}
        assert (await peer.request("environmentConfig/read", config)).code == BAD_PARAMS


@pytest.mark.case(217)
@pytest.mark.parametrize(
    "path", ["file://localhost/tmp", "FILE:///tmp", "file:/tmp", "file:tmp", " file:\\\\LOCALHOST\\t\nmp/"]
)
async def test_what_browsers_take_is_taken(daemon: Daemon, path: str) -> None:
    """One path has many spellings."""
    async with connect(daemon.url) as peer:
        assert (await peer.request("fs/getMetadata", {"path": path})).ok()["isDirectory"]
        assert (await peer.request("fs/canonicalize", {"path": path})).ok() == {"path": "file:///tmp"}


@pytest.mark.case(218)
@pytest.mark.parametrize(
    "path", ["file:///x%00y", "file:///%00", "file:///x\0y", "file:///%00/bad/path/L0M6=="]
)
async def test_a_nul_is_refused(daemon: Daemon, path: str) -> None:
    """No path has one, on any system, and the opaque form is spelled in one way."""
    async with connect(daemon.url) as peer:
        assert await code_of(peer, path) == BAD_PARAMS


@pytest.mark.case(220)
@pytest.mark.parametrize("opaque", ["L3RtcA", "cmVs"])
async def test_what_has_a_plain_spelling_is_spelled_so(daemon: Daemon, opaque: str) -> None:
    """The opaque form is for paths that need it: for /tmp it is refused, and for what is no absolute path."""
    async with connect(daemon.url) as peer:
        assert await code_of(peer, f"file:///%00/bad/path/{opaque}") == NOT_NATIVE


# --- random ones -------------------------------------------------------------------------------------

_HOSTS = r"""
    / /// //// \ \/ /\/ //localhost/ //LocalHost\ //%6cocalhost// //host/ \\host\ //C:/ //c: //u@h/ //h:1/
    //%00/ //a%2Fb/ //é/ //[::1]/ //a%20b/ //a"`{}'~!b/ //^/ //<
"""
_NAMES = r"""
    d f %64 l up .. . %2e .%2E %2e. ... C: c%3A %43: %00 bad path L0M6 L3RtcA a%20b é %C3%A9 %FF %ff %zz % ~
    %7e [] ^ ` {x} ? # ' + &=;,@!$()* " a|b
"""
_schemes = st.sampled_from([*["file:"] * 8, "FILE:", "fIl\te:", " file:", "http:", "file", ""])
_hosts = st.sampled_from(["", *_HOSTS.split()])
_separators = st.sampled_from(["/", "/", "/", "//", "\\", "%2F", "%5C", ""])
_names = st.sampled_from([*_NAMES.split(), "a b", "\t", "\x7f", "\x01"]) | st.text(max_size=4)
_tails = st.lists(st.tuples(_names, _separators), max_size=5).map(lambda parts: "".join(map("".join, parts)))
_here = st.sampled_from(["{here}", "{here}/", "{here}/d/", "{here}//d/../"])
uris = st.builds("{}{}{}".format, _schemes, _hosts, _tails) | st.builds("file://{}{}".format, _here, _tails)

# Where the reference is not asked: it goes up from no drive wherever that stands, takes `C|` for one, if only
# sometimes, and looks closer at the names of hosts.
_READ_OTHERWISE = re.compile(
    r"[/\\][a-z]:[/\\].*(\.|%2e)|[a-z]\||:[/\\]{2}[^/\\]*([^\0-~]|%[89a-f]|xn--|\d)",
    re.IGNORECASE | re.DOTALL,
)
_DROPPED = str.maketrans("", "", "\t\n\r")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder in which names of the random URIs are."""
    root = os.fsencode(tmp_path)
    for name in (b"d", b"C:", b"d/C:", b"%zz"):
        os.mkdir(root + b"/" + name)
    for name in (b"f", b"a b", "\u00e9".encode(), b"\xff", b"~", b"d/f", b"d/?", b"d/^`{x}", b"\x7f", b"%"):
        with open(root + b"/" + name, "xb"):
            pass
    os.symlink("d", tmp_path / "l")
    os.symlink("..", tmp_path / "d" / "up")
    return tmp_path


def expected(uri: str) -> int | str:
    """The canonical URI of what a URI leads to, or the code of the error."""
    try:
        path = PathUri.parse(uri).native()
    except ForeignPathError:
        return NOT_NATIVE
    except PathUriError:
        return BAD_PARAMS
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return NOT_FOUND
    except OSError:
        return INTERNAL
    try:
        return file_uri(os.readlink(f"/proc/self/fd/{fd}".encode()))
    finally:
        os.close(fd)


async def answers(url: str, batch: list[str]) -> list[int | str]:
    async with connect(url) as peer:
        ids = [
            (
                await peer.send("fs/getMetadata", {"path": uri}),
                await peer.send("fs/canonicalize", {"path": uri}),
            )
            for uri in batch
        ]
        found: list[int | str] = []
        for metadata_id, canonical_id in ids:
            metadata, canonical = await peer.answer_to(metadata_id), await peer.answer_to(canonical_id)
            if canonical.error is not None:
                assert metadata.code == canonical.code
                found.append(canonical.code)
            else:
                metadata.ok()
                found.append(canonical.ok()["path"])
        return found


@pytest.mark.case(291)
def test_random_uris_are_read_alike_everywhere(daemon: Daemon, here: Path, long_profile: bool) -> None:
    """Each server answers any URI as the reader in this library does: the same code, the same canonical URI."""

    # Many in one connection, and no shrinking: the answers that differ are told by themselves.
    @settings(deadline=None, max_examples=1_000 if long_profile else 8, phases=[Phase.generate])
    @given(st.lists(uris, min_size=30, max_size=100))
    def compare(drawn: list[str]) -> None:
        batch = [uri.replace("{here}", str(here)) for uri in drawn]
        if not daemon.is_ours:
            batch = [uri for uri in batch if not _READ_OTHERWISE.search(uri.translate(_DROPPED))]
            assume(batch)
        found = zip(batch, trio.run(answers, daemon.url, batch), map(expected, batch), strict=True)
        assert [(uri, told, wanted) for uri, told, wanted in found if told != wanted] == []

    compare()
