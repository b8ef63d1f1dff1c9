"""The JSON-RPC dialect: bytes to messages and back. It never awaits and owns no connection.

There is no `jsonrpc` member; a response is told from a request by having no `method`. What a client
sends is checked against all limits before anything is built from it, see `decode_from_client`.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .base64_text import encode_base64
from .errors import ErrorCode, MalformedMessage, ProtocolViolation, RpcError
from .json_limits import check_limits
from .messages import ErrorBody, Message, Stream
from .methods import METHODS, NOTIFICATIONS

_T = TypeVar("_T")

MAX_MESSAGE_BYTES = 64 << 20
"""The largest message either side takes. Doors enforce it while bytes arrive."""

RequestId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | str
"""A JSON string, or an integer of 64 bits; echoed as it came."""

MALFORMED_ID = -1
"""The id of the answer to a message whose own id could not be read."""


class Trace(Struct, frozen=True, gc=False, omit_defaults=True):
    """W3C trace context of a request. Not validated: a wrong one is ignored."""

    traceparent: str | None = None
    tracestate: str | None = None


class _Envelope(Struct, frozen=True, gc=False):
    id: RequestId | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    # Looked into only where they belong to the kind of the message: elsewhere they are unknown members.
    trace: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


class Request(Struct):
    """A request. Exactly one of `params` and `fault` is set."""

    id: int | str
    method: str
    params: Message | None = None
    fault: RpcError | None = None
    """Why the params cannot be used, or that the method is unknown: the answer to give."""
    size: int = 0
    """Bytes of the whole message: what it costs to keep it waiting."""
    trace: Trace | None = None
    received_at: float = 0.0
    """For whoever takes it to note when that was, in seconds by a clock of his own."""


class Notification(Struct, frozen=True, gc=False):
    method: str
    params: Raw | None = None


class Response(Struct, frozen=True, gc=False):
    id: int | str
    result: Raw


class Failure(Struct, frozen=True, gc=False):
    id: int | str
    error: ErrorBody


class ServerRequest(Struct, frozen=True, gc=False):
    """A request from the server to the client. Clients know none and answer with METHOD_NOT_FOUND."""

    id: int | str
    method: str


_envelope_decoder = msgspec.json.Decoder(_Envelope)
_trace_decoder = msgspec.json.Decoder(Trace | None)
_error_decoder = msgspec.json.Decoder(ErrorBody)
_params_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(method.params) for name, method in METHODS.items()
}
_notification_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(params) for name, params in NOTIFICATIONS.items()
}
_encoder = msgspec.json.Encoder()


def _decode_envelope(data: bytes) -> _Envelope:
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise MalformedMessage(f"invalid UTF-8 at byte {error.start}") from None
    try:
        return _envelope_decoder.decode(data)
    except msgspec.ValidationError as error:
        if data.lstrip()[:1] != b"{":
            raise MalformedMessage("expected a JSON-RPC object") from None
        raise MalformedMessage(str(error)) from None
    except msgspec.DecodeError as error:
        raise MalformedMessage(str(error)) from None
    except RecursionError:
        raise MalformedMessage("the message is nested far beyond the limit") from None


def decode_from_client(data: bytes) -> Request | Notification:
    """Decode one message of a client, with all limits checked before anything is built from it.

    Args:
        data: one whole message, JSON as UTF-8.

    Raises:
        MalformedMessage: no JSON, no request or notification, a bad id, over a limit, a member twice.
        ProtocolViolation: a response or an error: servers ask nothing that a client could answer.
    """
    envelope = _decode_envelope(data)
    method = envelope.method
    row = None if method is UNSET else METHODS.get(method)
    scalar_members = None if row is None or envelope.id is UNSET else row.scalar_members
    # An ordinary write has six members, all known and all scalar. If its params decode and there are no
    # more than six colons in the text, then there is no room for a further or a second member, and every
    # limit holds: the full check would cost more than all the rest of the decoding.
    proven = scalar_members is not None and data.count(b":") == scalar_members
    if not proven:
        check_limits(data)
    if method is UNSET:
        _decode_answer(envelope)
        raise ProtocolViolation("clients send no answers; the server asked nothing")
    raw = None if envelope.params is UNSET else envelope.params
    if envelope.id is UNSET:
        return Notification(method, raw)
    trace = None if envelope.trace is UNSET else _decode_member(_trace_decoder, envelope.trace, "trace")
    if row is None:
        fault = RpcError(ErrorCode.METHOD_NOT_FOUND, f"this server has no method {method[:200]!r}")
        return Request(envelope.id, method, fault=fault, size=len(data), trace=trace)
    try:
        params = decode_params(method, raw)
    except RpcError as fault:
        if proven:
            check_limits(data)
        return Request(envelope.id, method, fault=fault, size=len(data), trace=trace)
    return Request(envelope.id, method, params, size=len(data), trace=trace)


def decode_params(method: str, raw: Raw | None) -> Message:
    """Decode the params of a method of `METHODS`; null and nothing are an empty object.

    Raises:
        RpcError: INVALID_PARAMS, with the member and what was expected.
    """
    text = b"{}" if raw is None or bytes(raw) == b"null" else raw
    try:
        return _params_decoders[method].decode(text)
    except msgspec.DecodeError as error:
        raise RpcError(ErrorCode.INVALID_PARAMS, f"{method}: {_say(error)}") from None


def _say(error: msgspec.DecodeError) -> str:
    """msgspec's text with the word that other servers of this protocol use for the commonest mistake."""
    text = str(error)
    return text.replace("Object missing required field", "missing field")


def decode_from_server(data: bytes) -> Response | Failure | Notification | ServerRequest:
    """Decode one message of a server.

    Raises:
        MalformedMessage: no JSON-RPC message; a client then drops the connection.
    """
    envelope = _decode_envelope(data)
    raw = None if envelope.params is UNSET else envelope.params
    if envelope.method is not UNSET:
        if envelope.id is UNSET:
            return Notification(envelope.method, raw)
        return ServerRequest(envelope.id, envelope.method)
    return _decode_answer(envelope)


def _decode_answer(envelope: _Envelope) -> Response | Failure:
    """A message without a method: a response if it has a result, whatever else it has, or else an error."""
    if envelope.result is UNSET and envelope.error is UNSET:
        raise MalformedMessage("a message has a method, or a result, or an error; this one has none")
    if envelope.id is UNSET:
        raise MalformedMessage("an answer without an id")
    if envelope.result is not UNSET:
        return Response(envelope.id, envelope.result)
    assert envelope.error is not UNSET, "one of the two is there"
    return Failure(envelope.id, _decode_member(_error_decoder, envelope.error, "error"))


def _decode_member(decoder: msgspec.json.Decoder[_T], raw: Raw, name: str) -> _T:
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"{name}: {error}") from None


def decode_notification(notification: Notification) -> Message | None:
    """The typed params of a server's notification, or None if its method is not known.

    Raises:
        MalformedMessage: a known notification with params that do not fit.
    """
    decoder = _notification_decoders.get(notification.method)
    if decoder is None:
        return None
    try:
        return decoder.decode(b"{}" if notification.params is None else notification.params)
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"{notification.method}: {error}") from None


def decode_result(method: str, result: Raw) -> Message:
    """The typed result of a method of `METHODS`.

    Raises:
        MalformedMessage: the result does not fit its method.
    """
    try:
        return msgspec.json.decode(result, type=METHODS[method].result)
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"result of {method}: {error}") from None


class _ResultEnvelope(Struct, frozen=True, gc=False):
    id: int | str
    result: Message


class _ErrorEnvelope(Struct, frozen=True, gc=False):
    id: int | str
    error: ErrorBody


class _RequestEnvelope(Struct, frozen=True, gc=False):
    id: int | str
    method: str
    params: Message
    trace: Trace | UnsetType = UNSET


class _NotificationEnvelope(Struct, frozen=True, gc=False):
    method: str
    params: Message | None


def encode_result(request_id: int | str, result: Message) -> bytes:
    """The response to a request."""
    return _encoder.encode(_ResultEnvelope(request_id, result))


def result_envelope(request_id: int | str) -> tuple[bytes, bytes]:
    """What stands before and behind the JSON of a result in the response to a request."""
    return b'{"id":%b,"result":' % _encoder.encode(request_id), b"}"


def encode_error(request_id: int | str, code: int, message: str) -> bytes:
    """The error answer to a request."""
    return _encoder.encode(_ErrorEnvelope(request_id, ErrorBody(int(code), message)))


def encode_malformed(label: str, detail: str) -> bytes:
    """The answer to a message that is none.

    Args:
        label: the door and the peer, such as `websocket JSON-RPC message from exec-server websocket
            127.0.0.1:4711`; clients in the field match the text up to the peer.
        detail: what is wrong.
    """
    return encode_error(MALFORMED_ID, ErrorCode.INVALID_REQUEST, f"failed to parse {label}: {detail}")


def encode_request(request_id: int | str, method: str, params: Message, trace: Trace | None = None) -> bytes:
    """A request; `trace` is the context that it is made in."""
    return _encoder.encode(_RequestEnvelope(request_id, method, params, UNSET if trace is None else trace))


def encode_notification(method: str, params: Message | None = None) -> bytes:
    """A notification; without params for `initialized`."""
    if params is None:
        return _encoder.encode({"method": method})
    return _encoder.encode(_NotificationEnvelope(method, params))


class OutputTemplate:
    """The output notifications of one stream of one process, with all but number and bytes prepared.

    Output is nearly all of the traffic: joining prepared bytes around pybase64 takes 3.5 us for 64 KiB,
    msgspec takes 42 us (measured).

    Args:
        process_id: the process, as its client named it.
        stream: `stdout`, `stderr` or `pty`.
    """

    __slots__ = ("_head", "_middle")

    def __init__(self, process_id: str, stream: Stream) -> None:
        name = _encoder.encode(process_id)
        self._head = b'{"method":"process/output","params":{"processId":%b,"seq":' % name
        self._middle = b',"stream":"%b","chunk":"' % stream.encode()

    def encode(self, seq: int, data: bytes) -> bytes:
        """The notification for `data`, the chunk numbered `seq`."""
        return b"".join((self._head, b"%d" % seq, self._middle, encode_base64(data), b'"}}'))
