"""Where a redirect leads, and what of a request goes there. It does no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ._http_failure import HttpFailure
from ._http_message import Field, OutgoingRequest
from ._http_url import BadUrl, HttpUrl, UnsupportedScheme, parse_url

MAX_REDIRECTS = 10
"""As in the reference; browsers follow twice as many."""

_FOUND = (301, 302)
_SEE_OTHER = 303
_SAME_METHOD = (307, 308)

_OF_THE_BODY = {
    *(b"content-encoding", b"content-language", b"content-length", b"content-location", b"content-type"),
    *(b"content-md5", b"transfer-encoding"),
}
"""Fields that go with the body."""

_OF_THE_ORIGIN = {b"authorization", b"cookie", b"host", b"proxy-authorization", b"www-authenticate"}
"""Fields that are for the origin that they were given for."""


def next_request(
    request: OutgoingRequest, status: int, fields: Sequence[tuple[bytes, bytes]]
) -> OutgoingRequest | None:
    """The request that a response asks for; None if it is an answer, or leads nowhere.

    Raises:
        HttpFailure: it leads to something else than http and https.
    """
    if status not in (*_FOUND, _SEE_OTHER, *_SAME_METHOD):
        return None
    location = next((value for name, value in fields if name.lower() == b"location"), None)
    if location is None:
        return None
    try:
        url = parse_url(location.decode(), request.url)
    except (BadUrl, UnicodeDecodeError):
        return None
    except UnsupportedScheme as error:
        text = f"redirect target uses unsupported URL scheme: {error.scheme[:40]}"
        raise HttpFailure(text) from None
    method, body, kept = request.method, request.body, request.fields
    if _loses_its_body(status, method):
        method, body = method if method == "HEAD" else "GET", b""
        kept = tuple(field for field in kept if field.name not in _OF_THE_BODY)
    if url.origin != request.url.origin:
        kept = tuple(field for field in kept if not (field.name in _OF_THE_ORIGIN or field.from_environment))
    kept = tuple(field for field in kept if field.name != b"referer")
    return OutgoingRequest(method, url, (*kept, *_referer(request.url, url)), body)


def _loses_its_body(status: int, method: str) -> bool:
    """As browsers and the reference do: other methods than POST are repeated as they were after 301 and 302."""
    return status == _SEE_OTHER or (status in _FOUND and method == "POST")


def _referer(previous: HttpUrl, url: HttpUrl) -> list[Field]:
    """Where the redirect came from: in full for the same origin, the origin for others, nothing in the clear."""
    if previous.origin == url.origin:
        return [Field(b"referer", str(previous).encode())]
    if previous.scheme == "https" and url.scheme == "http":
        return []
    return [Field(b"referer", f"{previous.scheme}://{previous.authority}/".encode())]
