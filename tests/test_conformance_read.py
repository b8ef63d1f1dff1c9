"""process/read: pages of retained output by number, and long polls that wake when something happens."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import trio

from complete_events import until_complete
from daemons import Daemon
from gates import gate_at
from wire import Event, Peer, connect

RETAINED_BYTES = 1 << 20
"""The default window of retained output per process."""

FOREVER_MS = 2**64 - 1


async def three_chunks(peer: Peer, process_id: str) -> None:
    """Leave a closed process with chunks 1 to 3 of four bytes each, exit 4, close 5."""
    body = "while read -r line && [ $line != end ]; do printf %s $line; done"
    (await peer.start(process_id, "sh", "-c", body, pipeStdin=True)).ok()
    # One at a time: two writes of the child between two reads of the server would make one chunk.
    for word in (b"aaaa", b"bbbb", b"cccc"):
        (await peer.write(process_id, word + b"\n", word.decode())).ok()
        await peer.until_output(process_id, word)
    (await peer.write(process_id, b"end\n", "end")).ok()
    events = await until_complete(peer, process_id)
    assert [event.kind for event in events] == ["output"] * 3 + ["exited", "closed"]


def data_of(page: dict[str, Any]) -> bytes:
    return b"".join(base64.b64decode(chunk["chunk"], validate=True) for chunk in page["chunks"])


@pytest.mark.case(72)
async def test_a_page_takes_whole_chunks_and_always_the_first(daemon: Daemon) -> None:
    """`maxBytes` ends a page between chunks but never makes it empty; `nextSeq` says where to go on."""
    async with connect(daemon.url) as peer:
        await three_chunks(peer, "p")
        pages: dict[int | None, tuple[int, int]] = {}
        for limit in (None, 0, 1, 4, 5, 8, 12, 100):
            page = (await peer.process_read("p", afterSeq=0, maxBytes=limit)).ok()
            pages[limit] = (len(page["chunks"]), page["nextSeq"])
            assert [chunk["seq"] for chunk in page["chunks"]] == list(range(1, len(page["chunks"]) + 1))
            assert (page["exited"], page["exitCode"], page["closed"]) == (True, 0, True)
            assert (page["failure"], page["sandboxDenied"]) == (None, False)
        assert pages == {
            None: (3, 6),
            0: (1, 2),
            1: (1, 2),
            4: (1, 2),
            5: (1, 2),
            8: (2, 3),
            12: (3, 4),
            100: (3, 4),
        }


@pytest.mark.case(72)
async def test_paging_by_next_seq_collects_everything_once(daemon: Daemon) -> None:
    """Going on from `nextSeq - 1` until a page is empty gives the output complete and in order."""
    async with connect(daemon.url) as peer:
        await three_chunks(peer, "p")
        data, after = b"", 0
        while (page := (await peer.process_read("p", afterSeq=after, maxBytes=8)).ok())["chunks"]:
            data += data_of(page)
            after = page["nextSeq"] - 1
        assert data == b"aaaabbbbcccc"
        assert {chunk["stream"] for chunk in (await peer.process_read("p")).ok()["chunks"]} == {"stdout"}


@pytest.mark.case(73)
async def test_a_page_past_the_last_chunk_is_empty(daemon: Daemon) -> None:
    """After the last chunk, the exit, the close or beyond come no chunks and the next free number."""
    async with connect(daemon.url) as peer:
        await three_chunks(peer, "p")
        for after in (3, 4, 5, 6):
            page = (await peer.process_read("p", afterSeq=after, maxBytes=4, waitMs=FOREVER_MS)).ok()
            assert (page["chunks"], page["nextSeq"], page["closed"]) == ([], 6, True)


BIG = b"".join(b"%07d\n" % i for i in range(3 * 131072))
"""Three times what is retained, each place recognisable."""


async def big_output(peer: Peer, process_id: str, directory: Path) -> list[Event]:
    """Leave a closed process that wrote `BIG`."""
    path = trio.Path(directory / "big")
    await path.write_bytes(BIG)
    (await peer.start(process_id, "cat", str(path))).ok()
    return await until_complete(peer, process_id)


@pytest.mark.case(74)
async def test_old_output_leaves_the_window_and_the_newest_stays(daemon: Daemon, tmp_path: Path) -> None:
    """Of 3 MB at most 1 MiB is kept: whole chunks, numbered up to the exit, the last bytes intact."""
    async with connect(daemon.url) as peer:
        events = await big_output(peer, "p", tmp_path)
        page = (await peer.process_read("p", afterSeq=0)).ok()
        kept = data_of(page)
        assert RETAINED_BYTES // 2 < len(kept) <= RETAINED_BYTES
        assert BIG.endswith(kept)
        seqs = [chunk["seq"] for chunk in page["chunks"]]
        assert seqs[0] > 1
        assert seqs == [event.seq for event in events if event.kind == "output"][-len(seqs) :]
        assert page["closed"]


@pytest.mark.case(74)
@pytest.mark.ours_only("the reference shows a gap only by its numbers")
async def test_a_gap_is_told(daemon: Daemon, tmp_path: Path) -> None:
    """`firstSeq` is the lowest retained number, `truncated` says that the asked range begins before it."""
    async with connect(daemon.url) as peer:
        await big_output(peer, "p", tmp_path)
        page = (await peer.process_read("p", maxBytes=0)).ok()
        first = page["chunks"][0]["seq"]
        assert (page["firstSeq"], page["truncated"]) == (first, True)
        for after, truncated in ((first - 2, True), (first - 1, False), (first, False), (10**6, False)):
            page = (await peer.process_read("p", afterSeq=after, maxBytes=0)).ok()
            assert (page["firstSeq"], page["truncated"]) == (first, truncated)


@pytest.mark.case(76)
async def test_a_poll_of_a_silent_process_ends_at_its_deadline(daemon: Daemon) -> None:
    """Nothing happens: `waitMs` 0 is answered at once, 200 not before that time, both with nothing."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sleep", "30")).ok()
        for wait in (None, 0, 200):
            begun = trio.current_time()
            page = (await peer.process_read("p", waitMs=wait)).ok()
            assert (page["chunks"], page["nextSeq"]) == ([], 1)
            assert (page["exited"], page["exitCode"], page["closed"]) == (False, None, False)
            # A lower bound holds on the slowest machine; an upper one is the limit on every answer, which
            # is shorter than this process lives.
            assert trio.current_time() - begun >= (wait or 0) / 1000
        await peer.terminate("p")


@pytest.mark.case(76)
async def test_a_poll_far_ahead_waits_past_output_for_the_close(daemon: Daemon, tmp_path: Path) -> None:
    """A number that was not reached yet is no error: the poll sleeps through lower events until closed."""
    with gate_at(tmp_path) as gate:
        async with connect(daemon.url) as peer:
            (
                await peer.start("p", "sh", "-c", 'read x <"$0"; sleep 0.1; echo one; sleep 0.1', gate.path)
            ).ok()
            poll = await peer.send("process/read", {"processId": "p", "afterSeq": 1000, "waitMs": FOREVER_MS})
            gate.open()
            page = (await peer.answer_to(poll)).ok()
            assert (page["chunks"], page["nextSeq"], page["closed"]) == ([], 4, True)
            assert peer.output("p") == b"one\n"


@pytest.mark.case(77)
async def test_a_poll_wakes_at_output_then_exit_then_close(daemon: Daemon, tmp_path: Path) -> None:
    """Each of the three ends the poll that waits for it, once."""
    body = 'read x <"$0"; sleep 0.1; echo out; read x <"$0"; (read x <"$0"; sleep 0.1) & sleep 0.1; exit 3'

    with gate_at(tmp_path) as gate:
        async with connect(daemon.url) as peer:
            (await peer.start("p", "sh", "-c", body, gate.path)).ok()
            states: list[tuple[int, bool, int | None, bool]] = []
            for after in (0, 1, 2):
                poll = await peer.send(
                    "process/read", {"processId": "p", "afterSeq": after, "waitMs": FOREVER_MS}
                )
                gate.open()
                page = (await peer.answer_to(poll)).ok()
                states.append((len(page["chunks"]), page["exited"], page["exitCode"], page["closed"]))
            assert states == [(1, False, None, False), (0, True, 3, False), (0, True, 3, True)]
            page = (await peer.process_read("p", afterSeq=3, waitMs=FOREVER_MS)).ok()
            assert (page["chunks"], page["nextSeq"], page["closed"]) == ([], 4, True)


@pytest.mark.case(78)
async def test_the_longest_wait_is_a_wait(daemon: Daemon) -> None:
    """`waitMs` may be the largest unsigned 64-bit number; the poll still ends with the process."""
    async with connect(daemon.url) as peer:
        (await peer.start("p", "sleep", "0.1")).ok()
        page = (await peer.process_read("p", waitMs=FOREVER_MS)).ok()
        assert (page["exited"], page["exitCode"]) == (True, 0)
        assert await peer.run("q", "echo", "healthy") == (0, b"healthy\n")


@pytest.mark.case(79)
async def test_a_read_of_nothing_or_with_bad_numbers_is_an_error(daemon: Daemon) -> None:
    """An unknown id is -32600 with its name; a negative or fractional number is -32602."""
    async with connect(daemon.url) as peer:
        unknown = await peer.process_read("nobody")
        assert unknown.code == -32600
        assert "nobody" in unknown.message
        (await peer.start("p", "true")).ok()
        for name in ("afterSeq", "maxBytes", "waitMs"):
            for value in (-1, 1.0, 2**64, "1"):
                assert (await peer.process_read("p", **{name: value})).code == -32602, (name, value)
        (await peer.process_read("p", afterSeq=None, maxBytes=None, waitMs=None)).ok()
