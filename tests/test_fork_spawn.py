"""The way of starting children that older C libraries get: the same children, by fork."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tsupervise._background import open_background
from tsupervise._channel import memory_channels
from tsupervise._connection import Connection
from tsupervise._fork_spawn import fork_spawn
from tsupervise._spawn import spawn
from tsupervise._supervisor import open_supervisor_core
from tsupervise.client import Client, open_client
from tsupervise.errors import ServerRefused
from tsupervise.events import Output

PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@asynccontextmanager
async def client_by_fork() -> AsyncGenerator[Client]:
    """A client of a supervisor in this process that starts its children by fork."""
    by_fork = partial(spawn, start=fork_spawn)
    async with open_supervisor_core(spawner=by_fork) as core, open_background(outlast_cancel=True) as tasks:
        ours, theirs = memory_channels()
        tasks.start_soon(Connection(core, theirs).run)
        async with open_client(ours) as client:
            yield client


@pytest.mark.parametrize("tty", [False, True], ids=["pipe", "tty"])
async def test_children_by_fork_are_like_others(tty: bool) -> None:
    """Session and group leader, environment, cwd, stray descriptors, controlling terminal, exit code."""
    script = (
        "read -r pid _ _ _ group session _ </proc/$$/stat;"
        '[ "$pid" = "$group" ] && [ "$pid" = "$session" ] && echo leads;'
        "ls /proc/$$/fd; pwd; echo $MARK; (: </dev/tty) 2>/dev/null && echo terminal; exit 7"
    )
    with trio.fail_after(20):
        async with client_by_fork() as client:
            env = {**PATH, "MARK": "here"}
            async with client.open_process(["sh", "-c", script], cwd="/tmp", env=env, tty=tty) as process:
                output = b"".join([e.data async for e in process.events() if isinstance(e, Output)])
                assert await process.wait() == 7
    words = output.split()
    assert words == [b"leads", b"0", b"1", b"2", b"/tmp", b"here", *([b"terminal"] if tty else [])]


async def test_a_program_that_is_missing_is_an_error() -> None:
    """With pipes, the errno of the exec comes back as it does from posix_spawn."""
    async with client_by_fork() as client:
        with pytest.raises(ServerRefused, match="os error 2"):
            await client.start(["/nowhere/to/be/found"], cwd="/tmp", env=PATH)
