"""What may overtake what on one connection: requests, events, and a client that does not read.

Order is a promise per process. Control, that is status, signal and terminate, is promised never to wait
behind data, be it a parked read, other processes, or output that the client does not take.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket

from daemons import Daemon
from procfs import bytes_written, listening_pid, marked, new_marker, resident_kib, until, until_blocked
from wire import PATIENCE_S, Answer, Event, Peer, connect, start_params, write_params

GROWTH_KIB = 48 << 10
"""The memory that a stalled client may cost: far above what is kept per connection (about 2 MiB) plus
noise, far below what the flood would fill within seconds."""


def assert_in_order(peer: Peer, process_id: str, start_id: int) -> None:
    """The answer to the start came before its events, and these are 1, 2, 3 ... in order of arrival."""
    place = next(i for i, got in enumerate(peer.arrivals) if isinstance(got, Answer) and got.id == start_id)
    early = [
        got
        for got in peer.arrivals[:place]
        if isinstance(got, Event) and got.params["processId"] == process_id
    ]
    assert not early, "an event arrived before the answer to the start"
    seqs = [event.seq for event in peer.events(process_id)]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.case(34)
@pytest.mark.ours_only("the reference answers in order of arrival, so a parked read holds up the rest")
async def test_parked_read_holds_up_nothing(daemon: Daemon) -> None:
    """A read that waits for output lets later requests pass, on its own process too."""
    async with connect(daemon.url) as peer:
        (await peer.start("silent", "cat", pipeStdin=True)).ok()
        parked = await peer.send("process/read", {"processId": "silent", "waitMs": 600_000})
        assert (await peer.request("environment/status")).ok()["status"] == "ready"
        (await peer.start("other", "sleep", "60")).ok()
        assert (await peer.terminate("other")).ok() == {"running": True}
        await peer.until_closed("other")
        assert (await peer.process_read("silent")).ok()["chunks"] == []
        assert parked not in peer.answers

        assert (await peer.terminate("silent")).ok() == {"running": True}
        woken = (await peer.answer_to(parked)).ok()
        assert woken["exited"]
        assert woken["chunks"] == []


@pytest.mark.case(34)
@pytest.mark.ours_only("the reference answers in order of arrival, so a parked read holds up the rest")
async def test_parked_read_is_woken_by_a_later_write(daemon: Daemon) -> None:
    """A read parked on a silent process gets the output that a later request on the connection causes."""
    async with connect(daemon.url) as peer:
        (await peer.start("echo", "cat", pipeStdin=True)).ok()
        parked = await peer.send("process/read", {"processId": "echo", "waitMs": 600_000})
        assert (await peer.write("echo", b"wake up", "1")).ok() == {"status": "accepted"}
        chunks = (await peer.answer_to(parked)).ok()["chunks"]
        assert [base64.b64decode(chunk["chunk"]) for chunk in chunks] == [b"wake up"]
        await peer.terminate("echo")
        await peer.until_closed("echo")


@pytest.mark.case(35)
async def test_pipelined_writes_arrive_in_order(daemon: Daemon) -> None:
    """Two hundred writes sent without waiting reach the child's stdin in the order they were sent."""
    lines = [f"line {number}\n".encode() for number in range(200)]
    async with connect(daemon.url) as peer:
        (await peer.start("cat", "cat", pipeStdin=True)).ok()
        sent = [
            await peer.send("process/write", write_params("cat", line, f"w{number}"))
            for number, line in enumerate(lines)
        ]
        for request_id in sent:
            assert (await peer.answer_to(request_id)).ok() == {"status": "accepted"}
        assert await peer.until_output("cat", lines[-1]) == b"".join(lines)
        await peer.terminate("cat")
        await peer.until_closed("cat")


@pytest.mark.case(36)
async def test_pipelined_life_of_a_process_keeps_its_order(daemon: Daemon) -> None:
    """Start, write, read and terminate of one id, sent at once, find the process as each expects it."""
    async with connect(daemon.url) as peer:
        sent: list[tuple[str, list[int]]] = []
        for number in range(20):
            name = f"p{number}"
            requests: list[tuple[str, dict[str, Any]]] = [
                ("process/start", start_params(name, "cat", pipeStdin=True)),
                ("process/write", write_params(name, b"hello", "1")),
                ("process/read", {"processId": name}),
                ("process/terminate", {"processId": name}),
            ]
            sent.append((name, [await peer.send(method, params) for method, params in requests]))
        for name, ids in sent:
            started, written, read, terminated = [(await peer.answer_to(i)).ok() for i in ids]
            assert started["processId"] == name
            assert written == {"status": "accepted"}
            assert not read["exited"]
            assert terminated == {"running": True}
            await peer.until_closed(name)
            assert (await peer.until_exited(name))["exitCode"] == 137


@pytest.mark.case(37)
@pytest.mark.ours_only("the reference stops reading a connection that does not read, terminate included")
async def test_client_that_stops_reading_costs_little_and_keeps_control(daemon: Daemon) -> None:
    """Under a flood nobody takes, memory stays flat, others are served, and a terminate still kills.

    When the client reads again it finds every event that was numbered, in order, up to the close.
    """
    marker = new_marker()
    server = listening_pid(daemon)
    async with connect(daemon.url) as bystander:
        await bystander.run("warm-up", "true")
        before = resident_kib(server)
        # A queue of one message: trio-websocket itself stops taking bytes when nobody takes messages.
        async with trio_websocket.open_websocket_url(daemon.url, message_queue_size=1) as stalled:
            await stalled.send_message(
                json.dumps({"id": 1, "method": "initialize", "params": {"clientName": "tests"}})
            )
            await stalled.get_message()
            await stalled.send_message(json.dumps({"method": "initialized"}))
            flood = start_params("flood", "yes", marker)
            await stalled.send_message(json.dumps({"id": 2, "method": "process/start", "params": flood}))

            await until(lambda: len(marked(marker)) == 1)
            (child,) = marked(marker)
            await until_blocked(child)
            grown = resident_kib(server) - before
            print(f"child wrote {bytes_written(child) >> 10} KiB, server grew by {grown} KiB")
            assert grown < GROWTH_KIB

            assert await bystander.run("neighbour", "echo", "fine") == (0, b"fine\n")

            await stalled.send_message(
                json.dumps({"id": 3, "method": "process/terminate", "params": {"processId": "flood"}})
            )
            await until(lambda: not marked(marker))
            assert await bystander.run("after", "echo", "fine") == (0, b"fine\n")

            seqs: list[int] = []
            kinds: list[str] = []
            with trio.fail_after(PATIENCE_S):
                while kinds[-1:] != ["process/closed"]:
                    message = json.loads(await stalled.get_message())
                    assert "error" not in message
                    if "method" in message:
                        seqs.append(message["params"]["seq"])
                        kinds.append(message["method"])
        assert seqs == list(range(1, len(seqs) + 1))
        assert set(kinds[:-2]) == {"process/output"}
        assert kinds[-2:] == ["process/exited", "process/closed"]


@pytest.mark.case(37)
@pytest.mark.ours_only("the reference stops reading a connection that does not read, terminate included")
async def test_stalled_connection_still_executes_requests(daemon: Daemon, tmp_path: Path) -> None:
    """A start sent over a connection whose output is stuck takes effect."""
    marker = new_marker()
    proof = tmp_path / "proof"
    async with trio_websocket.open_websocket_url(daemon.url, message_queue_size=1) as stalled:
        requests: list[dict[str, Any]] = [
            {"id": 1, "method": "initialize", "params": {"clientName": "tests"}},
            {"method": "initialized"},
            {"id": 2, "method": "process/start", "params": start_params("flood", "yes", marker)},
        ]
        for request in requests:
            await stalled.send_message(json.dumps(request))
        await until(lambda: len(marked(marker)) == 1)
        (child,) = marked(marker)
        await until_blocked(child)
        touch = start_params("touch", "touch", str(proof))
        await stalled.send_message(json.dumps({"id": 3, "method": "process/start", "params": touch}))
        await until(proof.exists)
        await stalled.send_message(
            json.dumps({"id": 4, "method": "process/terminate", "params": {"processId": "flood"}})
        )
        await until(lambda: not marked(marker))


@pytest.mark.case(38)
@pytest.mark.ours_only("the reference now and then lets output overtake the answer, and one stream the other")
async def test_answer_to_start_comes_first_and_events_come_in_order(
    daemon: Daemon, long_profile: bool
) -> None:
    """Of many processes started at once, each is answered before its first event, in order of seq."""
    rounds, width = (8, 50) if long_profile else (3, 20)
    noise = "echo out; echo err >&2; " * 3
    async with connect(daemon.url) as peer:
        for number in range(rounds):
            sent: dict[str, int] = {}
            for index in range(width):
                name = f"p{number}.{index}"
                argv = ("echo", "hello") if index % 2 else ("sh", "-c", noise)
                sent[name] = await peer.send("process/start", start_params(name, *argv))
            for name, start_id in sent.items():
                await peer.until_closed(name)
                assert_in_order(peer, name, start_id)
                expected = [6, 12 * 2][name.endswith(tuple("02468"))]
                assert len(peer.output(name)) == expected


@pytest.mark.case(56)
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "tty"])
async def test_two_concurrent_starts_of_one_id_have_one_winner(daemon: Daemon, tty: bool) -> None:
    """Of two starts of one id sent back to back, one runs and the other is told that the id is taken."""
    async with connect(daemon.url) as peer:
        for number in range(10):
            params = start_params(f"p{number}", "sleep", "60", tty=tty)
            sent = [await peer.send("process/start", params) for _ in range(2)]
            answers = [await peer.answer_to(request_id) for request_id in sent]
            refused = [answer.code for answer in answers if answer.error is not None]
            assert refused == [-32600]
            assert (await peer.terminate(f"p{number}")).ok() == {"running": True}
            events = await peer.until_closed(f"p{number}")
            assert [event.kind for event in events] == ["exited", "closed"]
