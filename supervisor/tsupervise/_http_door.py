"""The HTTP request that every connection begins with: bytes in, and either an upgrade or a last response out.

It owns the order of the checks and the texts of the refusals, and knows neither sockets nor time. One
request a connection: whatever is not an upgrade is answered with `connection: close`, so that a request
body never has to be read.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Protocol

import h11

MAX_HEAD_BYTES = 64 << 10
"""Request line and header fields together. The reference server stops somewhere above 400 KiB."""

MAX_HEADER_FIELDS = 100
"""As the reference server."""

_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, 1.3."""

_HOST = re.compile(rb"(?:\[([^\]]*)\]|([^:\[\]]*))(?::[0-9]*)?")
"""A Host header; the groups are an IPv6 address, or anything else."""

_TARGET = re.compile(rb"(?:https?://[^/?#]*)?([^?#]*)", re.IGNORECASE)
"""A request target, origin-form or absolute-form (RFC 9112, 3.2); the group is the path."""


@dataclass(frozen=True, slots=True)
class Respond:
    """Send `data`, a whole response of that status, and close the connection."""

    data: bytes
    status: HTTPStatus


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Send `data`, the 101 response; all that follows is WebSocket, beginning with `leftover`."""

    data: bytes
    leftover: bytes
    status = HTTPStatus.SWITCHING_PROTOCOLS


@dataclass(frozen=True, slots=True)
class Answer:
    """A response before it is put into bytes."""

    status: HTTPStatus
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """What GET and HEAD find at a path.

    Args:
        answer: makes the answer.
        is_open: whether everybody may see it, and not only who may come in.
    """

    answer: Callable[[], Answer]
    is_open: bool = True


Pages = Mapping[bytes, Page]
"""By path, besides the WebSocket at `/`."""


class Admit(Protocol):
    """Decides who may come in, and who may just look."""

    def __call__(self, authorization: bytes | None, *, enters: bool) -> Answer | None:
        """Return a refusal, or None.

        Args:
            authorization: the header of that name, None if there is none.
            enters: whether this is an upgrade.
        """
        ...


def admit_all(authorization: bytes | None, *, enters: bool) -> Answer | None:
    """Refuses nobody."""
    return None


class HttpDoor:
    """The head of one connection; done with once `receive` has returned something.

    Args:
        pages: see there.
        admit: has the last word about an upgrade, and about pages that are not open.
        any_host: whether the request may be meant for a host of any name; if not, for an IP address or
            `localhost` only.
    """

    def __init__(self, pages: Pages, admit: Admit = admit_all, *, any_host: bool = False) -> None:
        self._pages = pages
        self._admit = admit
        self._any_host = any_host
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._received = 0
        self._is_head = False

    def receive(self, data: bytes | bytearray | memoryview) -> Respond | Upgrade | None:
        """Take bytes from the peer; None as long as the request head is incomplete. Never raises."""
        self._received += len(data)
        self._http.receive_data(bytes(data))
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            return self._respond(Answer(HTTPStatus(error.error_status_hint)))
        if event is h11.NEED_DATA:
            return None
        assert isinstance(event, h11.Request), f"a connection begins with a request, not {event!r}"
        leftover, _ = self._http.trailing_data
        self._is_head = event.method == b"HEAD"
        # h11 measures incomplete heads only, and a head must not pass for having come in one piece.
        if self._received - len(leftover) > MAX_HEAD_BYTES or len(event.headers) > MAX_HEADER_FIELDS:
            return self._respond(Answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        decision = decide(event, self._pages, self._admit, any_host=self._any_host)
        if isinstance(decision, Answer):
            return self._respond(decision)
        return Upgrade(self._switch(decision), leftover)

    def _respond(self, answer: Answer) -> Respond:
        body = answer.text.encode()
        headers = [*answer.headers, ("content-length", str(len(body))), ("connection", "close")]
        if body:
            headers.insert(0, ("content-type", answer.content_type))
        head = h11.Response(status_code=answer.status, reason=answer.status.phrase, headers=headers)
        data = self._http.send(head) or b""
        if body and not self._is_head:
            data += self._http.send(h11.Data(data=body)) or b""
        return Respond(data, answer.status)

    def _switch(self, key: bytes) -> bytes:
        digest = hashlib.sha1(key + _ACCEPT_GUID, usedforsecurity=False).digest()
        response = h11.InformationalResponse(
            status_code=HTTPStatus.SWITCHING_PROTOCOLS,
            reason=HTTPStatus.SWITCHING_PROTOCOLS.phrase,
            headers=[
                ("connection", "upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-accept", base64.b64encode(digest).decode()),
            ],
        )
        return self._http.send(response) or b""


def decide(request: h11.Request, pages: Pages, admit: Admit, *, any_host: bool) -> Answer | bytes:
    """What a request gets: an answer, or the upgrade, as the value of its Sec-WebSocket-Key.

    The order of the checks is part of the promise. A web page must learn nothing at all, so Origin comes
    first: only browsers send it, and no browser has business here. Then Host: a page whose own name has been
    made to mean this machine sends no Origin with some requests, but that name.
    """
    if request.http_version not in (b"1.0", b"1.1"):
        return Answer(HTTPStatus.BAD_REQUEST)
    if _header(request, b"origin") is not None:
        return Answer(HTTPStatus.FORBIDDEN)
    host = _header(request, b"host")
    if not any_host and host is not None and not _is_address(host):
        text = "this port answers to IP addresses and to localhost; the Host header has another name"
        return Answer(HTTPStatus.MISDIRECTED_REQUEST, text)
    match = _TARGET.match(request.target)
    path = (match and match[1]) or b"/"
    if page := pages.get(path):
        if request.method not in (b"GET", b"HEAD"):
            return Answer(HTTPStatus.METHOD_NOT_ALLOWED, headers=(("allow", "GET,HEAD"),))
        refusal = None if page.is_open else admit(_header(request, b"authorization"), enters=False)
        return refusal or page.answer()
    if path != b"/":
        return Answer(HTTPStatus.NOT_FOUND)
    if request.method != b"GET":
        text = "only GET is answered here, with an upgrade to WebSocket"
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, text, (("allow", "GET"),))
    key = _upgrade_key(request)
    if isinstance(key, Answer):
        return key
    return admit(_header(request, b"authorization"), enters=True) or key


def _is_address(host: bytes) -> bool:
    """Whether a Host header (RFC 9110, 7.2) has an IP address in it, or `localhost`; empty, it names nobody."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[2] if match[1] is None else match[1]
    try:
        ip_address(name.decode("ascii"))
    except ValueError:
        return name.lower() in (b"", b"localhost")
    return True


def _upgrade_key(request: h11.Request) -> Answer | bytes:
    """The key of a WebSocket request (RFC 6455, 4.2.1). Its form is not checked: it proves nothing to us.

    Offers of extensions and subprotocols are passed over, which declines them.
    """
    key = _header(request, b"sec-websocket-key")
    if request.http_version == b"1.0":
        wrong = "WebSocket needs HTTP/1.1"
    elif b"upgrade" not in _tokens(request, b"connection"):
        wrong = "the Connection header must include 'upgrade'"
    elif b"websocket" not in _tokens(request, b"upgrade"):
        wrong = "the Upgrade header must include 'websocket'"
    elif _header(request, b"sec-websocket-version") != b"13":
        wrong = "the Sec-WebSocket-Version header must be 13"
    elif key is None:
        wrong = "the Sec-WebSocket-Key header is missing"
    else:
        return key
    return Answer(HTTPStatus.BAD_REQUEST, wrong)


def _header(request: h11.Request, name: bytes) -> bytes | None:
    """The first field of that lower-case name, None if there is none; it may well be empty."""
    return next((value for field, value in request.headers if field == name), None)


def _tokens(request: h11.Request, name: bytes) -> set[bytes]:
    """The members, in lower case, of all comma-separated fields of that name."""
    fields = (value for field, value in request.headers if field == name)
    return {token.strip().lower() for value in fields for token in value.split(b",")}
