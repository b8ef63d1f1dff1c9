"""The methods and members that this daemon adds to the protocol: sizes, end of input, the process list."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from typing import Any

import pytest

from daemons import Daemon
from gates import gate_at
from wire import Answer, Peer, connect

pytestmark = pytest.mark.ours_only("an extension of the protocol")


async def close_stdin(peer: Peer, process_id: str) -> Answer:
    return await peer.request("process/closeStdin", {"processId": process_id})


async def listed(peer: Peer) -> dict[str, dict[str, Any]]:
    """The entries of process/list by process id."""
    entries = (await peer.request("process/list", {})).ok()["processes"]
    by_id = {entry["processId"]: entry for entry in entries}
    assert len(by_id) == len(entries)
    return by_id


async def test_the_extensions_are_announced(daemon: Daemon) -> None:
    """A client learns from the handshake that it may use them; the names cannot clash with others'."""
    async with connect(daemon.url, handshake=False) as peer:
        capabilities = (await peer.handshake())["environmentInfo"]["capabilities"]
        for name in ("Resize", "CloseStdin", "List", "Signals"):
            assert capabilities[f"tsupervise{name}"] is True


async def test_a_terminal_can_start_with_a_size(daemon: Daemon) -> None:
    """The program finds the size of `size` from its first moment; null is the default."""
    async with connect(daemon.url) as peer:
        size = {"rows": 11, "cols": 222}
        assert await peer.run("p", "stty", "size", tty=True, size=size) == (0, b"11 222\r\n")
        assert await peer.run("q", "stty", "size", tty=True, size=None) == (0, b"24 80\r\n")


async def test_an_impossible_size_starts_nothing(daemon: Daemon) -> None:
    """A size that a terminal cannot have is -32602, and the id stays free."""
    async with connect(daemon.url) as peer:
        for size in ({"rows": 0, "cols": 80}, {"rows": 24, "cols": 65536}, {"rows": 24}, [24, 80], "24x80"):
            assert (await peer.start("p", "true", tty=True, size=size)).code == -32602, size
        assert (await peer.run("p", "true", tty=True))[0] == 0


async def test_closing_stdin_lets_everything_accepted_through_first(daemon: Daemon) -> None:
    """The process reads all bytes of accepted writes, then the end of file."""
    block = bytes(range(256)) * 256
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-c", "sleep 0.1; exec cat", pipeStdin=True)).ok()
        for i in range(32):
            assert (await peer.write("p", block, f"w{i}")).ok() == {"status": "accepted"}
        assert (await close_stdin(peer, "p")).ok() == {"status": "accepted"}
        await peer.until_closed("p")
        assert (await peer.until_exited("p"))["exitCode"] == 0
        assert peer.output("p") == block * 32


async def test_closing_stdin_keeps_its_place_behind_waiting_writes(daemon: Daemon, tmp_path: Path) -> None:
    """Sent behind writes that wait for room, the end of file comes after their bytes."""
    chunk = base64.b64encode(b"x" * 65536).decode()
    with gate_at(tmp_path) as gate:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sh", "-c", 'read x <"$0"; wc -c', gate.path, pipeStdin=True)).ok()
            sent = [
                await peer.send("process/write", {"processId": "p", "chunk": chunk, "writeId": f"w{i}"})
                for i in range(150)
            ]
            sent.append(await peer.send("process/closeStdin", {"processId": "p"}))
            # The answer to another process's request, sent last: what can be taken now has been taken.
            assert await peer.run("q", "echo", "fence") == (0, b"fence\n")
            assert sent[-1] not in peer.answers
            gate.open()
            for request in sent:
                assert (await peer.answer_to(request)).ok() == {"status": "accepted"}
            await peer.until_closed("p")
            assert int(peer.output("p")) == 150 * 65536


async def test_a_closed_stdin_takes_no_more(daemon: Daemon) -> None:
    """After the close a write and a second close both get `stdinClosed`, while the process lives on."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-c", "cat; echo ended; exec sleep 30", pipeStdin=True)).ok()
        assert (await close_stdin(peer, "p")).ok() == {"status": "accepted"}
        await peer.until_output("p", b"ended\n")
        assert (await peer.write("p", b"x", "w")).ok() == {"status": "stdinClosed"}
        assert (await close_stdin(peer, "p")).ok() == {"status": "stdinClosed"}
        assert (await peer.terminate("p")).ok() == {"running": True}


async def test_closing_a_stdin_that_is_not_there(daemon: Daemon) -> None:
    """No such process, no pipe, no longer running: a status and no error."""
    async with connect(daemon.url) as peer:
        (await peer.start("plain", "sleep", "30")).ok()
        (await peer.start("over", "true", pipeStdin=True)).ok()
        await peer.until_closed("over")
        statuses = {
            name: (await close_stdin(peer, name)).ok()["status"] for name in ("nobody", "plain", "over")
        }
        assert statuses == {"nobody": "unknownProcess", "plain": "stdinClosed", "over": "stdinClosed"}
        await peer.terminate("plain")


async def test_a_terminal_has_no_stdin_to_close(daemon: Daemon) -> None:
    """The end of input is a key there; the error says so instead of closing more than was meant."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "cat", tty=True)).ok()
        assert (await close_stdin(peer, "p")).code == -32602
        (await peer.write("p", b"\x04", "eof")).ok()
        await peer.until_closed("p")
        assert (await peer.until_exited("p"))["exitCode"] == 0


async def test_the_list_follows_a_process_to_its_end(daemon: Daemon, tmp_path: Path) -> None:
    """An entry tells what was started and when, its pid while there is one, and how far it has come."""
    body = 'echo $$; (read x <"$0") & read x <"$0"; exit 3'
    with gate_at(tmp_path) as gate:
        async with connect(daemon.url) as peer:
            assert await listed(peer) == {}
            before_ms = int(time.time() * 1000)
            started = (await peer.start("p", "sh", "-c", body, gate.path, cwd="file:///usr")).ok()
            pid = int(await peer.until_output("p", b"\n"))
            entry = (await listed(peer))["p"]
            assert before_ms - 1 <= entry["startedAtMs"] <= time.time() * 1000 + 1
            assert entry["uid"] == started["uid"]
            assert (entry["pid"], entry["tty"], entry["state"]) == (pid, False, "running")
            assert entry["argv"] == ["sh", "-c", body, gate.path]
            assert entry["cwd"] == "file:///usr"
            assert (entry.get("exitCode"), entry.get("termSignal")) == (None, None)

            # Both readers wait at the gate, and one line lets one of them through.
            gate.open()
            gate.open()
            await peer.until_closed("p")
            closed = (await listed(peer))["p"]
            assert (closed["state"], closed["exitCode"], closed.get("termSignal")) == ("closed", 3, None)
            same = ("uid", "argv", "cwd", "tty", "startedAtMs")
            assert [closed[name] for name in same] == [entry[name] for name in same]


async def test_the_list_tells_exited_from_closed_and_the_signal(daemon: Daemon) -> None:
    """A process whose child holds its output is exited; one that was killed says by what."""
    async with connect(daemon.url) as peer:
        (await peer.start("exited", "sh", "-c", "sleep 30 & exit 3")).ok()
        (await peer.start("killed", "sleep", "30", tty=True)).ok()
        await peer.until_exited("exited")
        await peer.terminate("killed")
        await peer.until_closed("killed")
        entries = await listed(peer)
        assert (entries["exited"]["state"], entries["exited"]["exitCode"]) == ("exited", 3)
        assert entries["killed"]["tty"] is True
        assert (entries["killed"]["exitCode"], entries["killed"]["termSignal"]) == (137, 9)
        await peer.terminate("exited")
        await peer.until_closed("exited")
        assert (await listed(peer))["exited"]["state"] == "closed"


async def test_the_list_shows_the_own_session_only(daemon: Daemon) -> None:
    """Another session's processes are not seen, and equal process ids have different uids."""
    async with connect(daemon.url) as one, connect(daemon.url) as two:
        for peer in (one, two):
            (await peer.start("same", "sleep", "30")).ok()
        (await two.start("more", "sleep", "30")).ok()
        assert set(await listed(one)) == {"same"}
        assert set(await listed(two)) == {"same", "more"}
        assert (await listed(one))["same"]["uid"] != (await listed(two))["same"]["uid"]
        for peer, process_id in ((one, "same"), (two, "same"), (two, "more")):
            await peer.terminate(process_id)


async def test_the_list_survives_a_reconnect(daemon: Daemon) -> None:
    """It belongs to the session: a new connection that resumes it sees the same uids."""
    async with connect(daemon.url) as peer:
        uid = (await peer.start("p", "sleep", "30")).ok()["uid"]
    async with connect(daemon.url, resume=peer.session_id) as peer:
        assert (await listed(peer))["p"]["uid"] == uid
        await peer.terminate("p")


async def test_a_failed_start_is_not_listed(daemon: Daemon) -> None:
    """What never ran has no entry."""
    async with connect(daemon.url) as peer:
        assert (await peer.start("p", "/no/such/program")).code == -32603
        assert await listed(peer) == {}


async def test_a_read_says_where_the_window_begins(daemon: Daemon) -> None:
    """`firstSeq` is the lowest retained number; exit and close alone are no gap."""
    async with connect(daemon.url) as peer:
        await peer.run("spoke", "echo", "hi")
        await peer.run("silent", "true")
        for after in (None, 0, 1, 5):
            page = (await peer.process_read("spoke", afterSeq=after)).ok()
            assert (page["firstSeq"], page["truncated"]) == (1, False)
            assert (await peer.process_read("silent", afterSeq=after)).ok()["truncated"] is False
