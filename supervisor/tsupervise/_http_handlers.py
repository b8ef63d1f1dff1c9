"""`http/request`: a request that a client sends from here, its response as a whole or as a stream."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AsyncExitStack, aclosing, contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import trio

from tsupervise_protocol.base64_text import encode_base64, encode_base64_str
from tsupervise_protocol.codec import encode_message
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.http_messages import HttpRequestParams, HttpResponse

from ._http_body import BodyFeed
from ._http_failure import HttpFailure
from ._http_message import OutgoingRequest, headers_of, request_of
from ._rows import Continued, LargeResult, Outcome, Peer, Result, Row

if TYPE_CHECKING:
    from ._http_client import IncomingResponse

SMALL_BODY_BYTES = 256 << 10
"""The answer with a larger body is made in a thread, and one at a time."""


def _request(peer: Peer, params: HttpRequestParams) -> Outcome:
    _ = peer.session  # another connection may hold it now
    request = request_of(params, peer.supervisor.inherited)
    call = _Call(peer, params, request)
    if not params.stream_response:
        return call.answer_whole()
    if params.request_id in peer.body_streams:
        text = f"http/request streamResponse requestId `{params.request_id[:200]}` is already active"
        raise RpcError(ErrorCode.INVALID_PARAMS, text)
    peer.body_streams.add(params.request_id)
    return call.answer_and_stream()


class _Call:
    """One request of a client, on its way."""

    def __init__(self, peer: Peer, params: HttpRequestParams, request: OutgoingRequest) -> None:
        self._peer = peer
        self._params = params
        self._request = request
        timeout_ms = params.timeout_ms
        self._deadline = inf if timeout_ms is None else trio.current_time() + timeout_ms / 1000

    async def answer_whole(self) -> Result:
        body = bytearray()
        try:
            async with AsyncExitStack() as stack:
                response = await self._open(stack)
                with self._failing_as("failed to read http/request response body"):
                    await self._read(response, body)
            if len(body) > SMALL_BODY_BYTES:
                return LargeResult(partial(self._encode_large, response, body))
            # One at a time: none of these is counted as a reply before it is one.
            async with self._peer.outbox.large_reply:
                await self._peer.outbox.wait_for_reply_room()
                result = _answer(response, body)
        except BaseException:
            self._peer.whole_body_bytes -= len(body)
            raise
        self._peer.whole_body_bytes -= len(body)
        return result

    async def _encode_large(
        self, response: IncomingResponse, body: bytearray, head: bytes, tail: bytes
    ) -> bytes:
        outbox = self._peer.outbox
        try:
            async with outbox.huge_reply:
                await outbox.wait_for_huge_turn()
                return await trio.to_thread.run_sync(_large_answer, response, body, head, tail)
        finally:
            self._peer.whole_body_bytes -= len(body)

    async def answer_and_stream(self) -> Continued:
        try:
            async with AsyncExitStack() as stack:
                response = await self._open(stack)
                await self._peer.outbox.wait_for_reply_room()
                return Continued(_answer(response, b""), partial(self._stream, response, stack.pop_all()))
        except BaseException:
            self._peer.body_streams.discard(self._params.request_id)
            raise

    async def _open(self, stack: AsyncExitStack) -> IncomingResponse:
        """The response, whose connection is closed with the stack."""
        with self._failing_as("http/request failed"):
            client = await self._peer.supervisor.http_client()
            follow = self._params.redirect_policy == "follow"
            return await stack.enter_async_context(client.send(self._request, follow=follow))

    async def _read(self, response: IncomingResponse, body: bytearray) -> None:
        """Read the body to its end; what is in `body` is counted."""
        most = self._peer.supervisor.settings.max_http_body_bytes
        async with aclosing(response.chunks()) as chunks:
            async for chunk in chunks:
                body += chunk
                self._peer.whole_body_bytes += len(chunk)
                if self._peer.whole_body_bytes > most:
                    longer = "it is" if len(body) > most else "such bodies of this connection are together"
                    text = f"{longer} longer than {most} bytes: ask for it with streamResponse: true"
                    raise HttpFailure(text)

    async def _stream(self, response: IncomingResponse, connection: AsyncExitStack) -> None:
        """Send the body, and the message that ends it."""
        feed = BodyFeed(self._peer.outbox, self._params.request_id, self._peer.body_streams)
        try:
            async with connection:
                error = await self._send_parts(response, feed)
            await feed.end(error)
        finally:
            feed.close()

    async def _send_parts(self, response: IncomingResponse, feed: BodyFeed) -> str | None:
        """Send the body as it comes, no faster than the client takes it; returns why it is not whole."""
        try:
            with self._failing_as("the body is not whole"):
                async with aclosing(response.chunks()) as chunks:
                    async for chunk in chunks:
                        await feed.send(chunk)
        except RpcError as error:
            return error.message
        return None

    @contextmanager
    def _failing_as(self, prefix: str) -> Generator[None]:
        """Turn failures and the end of the time into the error of a request."""
        with trio.CancelScope(deadline=self._deadline) as scope:
            try:
                yield
            except HttpFailure as failure:
                raise RpcError(ErrorCode.INTERNAL_ERROR, f"{prefix}: {failure}") from None
        if scope.cancelled_caught:
            text = f"{prefix}: timed out, timeoutMs was {self._params.timeout_ms}"
            raise RpcError(ErrorCode.INTERNAL_ERROR, text)


def _large_answer(response: IncomingResponse, body: bytearray, head: bytes, tail: bytes) -> bytes:
    """The whole response, in a thread, with one copy of what is large in it."""
    around = encode_message(_answer(response, b""))
    assert around.endswith(b'""}'), "the body is the last member"
    return b"".join((head, around[:-2], encode_base64(body), b'"}', tail))


def _answer(response: IncomingResponse, body: bytes | bytearray) -> HttpResponse:
    headers = headers_of(response.fields)
    return HttpResponse(status=response.status, headers=headers, body_base64=encode_base64_str(body))


# Requests wait for no other, and no other for them.
HTTP_ROWS: dict[str, Row] = {"http/request": Row(_request, lane=lambda _: "http", holds_lane=False)}
