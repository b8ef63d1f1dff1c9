"""An HTTP request that the server sends on, and its response as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Self

from tsupervise_protocol import http_messages as wire
from tsupervise_protocol.base64_text import encode_base64_str

from ._calls import millis
from ._http_bodies import HttpBody
from .errors import HttpBodyFailed

if TYPE_CHECKING:
    from .client import Client

MAX_BODY_BYTES = 64 << 20
"""What `HttpResponse.read` keeps in memory at most, unless it is told otherwise."""

_request_ids = (f"http-{number}" for number in count(1))


@dataclass(frozen=True, slots=True)
class EnvHeader:
    """A header value that ends with what a variable of the server's environment holds, which stays there.

    Args:
        prefix: what stands before it, such as `Bearer `.
        variable: its name. If it is not set, the request is refused.
    """

    prefix: str
    variable: str


HeaderValue = str | EnvHeader
Headers = Mapping[str, HeaderValue] | Sequence[tuple[str, HeaderValue]]


class HttpResponse:
    """A response, its body as it arrives. Made by `Client.http_request`.

    Args:
        status: of any kind: 404 is a response, too.
        headers: names in lower case, in the order in which they came, double ones included.
    """

    def __init__(self, status: int, headers: list[tuple[str, str]], body: HttpBody) -> None:
        self.status = status
        self.headers = headers
        self._body = body

    def __repr__(self) -> str:
        return f"<HttpResponse {self.status}>"

    def header(self, name: str) -> str | None:
        """The first value of a header, in whatever case its name is given; None if there is none."""
        return next((value for known, value in self.headers if known == name.lower()), None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if piece := await self.receive_some():
            return piece
        raise StopAsyncIteration

    async def receive_some(self) -> bytes:
        """Wait for the next piece of the body, 1 MiB at most; b"" at its end.

        Pieces that are not taken wait, 256 of them and 16 MiB of all responses together; beyond that the body
        fails.

        Raises:
            HttpBodyFailed: it has ended early.
        """
        return await self._body.receive()

    async def read(self, max_bytes: int = MAX_BODY_BYTES) -> bytes:
        """Return the whole body, or what is left of it.

        Args:
            max_bytes: more than that is an error.

        Raises:
            HttpBodyFailed: it has ended early, or is larger.
        """
        body = bytearray()
        async for piece in self:
            body += piece
            if len(body) > max_bytes:
                raise HttpBodyFailed(
                    f"the body of the HTTP response is larger than {max_bytes} bytes; raise max_bytes, or "
                    "iterate over the response"
                )
        return bytes(body)


@asynccontextmanager
async def http_request(
    client: Client,
    method: str,
    url: str,
    headers: Headers,
    body: bytes | None,
    timeout_s: float | None,
    follow_redirects: bool,
) -> AsyncGenerator[HttpResponse]:
    """The block of a request; see `Client.http_request`."""
    request_headers = _wire_headers(client, headers)
    body_base64 = None if body is None else encode_base64_str(body)
    timeout_ms = None if timeout_s is None else millis(timeout_s)
    with client.slot("http/request"):
        while True:
            link = await client.ready()
            # Never the same twice: while a body that nobody wants arrives, its id is taken.
            arriving = link.http_bodies.open(next(_request_ids))
            params = wire.HttpRequestParams(
                method=method,
                url=url,
                request_id=arriving.request_id,
                headers=request_headers,
                body_base64=body_base64,
                timeout_ms=timeout_ms,
                redirect_policy="follow" if follow_redirects else "stop",
                stream_response=True,
            )
            try:
                pending = await link.settle("http/request", params)
                if pending.was_answered:
                    answer = link.result_of(pending)
                    break
                if pending.was_sent:
                    raise client.outcome_unknown("http/request")
            except BaseException:
                link.http_bodies.close(arriving)
                raise
    assert isinstance(answer, wire.HttpResponse), "the codec has seen to it"
    try:
        yield HttpResponse(answer.status, [(field.name, field.value) for field in answer.headers], arriving)
    finally:
        link.http_bodies.close(arriving)


def _wire_headers(client: Client, headers: Headers) -> list[wire.HttpRequestHeader]:
    fields = list(headers.items() if isinstance(headers, Mapping) else headers)
    if any(isinstance(value, EnvHeader) for _, value in fields):
        client.require("httpHeaderEnvVars", "fill in a header from its environment")
    return [
        wire.HttpRequestHeader(name=name, value=value.prefix, value_env_var=value.variable)
        if isinstance(value, EnvHeader)
        else wire.HttpRequestHeader(name=name, value=value)
        for name, value in fields
    ]
