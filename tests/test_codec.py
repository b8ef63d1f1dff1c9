"""The JSON-RPC dialect: what is a message, what is none, and what is sent in answer to either."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tsupervise_protocol.codec import (
    Failure,
    Notification,
    OutputTemplate,
    Request,
    Response,
    ServerRequest,
    decode_from_client,
    decode_from_server,
    decode_notification,
    decode_result,
    encode_error,
    encode_malformed,
    encode_notification,
    encode_request,
    encode_result,
)
from tsupervise_protocol.errors import ErrorCode, MalformedMessage, ProtocolViolation, RpcError
from tsupervise_protocol.json_limits import MAX_NESTING, MAX_VALUES, check_limits
from tsupervise_protocol.messages import (
    ClosedNotification,
    ExitedNotification,
    InitializeParams,
    NoParams,
    OutputNotification,
    ReadParams,
    TerminateParams,
    TerminateResult,
    WriteParams,
    WriteResult,
)
from tsupervise_protocol.methods import METHODS


def request(params: str = "{}", method: str = "environment/status", **members: str) -> bytes:
    """The text of a request; `members` are further members as JSON text."""
    more = "".join(f',"{name}":{text}' for name, text in members.items())
    return f'{{"id":1,"method":"{method}","params":{params}{more}}}'.encode()


def decoded(data: bytes) -> Request:
    message = decode_from_client(data)
    assert isinstance(message, Request)
    return message


def fault_of(data: bytes) -> RpcError:
    """The answer that a request with unusable params earns."""
    fault = decoded(data).fault
    assert fault is not None
    return fault


# --- envelopes from a client -------------------------------------------------------------------------


@pytest.mark.case(23)
@pytest.mark.parametrize("id_", ["0", "-7", str(2**63 - 1), str(-(2**63)), '"abc"', '""', '"7"', '"\\u20ac"'])
def test_an_id_is_a_string_or_an_integer_of_64_bits(id_: str) -> None:
    """It comes back in the answer with its value and its type."""
    message = decoded(b'{"id":%b,"method":"environment/status"}' % id_.encode())
    answer = json.loads(encode_error(message.id, ErrorCode.INTERNAL_ERROR, "x"))
    assert answer["id"] == json.loads(id_)
    assert type(answer["id"]) is type(json.loads(id_))


@pytest.mark.case(23)
@pytest.mark.parametrize(
    "id_",
    ["null", "true", "1.5", "1.0", "1e2", "[1]", "{}", str(2**63), str(-(2**63) - 1), "1" + "0" * 5000],
)
def test_any_other_id_makes_the_message_malformed(id_: str) -> None:
    """There is nothing that an answer could be matched by."""
    with pytest.raises(MalformedMessage):
        decode_from_client(b'{"id":%b,"method":"environment/status"}' % id_.encode())


@pytest.mark.case(24)
@pytest.mark.parametrize(
    "members",
    [
        {},
        {"jsonrpc": '"2.0"'},
        {"jsonrpc": "7", "extra": '{"deep":[1,{"x":null}]}'},
        {"trace": "null"},
        {"trace": "{}"},
        {"trace": '{"traceparent":"garbage","tracestate":null,"other":1}'},
    ],
)
def test_unknown_members_and_trace_contexts_disturb_nothing(members: dict[str, str]) -> None:
    """A request is read for what it says; the rest is for others."""
    assert decoded(request(**members)).params == NoParams()


@pytest.mark.case(24)
@pytest.mark.parametrize("trace", ["5", '"x"', "[]", '{"traceparent":5}', "true"])
def test_a_trace_of_the_wrong_type_makes_the_message_malformed(trace: str) -> None:
    """The member is defined, so its type is part of the envelope."""
    with pytest.raises(MalformedMessage):
        decode_from_client(request(trace=trace))


@pytest.mark.case(27)
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"[]", "expected a JSON-RPC object"),
        (b'[{"id":1,"method":"environment/status"}]', "expected a JSON-RPC object"),
        (b"5", "expected a JSON-RPC object"),
        (b' "x"', "expected a JSON-RPC object"),
        (b"null", "expected a JSON-RPC object"),
        (b"", ""),
        (b"not json", ""),
        (b'{"id":1,"method":"environment/status"', ""),
        (b'{"id":1,"method":"environment/status"} x', ""),
        (b'{"id":1,"method":"environment/status"}{}', ""),
        (b'\xef\xbb\xbf{"id":1,"method":"environment/status"}', ""),
        (b'{"id":1,"method":5}', ""),
        (b'{"id":1,"method":null}', ""),
        (b"{}", "a message has a method"),
        (b'{"id":3}', "a message has a method"),
        (b'{"params":{}}', "a message has a method"),
        (b'{"result":{}}', "an answer without an id"),
        (b'{"id":1,"method":"a\xff"}', "invalid UTF-8 at byte 19"),
        (b'{"id":1,"method":"m","params":"\xed\xa0\x80"}', "invalid UTF-8 at byte 31"),
        (b"[" * 100_000, "expected a JSON-RPC object"),
        (b'{"x":' + b"[" * 100_000, "nested far beyond the limit"),
    ],
)
def test_what_is_no_message_says_so(data: bytes, text: str) -> None:
    """Each is malformed, none is an error of ours, and the text says what is wrong where we know it."""
    with pytest.raises(MalformedMessage) as caught:
        decode_from_client(data)
    assert text in str(caught.value)


@pytest.mark.case(31)
@pytest.mark.parametrize(
    "data",
    [
        b'{"id":1,"result":{}}',
        b'{"id":1,"result":null}',
        b'{"id":"x","error":{"code":-1,"message":"m"}}',
        b'{"id":1,"error":{"code":-1,"message":"m","data":[1]}}',
    ],
)
def test_an_answer_from_a_client_is_a_violation(data: bytes) -> None:
    """A server asks nothing, so nothing can be answered."""
    with pytest.raises(ProtocolViolation, match="the server asked nothing"):
        decode_from_client(data)


def test_a_message_without_an_id_is_a_notification() -> None:
    """Its params are not looked at."""
    assert decode_from_client(b'{"method":"initialized"}') == Notification("initialized")
    message = decode_from_client(b'{"method":"initialized","params":[1,2]}')
    assert isinstance(message, Notification)
    assert message.params is not None
    assert bytes(message.params) == b"[1,2]"


@pytest.mark.case(32)
def test_an_unknown_method_is_a_request_with_a_fault() -> None:
    """The name stands in the text, and a huge one does not come back whole."""
    fault = fault_of(request(method="fs/nothing"))
    assert fault.code == ErrorCode.METHOD_NOT_FOUND
    assert "fs/nothing" in fault.message
    assert len(fault_of(request(method="m" * 1_000_000)).message) < 300


# --- params ------------------------------------------------------------------------------------------


@pytest.mark.case(29)
@pytest.mark.parametrize("data", [b'{"id":1,"method":"environment/status"}', request("null"), request("{}")])
def test_no_params_have_three_spellings(data: bytes) -> None:
    """Left out, null and an empty object are the same."""
    assert decoded(data).params == NoParams()


@pytest.mark.case(29)
@pytest.mark.parametrize("params", ["[]", '{"a":1}', "5", '""', "[1]"])
def test_a_method_without_params_takes_none(params: str) -> None:
    """Anything but nothing is refused."""
    assert fault_of(request(params)).code == ErrorCode.INVALID_PARAMS


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [
        ("initialize", '{"clientName":"c"}', InitializeParams(client_name="c")),
        ("initialize", '{"clientName":"c","resumeSessionId":null}', InitializeParams(client_name="c")),
        ("process/read", '{"processId":"p"}', ReadParams(process_id="p")),
        (
            "process/read",
            f'{{"processId":"p","afterSeq":{2**64 - 1},"maxBytes":0,"waitMs":{2**64 - 1},"x":{{}}}}',
            ReadParams(process_id="p", after_seq=2**64 - 1, max_bytes=0, wait_ms=2**64 - 1),
        ),
        ("process/terminate", '{"processId":"a:b"}', TerminateParams(process_id="a:b")),
    ],
)
def test_params_become_types(method: str, params: str, expected: msgspec.Struct) -> None:
    """Unknown members are ignored, null is the same as left out, 64 bits fit."""
    assert decoded(request(params, method)).params == expected


@pytest.mark.case(30, 79)
@pytest.mark.parametrize(
    ("method", "params", "part"),
    [
        ("process/start", "{}", "missing field `processId`"),
        ("process/start", '{"processId":"p","argv":[],"cwd":"","env":{}}', "missing field `tty`"),
        ("process/start", '{"processId":"p","argv":[],"cwd":"","env":{},"tty":null}', "$.tty"),
        (
            "process/start",
            '{"processId":"p","argv":[],"cwd":"","env":{},"tty":false,"pipeStdin":null}',
            "$.pipeStdin",
        ),
        ("process/start", '{"processId":5}', "$.processId"),
        ("process/read", '{"processId":"p","afterSeq":-1}', "$.afterSeq"),
        ("process/read", '{"processId":"p","afterSeq":1.0}', "$.afterSeq"),
        ("process/read", f'{{"processId":"p","waitMs":{2**64}}}', "waitMs must be below 2^64"),
        ("process/write", '{"processId":"p","chunk":""}', "missing field `writeId`"),
        ("process/write", "null", "missing field `processId`"),
        ("process/write", '["p","",""]', "Expected `object`, got `array`"),
        ("process/signal", '{"processId":"p","signal":"nonsense"}', "$.signal"),
        ("process/resize", '{"processId":"p","rows":0,"cols":1}', "$.rows"),
        ("process/resize", '{"processId":"p","rows":1,"cols":65536}', "$.cols"),
    ],
)
def test_params_that_do_not_fit_name_the_member(method: str, params: str, part: str) -> None:
    """The answer is INVALID_PARAMS, begins with the method and says which member is wrong."""
    fault = fault_of(request(params, method))
    assert fault.code == ErrorCode.INVALID_PARAMS
    assert fault.message.startswith(f"{method}: ")
    assert part in fault.message


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.case(25)
def test_a_message_may_have_as_many_values_as_the_limit() -> None:
    """262,144 values are decoded, one more is malformed, whatever the method."""

    def with_values(count: int) -> bytes:
        return request("[" + ",".join(["0"] * (count - 4)) + "]")

    assert fault_of(with_values(MAX_VALUES)).code == ErrorCode.INVALID_PARAMS
    with pytest.raises(MalformedMessage, match=f"exceeds the limit of {MAX_VALUES} JSON values"):
        decode_from_client(with_values(MAX_VALUES + 1))


@pytest.mark.case(25)
def test_a_message_may_nest_as_deep_as_the_limit() -> None:
    """The object itself and 126 arrays in its params are decoded, one more is malformed."""

    def with_depth(depth: int) -> bytes:
        return request("[" * (depth - 1) + "]" * (depth - 1))

    assert fault_of(with_depth(MAX_NESTING)).code == ErrorCode.INVALID_PARAMS
    with pytest.raises(MalformedMessage, match="nested containers"):
        decode_from_client(with_depth(MAX_NESTING + 1))


@pytest.mark.case(25)
def test_a_long_string_is_one_value() -> None:
    """A megabyte of brackets in a chunk is neither deep nor many."""
    chunk = "[,{:" * (1 << 18)
    params = decoded(request(f'{{"processId":"p","chunk":"{chunk}","writeId":"w"}}', "process/write")).params
    assert params == WriteParams(process_id="p", chunk=chunk, write_id="w")


@pytest.mark.case(26)
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'{"id":1,"id":1,"method":"environment/status"}', "id"),
        (b'{"id":1,"method":"environment/status","method":"environment/status"}', "method"),
        (request('{"processId":"p","processId":"p"}', "process/terminate"), "processId"),
        (request('{"processId":"p","\\u0070rocessId":"p"}', "process/terminate"), "processId"),
        (request("{}", "environment/status", extra='{"a":[{"b":1,"b":2}]}'), "b"),
        (b'{"method":"initialized","params":{"a":1,"a":2}}', "a"),
        (b'{"id":1,"result":{"a":1,"a":2}}', "a"),
    ],
)
def test_a_member_that_comes_twice_is_malformed_and_named(data: bytes, name: str) -> None:
    """Wherever it stands, in whatever kind of message."""
    with pytest.raises(MalformedMessage, match=f"duplicate member '{name}'"):
        decode_from_client(data)


PROVEN = {name: method for name, method in METHODS.items() if method.scalar_members is not None}

ORDINARY: dict[str, dict[str, Any]] = {
    "process/write": {"processId": "p", "chunk": "aGk=", "writeId": "w"},
    "process/signal": {"processId": "p", "signal": "interrupt"},
    "process/terminate": {"processId": "p"},
    "process/resize": {"processId": "p", "rows": 24, "cols": 80},
    "process/closeStdin": {"processId": "p"},
}


@pytest.mark.parametrize("method", list(PROVEN))
def test_the_number_of_scalar_members_is_that_of_an_ordinary_request(method: str) -> None:
    """The proof of the fast path counts colons: one for each member of a request with all and only these."""
    text = json.dumps({"id": 1, "method": method, "params": ORDINARY[method]})
    assert text.count(":") == METHODS[method].scalar_members
    assert decoded(text.encode()).fault is None


VALUES = st.sampled_from(
    [
        *("1", "24", "null", "true", '"p"', '"a:b"', '"::"', '"interrupt"', '"[[[[["'),
        *("[]", "{}", "[1,[2]]", '{"a":1}', '{"a":1,"a":2}', "[" * 126 + "]" * 126, "[" * 130 + "]" * 130),
    ]
)
NAMES = st.sampled_from(
    [
        *("id", "method", "params", "trace", "result", "error", "a", "b", "\\u0069d"),
        *("processId", "processI\\u0064", "chunk", "writeId", "signal", "rows", "cols"),
    ]
)
MEMBERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)


def object_text(members: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}"


@st.composite
def nearly_ordinary(draw: st.DrawFn) -> bytes:
    """A request of a proven method with members added, taken away and spelled in odd ways."""
    method = draw(st.sampled_from(list(PROVEN)))
    params = [(name, json.dumps(value)) for name, value in ORDINARY[method].items()]
    envelope = [("id", "1"), ("method", json.dumps(method))]

    def disturb(members: list[tuple[str, str]]) -> list[tuple[str, str]]:
        kept = [member for member in members if draw(st.integers(0, 4))]
        return draw(st.permutations(kept + draw(MEMBERS.filter(lambda more: len(more) < 4))))

    params_text = object_text(disturb(params) if draw(st.booleans()) else params)
    if draw(st.booleans()):
        envelope = disturb(envelope)
    return object_text([*envelope, ("params", params_text)]).encode()


@settings(deadline=None, max_examples=500)
@given(data=nearly_ordinary())
@example(data=b'{"method":"process/terminate","a":1,"a":2,"b":3}')
@example(data=b'{"method":"process/terminate","a":' + b"[" * 200 + b"]" * 200 + b',"b":1,"c":1}')
def test_the_fast_path_accepts_nothing_that_the_limits_refuse(data: bytes) -> None:
    """Where the full check is left out, it would have found nothing: requests and notifications alike."""
    try:
        decode_from_client(data)
    except MalformedMessage:
        return
    except ProtocolViolation:
        pass
    check_limits(data)


# --- what a server sends, and what a client makes of it ----------------------------------------------


def test_requests_and_answers_survive_the_way() -> None:
    """What one side encodes the other decodes to the same."""
    params = WriteParams(process_id="\N{EURO SIGN}\n", chunk="aGk=", write_id="w")
    message = decoded(encode_request("r", "process/write", params))
    assert (message.id, message.method, message.params) == ("r", "process/write", params)
    response = decode_from_server(encode_result(7, WriteResult(status="accepted")))
    assert isinstance(response, Response)
    assert response.id == 7
    assert decode_result("process/write", response.result) == WriteResult(status="accepted")
    failure = decode_from_server(encode_error("r", ErrorCode.SESSION_ATTACHED, "busy"))
    assert isinstance(failure, Failure)
    assert (failure.id, failure.error.code, failure.error.message) == ("r", -32010, "busy")


def test_an_answer_has_no_members_but_its_own() -> None:
    """No version member, no nulls that nobody asked for."""
    assert json.loads(encode_result(1, TerminateResult(running=True))) == {
        "id": 1,
        "result": {"running": True},
    }
    assert json.loads(encode_error(1, ErrorCode.NOT_FOUND, "no")) == {
        "id": 1,
        "error": {"code": -32004, "message": "no"},
    }


@pytest.mark.case(27)
def test_the_answer_to_no_message_has_the_text_that_clients_match() -> None:
    """Id -1, INVALID_REQUEST, and the door and the peer in front of the detail."""
    answer = json.loads(encode_malformed("stdio thing", "no JSON"))
    assert answer == {"id": -1, "error": {"code": -32600, "message": "failed to parse stdio thing: no JSON"}}


def test_a_notification_survives_the_way() -> None:
    """Known ones are typed; unknown ones are none of a client's business."""
    for params, method in (
        (ExitedNotification(process_id="p", seq=3, exit_code=137, term_signal=9), "process/exited"),
        (ClosedNotification(process_id="p", seq=4), "process/closed"),
    ):
        message = decode_from_server(encode_notification(method, params))
        assert isinstance(message, Notification)
        assert decode_notification(message) == params
    assert encode_notification("initialized") == b'{"method":"initialized"}'
    assert decode_notification(Notification("fs/changed")) is None


@pytest.mark.parametrize("method", ["process/output", "process/exited", "process/closed"])
def test_a_known_notification_that_does_not_fit_is_malformed(method: str) -> None:
    """A client then knows that it cannot follow this server."""
    with pytest.raises(MalformedMessage, match=method):
        decode_notification(Notification(method, msgspec.Raw(b'{"processId":5}')))
    with pytest.raises(MalformedMessage, match=method):
        decode_notification(Notification(method))


@pytest.mark.case(116)
def test_an_exit_without_the_denial_flag_is_understood() -> None:
    """Older servers leave it out, and none of them names a signal."""
    raw = msgspec.Raw(b'{"processId":"p","seq":1,"exitCode":0,"new":{}}')
    params = decode_notification(Notification("process/exited", raw))
    assert params == ExitedNotification(process_id="p", seq=1, exit_code=0)


def test_a_question_from_a_server_is_told_from_an_answer() -> None:
    """It has a method and an id."""
    message = decode_from_server(b'{"id":"q","method":"network/policyRequest","params":{"a":1}}')
    assert message == ServerRequest("q", "network/policyRequest")


@pytest.mark.parametrize(
    "data", [b"{}", b'{"id":1}', b'{"result":1}', b"[]", b"", b"\xff", b'{"id":1,"error":{"code":"x"}}']
)
def test_what_a_server_must_not_send_is_malformed(data: bytes) -> None:
    """A client learns so by one kind of error."""
    with pytest.raises(MalformedMessage):
        decode_from_server(data)


def test_a_result_that_does_not_fit_its_method_is_malformed() -> None:
    """The text names the method."""
    with pytest.raises(MalformedMessage, match="result of process/write"):
        decode_result("process/write", msgspec.Raw(b'{"status":"nonsense"}'))


STREAMS = st.sampled_from(["stdout", "stderr", "pty"])


@settings(deadline=None)
@given(name=st.text(), stream=STREAMS, seq=st.integers(1, 1 << 60), data=st.binary(min_size=1, max_size=200))
def test_the_prepared_notification_is_the_ordinary_one(name: str, stream: Any, seq: int, data: bytes) -> None:
    """Joining prepared bytes gives what the encoder gives, for every name that a process may have."""
    params = OutputNotification(
        process_id=name, seq=seq, stream=stream, chunk=base64.b64encode(data).decode()
    )
    try:
        expected = encode_notification("process/output", params)
    except UnicodeEncodeError:
        return
    assert OutputTemplate(name, stream).encode(seq, data) == expected
