"""path_uri: tables of what is read and refused, and the round trip of any path."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tsupervise_protocol.path_uri import (
    MAX_CHARACTERS,
    OPAQUE_PREFIX,
    ForeignPathError,
    PathUri,
    PathUriError,
    file_uri,
    parse_file_uri,
)

READ = {
    # The scheme, the slashes and the host.
    "file:///tmp": b"/tmp",
    "FILE:///tmp": b"/tmp",
    "file:/tmp": b"/tmp",
    "file:tmp": b"/tmp",
    "file:": b"/",
    "file://": b"/",
    "file:////tmp": b"/tmp",
    "file://localhost": b"/",
    "file://localhost/tmp": b"/tmp",
    "file://LOCALHOST/tmp": b"/tmp",
    "file://%6Cocalhost/tmp": b"/tmp",
    "file:\\tmp": b"/tmp",
    "file:\\\\localhost\\tmp": b"/tmp",
    "file:/\\/tmp\\a": b"/tmp/a",
    # What is dropped.
    " \x00file:///tmp\x1f\n": b"/tmp",
    "fi\nle:/\t//t\rmp": b"/tmp",
    # Segments.
    "file:///tmp/": b"/tmp",
    "file:///tmp//a": b"/tmp/a",
    "file:///tmp/./a/.": b"/tmp/a",
    "file:///tmp/a/../b": b"/tmp/b",
    "file:///tmp/%2e%2E/b": b"/b",
    "file:///tmp/.%2e/b/%2e.": b"/",
    "file:///tmp/a//../b": b"/tmp/a/b",
    "file:///../../tmp": b"/tmp",
    "file:////../tmp": b"/tmp",
    "file:///tmp/...": b"/tmp/...",
    "file:///tmp/a/..%2Fb": b"/tmp/b",
    "file:///tmp/a/../..": b"/",
    # Bytes.
    "file:///tmp%2Fa": b"/tmp/a",
    "file:///tmp%2F%2f/": b"/tmp",
    "file:///a b": b"/a b",
    "file:///é": "/é".encode(),
    "file:///%C3%A9": "/é".encode(),
    "file:///%ff%FE": b"/\xff\xfe",
    "file:///a%5Cb%09%0A": b"/a\\b\t\n",
    "file:///q%3Fr%23s%25": b"/q?r#s%",
    "file:///%zz/%2/%": b"/%zz/%2/%",
    "file:///%252e%252e": b"/%2e%2e",
    "file:///~/$HOME": b"/~/$HOME",
    # Not quite a drive.
    "file:///tmp/C:/x": b"/tmp/C:/x",
    "file:///tmp/C:/..": b"/tmp",
    "file:///C:x": b"/C:x",
    "file:///CC:/x": b"/CC:/x",
    "file:///\u212a:/x": "/\u212a:/x".encode(),
    "file:///1:/x": b"/1:/x",
    "file:///C%7C/x": b"/C|/x",
    "file:///%43:/x": b"/C:/x",
    "file:///C%3A/../x": b"/x",
    # The opaque form.
    "file:///%00/bad/path/L0M6L3E": b"/C:/q",
    "file://localhost/%00/bad/path/L0M6": b"/C:",
    "file:///%00/bad/../bad/path/L0M6": b"/C:",
}

REFUSED = {
    "": "not a URI",
    "/tmp": "not a URI",
    "tmp": "not a URI",
    "file": "not a URI",
    "://tmp": "not a URI",
    "1file:///tmp": "not a URI",
    "\xa0file:///tmp": "not a URI",
    "http://x/y": "only file: URIs",
    "C:\\x": "only file: URIs",
    "data:,": "only file: URIs",
    "file:///tmp?": "no query",
    "file:?": "no query",
    "file:///tmp?a=b#c": "no query",
    "file:///tmp#": "no fragment",
    "file://#": "no fragment",
    "file:///tmp#a?b": "no fragment",
    "file://localhost:80/tmp": "a host that cannot be",
    "file://user@localhost/tmp": "a host that cannot be",
    "file:// /tmp": "a host that cannot be",
    "file://a%2Fb/tmp": "a host that cannot be",
    "file://%00/tmp": "a host that cannot be",
    "file://%FF/tmp": "a host that cannot be",
    "file://C:x/y": "a host that cannot be",
    "file:///tmp/a%00b": "no NUL",
    "file:///tmp/a\0b": "no NUL",
    "file:///%00": "no NUL",
    "file:///%%00": "no NUL",
    "file://host/%00/bad/path/L0M6": "no NUL",
    "file:///tmp/\ud800": "surrogate",
    OPAQUE_PREFIX.rstrip("/"): "no NUL",
    f"{OPAQUE_PREFIX}L0M6L3E/x": "opaque form",
    OPAQUE_PREFIX: "opaque form",
    f"{OPAQUE_PREFIX}!!": "opaque form",
    f"{OPAQUE_PREFIX}L0M6L3E=": "opaque form",
    f"{OPAQUE_PREFIX}L0M6L3F": "opaque form",
    f"{OPAQUE_PREFIX}L": "opaque form",
    f"{OPAQUE_PREFIX}é": "opaque form",
}
"""What is no URI of a path on any system."""

FOREIGN = {
    "file://host/tmp": "another host",
    "file://localhost./tmp": "another host",
    "file://127.0.0.1/tmp": "another host",
    "file://[::1]/tmp": "another host",
    "file://é/tmp": "another host",
    "file://tmp": "another host",
    "file://C:/x": "Windows drive",
    "file://host/C:/x": "Windows drive",
    "file:///C:": "Windows drive",
    "file:///c:/x": "Windows drive",
    "file:C:/x": "Windows drive",
    "file:///C%3A/x": "Windows drive",
    "file:////C:/x": "Windows drive",
    "file:///tmp/../C:/x": "Windows drive",
    "file:///C:/../tmp": "Windows drive",
    f"{OPAQUE_PREFIX}L3RtcA": "opaque form",  # /tmp
    f"{OPAQUE_PREFIX}cmVs": "opaque form",  # rel
    f"{OPAQUE_PREFIX}L0M6AA": "opaque form",  # /C: and a NUL
    f"{OPAQUE_PREFIX}L0M6Ly4uL3RtcA": "opaque form",  # /C:/../tmp
}
"""What is a URI of a path, and not of one here."""

SPELLED = {
    "FILE:a b": "file:///a%20b",
    "file://LOCALHOST/%7e%7E~%zz%": "file:///%7e%7E~%zz%",
    "file:///tmp//a/": "file:///tmp//a/",
    "file:///tmp/a/..": "file:///tmp/",
    "file:///tmp/.": "file:///tmp/",
    "file:///..": "file:///",
    "file:///é\x7f\"<>`{}^[]|'": "file:///%C3%A9%7F%22%3C%3E%60%7B%7D^[]|'",
    "file:///a\\b%5Cc%2fd": "file:///a/b%5Cc%2fd",
    "file://Server/a": "file://server/a",
    "file://server/C:/a": "file:///C:/a",
    "file:///C:/..": "file:///C:/",
    "file:///\0/bad/path/L0M6": "file:///%00/bad/path/L0M6",
}
"""What is read → how it is told again."""

WRITTEN = {
    b"/": "file:///",
    b"/tmp": "file:///tmp",
    b"/tmp/": "file:///tmp",
    b"//tmp//a": "file:///tmp/a",
    b"/tmp/./a/../b/": "file:///tmp/b",
    b"/../..": "file:///",
    b"/!$&'()*+,-.:;=@[]^_|~": "file:///!$&'()*+,-.:;=@[]^_|~",
    b'/ "#%<>?\\`{}\x7f\n': "file:///%20%22%23%25%3C%3E%3F%5C%60%7B%7D%7F%0A",
    b"/\xff\xc3\xa9": "file:///%FF%C3%A9",
    b"/%2e%2e": "file:///%252e%252e",
    b"/tmp/C:": "file:///tmp/C:",
    b"/C:x": "file:///C:x",
    b"/C:\n": "file:///C:%0A",
    b"/C:": "file:///%00/bad/path/L0M6",
    b"/C:/q": "file:///%00/bad/path/L0M6L3E",
    b"//c:/": "file:///%00/bad/path/L2M6",
}

segments = st.binary(min_size=1, max_size=12) | st.sampled_from(
    [b"..", b".", b"%2e%2e", b"C:", b"c|", b"C%3A", b"%00", b"bad", b"path", b" ", b"?", b"#", b"\\", b"\t"]
)
paths = (
    st.lists(segments, max_size=6)
    .map(lambda names: b"/" + b"/".join(names))
    .filter(lambda path: b"\0" not in path)
)


@pytest.mark.parametrize(("uri", "path"), READ.items())
def test_a_uri_names_one_path(uri: str, path: bytes) -> None:
    """Every accepted spelling means exactly one path, in bytes."""
    assert parse_file_uri(uri) == path


@pytest.mark.parametrize(("uri", "reason"), REFUSED.items())
def test_what_is_no_uri_of_a_path_is_refused_with_its_reason(uri: str, reason: str) -> None:
    """What names no path on any system fails when it is read, and says what is wrong."""
    with pytest.raises(PathUriError, match=reason):
        PathUri.parse(uri)


@pytest.mark.parametrize(("uri", "reason"), FOREIGN.items())
def test_what_names_no_path_here_is_read_and_then_refused(uri: str, reason: str) -> None:
    """A URI of another system's path can be told again, and has no path here."""
    foreign = PathUri.parse(uri)
    assert PathUri.parse(str(foreign)) == foreign
    with pytest.raises(ForeignPathError, match=reason):
        foreign.native()


@pytest.mark.parametrize(("uri", "told"), SPELLED.items())
def test_escapes_are_told_again_as_they_were_spelled(uri: str, told: str) -> None:
    """What is read is told again in ASCII, with the escapes of whoever wrote it."""
    assert str(PathUri.parse(uri)) == told


@pytest.mark.parametrize(("path", "uri"), WRITTEN.items())
def test_a_path_has_one_canonical_uri(path: bytes, uri: str) -> None:
    """Dots are resolved, and only what a URI cannot hold is escaped."""
    assert file_uri(path) == uri


def test_text_is_written_as_the_bytes_it_stands_for() -> None:
    """Text with surrogates, as Python spells bytes that are not UTF-8, is written as those bytes."""
    assert file_uri("/é/\udcff") == file_uri(b"/\xc3\xa9/\xff") == "file:///%C3%A9/%FF"


@pytest.mark.parametrize("path", [b"", b"tmp", b"/a\0b", "~/x"])
def test_a_path_without_a_uri_is_refused(path: str | bytes) -> None:
    """There is no URI for a relative path or one with a NUL."""
    with pytest.raises(PathUriError):
        file_uri(path)


@given(paths)
@settings(deadline=None)
@example(b"/C:")
@example(b"/%00/bad/path/L0M6")
def test_every_path_survives_the_round_trip(path: bytes) -> None:
    """What is written reads back as the same path, with its dots and double slashes resolved."""
    uri = file_uri(path)
    assert uri.isascii()
    assert uri.isprintable()
    assert parse_file_uri(uri) == b"/" + posixpath.normpath(path).lstrip(b"/")
    assert file_uri(parse_file_uri(uri)) == uri


@given(
    st.text(max_size=30).map("file:".__add__)
    | st.from_regex(r"(?i)file:[/\\.%2eEfFcC:|?#a\t]*", fullmatch=True)
)
@settings(deadline=None)
def test_no_text_breaks_the_reader(uri: str) -> None:
    """Whatever a peer sends is an absolute path without a NUL, or refused."""
    try:
        path = parse_file_uri(uri)
    except PathUriError:
        return
    assert path.startswith(b"/")
    assert b"\0" not in path
    assert parse_file_uri(file_uri(path)) == b"/" + posixpath.normpath(path).lstrip(b"/")


@pytest.mark.parametrize("tail", ["a", "a/", "é", "%41"])
def test_how_long_a_uri_may_be_is_bounded(tail: str) -> None:
    """Before anything is done with it: one of the size of a message would take minutes."""
    uri = "file:///" + tail * (MAX_CHARACTERS // len(tail) - 8)
    assert parse_file_uri(uri).startswith(b"/")
    with pytest.raises(PathUriError, match="longer than 65536 characters"):
        parse_file_uri(uri + tail * 9)


def test_a_long_uri_is_refused_with_a_short_text() -> None:
    """An error answer does not repeat megabytes of what was wrong."""
    with pytest.raises(PathUriError) as refusal:
        parse_file_uri("x" * 1_000_000)
    assert len(str(refusal.value)) < 500


JOINED = {
    ("file:///%7Ea/", b"b/c d"): "file:///%7Ea/b/c%20d",
    ("file:///a//b//", b"c"): "file:///a//b/c",
    ("file:///a", b"%7E?#\xff"): "file:///a/%257E%3F%23%FF",
    ("file:///a", b"./x//../y/"): "file:///a/y",
    ("file:///a", b"../../../b"): "file:///b",
    ("file:///a", b"/b/../c"): "file:///c",
    ("file:///a", b""): "file:///a",
    ("file:///", b"C:"): "file:///%00/bad/path/L0M6",
    ("file:///a", b"../C:/q"): "file:///%00/bad/path/L0M6L3E",
    ("file:///a", b"C:"): "file:///a/C:",
    (f"{OPAQUE_PREFIX}L0M6", b"/a"): "file:///a",
}


@pytest.mark.parametrize(("folder", "path", "joined"), [(*key, uri) for key, uri in JOINED.items()])
def test_a_path_is_seen_from_a_folder(folder: str, path: bytes, joined: str) -> None:
    """What is joined is a path, not a URI: nothing in it is special but slashes and dots."""
    assert str(PathUri.parse(folder).join(path)) == joined


@pytest.mark.parametrize("folder", ["file://host/a", "file:///C:/a", f"{OPAQUE_PREFIX}L0M6"])
def test_nothing_is_joined_to_what_is_not_of_here(folder: str) -> None:
    """Another system's path is not extended, for its rules are its own; the opaque form has no folder."""
    with pytest.raises(PathUriError):
        PathUri.parse(folder).join(b"b")


def test_a_nul_is_not_joined() -> None:
    """A name with a NUL is nobody's."""
    with pytest.raises(PathUriError, match="NUL"):
        PathUri.of(b"/a").join(b"b\0")


@pytest.mark.parametrize(
    ("uri", "name", "parent"),
    [
        ("file:///", None, None),
        ("file:///a", "a", "file:///"),
        ("file:///%7Ea/b%20c/", "b c", "file:///%7Ea"),
        ("file:///a%FF", "a%FF", "file:///"),
        ("file://host/a", "a", "file://host/"),
        (f"{OPAQUE_PREFIX}L0M6", None, None),
    ],
)
def test_a_path_has_a_name_and_a_parent(uri: str, name: str | None, parent: str | None) -> None:
    """The name is decoded where it can be; the root and the opaque form have neither."""
    path = PathUri.parse(uri)
    assert path.basename == name
    assert path.parent == (None if parent is None else PathUri.parse(parent))


@pytest.mark.parametrize(
    ("uri", "folder", "below"),
    [
        ("file:///a/b", "file:///a", True),
        ("file:///a/b", "file:///a/", True),
        ("file:///a", "file:///a", True),
        ("file:///%61/b", "file:///a", True),
        ("file:///ab", "file:///a", False),
        ("file:///a", "file:///a/b", False),
        ("file://host/a/b", "file:///a", False),
        ("file://host/a/b", "file://host/a", True),
        ("file:///a%2Fb/c", "file:///a%2Fb", False),
        ("file:///a/..%2Fb", "file:///a", False),
    ],
)
def test_what_lies_below_a_folder_is_told_by_whole_names(uri: str, folder: str, below: bool) -> None:
    """Half a name is no folder, and an encoded slash might lead anywhere."""
    assert PathUri.parse(uri).starts_with(PathUri.parse(folder)) is below


@given(paths, segments)
@settings(deadline=None)
def test_what_is_joined_is_the_path_below(folder: bytes, name: bytes) -> None:
    """Joined URIs name what joined paths name."""
    above = PathUri.of(folder)
    assume(not str(above).startswith(OPAQUE_PREFIX) and b"\0" not in name and not name.startswith(b"/"))
    joined = above.join(name)
    assert joined == PathUri.of(above.native() + b"/" + name)
    assert joined.native() == b"/" + posixpath.normpath(above.native() + b"/" + name).lstrip(b"/")
