"""One peer: receive its messages, put its requests in order, reply, push events. It dies with its channel.

A connection owns the requests that wait and nothing else; processes belong to the session that it holds.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from math import inf
from time import perf_counter

import trio

from tsupervise_protocol.codec import (
    Notification,
    Request,
    decode_from_client,
    encode_error,
    encode_malformed,
    encode_result,
    result_envelope,
)
from tsupervise_protocol.errors import ErrorCode, MalformedMessage, ProtocolViolation, RpcError
from tsupervise_protocol.handshake import Handshake
from tsupervise_protocol.messages import InitializeParams, Message
from tsupervise_protocol.methods import METHODS

from ._channel import CloseCode, ServerChannel
from ._handlers import ROWS
from ._journal import tell
from ._outbox import JOIN_BYTES, Outbox
from ._rows import LargeResult, Result, Row
from ._session import Session
from ._supervisor import Supervisor

log = logging.getLogger(__name__)

PROBE_S = 2.0
"""How long a peer may be silent when another connection asks for its session, in seconds."""

FAREWELL_S = 1.0
"""How long answers that are due, and the reason for the close, may take to be sent, in seconds."""


@dataclass(slots=True)
class _Lane:
    """Requests that wait for the one that holds their lane."""

    holder: str
    waiting: deque[tuple[Request, Row]] = field(default_factory=deque[tuple[Request, Row]])


class Connection:
    """One peer at one channel. `run` is its whole life.

    Args:
        supervisor: has the sessions.
        channel: belongs to this connection.
        handshake_s: how long the peer may take for an `initialize` that succeeds, in seconds.
    """

    def __init__(self, supervisor: Supervisor, channel: ServerChannel, handshake_s: float = inf) -> None:
        self.supervisor = supervisor
        self.outbox = Outbox(channel.send_nowait)
        self._metrics = supervisor.metrics
        self._tracer = supervisor.tracer
        self._channel = channel
        self._handshake_s = handshake_s
        self._handshake = Handshake()
        self._session: Session | None = None
        self._lanes: dict[Hashable, _Lane] = {}
        self._open_requests = 0
        self._open_bytes = 0
        self._scope = trio.CancelScope()
        self._requests: trio.Nursery | None = None
        self._challenged = False
        self._leaving = False
        self._is_operator = False
        self.violated = False
        """Whether the peer broke the protocol and was sent away for it."""
        # What the peer is told if nothing else ends the connection first.
        self._farewell = (CloseCode.GOING_AWAY, "the server is shutting down")

    @property
    def session(self) -> Session:
        session = self._session
        assert session is not None, "the handshake lets no method through before there is a session"
        if session.holder is not self:
            raise RpcError(
                ErrorCode.INVALID_REQUEST,
                f"session {session.session_id} has been resumed by another connection",
            )
        return session

    async def open_session(self, params: InitializeParams) -> Session:
        self._session = await self.supervisor.open_session(self, params)
        self._scope.deadline = inf
        return self._session

    @property
    def origin(self) -> Mapping[str, object]:
        return {"peer": self._channel.peer, "peer_uid": self._channel.peer_uid()}

    def require_operator(self) -> None:
        if not self._is_operator:
            uid = self._channel.peer_uid()
            # Root could do all of it without us.
            if uid not in (os.geteuid(), 0):
                who = "a user that this machine cannot tell" if uid is None else f"user {uid}"
                raise RpcError(
                    ErrorCode.NOT_ALLOWED,
                    f"only the user that the daemon runs as ({os.geteuid()}) may do this, and this "
                    f"connection comes from {who}; connect as that user from the same machine",
                )
            self._is_operator = True

    def dismiss(self, reason: str) -> None:
        self._end(CloseCode.GOING_AWAY, reason)

    async def run(self) -> None:
        """Serve the peer until it leaves, breaks the protocol or must be taken for gone; then close."""
        self._channel.set_waker(self.outbox.nudge)
        self._scope.deadline = trio.current_time() + self._handshake_s
        self._metrics.connection_opened(self.outbox)
        tell(logging.DEBUG, "connection.opened", peer=self._channel.peer)
        try:
            with self._scope:
                # Children of this nursery: the sending task and the watch over the peer.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_messages)
                    nursery.start_soon(self._watch_peer)
                    try:
                        # Children of this one: requests that wait, and lanes.
                        async with trio.open_nursery() as self._requests:
                            try:
                                await self._receive_messages()
                            finally:
                                self._leaving = True
                            self._requests.cancel_scope.cancel()
                    finally:
                        # Requests are over: nothing of this connection can touch the session any more.
                        if self._session is not None:
                            self._session.detach(self)
                    with trio.move_on_after(FAREWELL_S):
                        await self.outbox.wait_until_empty()
                    nursery.cancel_scope.cancel()
            if trio.current_time() >= self._scope.deadline:
                text = f"no initialize within {self._handshake_s:g} s"
                self._farewell = (CloseCode.POLICY_VIOLATION, text)
        finally:
            self._metrics.connection_closed(self.outbox)
            code, reason = self._farewell
            tell(logging.DEBUG, "connection.closed", peer=self._channel.peer, code=int(code), reason=reason)
            with trio.move_on_after(FAREWELL_S, shield=True):
                await self._channel.aclose(code, reason)

    def _end(self, code: CloseCode, reason: str) -> None:
        self._farewell = (code, reason)
        self._scope.cancel()

    # --- the peer --------------------------------------------------------------------------------

    async def _send_messages(self) -> None:
        """The only task that sends, so that messages are whole and in order."""
        try:
            while True:
                await self.outbox.wait()
                messages = self.outbox.take()
                await self._channel.send(messages)
                is_large = len(messages) == 1 and len(messages[0]) > JOIN_BYTES
                del messages  # it may be hundreds of megabytes, and the next wait may be long
                if is_large:
                    # A channel may take all without a checkpoint; in a flood the others want their turn.
                    await trio.lowlevel.checkpoint()
        except trio.BrokenResourceError:
            self._end(CloseCode.GOING_AWAY, "the peer is gone")

    async def _watch_peer(self) -> None:
        await self._channel.keep_alive()
        log.info("a peer is taken for gone")
        self._end(CloseCode.POLICY_VIOLATION, "no sign of life")

    def challenge(self) -> None:
        # Who is leaving will have let go before the next try, and its nursery may be closed already.
        if not self._challenged and not self._leaving:
            assert self._requests is not None, "a connection that holds a session runs"
            self._challenged = True
            self._requests.start_soon(self._meet_challenge)

    async def _meet_challenge(self) -> None:
        alive = await self._channel.is_alive(PROBE_S)
        self._challenged = False
        if not alive:
            log.info("a silent peer loses its session to another connection")
            self._end(CloseCode.POLICY_VIOLATION, "silent while another connection asked for the session")

    async def _receive_messages(self) -> None:
        while messages := await self._channel.receive():
            self.outbox.cork()
            try:
                for message in messages:
                    await self._take_message(message)
                    if not self.outbox.has_reply_room:
                        # A peer that asks and does not read the answers: its next requests wait, too.
                        self.outbox.uncork()
                        await self.outbox.wait_for_reply_room()
                        self.outbox.cork()
            except ProtocolViolation as violation:
                self.violated = True
                self._farewell = (CloseCode.POLICY_VIOLATION, str(violation))
                return
            finally:
                self.outbox.uncork()
        self._farewell = (CloseCode.NORMAL, "")

    # --- its requests ----------------------------------------------------------------------------

    async def _take_message(self, data: bytes) -> None:
        received_at = perf_counter()
        self._metrics.received_bytes += len(data)
        try:
            message = decode_from_client(data)
        except MalformedMessage as error:
            self._metrics.malformed_messages += 1
            self.outbox.reply(encode_malformed(self._channel.label, str(error)))
            return
        if isinstance(message, Notification):
            self._handshake.check_notification(message.method)
            return
        message.received_at = received_at
        row = ROWS.get(message.method)
        if row is None:
            assert message.fault is not None, "every method of the protocol has a row"
            self._fail(message, message.fault)
            return
        try:
            # Params first: what cannot be read is wrong at any time.
            if message.fault is not None:
                raise message.fault
            self._handshake.check_request(message.method, METHODS[message.method].family)
        except RpcError as error:
            self._fail(message, error)
            return
        if row.inline:
            outcome = self._begin(message, row)
            if outcome is not None and await self._finish(message, outcome):
                self._handshake.initialize_succeeded()
            return
        self._take_request(message, row)

    def _take_request(self, request: Request, row: Row) -> None:
        """Handle a request at once, or let it wait for its turn. Never waits itself."""
        if row.lane is None:  # control, which never has to wait
            outcome = self._begin(request, row)
            assert outcome is None, f"{request.method} answers at once"
            return
        if not self._has_room_for(request):
            return
        self._open_requests += 1
        self._open_bytes += request.size
        lane_name = row.lane(request.params)
        lane = self._lanes.get(lane_name)
        if lane is not None and lane.holder not in row.overtakes:
            lane.waiting.append((request, row))
            return
        outcome = self._begin(request, row)
        if outcome is None:
            self._close_request(request)
        elif row.holds_lane:
            self._lanes[lane_name] = _Lane(request.method)
            self._spawn(self._run_lane, lane_name, request, outcome)
        else:
            self._spawn(self._finish_one, request, outcome)

    def _has_room_for(self, request: Request) -> bool:
        settings = self.supervisor.settings
        if self._open_requests >= settings.max_open_requests:
            text = f"{self._open_requests} requests of this connection wait already: wait for answers first"
        elif self._open_requests and self._open_bytes + request.size > settings.max_open_bytes:
            text = f"{self._open_bytes} bytes of requests of this connection wait already: wait for answers first"
        else:
            return True
        self._fail(request, RpcError(ErrorCode.TOO_MANY_REQUESTS, text))
        return False

    def _close_request(self, request: Request) -> None:
        self._open_requests -= 1
        self._open_bytes -= request.size

    def _spawn(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._requests is not None, "requests come while the connection runs"
        self._requests.start_soon(task, *arguments)

    def _begin(self, request: Request, row: Row) -> Awaitable[Result] | None:
        """Run a handler; reply if it has answered, else return what is to be awaited."""
        try:
            outcome = row.handler(self, request.params)
        except RpcError as error:
            self._fail(request, error)
        except Exception:
            self._fail_inside(request)
        else:
            if not isinstance(outcome, Message):
                return outcome
            self._succeed(request, encode_result(request.id, outcome))
        return None

    async def _finish(self, request: Request, outcome: Awaitable[Result]) -> bool:
        """Await an answer and reply; returns whether it was a good one."""
        try:
            result = await outcome
            if isinstance(result, LargeResult):
                answer = await result.encode(*result_envelope(request.id))
            else:
                answer = encode_result(request.id, result)
        except RpcError as error:
            self._fail(request, error)
        except Exception:
            self._fail_inside(request)
        else:
            self._succeed(request, answer)
            return True
        return False

    async def _finish_one(self, request: Request, outcome: Awaitable[Result]) -> None:
        await self._finish(request, outcome)
        self._close_request(request)

    async def _run_lane(self, name: Hashable, request: Request, outcome: Awaitable[Result]) -> None:
        """Finish the request that holds the lane, then those that came behind it, in order."""
        lane = self._lanes[name]
        await self._finish_one(request, outcome)
        while lane.waiting:
            request, row = lane.waiting.popleft()
            following = self._begin_in_turn(request, row)
            if following is not None:
                lane.holder = request.method
                self._let_overtake(lane)
                await self._finish_one(request, following)
        del self._lanes[name]

    def _begin_in_turn(self, request: Request, row: Row) -> Awaitable[Result] | None:
        """Begin a request that has waited in a lane; return what is to be awaited if it holds the lane now."""
        outcome = self._begin(request, row)
        if outcome is None:
            self._close_request(request)
        elif row.holds_lane:
            return outcome
        else:
            self._spawn(self._finish_one, request, outcome)
        return None

    def _let_overtake(self, lane: _Lane) -> None:
        """The lane has a new holder: who does not wait for this one goes ahead."""
        for waiting in [waiting for waiting in lane.waiting if lane.holder in waiting[1].overtakes]:
            lane.waiting.remove(waiting)
            held = self._begin_in_turn(*waiting)
            assert held is None, "what overtakes does not hold a lane"

    def _succeed(self, request: Request, answer: bytes) -> None:
        self.outbox.reply(answer)
        self._answered(request, None)

    def _fail(self, request: Request, error: RpcError) -> None:
        self.outbox.reply(encode_error(request.id, error.code, error.message))
        self._answered(request, error.code)

    def _answered(self, request: Request, code: int | None) -> None:
        seconds = perf_counter() - request.received_at
        self._metrics.answered(request.method, code, seconds)
        if self._tracer is not None:
            self._tracer.answered(request, code, seconds)

    def _fail_inside(self, request: Request) -> None:
        # A bug of ours. The peer learns that it is none of its own; the log has the rest.
        log.exception("%s failed inside the server", request.method)
        text = f"{request.method} failed inside the server; its log says why"
        self._fail(request, RpcError(ErrorCode.INTERNAL_ERROR, text))
