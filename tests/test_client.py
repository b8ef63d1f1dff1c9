"""The client: over real servers for what works, over scripted ones for what goes wrong."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trio_websocket

import tsupervise._lifeline
import tsupervise._websocket_client
from daemons import Daemon
from scripted_server import Script, scripted_server
from tsupervise import (
    Client,
    Closed,
    ConnectFailed,
    ConnectionLost,
    Event,
    Exited,
    Lost,
    NotSupported,
    Output,
    ProcessFailed,
    RemoteProcess,
    ServerRefused,
    StdinClosed,
    TooManyCalls,
    connect,
)
from tsupervise.client import MAX_CALLS
from tsupervise_protocol.errors import ErrorCode
from tsupervise_protocol.messages import ReadParams

PATIENCE_S = 20.0


@asynccontextmanager
async def connected(daemon: Daemon, **options: Any) -> AsyncGenerator[Client]:
    """`connect` to a real server, with a bound on the block: a client that waits for ever must fail."""
    with trio.fail_after(PATIENCE_S):
        async with connect(daemon.url, **options) as client:
            yield client


async def collect(process: RemoteProcess) -> list[Event]:
    return [event async for event in process.events()]


def joined(events: list[Event], stream: str | None = None) -> bytes:
    return b"".join(
        event.data for event in events if isinstance(event, Output) and stream in (None, event.stream)
    )


async def until_output(process: RemoteProcess, needle: bytes) -> bytes:
    seen = b""
    async for event in process.events():
        if isinstance(event, Output):
            seen += event.data
            if needle in seen:
                return seen
    raise AssertionError(f"closed without {needle!r}: {seen!r}")


# --- real servers --------------------------------------------------------------------------------------


async def test_a_command_runs_and_its_streams_come_apart(daemon: Daemon) -> None:
    """Output with its stream, the exit code and the close arrive in order, numbered from 1."""
    script = "echo out; echo err >&2; exit 3"
    async with connected(daemon) as client, client.open_process(["sh", "-c", script]) as process:
        events = await collect(process)
        assert await process.wait() == 3
    assert joined(events, "stdout") == b"out\n"
    assert joined(events, "stderr") == b"err\n"
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.exit_code for event in events if isinstance(event, Exited)] == [3]
    assert isinstance(events[-1], Closed)


async def test_large_writes_arrive_whole_and_in_order(daemon: Daemon) -> None:
    """A write of many pieces, beside another one, reaches the process byte by byte as it was asked for."""
    first, second = os.urandom(300_000), os.urandom(100_000)
    command = ["head", "-c", str(len(first) + len(second))]
    async with (
        connected(daemon) as client,
        client.open_process(command, pipe_stdin=True, lossless=True) as process,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(process.write, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(process.write, second)
        events = await collect(process)
    assert joined(events) == first + second


async def test_a_process_without_stdin_refuses_a_write(daemon: Daemon) -> None:
    """The error says that there is nothing to write to, and what to start the process with."""
    async with connected(daemon) as client, client.open_process(["sleep", "60"]) as process:
        with pytest.raises(StdinClosed, match="pipe_stdin"):
            await process.write(b"hello")


@pytest.mark.ours_only("the reference cannot close the stdin of a process")
async def test_a_process_sees_the_end_of_its_input(daemon: Daemon) -> None:
    """What was written before the close of stdin arrives before it; a later write is refused."""
    async with (
        connected(daemon) as client,
        client.open_process(["wc", "-c"], pipe_stdin=True) as process,
    ):
        await process.write(bytes(100_000))
        await process.close_stdin()
        assert joined(await collect(process)).strip() == b"100000"
        with pytest.raises(StdinClosed):
            await process.write(b"late")


async def test_an_interrupt_does_what_control_c_does(daemon: Daemon) -> None:
    """A process without a handler dies of signal 2."""
    script = "echo ready; exec sleep 60"
    async with connected(daemon) as client, client.open_process(["sh", "-c", script]) as process:
        await until_output(process, b"ready")
        await process.interrupt()
        assert await process.wait() == 130


@pytest.mark.ours_only("the reference knows no signal but interrupt, and no size of a terminal")
async def test_a_terminal_has_a_size_that_can_change(daemon: Daemon) -> None:
    """The size of the start is there from the beginning, and a resize is told to the process."""
    script = "trap 'stty size; exit 0' WINCH; stty size; while :; do sleep 0.05; done"
    async with (
        connected(daemon) as client,
        client.open_process(["sh", "-c", script], tty=True, size=(10, 20)) as process,
    ):
        await until_output(process, b"10 20")
        await process.resize(33, 44)
        await until_output(process, b"33 44")
        assert await process.wait() == 0


@pytest.mark.parametrize("how", ["end", "error", "cancel"])
async def test_the_end_of_its_block_ends_a_process(daemon: Daemon, how: str) -> None:
    """However the block ends, the process is dead when it has ended."""
    async with connected(daemon) as client:
        process = None
        with trio.CancelScope() as scope, suppress(KeyError):
            async with client.open_process(["sleep", "60"]) as process:
                await end_body(how, scope)
        assert process is not None
        assert process.closed
        assert process.exit_code == 137


@pytest.mark.parametrize("how", ["error", "cancel"])
async def test_the_end_of_everything_ends_a_process_in_order(daemon: Daemon, how: str) -> None:
    """Also if the connection's own block ends at the same time, the process is seen to die before it."""
    process = None
    with trio.CancelScope() as scope, suppress(KeyError):
        async with connected(daemon) as client, client.open_process(["sleep", "60"]) as process:
            await end_body(how, scope)
    assert process is not None
    assert process.closed
    assert process.exit_code == 137


async def end_body(how: str, scope: trio.CancelScope) -> None:
    if how == "error":
        raise KeyError
    if how == "cancel":
        scope.cancel()
        await trio.sleep_forever()


async def test_a_refused_start_says_why_and_frees_its_id(daemon: Daemon) -> None:
    """The error carries code and text of the server; the same id can be used at once."""
    async with connected(daemon) as client:
        with pytest.raises(ServerRefused, match="No such file") as caught:
            await client.start(["/nowhere/to/be/found"], process_id="p")
        assert (caught.value.code, caught.value.method) == (-32603, "process/start")
        async with client.open_process(["true"], process_id="p") as process:
            assert await process.wait() == 0


async def test_the_environment_is_the_servers_or_exactly_what_was_given(
    daemon: Daemon, tmp_path: Path
) -> None:
    """None inherits, a mapping is all there is; the directory is the one that was asked for."""
    async with connected(daemon) as client:
        async with client.open_process(["env"]) as process:
            assert b"PATH=" in joined(await collect(process))
        async with client.open_process(["/usr/bin/env"], env={"ONLY": "this"}) as process:
            assert joined(await collect(process)) == b"ONLY=this\n"
        async with client.open_process(["pwd"], cwd=tmp_path) as process:
            assert joined(await collect(process)).strip() == os.fsencode(tmp_path)
        with pytest.raises(ValueError, match="absolute"):
            await client.start(["pwd"], cwd="relative")


async def test_an_error_of_the_body_leaves_the_blocks_bare(daemon: Daemon) -> None:
    """`except KeyError` around a client and a process sees a KeyError, not a group."""
    with pytest.raises(KeyError, match="mine"):
        async with connected(daemon) as client, client.open_process(["sleep", "60"]):
            raise KeyError("mine")


async def test_a_session_can_be_resumed(daemon: Daemon) -> None:
    """A process outlives its connection, and a later one with the session's id can read it."""
    async with connected(daemon) as client:
        session_id = client.session_id
        await client.start(["sh", "-c", "echo kept"], process_id="p")
    with trio.fail_after(PATIENCE_S):
        while not await read_again(daemon, session_id):  # noqa: ASYNC110 - letting go is not announced
            await trio.sleep(0.05)


async def read_again(daemon: Daemon, session_id: str) -> bool:
    """Resume a session and read what its process has said; False if the server holds it for the old connection.

    The reference may let go of it a moment after the end of that connection; this daemon has by then.
    """
    try:
        async with connected(daemon, resume_session_id=session_id) as client:
            assert client.session_id == session_id
            answer = await client.call("process/read", ReadParams(process_id="p", wait_ms=10_000))
            assert [chunk.chunk for chunk in answer.chunks] == ["a2VwdAo="]
            return True
    except ServerRefused as refusal:
        if daemon.is_ours or refusal.code != ErrorCode.SESSION_ATTACHED:
            raise
        return False


async def test_an_unknown_session_is_refused(daemon: Daemon) -> None:
    """The refusal of the handshake arrives as it is."""
    with pytest.raises(ServerRefused, match="unknown session id"):
        async with connected(daemon, resume_session_id="no-such-session"):
            pass


async def test_a_reader_who_comes_late_gets_everything(daemon: Daemon) -> None:
    """Each reader starts from the first event, and the server fills in what the client keeps no more."""
    async with connected(daemon) as client:
        script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done"
        async with client.open_process(["sh", "-c", script]) as process:
            await process.wait_closed()
            for _ in range(2):
                assert joined(await collect(process)).split() == [b"%d" % i for i in range(3000)]


async def test_a_lossless_process_loses_nothing_to_a_slow_reader(daemon: Daemon) -> None:
    """More output than anybody retains arrives whole, though the reader begins when all else waits."""
    async with connected(daemon) as client:
        command = ["sh", "-c", "head -c 6000000 /dev/zero; echo end"]
        async with client.open_process(command, lossless=True) as process:
            await trio.testing.wait_all_tasks_blocked(0.1)
            events = await collect(process)
    assert len(joined(events)) == 6_000_004
    assert not any(isinstance(event, Lost) for event in events)


async def test_a_reader_that_takes_its_time_does_not_look_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping that lies behind what a lossless reader has left unread has its pong nonetheless."""
    monkeypatch.setattr(tsupervise._websocket_client, "HEARTBEAT_S", 0.02)
    ponged = trio.Event()

    async def play(script: Script) -> None:
        await script.handshake()
        process_id = await script.start()
        for seq in range(1, 301):
            await script.output(process_id, seq)
        await script.ws.ping(b"")
        ponged.set()
        await script.exited(process_id, 301)
        await script.closed(process_id, 302)
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["yes"], lossless=True)
        await ponged.wait()
        assert [event.seq for event in await collect(process)] == list(range(1, 303))


async def test_a_process_that_nobody_reads_holds_up_no_other(daemon: Daemon) -> None:
    """While one process floods, another one on the same connection runs to its end."""
    async with (
        connected(daemon) as client,
        client.open_process(["yes"]),
        client.open_process(["echo", "hello"]) as process,
    ):
        assert joined(await collect(process)) == b"hello\n"


async def test_a_failed_connection_says_what_failed(daemon: Daemon) -> None:
    """Nobody there, no WebSocket there, and no such URL are told apart."""
    for url, text in {
        "ws://127.0.0.1:1": "Connection refused",
        f"{daemon.url}/elsewhere": "HTTP 404",
        "http://127.0.0.1:1": "expected `ws://HOST:PORT`",
        "ws://127.0.0.1:many": "expected `ws://HOST:PORT`",
    }.items():
        with pytest.raises(ConnectFailed, match=text):
            async with connect(url):
                pass


# --- calls, against a script ---------------------------------------------------------------------------


@pytest.mark.case(100)
async def test_answers_find_their_calls_in_any_order() -> None:
    """Two calls answered in reverse, beside an answer to a call that was cancelled, get their own."""

    async def play(script: Script) -> None:
        await script.handshake()
        cancelled = await script.expect("environment/status")
        first, second = await script.receive(), await script.receive()
        await script.answer(second, {"status": "second"})
        await script.answer(cancelled, {"status": "nobody waits for this"})
        await script.answer(first, {"status": "first"})
        await script.until_gone()

    answers: list[str] = []

    async def ask(client: Client) -> None:
        answers.append((await client.call("environment/status")).status)

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, client)
    assert answers == ["second", "first"]


@pytest.mark.case(101)
async def test_one_call_too_many_fails_at_once_and_terminate_still_goes() -> None:
    """With 1,024 calls open another one is refused here, one terminate goes through, a second ends it all."""
    arrived: list[str] = []

    async def play(script: Script) -> None:
        await script.handshake()
        process_id = await script.start()
        for _ in range(MAX_CALLS):
            await script.expect("environment/status")
        arrived.append((await script.expect("process/terminate"))["params"]["processId"])
        assert arrived == [process_id]
        with pytest.raises(trio_websocket.ConnectionClosed):
            await script.receive()

    async def call_in_vain(client: Client) -> None:
        with pytest.raises(ConnectionLost, match="no room"):
            await client.call("environment/status")

    async def terminate_in_vain(process: RemoteProcess) -> None:
        with pytest.raises(ConnectionLost, match="no room"):
            await process.terminate()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["sleep", "60"])
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_CALLS):
                nursery.start_soon(call_in_vain, client)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TooManyCalls, match=str(MAX_CALLS)):
                await client.call("environment/status")
            nursery.start_soon(terminate_in_vain, process)
            while not arrived:
                await trio.testing.wait_all_tasks_blocked(0.001)
            await terminate_in_vain(process)


async def test_a_call_of_no_method_is_an_error_of_the_caller() -> None:
    """A method that the protocol does not have is refused before anything is sent."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.answer(await script.expect("process/list"), {"processes": []})
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        with pytest.raises(ValueError, match="process/dance"):
            await client.call("process/dance")
        await client.call("process/list")


async def test_an_unknown_request_of_the_server_is_answered_with_method_not_found() -> None:
    """The client answers, whatever the kind of id, and goes on."""

    async def play(script: Script) -> None:
        await script.handshake()
        request = await script.expect("environment/status")
        for request_id in (7, "seven"):
            await script.send(id=request_id, method="network/policyRequest", params={})
            answer = await script.receive()
            assert (answer["id"], answer["error"]["code"]) == (request_id, -32601)
        await script.answer(request, {"status": "ready"})
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        assert (await client.call("environment/status")).status == "ready"


async def test_messages_that_concern_nobody_are_ignored() -> None:
    """Unknown notifications, unknown processes and answers to no call disturb nothing."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.send(method="fs/changed", params={"path": "x"})
        await script.output("nobody's", 1)
        await script.send(id=4711, result={})
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        assert (await client.call("environment/status")).status == "ready"


# --- the end of a connection, against a script -----------------------------------------------------------


async def test_a_lost_connection_fails_every_call_and_stream_alike() -> None:
    """Calls, streams and waits that are open, and whatever is tried later, get one clear ConnectionLost."""
    texts: list[str] = []

    async def play(script: Script) -> None:
        await script.handshake()
        await script.output(await script.start(), 1)
        await script.expect("environment/status")
        await script.ws.aclose(1001, "shutting down")

    async def note(call: Any) -> None:
        with pytest.raises(ConnectionLost) as caught:
            await call()
        texts.append(str(caught.value))

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["sleep", "60"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, lambda: collect(process))
            nursery.start_soon(note, process.wait)
            nursery.start_soon(note, process.wait_closed)
            nursery.start_soon(note, lambda: client.call("environment/status"))
        await note(process.terminate)
        await note(lambda: client.start(["true"]))
        # What had arrived is still there for a new reader.
        stream = process.events()
        assert await anext(stream) == Output(1, "stdout", b"1\n")
        await note(lambda: anext(stream))
    assert len(texts) == 7
    assert set(texts) == {
        "the connection is lost: the server closed it with 1001 (shutting down); connect again"
    }


async def test_an_answer_that_came_before_the_end_counts() -> None:
    """The last answers and events before a disconnect are not lost to it."""

    async def play(script: Script) -> None:
        await script.handshake()
        process_id = await script.start()
        request = await script.expect("environment/status")
        await script.output(process_id, 1)
        await script.exited(process_id, 2)
        await script.closed(process_id, 3)
        await script.answer(request, {"status": "ready"})

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["sleep", "60"])
        assert (await client.call("environment/status")).status == "ready"
        assert [event.seq for event in await collect(process)] == [1, 2, 3]


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        '{"id": 1}',
        '{"method": "process/output", "params": {}}',
        '{"method": "process/output", "params": {"processId": "p", "seq": 1, "stream": "pty", "chunk": "?"}}',
        '{"id": -1, "error": {"code": -32600, "message": "failed to parse websocket JSON-RPC message"}}',
        '{"id": 3, "result": {"status": 5}}',
    ],
)
async def test_a_server_that_breaks_the_protocol_is_left(message: str) -> None:
    """A message that cannot be read, or says that ours could not, ends the connection with code 1002."""

    async def play(script: Script) -> None:
        await script.handshake()
        await script.start()
        assert (await script.expect("environment/status"))["id"] == 3
        await script.ws.send_message(message)
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            await script.receive()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 1002

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        await client.start(["sleep", "60"], process_id="p")
        with pytest.raises(ConnectionLost, match="broke the protocol"):
            await client.call("environment/status")


async def test_a_server_that_does_not_answer_the_handshake_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection without an answer to `initialize` is a failed connection."""
    monkeypatch.setattr(tsupervise._lifeline, "INITIALIZE_S", 0.05)

    async def play(script: Script) -> None:
        await script.expect("initialize")
        with pytest.raises(trio_websocket.ConnectionClosed):
            await script.receive()

    async with scripted_server(play) as url:
        with pytest.raises(ConnectFailed, match="does not answer"):
            async with connect(url):
                pass


async def test_a_server_that_answers_another_session_is_refused() -> None:
    """To go on with a session means that one and no other."""

    async def play(script: Script) -> None:
        await script.answer(await script.expect("initialize"), {"sessionId": "another"})
        await script.until_gone()

    async with scripted_server(play) as url:
        with pytest.raises(ConnectFailed, match="'mine'"):
            async with connect(url, resume_session_id="mine"):
                pass


@pytest.mark.case(116)
async def test_a_server_that_tells_little_of_itself_is_enough() -> None:
    """Without environmentInfo, sandboxType and sandboxDenied, and with no method but the needed ones, it works."""

    async def play(script: Script) -> None:
        await script.answer(await script.expect("initialize"), {"sessionId": "s"})
        await script.expect("initialized")
        await script.refuse(await script.expect("environment/info"), -32601, "no such method")
        start = await script.expect("process/start")
        assert start["params"]["cwd"] == "file:///"
        await script.answer(start, {"processId": "p"})
        await script.output("p", 1)
        await script.exited("p", 2, sandboxDenied=None)
        await script.closed("p", 3)
        read = await script.expect("process/read")
        await script.refuse(read, -32600, "unknown process id p")
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        assert client.environment is None
        async with client.open_process(["true"], process_id="p") as process:
            assert await collect(process) == [Output(1, "stdout", b"1\n"), Exited(2, 0), Closed(3)]
            assert process.uid is None
            for unsupported in (process.resize(1, 1), process.close_stdin(), process.signal("kill")):
                with pytest.raises(NotSupported, match="does not announce 'tsupervise"):
                    await unsupported


@pytest.mark.case(46)
async def test_a_busy_session_may_talk_before_it_answers_the_handshake() -> None:
    """300 notifications before the answer to `initialize` block nothing."""

    async def play(script: Script) -> None:
        request = await script.expect("initialize")
        for seq in range(1, 301):
            await script.output("p", seq)
        await script.answer(request, {"sessionId": "s", "environmentInfo": None})
        await script.expect("initialized")
        await script.answer(
            await script.expect("environment/info"), {"shell": {"name": "sh", "path": "/bin/sh"}}
        )

    async with scripted_server(play) as url, connect(url, resume_session_id="s", recovery_s=0) as client:
        assert client.environment is not None
        assert client.environment.shell.name == "sh"


# --- events, against a script ----------------------------------------------------------------------------


@pytest.mark.case(102, 104)
async def test_events_in_any_order_need_no_read() -> None:
    """Events out of order, doubled, with the close first, are put right without a question to the server."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        await script.closed(p, 4)
        await script.exited(p, 3, exitCode=9)
        await script.output(p, 3, b"a second event of this number")
        await script.output(p, 2)
        await script.output(p, 1)
        await script.output(p, 1)
        await script.expect("process/terminate")

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        with suppress(ConnectionLost):
            process = await client.start(["true"])
            events = await collect(process)
            assert [event.seq for event in events] == [1, 2, 3, 4]
            assert events[2] == Exited(3, 9, None, False)
            await process.terminate()


@pytest.mark.case(104)
async def test_an_exit_without_a_word_on_the_sandbox_costs_one_read() -> None:
    """The one question is asked once, however many readers there are."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        await script.output(p, 1)
        await script.exited(p, 2, sandboxDenied=None)
        await script.closed(p, 3)
        read = await script.expect("process/read")
        assert read["params"] == {"processId": p, "afterSeq": 1, "maxBytes": None, "waitMs": 0}
        await script.answer(
            read,
            {
                "chunks": [],
                "nextSeq": 4,
                "exited": True,
                "exitCode": 0,
                "closed": True,
                "failure": None,
                "sandboxDenied": True,
            },
        )
        await script.expect("process/terminate")

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["true"])
        for _ in range(2):
            assert (await collect(process))[1] == Exited(2, 0, None, True)
        with suppress(ConnectionLost):
            await process.terminate()


@pytest.mark.case(103)
async def test_a_process_whose_events_cannot_be_ordered_fails_alone() -> None:
    """The 257th early event fails its process with a reason; another process goes on."""

    async def play(script: Script) -> None:
        await script.handshake()
        lost, fine = await script.start(), await script.start()
        for seq in range(2, 259):
            await script.output(lost, seq)
        await script.output(lost, 1)
        await script.exited(fine, 1)
        await script.closed(fine, 2)
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        lost, fine = await client.start(["true"], process_id="lost"), await client.start(["true"])
        with pytest.raises(ProcessFailed, match="'lost'"):
            await collect(lost)
        with pytest.raises(ProcessFailed, match="'lost'"):
            await lost.wait()
        assert await fine.wait() == 0
        await fine.wait_closed()


async def test_a_close_without_an_exit_is_told_and_not_waited_for() -> None:
    """Whoever waits for the exit of a process that the server just closes gets an error instead."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        await script.closed(p, 1)
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["true"])
        with pytest.raises(ProcessFailed, match="did not say how it ended"):
            await process.wait()


@pytest.mark.case(105)
async def test_a_reader_that_is_overrun_catches_up_with_one_read() -> None:
    """What fell out of the client's history comes by one read from the last number that the reader had."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        for seq in range(1, 401):
            await script.output(p, seq)
        await script.exited(p, 401)
        await script.closed(p, 402)
        await script.answer(await script.expect("environment/status"), {"status": "ready"})
        read = await script.expect("process/read")
        assert read["params"] == {"processId": p, "afterSeq": 1, "maxBytes": None, "waitMs": 0}
        chunks = [{"seq": seq, "stream": "stdout", "chunk": "eA=="} for seq in range(2, 401)]
        await script.answer(
            read, {"chunks": chunks, "nextSeq": 403, "exited": True, "exitCode": 0, "closed": True}
        )
        await script.expect("process/terminate")

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["true"])
        stream = process.events()
        assert (await anext(stream)).seq == 1
        await client.call("environment/status")
        assert [event.seq async for event in stream] == list(range(2, 403))
        with suppress(ConnectionLost):
            await process.terminate()


@pytest.mark.case(105)
async def test_what_nobody_retains_is_told_as_lost() -> None:
    """A reader hears of a gap in the output by its numbers, in its place."""

    async def play(script: Script) -> None:
        await script.handshake()
        p = await script.start()
        for seq in range(1, 401):
            await script.output(p, seq)
        await script.exited(p, 401)
        await script.closed(p, 402)
        await script.refuse(await script.expect("process/read"), -32600, f"unknown process id {p}")
        await script.until_gone()

    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        process = await client.start(["true"])
        await process.wait_closed()
        events = await collect(process)
        assert events[0] == Lost(1, 402 - 256)
        assert [event.seq for event in events] == list(range(402 - 256, 403))


@pytest.mark.case(107)
async def test_a_start_that_is_cancelled_is_terminated_once_it_is_answered() -> None:
    """The process of a caller who went away does not stay behind, and its id is free then."""

    async def play(script: Script) -> None:
        await script.handshake()
        start = await script.expect("process/start")
        seen.set()
        status = await script.expect("environment/status")
        await script.answer(start, {"processId": "p"})
        terminate = await script.expect("process/terminate")
        assert terminate["params"] == {"processId": "p"}
        await script.answer(terminate, {"running": True})
        await script.exited("p", 1, exitCode=137)
        await script.closed("p", 2)
        await script.answer(status, {"status": "ready"})
        assert await script.start() == "p"
        await script.until_gone()

    seen = trio.Event()
    async with scripted_server(play) as url, connect(url, recovery_s=0) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.start(["sleep", "60"], process_id="p"))
            await seen.wait()
            nursery.cancel_scope.cancel()
        with pytest.raises(ValueError, match="another id"):
            await client.start(["true"], process_id="p")
        await client.call("environment/status")
        await client.start(["true"], process_id="p")
