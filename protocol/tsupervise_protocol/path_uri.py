"""`file:` URIs, the only spelling of a path on the wire, to and from the bytes of an absolute POSIX path.

A URI is read the way browsers read one (the WHATWG URL standard): the scheme in any case, missing slashes
added, `\\` as `/`, tabs and line ends dropped, `.` and `..` segments resolved before anything is decoded.
What is left is percent-decoded byte by byte, so that names that are not UTF-8 survive.

A path that begins with what looks like a Windows drive, `/C:` or `/c:/x`, has no plain spelling, because
such a URI names a path of another system. It travels in an opaque form: base64 under a folder that no
POSIX path can have.
"""

import posixpath
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes

OPAQUE_PREFIX = "file:///%00/bad/path/"
"""What stands before the unpadded URL-safe base64 of a path that has no plain spelling."""

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_STRIPPED = "".join(map(chr, range(0x21)))
_DROPPED = str.maketrans("", "", "\t\n\r")
_LOCAL_AUTHORITIES = ("", "localhost")

_DRIVE_SEGMENT = re.compile(r"[a-zA-Z](:|%3[aA])")
_DRIVE_PATH = re.compile(rb"/[a-zA-Z]:(/|\Z)")
_ENCODED_DOT = re.compile("%2[eE]")

_LITERAL = "!$&'()*+,/:;=@[]^|"
"""What stays as it is besides letters, digits and `_.-~`: what the reference server leaves, for peers compare
URIs."""

_SHOWN_CHARACTERS = 200
"""How much of a refused URI an error text repeats: enough to find it, whatever a peer sends."""


class PathUriError(ValueError):
    """A URI that names no path of this system, or a path that has no URI."""

    def __init__(self, refused: str | bytes, reason: str) -> None:
        super().__init__(f"cannot use {refused[:_SHOWN_CHARACTERS]!r} as a path: {reason}")


def parse_file_uri(uri: str) -> bytes:
    """Return the absolute path that `uri` names, without a slash at its end.

    `.`, `..` and empty segments are gone, unless they stand beside an encoded slash: `%2F` is decoded last,
    and what it separates is left to the operating system.

    Raises:
        PathUriError: it is no file URI, or names no path of this system.
    """
    text = uri.strip(_STRIPPED).translate(_DROPPED)
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise PathUriError(uri, "not a URI; write file:///tmp for /tmp")
    if scheme[1].lower() != "file":
        raise PathUriError(uri, "only file: URIs are paths")
    text, fragment, _ = text[scheme.end() :].partition("#")
    text, query, _ = text.partition("?")
    if query:
        raise PathUriError(uri, "a path URI has no query; write ? as %3F")
    if fragment:
        raise PathUriError(uri, "a path URI has no fragment; write # as %23")
    text = text.replace("\\", "/")
    if text.startswith("//"):
        authority, _, text = text[2:].partition("/")
        if unquote(authority).lower() not in _LOCAL_AUTHORITIES:
            raise PathUriError(uri, "it names another host; leave the host empty")
    return _native_path(uri, _resolved(uri, text.split("/")))


def _resolved(uri: str, segments: list[str]) -> list[str]:
    """Resolve dot segments by the text alone. Empty segments count, except in front: `/a//..` is `/a/`."""
    kept: list[str] = []
    for segment in segments:
        plain = _ENCODED_DOT.sub(".", segment)
        if plain == "..":
            del kept[-1:]
        elif plain != "." and (kept or segment):
            # At once, before a `..` that may follow: nothing goes up from a drive.
            if not kept and _DRIVE_SEGMENT.fullmatch(segment):
                raise PathUriError(uri, "it begins with a Windows drive")
            kept.append(segment)
    return kept


def _native_path(uri: str, segments: list[str]) -> bytes:
    try:
        path = b"/" + b"/".join(unquote_to_bytes(segment) for segment in segments if segment)
    except UnicodeEncodeError:
        raise PathUriError(uri, "it has half of a surrogate pair") from None
    if b"\0" not in path:
        return path
    match segments:
        case ["%00", "bad", "path", encoded]:
            return _opaque_path(uri, encoded)
        case _:
            raise PathUriError(uri, "a path has no NUL")


def _opaque_path(uri: str, encoded: str) -> bytes:
    """Decode the opaque form; only as `file_uri` writes it, so that each path has one canonical URI."""
    try:
        path = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        needed = file_uri(path) == OPAQUE_PREFIX + encoded
    except ValueError:
        needed, path = False, b""
    if not needed:
        raise PathUriError(uri, "not the base64 of a path that needs the opaque form")
    return path


def file_uri(path: str | bytes) -> str:
    """Return the canonical URI of an absolute path, `.` and `..` resolved by the text alone.

    Args:
        path: bytes, or text as `os.fsdecode` makes it on a UTF-8 system.

    Raises:
        PathUriError: the path is relative or has a NUL.
    """
    native = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
    if not native.startswith(b"/"):
        raise PathUriError(path, "not absolute")
    if b"\0" in native:
        raise PathUriError(path, "a path has no NUL")
    native = b"/" + posixpath.normpath(native).lstrip(b"/")
    if _DRIVE_PATH.match(native):
        return OPAQUE_PREFIX + urlsafe_b64encode(native).decode().rstrip("=")
    return "file://" + quote_from_bytes(native, safe=_LITERAL)
