"""URLs of HTTP requests, read as browsers read them (the URL Standard of the WHATWG): lenient, and one way only."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import quote, unquote_to_bytes

import idna

DEFAULT_PORTS = {"http": 80, "https": 443}

MAX_CHARACTERS = 65_534
"""The longest URL that is read, as in the HTTP library of the reference. One that fills a message would keep the
loop busy for a long time."""

# What stays as it is in each part, besides letters and digits; what is beyond ASCII is encoded anyway.
_PATH_SAFE = "!$%&'()*+,-./:;=@[\\]^_|~"
_QUERY_SAFE = "!$%&()*+,-./:;=?@[\\]^_`{|}~"
_NO_HOST = re.compile(r"[\x00-\x20\x7f#%/:<>?@\[\\\]^|]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_DOT = re.compile(r"(?:\.|%2e)", re.IGNORECASE)


class BadUrl(Exception):
    """No URL; the text says why, and has nothing of it."""


class UnsupportedScheme(Exception):
    """A URL, and no http or https one.

    Args:
        scheme: the one that it has.
    """

    def __init__(self, scheme: str) -> None:
        super().__init__(scheme)
        self.scheme = scheme


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """An absolute http or https URL, without its fragment."""

    scheme: str
    host: str
    """ASCII, in lower case; an IPv6 address in brackets."""
    port: int
    target: str
    """Path and query, ASCII."""
    user_info: tuple[bytes, bytes] | None = None
    """User and password, decoded."""

    @property
    def has_default_port(self) -> bool:
        return self.port == DEFAULT_PORTS[self.scheme]

    @property
    def authority(self) -> str:
        """Host, and the port if it is not that of the scheme: what stands in a Host header."""
        return self.host if self.has_default_port else f"{self.host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        """The URL without user and password."""
        return f"{self.scheme}://{self.authority}{self.target}"

    def __repr__(self) -> str:
        # Targets and user info have secrets in them.
        return f"HttpUrl({self.scheme}://{self.authority})"


def parse_url(text: str, base: HttpUrl | None = None) -> HttpUrl:
    """Read a URL.

    Args:
        base: what a relative one is relative to.

    Raises:
        BadUrl: it cannot be read.
        UnsupportedScheme: it is something else than http and https.
    """
    if len(text) > MAX_CHARACTERS:
        raise BadUrl(f"longer than {MAX_CHARACTERS} characters")
    text = text.strip("".join(map(chr, range(0x21))))
    text = text.translate({9: None, 10: None, 13: None}).partition("#")[0]
    match = _SCHEME.match(text)
    if match is None:
        if base is None:
            raise BadUrl("relative URL without a base")
        return _relative(text, base)
    scheme = match[1].lower()
    if scheme not in DEFAULT_PORTS:
        raise UnsupportedScheme(scheme)
    rest = text[match.end() :]
    if base is not None and scheme == base.scheme and rest[:1] not in ("/", "\\"):
        return _relative(rest, base)
    return _absolute(scheme, rest)


def _absolute(scheme: str, rest: str) -> HttpUrl:
    rest = rest.lstrip("/\\")
    end = min((i for i, char in enumerate(rest) if char in "/\\?"), default=len(rest))
    user_info, _, location = rest[:end].rpartition("@")
    host, port = _host_and_port(location)
    path, mark, query = rest[end:].partition("?")
    target = _target(path.replace("\\", "/").split("/")[1:], mark, query)
    user, _, password = user_info.partition(":")
    return HttpUrl(
        scheme=scheme,
        host=host,
        port=DEFAULT_PORTS[scheme] if port is None else port,
        target=target,
        user_info=(_unquote(user), _unquote(password)) if user or password else None,
    )


def _relative(text: str, base: HttpUrl) -> HttpUrl:
    path, mark, query = text.partition("?")
    path = path.replace("\\", "/")
    if path.startswith("//"):
        return _absolute(base.scheme, text)
    base_path, base_mark, base_query = base.target.partition("?")
    if not path:
        target = _target(base_path.split("/")[1:], *((mark, query) if mark else (base_mark, base_query)))
    elif path.startswith("/"):
        target = _target(path.split("/")[1:], mark, query)
    else:
        target = _target([*base_path.split("/")[1:-1], *path.split("/")], mark, query)
    return HttpUrl(base.scheme, base.host, base.port, target)


def _target(segments: list[str], mark: str, query: str) -> str:
    """Path and query from the segments behind the first slash."""
    kept: list[str] = []
    for number, segment in enumerate(segments, 1):
        dots = _DOT.sub(".", segment)
        if dots not in (".", ".."):
            kept.append(segment)
            continue
        if dots == "..":
            del kept[-1:]
        if number == len(segments):
            kept.append("")
    return "/" + _quote("/".join(kept), _PATH_SAFE) + mark + _quote(query, _QUERY_SAFE)


def _quote(text: str, safe: str) -> str:
    return quote(text, safe=safe, errors="replace")


def _unquote(text: str) -> bytes:
    return unquote_to_bytes(text.encode(errors="replace"))


def _host_and_port(location: str) -> tuple[str, int | None]:
    if location.startswith("["):
        inner, bracket, rest = location[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadUrl("invalid IPv6 address")
        host, port = _ipv6(inner), rest[1:]
    else:
        name, _, port = location.partition(":")
        host = _host(name)
    if not port:
        return host, None
    if not re.fullmatch("[0-9]+", port) or not 0 < int(port[-6:]) <= 0xFFFF or port[:-6].strip("0"):
        raise BadUrl("invalid port number")
    return host, int(port)


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise BadUrl("invalid IPv6 address") from None
    if address.scope_id is not None:
        raise BadUrl("invalid IPv6 address")
    return f"[{address.compressed}]"


def _host(text: str) -> str:
    """A name, or an IPv4 address in any of its spellings."""
    if not text:
        raise BadUrl("empty host")
    try:
        name = unquote_to_bytes(text).decode()
        # As browsers do: the mapping of UTS 46, and no more of IDNA 2008, which refuses names that exist.
        name = name.lower() if name.isascii() else idna.uts46_remap(name, std3_rules=False)
        labels = [_label(label) for label in name.split(".")]
    except (UnicodeError, idna.IDNAError):
        raise BadUrl("invalid international domain name") from None
    name = ".".join(labels)
    if not name or _NO_HOST.search(name):
        raise BadUrl("invalid international domain name")
    last = labels[-1] or (labels[-2] if len(labels) > 1 else "")
    if not _NUMBER.fullmatch(last):
        return name
    try:
        return socket.inet_ntoa(socket.inet_aton(name.removesuffix(".")))
    except OSError:
        raise BadUrl("invalid IPv4 address") from None


def _label(label: str) -> str:
    return label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")
