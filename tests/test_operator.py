"""The daemon's own user sees and steers the processes of all sessions, ends sessions, and keeps them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemons import Daemon, running, start_daemon
from in_process import open_house
from tsupervise._session import END_S
from wire import Answer, Peer, connect, write_params

pytestmark = pytest.mark.ours_only("methods of our own")


async def entry_of(peer: Peer, uid: str) -> dict[str, Any] | None:
    """The row of a process in operator/list."""
    entries = (await peer.request("operator/list")).ok()["processes"]
    return next((entry for entry in entries if entry["uid"] == uid), None)


async def read(peer: Peer, uid: str, **fields: Any) -> Answer:
    return await peer.request("operator/read", {"uid": uid, **fields})


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def output_in(answer: dict[str, Any]) -> bytes:
    return b"".join(base64.b64decode(chunk["chunk"]) for chunk in answer["chunks"])


@pytest.mark.case(118)
async def test_the_operators_list_shows_the_processes_of_every_session(daemon: Daemon) -> None:
    """Each with its session, and with whether a connection holds that."""
    async with connect(daemon.url) as operator:
        async with connect(daemon.url) as owner, connect(daemon.url) as other:
            uids = [(await peer.start("same name", "sleep", "60")).ok()["uid"] for peer in (owner, other)]
            rows = [await entry_of(operator, uid) for uid in uids]
            assert [row and row["sessionId"] for row in rows] == [owner.session_id, other.session_id]
            for row in rows:
                assert row is not None
                assert (row["processId"], row["argv"], row["state"]) == (
                    "same name",
                    ["sleep", "60"],
                    "running",
                )
                assert (row["sessionAttached"], row["sessionKept"], row["clientName"]) == (
                    True,
                    False,
                    "tests",
                )
                assert is_alive(row["pid"])
        for uid in uids:
            assert (await peer_terminate(operator, uid)).ok() == {"running": True}


async def peer_terminate(peer: Peer, uid: str) -> Answer:
    return await peer.request("operator/terminate", {"uid": uid})


@pytest.mark.case(119)
async def test_an_observer_replays_what_is_retained_and_then_follows(daemon: Daemon) -> None:
    """From any retained number on, with the numbers of exit and close, while the owner gets all of it too."""
    async with connect(daemon.url) as owner, connect(daemon.url) as observer:
        script = "echo one; read line; echo two; read line; exit 3"
        uid = (await owner.start("p", "sh", "-c", script, pipeStdin=True)).ok()["uid"]
        await owner.until_output("p", b"one\n")
        first = (await read(observer, uid, afterSeq=0)).ok()
        assert (output_in(first), first["exited"], first["closed"]) == (b"one\n", False, False)
        parked = await observer.send("operator/read", {"uid": uid, "afterSeq": 1, "waitMs": 60_000})
        await owner.write("p", b"\n", "1")
        second = (await observer.answer_to(parked)).ok()
        assert (output_in(second), second["nextSeq"]) == (b"two\n", 3)
        await owner.write("p", b"\n", "2")
        await owner.until_closed("p")
        last = (await read(observer, uid, afterSeq=2)).ok()
        assert (last["chunks"], last["exitCode"], last["exitSeq"], last["closedSeq"]) == ([], 3, 3, 4)
        assert output_in((await read(observer, uid, afterSeq=0)).ok()) == b"one\ntwo\n"
        assert [event.seq for event in owner.events("p")] == [1, 2, 3, 4]


@pytest.mark.case(119)
async def test_observers_have_cursors_of_their_own_and_the_slow_one_is_told(tmp_path: Path) -> None:
    """One that asks late gets what is retained, and `truncated`; nobody has waited for it."""
    with running(start_daemon("ours", "--retained-bytes", "65536")) as daemon:
        async with connect(daemon.url) as owner, connect(daemon.url) as quick, connect(daemon.url) as slow:
            script = "head -c 300000 /dev/zero; echo end"
            uid = (await owner.start("p", "sh", "-c", script)).ok()["uid"]
            assert (await read(slow, uid, afterSeq=0, maxBytes=1, waitMs=20_000)).ok()["chunks"]
            assert len(await owner.until_closed("p")) >= 4
            assert len(owner.output("p")) == 300_004
            late = (await read(slow, uid, afterSeq=1)).ok()
            assert late["truncated"]
            assert output_in(late).endswith(b"end\n")
            assert output_in(late) == output_in((await read(quick, uid, afterSeq=0)).ok())


@pytest.mark.case(119)
async def test_a_parked_observer_ends_with_what_it_observes(daemon: Daemon) -> None:
    """Its read is answered with an error when the process is forgotten before there was any news."""
    async with connect(daemon.url) as owner, connect(daemon.url) as observer:
        uid = (await owner.start("p", "sleep", "60")).ok()["uid"]
        parked = await observer.send("operator/read", {"uid": uid, "waitMs": 60_000, "afterSeq": 10})
        waiting = await observer.send("operator/wait", {"uid": uid, "waitMs": 60_000})
        (await owner.request("session/end")).ok()
        assert (await observer.answer_to(parked)).ok()["closed"]
        assert (await observer.answer_to(waiting)).ok()["exitCode"] == 137
        refused = await read(observer, uid)
        assert refused.code == -32600
        assert uid in refused.message


@pytest.mark.case(120)
async def test_an_operator_drives_a_process_that_somebody_else_has_started(daemon: Daemon) -> None:
    """Input, its end, signals, size and termination, by uid; a write id counts for owner and operator alike."""
    async with connect(daemon.url) as owner, connect(daemon.url) as operator:
        uid = (await owner.start("p", "cat", pipeStdin=True)).ok()["uid"]
        line = {"uid": uid, "chunk": base64.b64encode(b"hello\n").decode(), "writeId": "x"}
        assert (await operator.request("operator/write", line)).ok() == {"status": "accepted"}
        assert (await operator.request("operator/write", line)).ok() == {"status": "accepted"}
        assert (await owner.write("p", b"hello\n", "x")).ok() == {"status": "accepted"}
        (await operator.request("operator/closeStdin", {"uid": uid})).ok()
        await owner.until_closed("p")
        assert owner.output("p") == b"hello\n"

        trap = "trap 'echo caught; exit 4' USR1; echo ready; while :; do sleep 0.05; done"
        uid = (await owner.start("q", "sh", "-c", trap)).ok()["uid"]
        await owner.until_output("q", b"ready")
        (await operator.request("operator/signal", {"uid": uid, "signal": "usr1"})).ok()
        over = (
            await operator.request("operator/wait", {"uid": uid, "until": "closed", "waitMs": 20_000})
        ).ok()
        assert (over["exitCode"], over["state"]) == (4, "closed")

        watch = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
        uid = (await owner.start("r", "sh", "-c", watch, tty=True)).ok()["uid"]
        await owner.until_output("r", b"24 80")
        (await operator.request("operator/resize", {"uid": uid, "rows": 33, "cols": 44})).ok()
        await owner.until_output("r", b"33 44")
        assert (await peer_terminate(operator, uid)).ok() == {"running": True}
        await owner.until_closed("r")


@pytest.mark.case(120)
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("operator/read", {}),
        ("operator/wait", {}),
        ("operator/write", {"chunk": "", "writeId": "1"}),
        ("operator/closeStdin", {}),
        ("operator/signal", {"signal": "kill"}),
        ("operator/resize", {"rows": 1, "cols": 1}),
        ("operator/terminate", {}),
    ],
)
async def test_an_unknown_uid_is_an_error(daemon: Daemon, method: str, params: dict[str, Any]) -> None:
    """For a person a typing mistake must not look like success; a process id is no uid."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sleep", "60")).ok()
        answer = await peer.request(method, {"uid": "p", **params})
        assert answer.code == -32600
        assert "operator/list" in answer.message


@pytest.mark.case(121)
async def test_an_ended_session_leaves_nothing_and_says_so_first(daemon: Daemon) -> None:
    """Its own connection hears the end of every process before the answer; its id is unknown afterwards."""
    async with connect(daemon.url) as owner, connect(daemon.url) as observer:
        pids: list[int] = []
        for name in ("p", "q"):
            uid = (await owner.start(name, "sleep", "60")).ok()["uid"]
            row = await entry_of(observer, uid)
            assert row is not None
            pids.append(row["pid"])
        assert (await owner.request("session/end")).ok() == {}
        assert [owner.events(name)[-1].kind for name in ("p", "q")] == ["closed", "closed"]
        assert not any(map(is_alive, pids))
        assert (await owner.start("r", "true")).code == -32600
    async with connect(daemon.url, handshake=False) as peer:
        refused = await peer.request(
            "initialize", {"clientName": "tests", "resumeSessionId": owner.session_id}
        )
        assert "unknown session id" in refused.message


@pytest.mark.case(121)
async def test_an_operator_ends_another_session_and_its_holder_is_sent_away(daemon: Daemon) -> None:
    """With a reason, after it has heard of the end of its processes; an unknown id is an error."""
    async with connect(daemon.url) as operator, connect(daemon.url) as owner:
        (await owner.start("p", "sleep", "60")).ok()
        assert (await operator.request("session/end", {"sessionId": owner.session_id})).ok() == {}
        await owner.until_ended()
        assert owner.events("p")[-1].kind == "closed"
        closed = owner.ws.closed
        assert closed is not None
        assert (closed.code, "ended by an operator" in (closed.reason or "")) == (1001, True)
        assert (await operator.request("session/end", {"sessionId": "no such"})).code == -32600
        assert (await operator.request("session/end", {"sessionId": owner.session_id})).code == -32600


@pytest.mark.case(121)
async def test_a_session_ends_though_the_connection_that_asked_for_it_is_lost_meanwhile(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder is sent away, and neither it nor its processes are left for ever half ended."""
    async with open_house() as house:
        owner, operator = await house.connect(), await house.connect()
        (await owner.start("p")).ok()
        session = house.supervisor.sessions[0]
        # A child that a signal does not end at once, as in the middle of a system call.
        monkeypatch.setattr(house.children[0].group, "signal", lambda number: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        await operator.send("session/end", {"sessionId": session.session_id})
        await trio.testing.wait_all_tasks_blocked()
        await operator.drop()
        house.children[0].end(137, 9)
        await owner.until_closed("p")
        with trio.fail_after(END_S):
            await session.over.wait()
            await owner.gone.wait()
        assert session not in house.supervisor.sessions


@pytest.mark.case(121)
class TestKept:
    """A kept session, in virtual time."""

    async def test_it_outlives_its_connection_until_it_has_nothing_left(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        """A day later it can be resumed; when its last process is forgotten, its time begins to run."""
        async with open_house() as house:
            owner = await house.connect()
            (await owner.start("p")).ok()
            (await owner.request("session/keep", {"kept": True})).ok()
            session = house.supervisor.sessions[0]
            await owner.drop()
            await trio.sleep(86_000)
            assert house.supervisor.sessions == [session]
            assert [entry.session_kept for entry in house.supervisor.entries()] == [True]
            house.children[0].end(0)
            await trio.sleep(house.supervisor.settings.retention_s + 1)
            assert house.supervisor.entries() == []
            assert house.supervisor.sessions == [session]
            await trio.sleep(house.supervisor.settings.detached_ttl_s + 1)
            assert house.supervisor.sessions == []

    async def test_it_can_be_kept_no_longer(self, autojump_clock: trio.testing.MockClock) -> None:
        """After `kept: false` the detached time counts again."""
        async with open_house() as house:
            owner = await house.connect()
            (await owner.start("p")).ok()
            (await owner.request("session/keep", {"kept": True})).ok()
            (await owner.request("session/keep", {"kept": False})).ok()
            await owner.drop()
            await trio.sleep(house.supervisor.settings.detached_ttl_s + 1)
            assert house.supervisor.sessions == []
            assert house.children[0].dead


@pytest.mark.case(122)
async def test_the_status_counts_what_there_is(tmp_path: Path) -> None:
    """Version, address, sessions and processes by state, and how much is retained of how much."""
    with running(start_daemon("ours", "--retained-total-bytes", "1000000")) as daemon:
        async with connect(daemon.url) as peer:
            assert (await peer.run("p", "echo", "hello"))[0] == 0
            (await peer.start("q", "sleep", "60")).ok()
            (await peer.request("session/keep", {"kept": True})).ok()
            async with connect(daemon.url):
                status = (await peer.request("operator/status")).ok()
            (await peer.request("session/end")).ok()
        assert (status["listen"], status["sessions"], status["sessionsAttached"]) == (daemon.url, 2, 2)
        assert (status["sessionsKept"], status["processes"]) == (1, {"closed": 1, "running": 1})
        assert (status["retainedBytes"] >= 6, status["retainedTotalBytes"]) == (True, 1_000_000)
        assert is_alive(status["pid"])


ASK = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[4])
import encodings.idna, trio
from wire import connect
os.setuid(int(sys.argv[3]))  # and not before: the interpreter may be out of the other user's reach
async def main():
    async with connect(sys.argv[1]) as peer:
        codes = {}
        for method, params in json.loads(sys.argv[2]):
            answer = await peer.request(method, params)
            codes[method] = answer.error and answer.error["code"]
        own = (await peer.run("p", "id", "-u"))[0]
        codes["session/end of the own"] = (await peer.request("session/end", {})).error
        print(json.dumps([codes, own]))
trio.run(main)
"""


@pytest.mark.case(123)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("listen", ["ws://127.0.0.1:0", "ws://[::1]:0"])
async def test_another_user_is_no_operator(listen: str) -> None:
    """The same machine, another user id: every method of operators is refused, the rest is not touched."""
    with running(start_daemon("ours", "--allow-other-users", listen=listen)) as daemon:
        async with connect(daemon.url) as owner:
            uid = (await owner.start("p", "sleep", "60")).ok()["uid"]
            calls: list[tuple[str, dict[str, Any]]] = [
                ("operator/list", {}),
                ("operator/status", {}),
                ("operator/read", {"uid": uid}),
                ("operator/wait", {"uid": uid}),
                ("operator/write", {"uid": uid, **_text(b"x")}),
                ("operator/closeStdin", {"uid": uid}),
                ("operator/signal", {"uid": uid, "signal": "kill"}),
                ("operator/resize", {"uid": uid, "rows": 1, "cols": 1}),
                ("operator/terminate", {"uid": uid}),
                ("session/keep", {"kept": True}),
                ("session/end", {"sessionId": owner.session_id}),
            ]
            for user, expected in ((65534, -32012), (0, None)):
                completed = await trio.run_process(
                    [
                        *(
                            sys.executable,
                            "-c",
                            ASK,
                            daemon.url,
                            json.dumps(calls if expected else calls[:3]),
                        ),
                        *(str(user), json.dumps([str(Path(__file__).parent), *sys.path])),
                    ],
                    capture_stdout=True,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
                assert completed.returncode == 0, completed.stdout
                codes, own = json.loads(completed.stdout)
                assert codes.pop("session/end of the own") is None
                assert set(codes.values()) == {expected}
                assert own == 0
            row = await entry_of(owner, uid)
            assert row is not None
            assert (row["state"], row["sessionKept"]) == ("running", False)


def _text(data: bytes) -> dict[str, str]:
    params = write_params("", data, "1")
    return {name: params[name] for name in ("chunk", "writeId")}
