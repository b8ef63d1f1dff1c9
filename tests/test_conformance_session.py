"""Sessions: what they keep apart, how they outlive a connection, who may resume them, and when they end.

Most tests here end a connection in a way that no well-behaved client would, so they use `BareClient`, which
owns its socket and answers nothing by itself; `resumed` then comes back as an ordinary peer.
"""

from __future__ import annotations

import base64
import random
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon, start_daemon
from procfs import marked, new_marker, until
from raw_sockets import ATTACHED, bare
from wire import PATIENCE_S, Answer, Peer, connect, start_params

PROMPT_S = 1.5
"""Bound for a resume after a connection that visibly ended. It must stay below the 2 s after which a server
may drop a holder that is merely silent, so that this rescue cannot hide an end that went unnoticed."""

REFERENCE_TTL_S = 80


async def initialize(peer: Peer, session_id: str) -> Answer:
    return await peer.request("initialize", {"clientName": "tests", "resumeSessionId": session_id})


async def initialize_when_free(peer: Peer, session_id: str, patience_s: float = PATIENCE_S) -> Answer:
    """The first answer to a resume that is not about another connection's hold on the session."""
    with trio.fail_after(patience_s):
        while True:
            answer = await initialize(peer, session_id)
            if answer.error is None or answer.code != ATTACHED:
                return answer
            await trio.sleep(0.01)


@asynccontextmanager
async def resumed(url: str, session_id: str, patience_s: float = PATIENCE_S) -> AsyncGenerator[Peer]:
    """A peer that has taken up a session, after as many tries as it took."""
    async with connect(url, handshake=False) as peer:
        answer = await initialize_when_free(peer, session_id, patience_s)
        assert answer.ok()["sessionId"] == session_id
        await peer.notify("initialized")
        peer.session_id = session_id
        yield peer


async def left_session(daemon: Daemon, process_id: str, *argv: str) -> str:
    """The id of a session that runs one process and whose connection is gone."""
    async with connect(daemon.url) as peer:
        (await peer.start(process_id, *argv)).ok()
        assert peer.session_id is not None
        return peer.session_id


def assert_unknown(answer: Answer) -> None:
    assert answer.code == -32600


def decoded(chunk: dict[str, Any]) -> bytes:
    return base64.b64decode(chunk["chunk"], validate=True)


@pytest.fixture
def short_lived(target: str, long_profile: bool) -> Iterator[Daemon]:
    """A server that forgets a detached session after one second, or the reference after its fixed time."""
    if target == "reference" and not long_profile:
        pytest.skip("the reference keeps a detached session for 80 s")
    server = start_daemon(target, *(("--detached-ttl", "1") if target == "ours" else ()))
    yield server
    assert server.stop() == 0


def expiry_s(daemon: Daemon) -> float:
    """How long to wait at most for a session of `short_lived` to expire."""
    return PATIENCE_S + (0 if daemon.is_ours else REFERENCE_TTL_S)


@pytest.mark.case(41)
async def test_sessions_do_not_share_process_ids(daemon: Daemon) -> None:
    """The same id names two processes in two sessions, and neither session sees the other's."""
    async with connect(daemon.url) as one, connect(daemon.url) as two:
        assert one.session_id != two.session_id
        (await one.start("p", "sh", "-c", "echo one; exec sleep 60")).ok()
        (await two.start("p", "sh", "-c", "echo two; exec sleep 60")).ok()
        (await one.start("only", "true")).ok()
        assert await one.until_output("p", b"\n") == b"one\n"
        assert await two.until_output("p", b"\n") == b"two\n"
        assert_unknown(await two.process_read("only"))
        assert (await two.terminate("only")).ok() == {"running": False}

        assert (await one.terminate("p")).ok() == {"running": True}
        await one.until_closed("p")
        assert not (await two.process_read("p")).ok()["exited"]
        assert (await two.terminate("p")).ok() == {"running": True}
        await two.until_closed("p")


@pytest.mark.case(42)
@pytest.mark.parametrize("session_id", [str(uuid.uuid4()), "", "nonsense"], ids=["fresh", "empty", "text"])
async def test_resume_of_an_unknown_session_is_refused(daemon: Daemon, session_id: str) -> None:
    """A session id that the server never gave out is refused, and the connection may still begin anew."""
    async with connect(daemon.url, handshake=False) as peer:
        assert_unknown(await initialize(peer, session_id))
        assert (await peer.handshake())["sessionId"] not in ("", session_id)


@pytest.mark.case(43)
async def test_attached_session_cannot_be_taken(daemon: Daemon) -> None:
    """While its connection lives, a session is refused to others, and its holder notices nothing."""
    async with connect(daemon.url) as holder, connect(daemon.url, handshake=False) as thief:
        assert holder.session_id is not None
        (await holder.start("cat", "cat", pipeStdin=True)).ok()
        for _ in range(5):
            assert (await initialize(thief, holder.session_id)).code == ATTACHED
        assert (await thief.handshake())["sessionId"] != holder.session_id
        assert_unknown(await thief.process_read("cat"))
        assert (await holder.write("cat", b"mine", "1")).ok() == {"status": "accepted"}
        await holder.until_output("cat", b"mine")
        (await holder.terminate("cat")).ok()
        await holder.until_closed("cat")
        assert thief.events("cat") == []


@pytest.mark.case(44)
@pytest.mark.parametrize("read_is_parked", [False, True], ids=["idle", "parked-read"])
@pytest.mark.parametrize("ending", ["rst", "fin", "half-close", "close-frame"])
async def test_session_is_free_as_soon_as_its_connection_ends(
    daemon: Daemon, ending: str, read_is_parked: bool
) -> None:
    """However a connection ends, its session can be resumed at once, with its processes alive."""
    async with bare(daemon) as client:
        await client.handshake()
        await client.start("p", "sleep", "60")
        if read_is_parked:
            await client.send(
                {"id": 3, "method": "process/read", "params": {"processId": "p", "waitMs": 60000}}
            )
        match ending:
            case "rst":
                await client.reset()
            case "fin":
                await client.stream.aclose()
            case "half-close":
                await client.half_close()
            case _:
                await client.send_close_frame()
        async with resumed(daemon.url, client.session_id, PROMPT_S) as peer:
            assert not (await peer.process_read("p")).ok()["exited"]
            assert (await peer.terminate("p")).ok() == {"running": True}
            assert [event.kind for event in await peer.until_closed("p")] == ["exited", "closed"]


@pytest.mark.case(45)
async def test_output_of_a_detached_time_can_be_read_and_live_events_go_on(
    daemon: Daemon, tmp_path: Path
) -> None:
    """After a gap, a read from the last known event gives what was missed, and nothing comes twice live."""
    go, done = tmp_path / "go", tmp_path / "done"
    missed = b"".join(b"missed %06d\n" % number for number in range(1, 20_001))
    script = f"""
        echo before
        until test -e {go}; do sleep 0.01; done
        seq -f 'missed %06.0f' 20000
        : >{done}
        read line
        echo after
    """
    async with connect(daemon.url) as peer:
        assert peer.session_id is not None
        (await peer.start("p", "sh", "-c", script, pipeStdin=True)).ok()
        await peer.until_output("p", b"before\n")
        session_id, last = peer.session_id, peer.events("p")[-1].seq
    go.touch()
    # The child cannot get this far unless the server reads on: the output is larger than a pipe.
    await until(done.exists)

    async with resumed(daemon.url, session_id) as peer:
        page = (await peer.process_read("p", afterSeq=last)).ok()
        read = {chunk["seq"]: decoded(chunk) for chunk in page["chunks"]}
        assert (await peer.write("p", b"\n", "1")).ok() == {"status": "accepted"}
        events = await peer.until_closed("p")

    assert page["nextSeq"] == last + 1 + len(read)
    live = [event.seq for event in events]
    assert live == list(range(live[0], live[-1] + 1)), "live events come once, in order"
    assert live[0] <= page["nextSeq"], "no hole between what was read and what came live"
    pieces = read | {event.seq: event.data for event in events if event.kind == "output"}
    numbers = sorted({*pieces, *live})
    assert numbers == list(range(last + 1, last + 1 + len(numbers)))
    assert b"".join(pieces[seq] for seq in sorted(pieces)) == missed + b"after\n"
    # The reference may number the exit before the output that came just before it.
    assert events[-1].kind == "closed"
    assert events[-2].kind == "exited" or not daemon.is_ours


@pytest.mark.case(45)
async def test_exit_of_a_detached_time_is_state_that_a_read_shows(daemon: Daemon) -> None:
    """A process that ended while nobody was attached is found ended, with its code and all its output."""
    marker = new_marker()
    session_id = await left_session(daemon, "p", "sh", "-c", "sleep 0.1; echo bye; exit 7", marker)
    await until(lambda: not marked(marker))
    async with resumed(daemon.url, session_id) as peer:
        while not (page := (await peer.process_read("p", waitMs=10_000)).ok())["closed"]:
            await peer.process_read("p", afterSeq=page["nextSeq"] - 1, waitMs=10_000)
        assert (page["exitCode"], [decoded(chunk) for chunk in page["chunks"]]) == (7, [b"bye\n"])


@pytest.mark.case(46)
async def test_resume_of_a_busy_session_gets_through(daemon: Daemon) -> None:
    """A flood of events, even ahead of the answer to initialize, stops neither side, and has no holes."""
    session_id = await left_session(daemon, "busy", "sh", "-c", "while :; do echo tick; done")
    async with resumed(daemon.url, session_id) as peer:
        await peer.until(lambda: len(peer.events("busy")) >= 300)
        (await peer.terminate("busy")).ok()
        events = await peer.until_closed("busy")
        first = events[0].seq
        assert [event.seq for event in events] == list(range(first, first + len(events)))


@pytest.mark.case(42, 47)
async def test_detached_session_expires_and_its_processes_with_it(short_lived: Daemon) -> None:
    """A session nobody resumes is forgotten after its time; its processes are killed, PTY or pipe."""
    marker = new_marker()
    async with connect(short_lived.url) as peer:
        assert peer.session_id is not None
        (await peer.start("pipe", "sleep", marker)).ok()
        (await peer.start("tty", "sleep", marker, tty=True)).ok()
        session_id = peer.session_id
        await until(lambda: len(marked(marker)) == 2)
    await until(lambda: not marked(marker), expiry_s(short_lived))
    async with connect(short_lived.url, handshake=False) as peer:
        # The processes die first: for a moment the session may still be on its way out.
        assert_unknown(await initialize_when_free(peer, session_id))


@pytest.mark.case(47)
async def test_each_detachment_has_its_own_time(short_lived: Daemon) -> None:
    """A session resumed and left again outlives one that was left later than its own first time."""
    renewed, left = new_marker(), new_marker()
    renewed_id = await left_session(short_lived, "p", "sleep", renewed)
    await left_session(short_lived, "p", "sleep", left)
    await trio.sleep(0.5 if short_lived.is_ours else REFERENCE_TTL_S / 2)
    async with resumed(short_lived.url, renewed_id):
        pass
    await until(lambda: not marked(left), expiry_s(short_lived))
    assert marked(renewed), "the first detachment's timer was not cancelled"
    async with resumed(short_lived.url, renewed_id) as peer:
        assert not (await peer.process_read("p")).ok()["exited"]
    await until(lambda: not marked(renewed), expiry_s(short_lived))


@pytest.mark.case(48)
@pytest.mark.ours_only("the reference leaves a cut-off start as `starting` for good")
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "tty"])
async def test_start_cut_off_by_a_disconnect_is_done_or_undone(
    daemon: Daemon, long_profile: bool, tty: bool
) -> None:
    """Wherever the connection breaks around a start, afterwards the id runs one process or is free."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    outcomes = {"running": 0, "free": 0}
    async with bare(daemon) as first:
        await first.handshake()
        session_id = first.session_id
    for number in range(500 if long_profile else 50):
        name, marker = f"p{number}", new_marker()
        async with bare(daemon) as client:
            await client.handshake(session_id)
            await client.send(
                {
                    "id": 2,
                    "method": "process/start",
                    "params": start_params(name, "sleep", marker, tty=tty),
                }
            )
            await trio.sleep(chance.choice((0, chance.uniform(0, 0.004))))
            await chance.choice((client.reset, client.half_close, client.stream.aclose))()
            async with resumed(daemon.url, session_id) as peer:
                answer = await peer.process_read(name)
                if answer.error is None:
                    assert not answer.ok()["exited"]
                    # A child that is just being executed has no arguments to show for a moment.
                    await until(lambda marker=marker: len(marked(marker)) == 1)
                    outcomes["running"] += 1
                else:
                    assert_unknown(answer)
                    assert "starting" not in answer.message
                    assert not marked(marker)
                    (await peer.start(name, "sleep", marker, tty=tty)).ok()
                    outcomes["free"] += 1
                assert (await peer.terminate(name)).ok() == {"running": True}
                await peer.until_closed(name)
                assert not marked(marker)
    print(outcomes)


@pytest.mark.case(50)
@pytest.mark.ours_only("the reference keeps a session for a vanished peer until the kernel gives up")
async def test_silent_holder_loses_its_session_and_a_live_one_keeps_it(daemon: Daemon) -> None:
    """A holder that answers nothing is dropped when its session is wanted; one that answers pings is kept."""
    async with bare(daemon) as silent, connect(daemon.url) as live:
        assert live.session_id is not None
        await silent.handshake()
        await silent.start("p", "sleep", "60")
        (await live.start("p", "sleep", "60")).ok()
        async with connect(daemon.url, handshake=False) as thief:
            # Asked first, so that a server which drops every holder would drop this one first.
            assert (await initialize(thief, live.session_id)).code == ATTACHED
            async with resumed(daemon.url, silent.session_id) as peer:
                assert not (await peer.process_read("p")).ok()["exited"]
                (await peer.terminate("p")).ok()
                await peer.until_closed("p")
            assert (await initialize(thief, live.session_id)).code == ATTACHED
        assert (await live.terminate("p")).ok() == {"running": True}
        await live.until_closed("p")


@pytest.mark.case(50)
@pytest.mark.ours_only("the reference keeps a session for a vanished peer until the kernel gives up")
async def test_dropped_holder_cannot_disturb_its_successor(daemon: Daemon) -> None:
    """When the vanished peer's bytes turn up after all, the session stays with the one who resumed it."""
    async with bare(daemon) as silent:
        await silent.handshake()
        await silent.start("p", "cat")
        await silent.start("sleeper", "sleep", "60")
        async with resumed(daemon.url, silent.session_id) as peer:
            try:
                await silent.send(
                    {"id": 9, "method": "process/terminate", "params": {"processId": "sleeper"}}
                )
                with trio.fail_after(PATIENCE_S):
                    while await silent.stream.receive_some():
                        pass
            except trio.BrokenResourceError:
                pass
            assert not (await peer.process_read("sleeper")).ok()["exited"]
            assert (await peer.terminate("sleeper")).ok() == {"running": True}
            await peer.until_closed("sleeper")


@pytest.mark.case(50)
@pytest.mark.ours_only("the reference keeps any holder")
async def test_holder_that_reads_slowly_but_asks_on_keeps_its_session(daemon: Daemon) -> None:
    """While answers wait for a slow reader nothing of it is read, yet what it sends shows that it lives."""
    async with bare(daemon) as client, trio.open_nursery() as nursery:
        await client.handshake()
        await client.start("p", "head", "-c", "1000000", "/dev/zero")
        await client.until(rb"process/closed")
        for number in range(100, 140):
            await client.send({"id": number, "method": "process/read", "params": {"processId": "p"}})

        async def ask_on() -> None:
            while True:
                await client.send({"id": 1, "method": "environment/status"})
                await trio.sleep(0.1)  # this is the peer's own pace, the thing under test

        nursery.start_soon(ask_on)
        with trio.move_on_after(3):
            while True:
                async with connect(daemon.url, handshake=False) as other:
                    params = {"clientName": "tests", "resumeSessionId": client.session_id}
                    assert (await other.request("initialize", params)).code == ATTACHED
                await trio.sleep(0.1)  # a client's own pace of trying again
        nursery.cancel_scope.cancel()
