"""HTTP requests of the daemon: one connection for each, redirects followed, nothing added that nobody asked for."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpcore2
import trio

from ._http_cookies import AffinityCookies
from ._http_failure import HttpFailure
from ._http_message import OutgoingRequest
from ._http_network import Network
from ._http_proxies import proxy_for
from ._http_redirect import MAX_REDIRECTS, next_request
from ._http_tls import Trust
from ._http_url import HttpUrl

# At its debug level the library writes the fields of requests and responses into the log.
logging.getLogger("httpcore2").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class IncomingResponse:
    """A response whose head has come. It is gone at the end of the block that has given it."""

    status: int
    fields: Sequence[tuple[bytes, bytes]]
    """In the order in which they came, names as they were spelled."""
    _response: httpcore2.Response

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it comes, once. The server is read only when a chunk is asked for.

        Raises:
            HttpFailure: there is no more of it, and it is not whole.
        """
        with _failures():
            async with aclosing(self._response.aiter_stream()) as chunks:
                async for chunk in chunks:
                    yield chunk


class HttpClient:
    """Sends the requests of all connections of one daemon.

    Args:
        environ: the environment of the daemon: its proxies and authorities.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        # Of its own: files that other threads wait for must hold up no request.
        self._threads = trio.CapacityLimiter(2)
        self._trust = Trust(environ)
        self._cookies = AffinityCookies()
        self._network = Network()

    @asynccontextmanager
    async def send(self, request: OutgoingRequest, *, follow: bool) -> AsyncGenerator[IncomingResponse]:
        """Send a request and give the response, for the time of the block; then its connection is closed.

        Args:
            follow: whether redirects are followed.

        Raises:
            HttpFailure: there is none.
        """
        redirects = 0
        while True:
            async with self._exchange(request) as response:
                self._cookies.remember(request.url, response.fields)
                following = next_request(request, response.status, response.fields) if follow else None
                if following is None:
                    yield response
                    return
            redirects += 1
            if redirects > MAX_REDIRECTS:
                raise HttpFailure("too many redirects")
            request = following

    @asynccontextmanager
    async def _exchange(self, request: OutgoingRequest) -> AsyncGenerator[IncomingResponse]:
        proxy = proxy_for(request.url, self._environ)
        context = None
        if "https" in (request.url.scheme, proxy and proxy.scheme):
            context = await trio.to_thread.run_sync(self._trust.context, limiter=self._threads)
        pool = self._pool(proxy, context)
        try:
            with _failures():
                response = await pool.handle_async_request(
                    httpcore2.Request(
                        request.method,
                        _library_url(request.url),
                        headers=request.fields_to_send(self._cookies.cookie_for(request.url)),
                        content=request.body or None,
                    )
                )
            yield IncomingResponse(response.status, response.headers, response)
        finally:
            # Closes what is open at once; to wait is not in its nature, see Network.
            with trio.CancelScope(shield=True):
                await pool.aclose()

    def _pool(self, proxy: HttpUrl | None, context: ssl.SSLContext | None) -> httpcore2.AsyncConnectionPool:
        """Where the connection of one request lives, to the server or to the proxy."""
        if proxy is None:
            return httpcore2.AsyncConnectionPool(ssl_context=context, network_backend=self._network)
        return httpcore2.AsyncHTTPProxy(
            _library_url(proxy),
            proxy_auth=proxy.user_info,
            ssl_context=context,
            proxy_ssl_context=context if proxy.scheme == "https" else None,
            network_backend=self._network,
        )


def _library_url(url: HttpUrl) -> httpcore2.URL:
    port = None if url.has_default_port else url.port
    return httpcore2.URL(scheme=url.scheme, host=url.host, port=port, target=url.target)


@contextmanager
def _failures() -> Generator[None]:
    """Say errors of the library in our words: its own have parts of responses in them."""
    try:
        yield
    except (httpcore2.ConnectError, httpcore2.ReadError, httpcore2.WriteError) as error:
        raise HttpFailure(str(error)) from None  # from Network
    except httpcore2.ProxyError as error:
        raise HttpFailure(f"the proxy has refused to connect, with status {str(error)[:3]}") from None
    except httpcore2.LocalProtocolError:
        text = "the request cannot be sent so: see that its host and transfer-encoding headers are right"
        raise HttpFailure(text) from None
    except httpcore2.RemoteProtocolError as error:
        raise HttpFailure(_what_is_wrong(str(error))) from None


def _what_is_wrong(text: str) -> str:
    if text.startswith("Server disconnected"):
        return "the server has closed the connection without a response"
    if text.startswith("peer closed connection"):
        return "the server has closed the connection before the end of the body"
    if text.startswith("Receive buffer too long"):
        return "the head of the response, or of a part of its body, is longer than 100 KiB"
    return "what the server sends is not HTTP/1.1"
