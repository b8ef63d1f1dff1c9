"""Attaching to a process by name: of the own session and of others, at a daemon and in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest
import trio

import tsupervise
from daemons import Daemon
from tsupervise import Client, Closed, Event, Exited, Lost, NoSuchProcess, Output, ProcessHandle
from tsupervise._observed_process import entry_named, events_of
from tsupervise_protocol.base64_text import decode_base64, encode_base64_str
from tsupervise_protocol.messages import UNSET, OperatorEntry, OutputChunk, ReadResult

PATIENCE_S = 20.0


@pytest.fixture
async def client(daemon: Daemon) -> AsyncGenerator[Client]:
    with trio.fail_after(60):
        async with tsupervise.connect(daemon.url) as client:
            yield client


async def collect(process: ProcessHandle, after_seq: int = 0) -> list[Event]:
    return [event async for event in process.events(after_seq=after_seq)]


def text(events: Sequence[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output))


async def until_output(process: ProcessHandle, needle: bytes) -> None:
    seen = b""
    with trio.fail_after(PATIENCE_S):
        async for event in process.events():
            if isinstance(event, Output):
                seen += event.data
                if needle in seen:
                    return
    raise AssertionError(f"{needle!r} did not come, but {seen!r}")


async def test_a_process_is_found_again_after_its_session_was_resumed(daemon: Daemon, client: Client) -> None:
    """By its process id: with everything that is retained, and what it writes from then on; input arrives."""
    async with tsupervise.connect(daemon.url) as first:
        name = f"again-{first.session_id}"
        started = await first.start(["cat"], process_id=name, pipe_stdin=True)
        await started.write(b"one\n")
        await until_output(started, b"one\n")
        session_id = first.session_id
    async with tsupervise.connect(daemon.url, resume_session_id=session_id) as second:
        process = await second.attach(name)
        assert isinstance(process, tsupervise.RemoteProcess)
        await until_output(process, b"one\n")
        # Its first write of this handle, and the second of the process: not taken for a repetition.
        await process.write(b"two\n")
        await until_output(process, b"one\ntwo\n")
        assert await process.terminate()
        events = await collect(process)
        assert [event.seq for event in events] == [1, 2, 3, 4]
        assert (await process.wait(), text(events)) == (137, b"one\ntwo\n")
        assert await collect(await second.attach(name)) == events


async def test_what_is_retained_no_more_is_told_as_lost(daemon: Daemon, client: Client) -> None:
    """An attached process whose beginning is gone starts with that."""
    async with tsupervise.connect(daemon.url) as first:
        process = await first.start(["sh", "-c", "head -c 3000000 /dev/zero; echo end; exec sleep 60"])
        name, session_id = process.process_id, first.session_id
        await until_end_of_flood(process)
    async with tsupervise.connect(daemon.url, resume_session_id=session_id) as second:
        process = await second.attach(name)
        await process.terminate()
        events = await collect(process)
        assert isinstance(events[0], Lost)
        assert events[0].first_seq == 1
        assert [event.seq for event in events[1:]] == list(range(events[0].seq + 1, events[-1].seq + 1))
        assert text(events).endswith(b"\0end\n")
        assert isinstance(events[-2], Exited)
        assert isinstance(events[-1], Closed)


async def until_end_of_flood(process: ProcessHandle) -> None:
    seq = 0
    with trio.fail_after(PATIENCE_S):
        while True:
            answer = await process.read(after_seq=seq, wait_ms=1000)
            seq = answer.next_seq - 1
            if answer.chunks and decode_base64(answer.chunks[-1].chunk).endswith(b"end\n"):
                return


async def test_a_name_that_nobody_has_is_an_error(client: Client) -> None:
    """It says what there is, or what the server says."""
    with pytest.raises(NoSuchProcess, match="no process 'nobody'"):
        await client.attach("nobody")


@pytest.mark.ours_only("operators are our own")
class TestOfAnotherSession:
    """Following and steering what another client has started."""

    async def test_it_is_followed_and_driven_by_name_while_its_owner_has_it(
        self, daemon: Daemon, client: Client
    ) -> None:
        """Both see the same events; leaving the observer alone ends nothing."""
        async with (
            tsupervise.connect(daemon.url) as owner,
            owner.open_process(["cat"], process_id="the cat", pipe_stdin=True) as cat,
        ):
            seen = await client.attach("the cat")
            assert isinstance(seen, tsupervise.ObservedProcess)
            assert (seen.uid, seen.entry.session_id, seen.exit_code) == (cat.uid, owner.session_id, None)
            await cat.write(b"from the owner\n")
            await until_output(seen, b"from the owner\n")
            await seen.write(b"from the observer\n")
            await until_output(cat, b"from the observer\n")
            again = await client.attach(seen.uid or "")
            await again.write(b"x" * 200_000)
            await again.close_stdin()
            assert await seen.wait() == 0
            await seen.wait_closed()
            events = await collect(seen)
            assert events == await collect(cat)
            assert await collect(seen, after_seq=events[-3].seq) == events[-2:]
            assert await collect(seen, after_seq=events[-1].seq) == []
            assert text(events).endswith(b"x" * 200_000)

    async def test_signals_and_sizes_reach_it(self, daemon: Daemon, client: Client) -> None:
        """As they do from its owner."""
        script = "trap 'stty size' WINCH; trap 'echo int; exit 3' INT; echo up; while :; do sleep 0.05; done"
        async with (
            tsupervise.connect(daemon.url) as owner,
            owner.open_process(["sh", "-c", script], tty=True, size=(10, 20)) as process,
        ):
            seen = await client.attach(process.uid or "")
            await until_output(seen, b"up")
            await seen.resize(30, 40)
            await until_output(seen, b"30 40")
            await seen.interrupt()
            assert await seen.wait() == 3
            assert process.exit_code in (None, 3)
            assert not await seen.terminate()

    async def test_a_process_that_is_forgotten_is_over(self, daemon: Daemon, client: Client) -> None:
        """Whoever waits for it is told so, and so is whoever asks later."""
        async with tsupervise.connect(daemon.url) as owner:
            process = await owner.start(["sleep", "60"])
            seen = await client.attach(process.uid or "")
            events = seen.events()
            await owner.end_session()
            assert await process.wait() == 137
            with pytest.raises(tsupervise.ProcessFailed, match="unknown process uid"):
                await anext(events)
            with pytest.raises(tsupervise.ProcessFailed, match="unknown process uid"):
                await seen.wait()
            with pytest.raises(tsupervise.ServerRefused, match="has ended"):
                await owner.start(["true"])

    async def test_a_kept_session_is_there_for_the_next_client(self, client: Client, daemon: Daemon) -> None:
        """What one client leaves running another finds by name, sees as kept, and ends."""
        async with tsupervise.connect(daemon.url) as first:
            await first.keep_session()
            left = await first.start(["sh", "-c", "echo up; exec sleep 60"], process_id="left behind")
        entry = next(entry for entry in await client.processes() if entry.uid == left.uid)
        with trio.fail_after(PATIENCE_S):
            while entry.session_attached:
                entry = entry_named(await client.processes(), entry.uid)
        assert (entry.session_kept, entry.state) == (True, "running")
        process = await client.attach("left behind")
        await until_output(process, b"up\n")
        await client.end_session(entry.session_id)
        with pytest.raises(NoSuchProcess):
            await client.attach("left behind")

    async def test_the_status_is_told(self, client: Client, daemon: Daemon) -> None:
        """With the address that this client uses."""
        assert (await client.status()).listen == daemon.url


async def test_in_this_process_there_is_one_session_and_it_is_listed() -> None:
    """`open_supervisor` has the same calls; there is no listener, and whoever runs it is its operator."""
    with trio.fail_after(PATIENCE_S):
        async with tsupervise.open_supervisor() as client:
            status = await client.status()
            assert (status.listen, status.sessions) == (None, 1)
            async with client.open_process(["cat"], process_id="cat", pipe_stdin=True) as cat:
                assert await client.attach("cat") is cat
                assert [entry.process_id for entry in await client.processes()] == ["cat"]


def entry(uid: str, name: str, state: str = "running") -> OperatorEntry:
    return OperatorEntry(
        process_id=name,
        uid=uid,
        state=state,  # pyright: ignore[reportArgumentType]
        argv=["x"],
        cwd="file:///",
        tty=False,
        started_at_ms=0,
        session_id="s",
    )


@pytest.mark.parametrize(
    ("entries", "name", "expected"),
    [
        ([entry("u-1", "a"), entry("u-2", "b")], "u-2", "u-2"),
        ([entry("u-1", "a"), entry("u-2", "b")], "b", "u-2"),
        ([entry("u-1", "u-2"), entry("u-2", "b")], "u-2", "u-2"),
        ([entry("u-1", "a"), entry("u-2", "a", "closed")], "a", "u-1"),
        ([entry("u-1", "a", "closed"), entry("u-2", "a", "exited")], "a", "u-2"),
        ([entry("u-1", "a"), entry("u-2", "a")], "a", None),
        ([entry("u-1", "a")], "A", None),
        ([], "a", None),
    ],
)
def test_a_name_is_a_uid_or_the_process_id_of_one(
    entries: list[OperatorEntry], name: str, expected: str | None
) -> None:
    """A uid comes first; of several with one process id it is the one that lives, or the newest."""
    if expected is None:
        with pytest.raises(NoSuchProcess) as caught:
            entry_named(entries, name)
        assert all(entry.uid in str(caught.value) for entry in entries)
    else:
        assert entry_named(entries, name).uid == expected


def answer(
    chunks: dict[int, bytes], next_seq: int, *, exit_seq: int | None = None, closed_seq: int | None = None
) -> ReadResult:
    return ReadResult(
        chunks=[
            OutputChunk(seq=seq, stream="stdout", chunk=encode_base64_str(data))
            for seq, data in chunks.items()
        ],
        next_seq=next_seq,
        exited=exit_seq is not None,
        exit_code=None if exit_seq is None else 7,
        closed=closed_seq is not None,
        exit_seq=UNSET if exit_seq is None else exit_seq,
        closed_seq=UNSET if closed_seq is None else closed_seq,
    )


@pytest.mark.parametrize(
    ("told", "seq", "expected"),
    [
        (answer({}, 1), 0, []),
        (answer({1: b"a", 2: b"b"}, 3), 0, ["a", "b"]),
        (answer({3: b"c"}, 4), 0, [(1, 2), "c"]),
        (answer({3: b"c"}, 4), 2, ["c"]),
        (answer({1: b"a", 3: b"c"}, 5, exit_seq=2, closed_seq=4), 0, ["a", "exit", "c", "close"]),
        (answer({1: b"a"}, 2, exit_seq=2, closed_seq=3), 0, ["a"]),
        (answer({}, 4, exit_seq=2, closed_seq=3), 1, ["exit", "close"]),
        (answer({}, 5, exit_seq=3, closed_seq=4), 0, [(1, 2), "exit", "close"]),
        (answer({}, 5, exit_seq=2, closed_seq=4), 2, [(3, 3), "close"]),
        (answer({}, 5, exit_seq=2, closed_seq=4), 4, []),
        (answer({}, 4, exit_seq=1), 1, [(2, 3)]),
    ],
)
def test_an_answer_becomes_events_without_gaps(
    told: ReadResult, seq: int, expected: list[str | tuple[int, int]]
) -> None:
    """Output, exit and close in order of their numbers, and what nobody has as lost."""
    found: list[str | tuple[int, int]] = []
    for event in events_of(told, seq):
        match event:
            case Output(data=data):
                found.append(data.decode())
            case Lost(first_seq=first, seq=last):
                found.append((first, last))
            case Exited(exit_code=code):
                assert code == 7
                found.append("exit")
            case Closed():
                found.append("close")
    assert found == expected
