"""What the client promises, as far as a real server can be brought to show it; `test_client.py` has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from daemons import Daemon
from fault_proxy import fault_proxy
from gates import gate_at
from procfs import marked, new_marker, until
from tsupervise import Client, Closed, Event, Exited, Output, RemoteProcess, connect
from tsupervise._calls import CallTable, Pending
from tsupervise_protocol.messages import Message, ReadParams

PATIENCE_S = 30.0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods of all calls that a client makes, in order."""
    methods: list[str] = []
    begin = CallTable.begin

    def spy(table: CallTable, method: str, params: Message) -> Pending:
        methods.append(method)
        return begin(table, method, params)

    monkeypatch.setattr(CallTable, "begin", spy)
    return methods


async def collect(process: RemoteProcess) -> list[Event]:
    return [event async for event in process.events()]


@pytest.mark.case(100)
async def test_many_calls_at_a_time_each_get_their_own_answer(daemon: Daemon) -> None:
    """Also beside calls that were cancelled after they had been sent."""
    answers: dict[int, str] = {}

    async def ask(client: Client, number: int) -> None:
        answer = await client.call("process/read", ReadParams(process_id=f"p{number}"))
        answers[number] = "".join(chunk.chunk for chunk in answer.chunks)

    with trio.fail_after(PATIENCE_S):
        async with connect(daemon.url) as client:
            for number in range(8):
                await (await client.start(["echo", str(number)], process_id=f"p{number}")).wait_closed()
            expected = dict(enumerate(["MAo=", "MQo=", "Mgo=", "Mwo=", "NAo=", "NQo=", "Ngo=", "Nwo="]))
            for given_up in (True, False):
                answers.clear()
                async with trio.open_nursery() as nursery:
                    for number in range(8):
                        nursery.start_soon(ask, client, number)
                    if given_up:
                        await trio.testing.wait_all_tasks_blocked()
                        nursery.cancel_scope.cancel()
            assert answers == expected


@pytest.mark.case(104)
async def test_a_run_that_arrives_whole_is_not_asked_about(daemon: Daemon, asked: list[str]) -> None:
    """Output, exit and close are known from the events alone, whatever the number of readers."""
    with trio.fail_after(PATIENCE_S):
        async with connect(daemon.url) as client:
            process = await client.start(["sh", "-c", "echo out; echo err >&2; exit 3"])
            events = await collect(process)
            assert await process.wait() == 3
            await process.wait_closed()
            assert await collect(process) == events
    assert asked == ["initialize", "process/start"]


@pytest.mark.case(105)
async def test_a_late_reader_asks_once(daemon: Daemon, asked: list[str]) -> None:
    """Whatever fell out of the client's own history comes by one read, and nothing comes twice."""
    script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done"
    with trio.fail_after(PATIENCE_S):
        async with connect(daemon.url) as client:
            process = await client.start(["sh", "-c", script])
            await process.wait_closed()
            asked.clear()
            events = await collect(process)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    output = b"".join(event.data for event in events if isinstance(event, Output))
    assert output.split() == [b"%d" % number for number in range(2000)]
    assert asked in (["process/read"], []), "none if the server joined the lines to a few chunks"


@pytest.mark.case(107)
async def test_a_start_that_its_caller_gives_up_leaves_nothing(daemon: Daemon) -> None:
    """Sent or not yet sent, no process is left; and the id is taken no longer than until the server has said so."""
    marker = new_marker()
    with trio.fail_after(PATIENCE_S):
        async with connect(daemon.url) as client:
            taken = client._processes  # pyright: ignore[reportPrivateUsage]

            async def start(process_id: str) -> None:
                process = await client.start(["sleep", marker], process_id=process_id)
                await process.end()  # it was faster than who gave it up

            for yields in range(6):
                process_id = f"p{yields}"
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(start, process_id)
                    for _ in range(yields):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
                await until(lambda: not marked(marker))
                await until(lambda process_id=process_id: process_id not in taken)


@pytest.mark.case(110)
async def test_an_exit_that_was_missed_stands_before_what_came_after_it(
    daemon: Daemon, tmp_path: Path
) -> None:
    """A descendant that goes on writing after the exit, all during an outage: every number is in its place."""
    with trio.fail_after(PATIENCE_S), gate_at(tmp_path) as gate:
        # Half a second is for the server to number the exit: by then it must, and nobody is there to be told.
        late = f"sleep 0.5; echo last; echo >{tmp_path / 'told'}"
        script = f"echo first; read x <{gate.path}; ({late}) & exit 5"
        async with fault_proxy(daemon.address) as proxy, connect(proxy.url) as client:
            process = await client.start(["sh", "-c", script])
            stream = process.events()
            events = [await anext(stream)]
            proxy.cut(60.0)
            gate.open()
            await until((tmp_path / "told").exists)
            proxy.cut(0.0)
            events += [event async for event in stream]
    assert [event.seq for event in events] == [1, 2, 3, 4]
    assert [event.data for event in events if isinstance(event, Output)] == [b"first\n", b"last\n"]
    assert isinstance(events[1], Exited)
    assert events[1].exit_code == 5
    assert isinstance(events[3], Closed)
