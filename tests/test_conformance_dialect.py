"""The JSON-RPC dialect and the handshake, over a real WebSocket: what is a message, what is malformed,
what ends a connection, and what must be said before anything else."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from daemons import Daemon
from wire import Answer, Peer, connect, start_params

STATUS = "environment/status"
READY = {"status": "ready"}

MALFORMED, UNKNOWN_METHOD, BAD_PARAMS, ATTACHED = -32600, -32601, -32602, -32010
MALFORMED_TEXT = "failed to parse websocket JSON-RPC message from exec-server websocket 127.0.0.1:"

MAX_VALUES = 262_144
"""The most JSON values one message may hold; keys do not count. Recorded from the reference server."""
MAX_NESTING = 127
"""The deepest nesting of containers that is accepted, the envelope included. Recorded likewise."""


def message(**members: Any) -> str:
    return json.dumps(members)


def read_with_ballast(ballast: str) -> str:
    """A read of an unknown process that carries `ballast`, a JSON text, in a member nobody knows."""
    return f'{{"id":1,"method":"process/read","params":{{"processId":"nobody","ballast":{ballast}}}}}'


async def answer_to_raw(peer: Peer, text: str, request_id: Any = -1) -> Answer:
    """Send `text` and wait for the answer with that id, -1 being the id of answers to malformed messages."""
    peer.answers.pop(request_id, None)
    await peer.send_raw(text)
    return await peer.answer_to(request_id)


async def assert_malformed(peer: Peer, text: str) -> Answer:
    """`text` is refused as malformed, and the connection works on."""
    answer = await answer_to_raw(peer, text)
    assert (answer.code, answer.id) == (MALFORMED, -1)
    assert answer.message.startswith(MALFORMED_TEXT)
    return answer


@asynccontextmanager
async def resumed(daemon: Daemon, session_id: str) -> AsyncGenerator[Peer]:
    """A connection that holds that session; asks again while the former holder is still being let go."""
    for _ in range(1000):
        async with connect(daemon.url, handshake=False) as peer:
            params = {"clientName": "tests", "resumeSessionId": session_id}
            answer = await peer.request("initialize", params)
            if answer.error is not None and answer.code == ATTACHED:
                continue
            assert answer.ok()["sessionId"] == session_id
            await peer.notify("initialized")
            yield peer
            return
    raise AssertionError("the session was never let go")


@pytest.mark.case(23)
@pytest.mark.parametrize("request_id", ["abc", "", "7", -7, 0, 2**63 - 1, -(2**63)])
async def test_an_id_comes_back_as_it_was_sent(daemon: Daemon, request_id: str | int) -> None:
    """Strings and signed 64-bit integers are ids; the answer carries the same value of the same type."""
    async with connect(daemon.url) as peer:
        answer = await answer_to_raw(peer, message(id=request_id, method=STATUS), request_id)
        assert answer.ok() == READY
        assert type(answer.id) is type(request_id)


@pytest.mark.case(23)
@pytest.mark.parametrize("request_id", ["null", "1.5", "1.0", "1e2", "true", str(2**63), "[1]", '{"a":1}'])
async def test_any_other_id_makes_the_message_malformed(daemon: Daemon, request_id: str) -> None:
    """An id that is no string and no 64-bit integer is no id, and not taken for a notification either."""
    async with connect(daemon.url) as peer:
        await assert_malformed(peer, f'{{"id":{request_id},"method":"{STATUS}"}}')
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(24)
@pytest.mark.parametrize(
    "members",
    [
        {"jsonrpc": "2.0"},
        {"jsonrpc": 1},
        {"nobodyKnows": {"this": ["member"]}},
        {"result": 1, "error": 5},
        {"error": None},
        {"trace": None},
        {"trace": {}},
        {"trace": {"traceparent": None, "tracestate": None}},
        {"trace": {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}},
        {"trace": {"traceparent": "garbage", "tracestate": "a=b", "extra": 1}},
    ],
    ids=str,
)
async def test_extra_members_change_nothing(daemon: Daemon, members: dict[str, Any]) -> None:
    """A `jsonrpc` member, unknown members and any well-typed trace leave the answer as it is."""
    async with connect(daemon.url) as peer:
        answer = await answer_to_raw(peer, message(id=1000, method=STATUS, **members), 1000)
        assert answer.ok() == READY


@pytest.mark.case(24)
@pytest.mark.parametrize(
    "trace", [5, "00-0af7-b7ad-01", True, [1], {"traceparent": 5}, {"tracestate": ["a=b"]}], ids=str
)
async def test_a_trace_of_the_wrong_type_is_malformed(daemon: Daemon, trace: object) -> None:
    """The trace is part of the envelope, so a wrong type there spoils the message, not the params."""
    async with connect(daemon.url) as peer:
        await assert_malformed(peer, message(id=1, method=STATUS, trace=trace))
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(25)
async def test_a_message_may_hold_262144_values_and_not_one_more(daemon: Daemon) -> None:
    """Objects, arrays and scalars all count as one value; the refusal names the limit."""
    around = 6  # the envelope, id, method, params, processId and the ballast's own array
    async with connect(daemon.url) as peer:
        full = await answer_to_raw(peer, read_with_ballast(json.dumps([0] * (MAX_VALUES - around))), 1)
        assert full.code == MALFORMED  # of a process nobody knows: the message itself was read
        assert "failed to parse" not in full.message
        over = await assert_malformed(peer, read_with_ballast(json.dumps([0] * (MAX_VALUES - around + 1))))
        assert str(MAX_VALUES) in over.message
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(25)
async def test_values_are_counted_at_every_depth(daemon: Daemon) -> None:
    """Many small containers are as dear as one large one, and keys are free."""
    around = 6
    pairs = (MAX_VALUES - around) // 2
    async with connect(daemon.url) as peer:
        inside = "[" + ",".join(['{"k":1}'] * pairs) + "]"
        assert "failed to parse" not in (await answer_to_raw(peer, read_with_ballast(inside), 1)).message
        beyond = "[" + ",".join(['{"k":1}'] * (pairs + 1)) + "]"
        assert str(MAX_VALUES) in (await assert_malformed(peer, read_with_ballast(beyond))).message


@pytest.mark.case(25)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"k":', "}")], ids=["arrays", "objects"])
async def test_containers_nest_127_deep_and_not_deeper(daemon: Daemon, opening: str, closing: str) -> None:
    """The envelope is the first level; one level too many is a malformed message and nothing worse."""
    around = 2  # the envelope and params
    async with connect(daemon.url) as peer:
        for levels, accepted in ((MAX_NESTING, True), (MAX_NESTING + 1, False), (100_000, False)):
            depth = levels - around
            text = read_with_ballast(opening * depth + "1" + closing * depth)
            if accepted:
                assert "failed to parse" not in (await answer_to_raw(peer, text, 1)).message
            else:
                await assert_malformed(peer, text)
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(25)
async def test_a_megabyte_in_one_string_is_one_value(daemon: Daemon) -> None:
    """A long string costs no more of the budget than a short one, brackets inside it included."""
    async with connect(daemon.url) as peer:
        text = read_with_ballast(json.dumps('[{"' * 350_000))
        assert "failed to parse" not in (await answer_to_raw(peer, text, 1)).message


@pytest.mark.case(26)
@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f'{{"id":1,"id":2,"method":"{STATUS}"}}', "id"),
        (f'{{"id":1,"method":"{STATUS}","method":"{STATUS}"}}', "method"),
        (f'{{"id":1,"method":"{STATUS}","other":1,"other":1}}', "other"),
        (f'{{"id":1,"method":"{STATUS}","params":{{"twice":1,"twice":2}}}}', "twice"),
        (f'{{"id":1,"method":"{STATUS}","other":[{{"a":{{"twice":1,"b":2,"twice":3}}}}]}}', "twice"),
        (f'{{"id":1,"method":"{STATUS}","params":{{"twice":1,"tw\\u0069ce":2}}}}', "twice"),
    ],
    ids=["id", "method", "unknown member", "in params", "deep down", "escaped"],
)
async def test_a_key_that_comes_twice_is_malformed(daemon: Daemon, text: str, key: str) -> None:
    """No object at any depth may name a member twice; the refusal says which."""
    async with connect(daemon.url) as peer:
        assert key in (await assert_malformed(peer, text)).message
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(26)
async def test_a_key_may_come_again_in_another_object(daemon: Daemon) -> None:
    """Siblings, parents and children may share names: only one object may not repeat itself."""
    async with connect(daemon.url) as peer:
        text = f'{{"id":1000,"method":"{STATUS}","a":{{"a":{{"id":1}}}},"b":[{{"a":1}},{{"a":1}}]}}'
        assert (await answer_to_raw(peer, text, 1000)).ok() == READY


NO_MESSAGES = {
    "no JSON": "not json",
    "empty": "",
    "blank": "  ",
    "array": "[]",
    "batch": f'[{{"id":1,"method":"{STATUS}"}}]',
    "number": "5",
    "string": f'"{STATUS}"',
    "null": "null",
    "empty object": "{}",
    "id alone": '{"id":3}',
    "truncated": f'{{"id":1,"method":"{STATUS}"',
    "trailing text": f'{{"id":1,"method":"{STATUS}"}} x',
    "two messages": f'{{"id":1,"method":"{STATUS}"}}{{"id":2,"method":"{STATUS}"}}',
    "method is a number": '{"id":1,"method":5}',
    "lone surrogate": f'{{"id":1,"method":"{STATUS}","other":"\\ud800"}}',
    "raw control character": f'{{"id":1,"method":"{STATUS}","other":"\t"}}',
    "NaN": f'{{"id":1,"method":"{STATUS}","other":NaN}}',
    "leading zero": f'{{"id":01,"method":"{STATUS}"}}',
}


@pytest.mark.case(27)
@pytest.mark.parametrize("text", NO_MESSAGES.values(), ids=NO_MESSAGES.keys())
async def test_what_is_no_message_is_answered_and_survived(daemon: Daemon, text: str) -> None:
    """Whatever cannot be read gets an error with id -1, and the next request is served."""
    async with connect(daemon.url) as peer:
        await assert_malformed(peer, text)
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(28)
async def test_a_malformed_first_message_does_not_spoil_the_handshake(daemon: Daemon) -> None:
    """Malformed messages may come at any point of the handshake and do not count as part of it."""
    async with connect(daemon.url, handshake=False) as peer:
        await assert_malformed(peer, "not json")
        (await peer.request("initialize", {"clientName": "tests"})).ok()
        await assert_malformed(peer, "{}")
        await peer.notify("initialized")
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(29)
async def test_a_method_without_parameters_takes_nothing_in_any_spelling(daemon: Daemon) -> None:
    """Omitted params, null and an empty object all mean: no parameters."""
    async with connect(daemon.url) as peer:
        assert (await peer.request(STATUS, omit_params=True)).ok() == READY
        assert (await peer.request(STATUS, None)).ok() == READY
        assert (await peer.request(STATUS, {})).ok() == READY


@pytest.mark.case(29)
@pytest.mark.parametrize("method", [STATUS, "environment/info"])
@pytest.mark.parametrize("params", [[], [1], {"a": 1}, 5, "x", False], ids=str)
async def test_a_method_without_parameters_takes_nothing_else(
    daemon: Daemon, method: str, params: object
) -> None:
    """Anything that could be meant as a parameter is refused as bad params."""
    async with connect(daemon.url) as peer:
        assert (await peer.request(method, params)).code == BAD_PARAMS


@pytest.mark.case(30)
@pytest.mark.parametrize("field", ["processId", "argv", "cwd", "env", "tty"])
async def test_a_start_without_a_required_field_names_it(daemon: Daemon, field: str) -> None:
    """Each required field of a start, when missing, is named in the refusal."""
    async with connect(daemon.url) as peer:
        params = start_params("p", "true")
        del params[field]
        answer = await peer.request("process/start", params)
        assert answer.code == BAD_PARAMS
        assert field in answer.message


@pytest.mark.case(30)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("processId", 5),
        ("processId", None),
        ("argv", "true"),
        ("argv", [1]),
        ("cwd", 5),
        ("env", []),
        ("env", {"A": 1}),
        ("tty", None),
        ("tty", "yes"),
        ("tty", 1),
        ("pipeStdin", None),
        ("pipeStdin", 0),
        ("arg0", 5),
    ],
    ids=str,
)
async def test_a_start_with_a_field_of_the_wrong_type_is_refused(
    daemon: Daemon, field: str, value: object
) -> None:
    """A wrong type is bad params, null for a flag too; afterwards the process id is still free."""
    async with connect(daemon.url) as peer:
        answer = await peer.request("process/start", {**start_params("p", "true"), field: value})
        assert answer.code == BAD_PARAMS
        assert (await peer.run("p", "true"))[0] == 0


@pytest.mark.case(30)
@pytest.mark.parametrize("value", [-1, "1", True, 2**64], ids=str)
async def test_an_unsigned_field_takes_no_other_number(daemon: Daemon, value: object) -> None:
    """A read position is a non-negative 64-bit integer; anything else is bad params."""
    async with connect(daemon.url) as peer:
        assert (await peer.process_read("nobody", afterSeq=value)).code == BAD_PARAMS


ENDERS = {
    "unknown notification": '{"method":"no/such/method"}',
    "request without id": f'{{"method":"{STATUS}"}}',
    "initialize as notification": '{"method":"initialize","params":{"clientName":"tests"}}',
    "response": '{"id":1,"result":{}}',
    "null response": '{"id":"x","result":null}',
    "error message": '{"id":1,"error":{"code":-1,"message":"no"}}',
    "response with more": '{"id":1,"result":null,"error":5,"trace":5}',
    "error message with more": '{"id":1,"error":{"code":1,"message":"no"},"trace":5}',
    "notification with more": '{"method":"no/such/method","trace":5,"error":5,"result":1}',
}


@pytest.mark.case(31)
@pytest.mark.parametrize("text", ENDERS.values(), ids=ENDERS.keys())
async def test_a_violation_ends_the_connection_and_not_the_session(daemon: Daemon, text: str) -> None:
    """A message that no client may send costs it the connection; session and processes wait for the next."""
    async with connect(daemon.url) as peer:
        (await peer.start("cat", "cat", pipeStdin=True)).ok()
        await peer.send_raw(text)
        await peer.until_ended()
        assert not any(answer.error for answer in peer.answers.values())
    assert peer.session_id is not None
    async with resumed(daemon, peer.session_id) as peer:
        (await peer.write("cat", b"still here", "1")).ok()
        await peer.until_output("cat", b"still here")
        assert (await peer.terminate("cat")).ok()["running"]


@pytest.mark.case(31)
@pytest.mark.parametrize("text", ['{"method":"initialized"}', *ENDERS.values()], ids=["initialized", *ENDERS])
async def test_a_violation_before_the_handshake_ends_the_connection(daemon: Daemon, text: str) -> None:
    """The same holds before `initialize`, and for an `initialized` that comes without it."""
    async with connect(daemon.url, handshake=False) as peer:
        await peer.send_raw(text)
        await peer.until_ended()
        assert not peer.arrivals


@pytest.mark.ours_only("the reference may drop answers that were already due")
@pytest.mark.case(31)
async def test_answers_already_due_come_before_the_end(daemon: Daemon) -> None:
    """What was asked before the violation is still answered, then the connection ends."""
    async with connect(daemon.url) as peer:
        due = [await peer.send(STATUS) for _ in range(100)]
        await peer.send_raw(ENDERS["unknown notification"])
        await peer.until_ended()
        assert [peer.answers[request_id].ok() for request_id in due] == [READY] * len(due)


@pytest.mark.case(32)
@pytest.mark.parametrize("method", ["no/such/method", "", "process/fork", "initialized", "Initialize"])
@pytest.mark.parametrize("params", [None, {}, [1]], ids=str)
async def test_an_unknown_method_is_named_before_and_after_the_handshake(
    daemon: Daemon, method: str, params: object
) -> None:
    """A method nobody implements is told apart from a method that comes too early, and by name."""
    async with connect(daemon.url, handshake=False) as peer:
        early = await peer.request(method, params)
        await peer.handshake()
        late = await peer.request(method, params)
        for answer in (early, late):
            assert answer.code == UNKNOWN_METHOD
            assert method in answer.message


@pytest.mark.ours_only("the reference calls itself a stub")
@pytest.mark.case(32)
async def test_the_refusal_of_an_unknown_method_is_in_our_words(daemon: Daemon) -> None:
    """Where the text is free, it speaks for this daemon."""
    async with connect(daemon.url) as peer:
        assert "stub" not in (await peer.request("no/such/method")).message


@pytest.mark.case(33)
async def test_the_handshake_and_a_start_may_be_sent_in_one_go(daemon: Daemon) -> None:
    """A client need not wait for any answer: what it sends from its first byte on is done in order."""
    async with connect(daemon.url, handshake=False) as peer:
        first = await peer.send("initialize", {"clientName": "tests"})
        await peer.notify("initialized")
        second = await peer.send("process/start", start_params("p", "echo", "hello"))
        third = await peer.send(STATUS)
        (await peer.answer_to(first)).ok()
        assert (await peer.answer_to(second)).ok()["processId"] == "p"
        assert (await peer.answer_to(third)).ok() == READY
        await peer.until_closed("p")
        assert peer.output("p") == b"hello\n"
        answered = [arrival.id for arrival in peer.arrivals if isinstance(arrival, Answer)]
        assert answered.index(first) == 0


FAMILIES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "process/start": ("exec", start_params("p", "true")),
    "process/read": ("exec", {"processId": "p"}),
    "process/write": ("exec", {"processId": "p", "chunk": "aGk=", "writeId": "1"}),
    "process/signal": ("exec", {"processId": "p", "signal": "interrupt"}),
    "process/terminate": ("exec", {"processId": "p"}),
    "environment/info": ("environment info", None),
    STATUS: ("environment status", None),
}
"""Methods that need the handshake: the family that the refusal names, and params that are in order."""


def assert_too_early(answer: Answer, missing: str, family: str) -> None:
    assert answer.code == MALFORMED
    assert re.search(rf"\b{missing}\b", answer.message)
    assert f"{family} methods" in answer.message


@pytest.mark.case(39)
@pytest.mark.parametrize("method", FAMILIES)
async def test_a_method_before_the_handshake_is_refused_by_family(daemon: Daemon, method: str) -> None:
    """The refusal says which step is missing and for which family; after that step the method works."""
    family, params = FAMILIES[method]
    async with connect(daemon.url, handshake=False) as peer:
        assert_too_early(await peer.request(method, params), "initialize", family)
        (await peer.request("initialize", {"clientName": "tests"})).ok()
        assert_too_early(await peer.request(method, params), "initialized", family)
        await peer.notify("initialized")
        answer = await peer.request(method, params)
        assert answer.error is None or "initialize" not in answer.message


@pytest.mark.case(39)
async def test_params_that_cannot_be_read_are_wrong_at_any_time(daemon: Daemon) -> None:
    """They are looked at before the handshake is: the refusal names them, and the handshake goes on."""
    async with connect(daemon.url, handshake=False) as peer:
        assert (await peer.request("process/start", {})).code == BAD_PARAMS
        assert (await peer.request("process/read", {"processId": 5})).code == BAD_PARAMS
        await peer.handshake()
        assert (await peer.request("initialize", {})).code == BAD_PARAMS
        assert await peer.run("p", "echo", "hi") == (0, b"hi\n")


@pytest.mark.case(31)
@pytest.mark.parametrize("code", [2**63, -(2**63) - 1, "1", None], ids=str)
async def test_an_error_message_whose_code_is_none_is_malformed(daemon: Daemon, code: object) -> None:
    """What is no error message either does not end the connection."""
    async with connect(daemon.url) as peer:
        await assert_malformed(peer, message(id=7, error={"code": code, "message": "x"}))
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(40)
async def test_initialize_works_once(daemon: Daemon) -> None:
    """A second initialize is refused, before and after `initialized`, and the session stays as it was."""
    async with connect(daemon.url, handshake=False) as peer:
        (await peer.request("initialize", {"clientName": "tests"})).ok()
        for _ in range(2):
            again = await peer.request("initialize", {"clientName": "tests"})
            assert again.code == MALFORMED
            assert "once" in again.message
            await peer.notify("initialized")
        assert (await peer.run("p", "true"))[0] == 0


@pytest.mark.case(40)
@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"clientName": "tests", "resumeSessionId": "nobody"}, MALFORMED),
        ({"clientName": "tests", "resumeSessionId": ""}, MALFORMED),
        ({"clientName": "tests", "resumeSessionId": 5}, BAD_PARAMS),
        ({"clientName": 5}, BAD_PARAMS),
        ({"clientName": None}, BAD_PARAMS),
        ({}, BAD_PARAMS),
        (None, BAD_PARAMS),
        ("tests", BAD_PARAMS),
    ],
    ids=str,
)
async def test_a_failed_initialize_may_be_tried_again(daemon: Daemon, params: object, code: int) -> None:
    """An initialize that failed does not count: the same connection goes on with a good one."""
    async with connect(daemon.url, handshake=False) as peer:
        assert (await peer.request("initialize", params)).code == code
        assert_too_early(await peer.request(STATUS), "initialize", "environment status")
        await peer.handshake()
        assert (await peer.request(STATUS)).ok() == READY


@pytest.mark.case(40)
async def test_each_initialize_gives_a_session_of_its_own(daemon: Daemon) -> None:
    """A null resumeSessionId is none; every new session has another id, a version 4 UUID."""
    async with connect(daemon.url) as one, connect(daemon.url, handshake=False) as other:
        params = {"clientName": "tests", "resumeSessionId": None, "nobodyKnows": 1}
        answer = (await other.request("initialize", params)).ok()
        assert answer["sessionId"] != one.session_id
        assert UUID(answer["sessionId"]).version == 4


INITIALIZED_PARAMS = {
    "omitted": "",
    "null": ',"params":null',
    "array": ',"params":[1,2]',
    "object": ',"params":{"a":1}',
    "number": ',"params":5',
}


@pytest.mark.case(40)
@pytest.mark.parametrize(
    "params", ["", ',"params":[1,2]', ',"params":null', ',"params":{"a":1}', ',"params":5']
)
async def test_initialized_may_come_twice_and_carry_anything(daemon: Daemon, params: str) -> None:
    """The params of `initialized` are ignored, and so is its repetition."""
    async with connect(daemon.url, handshake=False) as peer:
        (await peer.request("initialize", {"clientName": "tests"})).ok()
        for _ in range(2):
            await peer.send_raw(f'{{"method":"initialized"{params}}}')
            assert (await peer.request(STATUS)).ok() == READY
