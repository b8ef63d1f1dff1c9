"""process/write: status words, write ids that make a retry harmless, and a bounded queue that waits.

Many tests write to `sed /END/q`: it repeats its input and exits after the line END, so that the output of
a closed process is what arrived on its stdin, all of it and nothing more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import Daemon
from gates import Gate, gate_at
from wire import Peer, connect, write_params

UNTIL_END = ("sed", "/END/q")

REMEMBERED_WRITES = 4096
"""How many accepted write ids of one process are remembered."""

CHUNK = 64 << 10
"""The capacity of a pipe, so that each further chunk waits in the queue as a whole."""

QUEUED_CHUNKS = 128


async def status_of(peer: Peer, process_id: str, data: bytes, write_id: str) -> str:
    return (await peer.write(process_id, data, write_id)).ok()["status"]


@pytest.mark.case(81)
async def test_the_status_says_whether_a_write_was_taken(daemon: Daemon) -> None:
    """An unknown id, a process without stdin, a process with stdin: three words and no error."""
    async with connect(daemon.url) as peer:
        (await peer.start("plain", "sleep", "30")).ok()
        (await peer.start("piped", "cat", pipeStdin=True)).ok()
        (await peer.start("pty", "cat", tty=True)).ok()
        statuses = {
            name: await status_of(peer, name, b"hi\n", "w") for name in ("nobody", "plain", "piped", "pty")
        }
        assert statuses == {
            "nobody": "unknownProcess",
            "plain": "stdinClosed",
            "piped": "accepted",
            "pty": "accepted",
        }
        await peer.until_output("piped", b"hi\n")
        await peer.until_output("pty", b"hi\r\nhi\r\n")
        for process_id in ("plain", "piped", "pty"):
            await peer.terminate(process_id)


@pytest.mark.case(81)
async def test_a_process_without_stdin_stays_so_after_its_end(daemon: Daemon) -> None:
    """`stdinClosed` is the answer for a plain process whether it runs or not."""
    async with connect(daemon.url) as peer:
        await peer.run("p", "true")
        assert await status_of(peer, "p", b"x", "w") == "stdinClosed"


@pytest.mark.case(82)
async def test_a_malformed_write_is_refused(daemon: Daemon) -> None:
    """An empty or missing writeId and anything but padded standard base64 is -32602, also for no process."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", *UNTIL_END, pipeStdin=True)).ok()
        good = write_params("p", b"data", "w")
        bad: list[dict[str, Any]] = [
            {**good, "writeId": ""},
            {key: value for key, value in good.items() if key != "writeId"},
            {**good, "writeId": None},
            {**good, "writeId": 7},
            {key: value for key, value in good.items() if key != "chunk"},
        ]
        bad += [
            {**good, "chunk": chunk}
            for chunk in (
                "!!!!",
                "YQ",
                "YQ=",
                "Y",
                "-_-_",
                "YWJj\nYWJj",
                "YWJj\n",
                " YWJj",
                "YQ==YQ==",
                "YR==",
                None,
            )
        ]
        for params in bad:
            for process_id in ("p", "nobody"):
                answer = await peer.request("process/write", {**params, "processId": process_id})
                assert answer.code == -32602, params
        # None of them left a byte or a remembered id behind.
        assert await status_of(peer, "p", b"END\n", "w") == "accepted"
        await peer.until_closed("p")
        assert peer.output("p") == b"END\n"


@pytest.mark.case(83)
async def test_a_repeated_write_id_is_accepted_and_not_written(daemon: Daemon) -> None:
    """Whatever content comes with an id that was accepted before, the first content is the only one."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", *UNTIL_END, pipeStdin=True)).ok()
        for data in (b"first\n", b"second\n", b"first\n"):
            assert await status_of(peer, "p", data, "same") == "accepted"
        assert await status_of(peer, "p", b"END\n", "other") == "accepted"
        await peer.until_closed("p")
        assert peer.output("p") == b"first\nEND\n"


@pytest.mark.case(83)
async def test_write_ids_belong_to_one_process(daemon: Daemon) -> None:
    """The same id for another process is another write."""
    async with connect(daemon.url) as peer:
        for process_id in ("a", "b"):
            (await peer.start(process_id, *UNTIL_END, pipeStdin=True)).ok()
            assert await status_of(peer, process_id, b"END\n", "same") == "accepted"
        for process_id in ("a", "b"):
            await peer.until_closed(process_id)
            assert peer.output(process_id) == b"END\n"


@pytest.mark.case(84)
async def test_only_the_latest_write_ids_are_remembered(daemon: Daemon) -> None:
    """An id that 4,096 later ones have followed is new again; one among those is not."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", *UNTIL_END, pipeStdin=True)).ok()
        assert await status_of(peer, "p", b"first\n", "w") == "accepted"
        further = range(REMEMBERED_WRITES + 4)
        sent = [await peer.send("process/write", write_params("p", b"x", f"w{i}")) for i in further]
        assert {(await peer.answer_to(i)).ok()["status"] for i in sent} == {"accepted"}
        # Among the remembered: the newest, and the oldest that 4,096 ids still hold.
        for recent in (further[-1], further[-REMEMBERED_WRITES]):
            assert await status_of(peer, "p", b"doubled", f"w{recent}") == "accepted"
        assert await status_of(peer, "p", b"\nagain\n", "w") == "accepted"
        assert await status_of(peer, "p", b"END\n", "end") == "accepted"
        await peer.until_closed("p")
        assert peer.output("p") == b"first\n" + b"x" * len(further) + b"\nagain\nEND\n"


@pytest.mark.case(85)
async def test_two_copies_in_flight_are_written_once(daemon: Daemon) -> None:
    """A write that is sent again before its first copy was answered reaches the process once."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", *UNTIL_END, pipeStdin=True)).ok()
        sent: list[int] = []
        for i in range(100):
            for _ in range(2):
                sent.append(await peer.send("process/write", write_params("p", b"%d\n" % i, f"w{i}")))
        sent.append(await peer.send("process/write", write_params("p", b"END\n", "end")))
        assert {(await peer.answer_to(i)).ok()["status"] for i in sent} == {"accepted"}
        await peer.until_closed("p")
        assert peer.output("p") == b"".join(b"%d\n" % i for i in range(100)) + b"END\n"


def block(number: int) -> bytes:
    """One chunk of a full queue, recognisable by its content."""
    return (b"%06d\n" % number) * (CHUNK // 7 + 1)


async def fill_stdin(peer: Peer, process_id: str, count: int) -> list[int]:
    """Send `count` chunks to a process that does not read; return their requests when the queue is full."""
    sent = [
        await peer.send("process/write", write_params(process_id, block(i)[:CHUNK], f"w{i}"))
        for i in range(count)
    ]
    await peer.until(lambda: accepted(peer, sent) >= QUEUED_CHUNKS)
    return sent


def accepted(peer: Peer, sent: list[int]) -> int:
    """How many of the requests are answered with `accepted`."""
    return sum(i in peer.answers and peer.answers[i].ok()["status"] == "accepted" for i in sent)


@pytest.mark.case(87)
async def test_a_full_queue_makes_writes_wait_and_loses_nothing(daemon: Daemon, tmp_path: Path) -> None:
    """About 130 chunks are accepted for a process that never reads; once it reads, all come in order."""
    with gate_at(tmp_path) as gate:
        async with connect(daemon.url) as peer:
            total = 150
            size = str(total * CHUNK)
            body = 'read x <"$0"; head -c "$1" | cat >"$0.copy"'
            (await peer.start("p", "sh", "-c", body, gate.path, size, pipeStdin=True)).ok()
            sent = await fill_stdin(peer, "p", total)
            # Only time can show that nothing more is taken; a longer look would find the same.
            with trio.move_on_after(0.2):
                await peer.until(lambda: accepted(peer, sent) == total)
            # The queue, one being written, one in the pipe.
            assert QUEUED_CHUNKS <= accepted(peer, sent) <= QUEUED_CHUNKS + 4
            gate.open()
            await peer.until(lambda: accepted(peer, sent) == total)
            await peer.until_closed("p")
            copy = await trio.Path(gate.path + ".copy").read_bytes()
            assert copy == b"".join(block(i)[:CHUNK] for i in range(total))


@pytest.mark.case(87)
@pytest.mark.ours_only("in the reference a waiting write holds up everything behind it")
async def test_a_waiting_write_holds_up_no_signal_and_no_terminate(daemon: Daemon) -> None:
    """With writes waiting for room, signal and terminate act at once; the writes learn of the end."""
    body = "trap 'echo caught' INT; echo ready; while :; do sleep 30 & wait $!; done"
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sh", "-c", body, pipeStdin=True)).ok()
        await peer.until_output("p", b"ready")
        sent = await fill_stdin(peer, "p", 150)
        (await peer.request("process/signal", {"processId": "p", "signal": "interrupt"})).ok()
        await peer.until_output("p", b"caught")
        assert sum(i in peer.answers for i in sent) < len(sent), "the queue has room for everything"
        assert (await peer.terminate("p")).ok() == {"running": True}
        assert (await peer.until_exited("p"))["exitCode"] == 137
        statuses = [(await peer.answer_to(i)).ok()["status"] for i in sent]
        assert statuses == sorted(statuses), "an accepted write follows a refused one"
        assert statuses[-1] == "stdinClosed"


@pytest.mark.case(88)
async def test_a_stdin_closed_by_its_reader_swallows_writes(daemon: Daemon, tmp_path: Path) -> None:
    """A process that closed its stdin and lives on takes writes, drops them, and is otherwise unharmed."""
    with gate_at(tmp_path) as gate:
        async with connect(daemon.url) as peer:
            body = 'exec <&-; echo ready; read x <"$0"; echo late'
            (await peer.start("p", "sh", "-c", body, gate.path, pipeStdin=True)).ok()
            await peer.until_output("p", b"ready\n")
            # More than would ever wait: an answer to each shows that the bytes went nowhere.
            for request in await fill_stdin(peer, "p", QUEUED_CHUNKS + 20):
                assert (await peer.answer_to(request)).ok() == {"status": "accepted"}
            gate.open()
            await peer.until_closed("p")
            assert peer.output("p") == b"ready\nlate\n"
            assert (await peer.until_exited("p"))["exitCode"] == 0


async def exited_but_open(peer: Peer, process_id: str, gate: Gate, **fields: Any) -> None:
    """Leave an exited process whose child holds its streams until the gate opens."""
    body = '(trap "" HUP; read x <"$0") & exit 0'
    (await peer.start(process_id, "sh", "-c", body, gate.path, **fields)).ok()
    await peer.until_exited(process_id)


@pytest.mark.case(88)
@pytest.mark.ours_only("the reference accepts what it then discards")
async def test_a_write_after_the_exit_says_so(daemon: Daemon, tmp_path: Path) -> None:
    """Once the process has exited, closed or not, no write is said to be accepted."""
    with gate_at(tmp_path) as gate:
        async with connect(daemon.url) as peer:
            for process_id, fields in (("pipe", {"pipeStdin": True}), ("pty", {"tty": True})):
                await exited_but_open(peer, process_id, gate, **fields)
                assert await status_of(peer, process_id, b"x", "w") == "stdinClosed"
                gate.open()
                await peer.until_closed(process_id)
                assert await status_of(peer, process_id, b"x", "w") == "stdinClosed"
            (await peer.start("killed", "cat", pipeStdin=True)).ok()
            await peer.terminate("killed")
            await peer.until_closed("killed")
            assert await status_of(peer, "killed", b"x", "w") == "stdinClosed"


@pytest.mark.case(81)
async def test_an_empty_write_is_accepted_and_does_nothing(daemon: Daemon) -> None:
    """An empty chunk is no end of file on a pipe."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", *UNTIL_END, pipeStdin=True)).ok()
        assert await status_of(peer, "p", b"", "empty") == "accepted"
        assert await status_of(peer, "p", b"\x03\x04" + b"\n", "control") == "accepted"
        assert await status_of(peer, "p", b"END\n", "end") == "accepted"
        await peer.until_closed("p")
        assert peer.output("p") == b"\x03\x04\nEND\n"
