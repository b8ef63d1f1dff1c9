"""A program of its own that supervises trees inside itself: `python tree_owner.py ENDING KIND COMMANDS`.

ENDING says how its processes come to their end: `left`, `cancelled`, `rolled-back`; KIND is `cgroup` or `tag`;
COMMANDS is a JSON list of argument lists. It prints the kind of containment that it has, waits for a line when all
trees have grown, prints a line when they should be gone, and stays until its standard input ends.
"""

from __future__ import annotations

import json
import sys

import trio

import tsupervise
from tsupervise import _supervisor
from tsupervise._background import open_background
from tsupervise._channel import memory_channels
from tsupervise._connection import Connection
from tsupervise._containment import Enclosure
from tsupervise._spawn import Child, SpawnRequest, spawn
from tsupervise.client import Client, open_client


async def wait_for_line() -> None:
    await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def own_block(client: Client, command: list[str], task_status: trio.TaskStatus[None]) -> None:
    async with client.open_process(command) as process:
        async for event in process.events():
            if isinstance(event, tsupervise.Output):
                task_status.started()
                break
        if "e" not in command[-1]:
            await trio.sleep_forever()


async def leave(commands: list[list[str]], *, cancel: bool) -> None:
    """A block with one process in it for each command, which is left when the line comes."""
    async with tsupervise.open_supervisor() as client, trio.open_nursery() as nursery:
        assert client.environment is not None
        print(client.environment.containment, flush=True)
        if cancel:
            for command in commands:

                async def run(
                    command: list[str] = command,
                    *,
                    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
                ) -> None:
                    await own_block(client, command, task_status)

                await nursery.start(run)
            await wait_for_line()
            nursery.cancel_scope.cancel()
        else:
            for number, command in enumerate(commands):
                await client.start(command, process_id=f"p{number}")
            await wait_for_line()


async def roll_back(commands: list[list[str]]) -> None:
    """Starts that are given up when their child is there already, and grown."""

    async def late_spawn(request: SpawnRequest, enclosure: Enclosure) -> Child:
        child = spawn(request, enclosure)
        with trio.CancelScope(shield=True):
            await release.wait()
        return child

    release = trio.Event()
    async with (
        _supervisor.open_supervisor_core(spawner=late_spawn, outlast_cancel=True) as core,
        open_background(outlast_cancel=True) as tasks,
    ):
        print(core.containment.kind, flush=True)
        ours, theirs = memory_channels()
        tasks.start_soon(Connection(core, theirs).run)
        async with open_client(ours) as client, trio.open_nursery() as nursery:
            for command in commands:
                nursery.start_soon(client.start, command)
            await wait_for_line()
            nursery.cancel_scope.cancel()
            release.set()


async def main(ending: str, kind: str, commands: list[list[str]]) -> None:
    if kind == "tag":
        _supervisor.open_subtree = lambda: None
    if ending == "rolled-back":
        await roll_back(commands)
    else:
        await leave(commands, cancel=ending == "cancelled")
    print("ended", flush=True)
    await wait_for_line()


trio.run(main, sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
