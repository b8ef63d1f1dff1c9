"""What a process tells while it lives and dies: numbered events, exact bytes, true exit codes, retention."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
import trio

from complete_events import output_of, until_complete
from daemons import Daemon, start_daemon
from wire import PATIENCE_S, connect

CHUNK_CAP = 1 << 20
"""No chunk is larger: a client of the protocol may fail a process that sends a larger one."""

DEATHS = {
    "kill -KILL $$": 137,
    "kill -TERM $$": 143,
    "kill -INT $$": 130,
    "kill -SEGV $$": 139,
    "kill -HUP $$": 129,
}
ENDS = {**DEATHS, "exit 255": 255, "exit 256": 0, "exit 3": 3}


def script(body: str) -> tuple[str, ...]:
    """A shell that does `body` and leaves no core file behind."""
    return ("sh", "-c", f"ulimit -c 0; {body}")


@pytest.mark.case(67)
@pytest.mark.ours_only("the reference retains for 80 s, always")
async def test_a_closed_process_is_readable_until_its_retention_ends() -> None:
    """Output and state outlive the close for the retention time, then the id is unknown and free."""
    daemon = start_daemon("ours", "--retention", "1")
    try:
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "kept") == (0, b"kept\n")
            page = (await peer.process_read("p")).ok()
            assert (len(page["chunks"]), page["closed"]) == (1, True)
            assert (await peer.start("p", "true")).code == -32600
            with trio.fail_after(PATIENCE_S):
                while (answer := await peer.process_read("p")).error is None:
                    assert answer.ok()["chunks"] == page["chunks"]
                    await trio.sleep(0.05)
            assert answer.code == -32600
            peer.events("p").clear()
            assert await peer.run("p", "echo", "again") == (0, b"again\n")
    finally:
        daemon.stop()


@pytest.mark.case(68)
@pytest.mark.ours_only("the reference may number output after the exit that followed it")
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "pty"])
async def test_output_is_numbered_before_the_exit_that_followed_it(
    daemon: Daemon, long_profile: bool, tty: bool
) -> None:
    """What a process wrote before it exited has smaller numbers than its exit, however close the two are."""
    async with connect(daemon.url) as peer:
        ids = [f"p{i}" for i in range(400 if long_profile else 100)]
        async with trio.open_nursery() as nursery:
            for process_id in ids:
                nursery.start_soon(partial(peer.run, process_id, "echo", process_id, tty=tty))
        for process_id in ids:
            events = peer.events(process_id)
            assert [event.kind for event in events] == ["output", "exited", "closed"]
            assert [event.seq for event in events] == [1, 2, 3]
            assert peer.output(process_id).split() == [process_id.encode()]


@pytest.mark.case(69)
async def test_two_streams_share_one_numbering_without_holes(daemon: Daemon) -> None:
    """Interleaved stdout and stderr are numbered 1 to n, each stream in order and complete."""
    lines = range(1, 401)
    async with connect(daemon.url) as peer:
        body = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo out $i; echo err $i >&2; done"
        (await peer.start("p", "sh", "-c", body)).ok()
        events = await until_complete(peer, "p")
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert [event.kind for event in events].count("exited") == 1
        assert events[-1].kind == "closed"
        for stream, word in (("stdout", "out"), ("stderr", "err")):
            assert output_of(events, stream) == b"".join(f"{word} {i}\n".encode() for i in lines)
        streams = {event.params.get("stream") for event in events}
        assert streams == {"stdout", "stderr", None}


@pytest.mark.case(70)
async def test_binary_output_arrives_byte_for_byte(daemon: Daemon, tmp_path: Path) -> None:
    """Five megabytes of arbitrary bytes come unchanged, in chunks that are never empty and never huge."""
    data = b"\0\xff\xfe\xc3\x28\r\n\0" + random.Random(70).randbytes(5_000_000)
    (tmp_path / "data").write_bytes(data)
    async with connect(daemon.url) as peer:
        (await peer.start("p", "cat", str(tmp_path / "data"))).ok()
        events = await until_complete(peer, "p")
        chunks = [event.data for event in events if event.kind == "output"]
        assert b"".join(chunks) == data
        assert 0 < min(map(len, chunks)) <= max(map(len, chunks)) <= CHUNK_CAP


@pytest.mark.case(71)
async def test_exit_codes_of_pipe_processes(daemon: Daemon) -> None:
    """An exit gives its low byte, a death by signal 128 and the signal's number."""
    async with connect(daemon.url) as peer:
        codes = {body: (await peer.run(body, *script(body)))[0] for body in ENDS}
        assert codes == ENDS


@pytest.mark.case(71)
@pytest.mark.ours_only("the reference says 1 for every signal death on a terminal")
async def test_exit_codes_of_terminal_processes(daemon: Daemon) -> None:
    """A terminal changes nothing about exit codes."""
    async with connect(daemon.url) as peer:
        codes = {body: (await peer.run(body, *script(body), tty=True))[0] for body in ENDS}
        assert codes == ENDS


@pytest.mark.case(71)
@pytest.mark.ours_only("the reference has no termSignal")
@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "pty"])
async def test_a_signal_death_names_its_signal(daemon: Daemon, tty: bool) -> None:
    """The exit event and every later read tell the signal, so that exit 137 and SIGKILL differ."""
    async with connect(daemon.url) as peer:
        for body, code in {**DEATHS, "exit 137": 137}.items():
            signal = None if body.startswith("exit") else code - 128
            await peer.run(body, *script(body), tty=tty)
            exited = await peer.until_exited(body)
            assert (exited["exitCode"], exited.get("termSignal")) == (code, signal)
            page = (await peer.process_read(body)).ok()
            assert (page["exitCode"], page.get("termSignal")) == (code, signal)
