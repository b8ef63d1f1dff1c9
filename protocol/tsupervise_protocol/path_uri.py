"""`file:` URIs, the only spelling of a path on the wire, to and from the bytes of an absolute POSIX path.

A URI is read in two steps that fail apart, for peers tell them by their codes. The first is the same on every
system: the URI is read the way browsers read one (the WHATWG URL standard): the scheme in any case, missing
slashes added, `\\` as `/`, tabs and line ends dropped, `.` and `..` segments resolved before anything is
decoded. The second asks whether it names a path of this system; what it names is percent-decoded byte by byte,
so that names that are not UTF-8 survive.

A path that begins with what looks like a Windows drive, `/C:` or `/c:/x`, has no plain spelling, because
such a URI names a path of another system. It travels in an opaque form: base64 under a folder that no
POSIX path can have.
"""

import posixpath
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from urllib.parse import quote, unquote, unquote_to_bytes

OPAQUE_PREFIX = "file:///%00/bad/path/"
"""What stands before the unpadded URL-safe base64 of a path that has no plain spelling."""

_OPAQUE_FOLDER = OPAQUE_PREFIX.removeprefix("file://")

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):")
_STRIPPED = "".join(map(chr, range(0x21)))
_DROPPED = str.maketrans("", "", "\t\n\r")

_HOST = re.compile(r"[^\x00-\x20#%/:<>?@\[\\\]^|\x7f]*|\[[0-9a-f:.]+\]")
"""The characters of a name, or an IPv6 address. Whether there can be such a host does not matter here."""

_DRIVE = re.compile(r"[a-zA-Z]:")
_DRIVE_SEGMENT = re.compile(r"[a-zA-Z](:|%3[aA])")
_DRIVE_PATH = re.compile(rb"/[a-zA-Z]:(/|\Z)")
_ENCODED_DOT = re.compile("%2[eE]")
_ENCODED_SLASH = re.compile("%2[fF]")

_LITERAL = "!$&'()*+,:;=@[]^|"
"""What stays as it is besides `/`, letters, digits and `_.-~`: what the reference server leaves, for peers
compare URIs."""

MAX_CHARACTERS = 64 << 10
"""The longest URI that is read. No path that a system takes at once comes near it, nor does a name in a listing of
64 folders in one another; a message full of one would keep a server busy for minutes."""

_SHOWN_CHARACTERS = 200
"""How much of a refused URI an error text repeats: enough to find it, whatever a peer sends."""


class PathUriError(ValueError):
    """What is no URI of a path, or a path that has no URI."""

    def __init__(self, refused: object, reason: str) -> None:
        shown = refused if isinstance(refused, bytes) else str(refused)
        super().__init__(f"cannot use {shown[:_SHOWN_CHARACTERS]!r} as a path: {reason}")


class ForeignPathError(PathUriError):
    """A URI of a path, though of another system."""


@dataclass(frozen=True, slots=True)
class PathUri:
    """The URI of an absolute path, here or on another system. `str` of it is its one spelling in ASCII.

    Made by `parse` and `of` and from others, not from its parts.

    Args:
        host: lower-case; empty for this one.
        path: begins with a slash, has no dot segments, and spells escapes as whoever wrote them.
    """

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> "PathUri":
        """Read a URI.

        Raises:
            PathUriError: it is no file URI.
        """
        if len(text) > MAX_CHARACTERS:
            raise PathUriError(text, f"longer than {MAX_CHARACTERS} characters")
        rest = text.strip(_STRIPPED).translate(_DROPPED)
        scheme = _SCHEME.match(rest)
        if scheme is None:
            raise PathUriError(text, "not a URI; write file:///tmp for /tmp")
        if scheme[1].lower() != "file":
            raise PathUriError(text, "only file: URIs are paths")
        rest, hash_mark, _ = rest[scheme.end() :].partition("#")
        rest, question_mark, _ = rest.partition("?")
        if question_mark:
            raise PathUriError(text, "a path URI has no query; write ? as %3F")
        if hash_mark:
            raise PathUriError(text, "a path URI has no fragment; write # as %23")
        rest = rest.replace("\\", "/")
        host = ""
        if rest.startswith("//"):
            authority, _, below = rest[2:].partition("/")
            if not _DRIVE.fullmatch(authority):  # else it belongs to the path
                host, rest = _host(text, authority), below
        segments = _resolved(rest.split("/"))
        if segments and _DRIVE.fullmatch(segments[0]):
            host = ""
        try:
            path = "/" + "/".join(quote(segment, safe=_LITERAL + "%") for segment in segments)
        except UnicodeEncodeError:
            raise PathUriError(text, "it has half of a surrogate pair") from None
        if "%00" in path:
            _check_opaque(text, host, path)
        return cls(host, path)

    @classmethod
    def of(cls, path: bytes) -> "PathUri":
        """The canonical URI of an absolute path, `.` and `..` resolved by the text alone.

        Raises:
            PathUriError: the path is relative or has a NUL.
        """
        if not path.startswith(b"/"):
            raise PathUriError(path, "not absolute")
        if b"\0" in path:
            raise PathUriError(path, "a path has no NUL")
        path = _normal(path)
        if _DRIVE_PATH.match(path):
            return cls("", _OPAQUE_FOLDER + urlsafe_b64encode(path).decode().rstrip("="))
        return cls("", quote(path, safe=_LITERAL + "/"))

    def __str__(self) -> str:
        return f"file://{quote(self.host, safe=_LITERAL)}{self.path}"

    def native(self) -> bytes:
        """The path that it names, without a slash at its end and without `.`, `..` and empty names.

        They are resolved by the text, whatever is a link; also where `%2F` stands for a slash.

        Raises:
            ForeignPathError: it is one of another system, or spelled as no path of this one is.
        """
        self._refuse_foreign()
        if self._is_opaque:
            path = _decoded_opaque(self.path)
            # Only what needs this form, so that each path has one canonical URI.
            if b"\0" in path or not path.startswith(b"/") or PathUri.of(path) != self:
                raise ForeignPathError(self, "not of a path that needs the opaque form")
            return path
        return _normal(unquote_to_bytes(self.path))

    def join(self, path: bytes) -> "PathUri":
        """The URI of a path seen from this folder. `..` is resolved by the text alone and ends at the root.

        What is already here keeps its spelling.

        Raises:
            PathUriError: `path` has a NUL, or is relative and there is nothing to join it to in the opaque form.
            ForeignPathError: the folder is one of another system.
        """
        if path.startswith(b"/") or b"\0" in path:
            return PathUri.of(b"/" + path)
        self._refuse_foreign()
        if self._is_opaque:
            raise PathUriError(self, "the opaque form cannot be joined to")
        names = list(self._names)
        for name in path.split(b"/"):
            if name == b"..":
                del names[-1:]
            elif name not in (b"", b"."):
                names.append(quote(name, safe=_LITERAL))
        if names and _DRIVE_SEGMENT.fullmatch(names[0]):
            # The spelling of a drive, though a name of here.
            return PathUri.of(b"/" + b"/".join(map(unquote_to_bytes, names)))
        return PathUri("", "/" + "/".join(names))

    @property
    def basename(self) -> str | None:
        """The last name, decoded if it is UTF-8 and else as it is spelled; None for a root and an opaque form."""
        if self._is_opaque or not self._names:
            return None
        try:
            return unquote(self._names[-1], errors="strict")
        except UnicodeDecodeError:
            return self._names[-1]

    @property
    def parent(self) -> "PathUri | None":
        """The folder above, by the text alone; None for a root and an opaque form."""
        if self._is_opaque or not self._names:
            return None
        return PathUri(self.host, "/" + "/".join(self._names[:-1]))

    def starts_with(self, folder: "PathUri") -> bool:
        """Whether it is `folder` or lies below, by the text alone.

        Never with an encoded slash in it, which may hide what is separated where.
        """
        names, above = self._names[: len(folder._names)], folder._names
        if self.host != folder.host or any(map(_ENCODED_SLASH.search, (*self._names, *above))):
            return False
        return [unquote_to_bytes(name) for name in names] == [unquote_to_bytes(name) for name in above]

    @property
    def _names(self) -> list[str]:
        path = self.path.strip("/")
        return path.split("/") if path else []

    @property
    def _is_opaque(self) -> bool:
        return self.path.startswith(_OPAQUE_FOLDER)

    def _refuse_foreign(self) -> None:
        if self.host:
            raise ForeignPathError(self, "it names another host; leave the host empty")
        if _DRIVE_SEGMENT.fullmatch(self.path[1:].partition("/")[0]):
            raise ForeignPathError(self, "it begins with a Windows drive")


def _normal(path: bytes) -> bytes:
    return b"/" + posixpath.normpath(path).lstrip(b"/")


def _host(text: str, authority: str) -> str:
    try:
        host = unquote(authority, errors="strict").lower()
    except UnicodeDecodeError:
        host = "%"
    if not _HOST.fullmatch(host):
        raise PathUriError(text, "it names a host that cannot be, or a port or user; leave it empty")
    return "" if host == "localhost" else host


def _resolved(segments: list[str]) -> list[str]:
    """Resolve dot segments. Empty ones count, except in front: `/a//..` is `/a/`. Nothing goes up from a drive."""
    kept: list[str] = []
    plain = ""
    for segment in segments:
        plain = _ENCODED_DOT.sub(".", segment)
        if plain == "..":
            if len(kept) != 1 or not _DRIVE.fullmatch(kept[0]):
                del kept[-1:]
        elif plain != "." and (kept or segment):
            kept.append(segment)
    if kept and plain in (".", ".."):
        kept.append("")
    return kept


def _check_opaque(text: str, host: str, path: str) -> None:
    if host or not path.startswith(_OPAQUE_FOLDER):
        raise PathUriError(text, "a path has no NUL")
    encoded = path.removeprefix(_OPAQUE_FOLDER)
    try:
        canonical = urlsafe_b64encode(_decoded_opaque(path)).decode().rstrip("=")
    except ValueError:
        canonical = ""
    if not encoded or encoded != canonical:
        raise PathUriError(text, "not the base64 of a path in the opaque form")


def _decoded_opaque(path: str) -> bytes:
    encoded = path.removeprefix(_OPAQUE_FOLDER)
    return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def parse_file_uri(uri: str) -> bytes:
    """Return the absolute path that `uri` names here, see `PathUri.native`.

    Raises:
        PathUriError: it is no file URI, or, as a ForeignPathError, names no path of this system.
    """
    return PathUri.parse(uri).native()


def file_uri(path: str | bytes) -> str:
    """Return the canonical URI of an absolute path, see `PathUri.of`.

    Args:
        path: bytes, or text as `os.fsdecode` makes it on a UTF-8 system.

    Raises:
        PathUriError: the path is relative or has a NUL.
    """
    return str(PathUri.of(path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")))


def spelled_name(name: bytes) -> str:
    """How one name of a path is spelled in a URI, whatever stands in it."""
    return quote(name, safe=_LITERAL)
