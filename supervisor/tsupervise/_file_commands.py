"""The commands that show files of the daemon's machine: `cat` and `ls`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

import trio

from tsupervise_protocol.file_messages import GetMetadataResult

from ._at_daemon import FAILURES, report
from ._relay import OutputFailed, say
from ._table import Column, printable, table_text
from ._terminal import stdout_is_terminal
from .client import Client
from .errors import TsuperviseError

STATS_AT_A_TIME = 16
"""Questions for the entries of a directory that are under way at a time."""

_COLUMNS = (
    Column("KIND", styles={"directory": "blue", "link": "cyan"}),
    Column("SIZE", is_number=True),
    Column("MODIFIED"),
    Column("NAME"),
)


async def print_files(client: Client, paths: Sequence[str]) -> int:
    """Print what is in files, one after the other. One that fails is no reason to stop."""
    code = 0
    for path in paths:
        try:
            async with client.open_file(path) as file:
                async for block in file:
                    await say(block)
        except OutputFailed:
            raise
        except FAILURES as error:
            code = await report(error)
    return code


async def list_files(client: Client, path: str, *, long: bool) -> int:
    """Print the names in a directory, or that of a file; with `long` what they are as well."""
    found = await client.files.stat(path)
    if found.is_directory:
        names = [entry.name for entry in await client.files.list_directory(path)]
        paths = [os.path.join(path, name) for name in names]
    else:
        names = paths = [path]
    if long:
        rows = await _rows(client, names, paths)
        await say(table_text(_COLUMNS, rows, on_terminal=stdout_is_terminal()).encode())
    elif stdout_is_terminal():
        await say("".join(f"{printable(name)}\n" for name in names).encode())
    else:
        # Byte for byte: a program may want to open it.
        await say(b"".join(os.fsencode(name) + b"\n" for name in names))
    return 0


async def _rows(client: Client, names: Sequence[str], paths: Sequence[str]) -> list[tuple[str, ...]]:
    found: dict[str, GetMetadataResult] = {}
    room = trio.CapacityLimiter(STATS_AT_A_TIME)

    async def look(path: str) -> None:
        async with room:
            # It may have gone meanwhile, or its name cannot be said exactly. A lost connection is told below.
            with suppress(TsuperviseError):
                found[path] = await client.files.stat(path)

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(look, path)
    client.raise_if_lost()
    return [_row(name, found.get(path)) for name, path in zip(names, paths, strict=True)]


def _row(name: str, found: GetMetadataResult | None) -> tuple[str, ...]:
    if found is None:
        return ("?", "-", "-", name)
    kind = "directory" if found.is_directory else "file" if found.is_file else "other"
    modified = datetime.fromtimestamp(found.modified_at_ms / 1000).strftime("%Y-%m-%d %H:%M")
    return ("link" if found.is_symlink else kind, str(found.size), modified, name)
