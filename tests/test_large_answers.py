"""Answers of any size: made in threads, one at a time, sent without a copy, and in nobody's way."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from daemons import running, start_daemon
from mounts import dead_mount
from procfs import listening_pid, resident_kib, status_field, until
from tsupervise._outbox import MAX_REPLY_BYTES, Outbox
from wire import connect

MIB = 1 << 20


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had so far, in bytes."""
    return int(status_field(pid, "VmHWM").removesuffix("kB")) * 1024


@pytest.mark.case(308)
async def test_of_large_answers_there_is_one_at_a_time(tmp_path: Path, long_profile: bool) -> None:
    """A client asks for six files at once and does not read: the memory is that of one of the answers. All are
    right in the end, small ones and other requests do not wait for their making, and the memory is given back."""
    size = (160 if long_profile else 24) * MIB
    answer_bytes = size * 4 // 3
    large = os.urandom(size)
    (tmp_path / "large").write_bytes(large)
    (tmp_path / "small").write_bytes(b"hello")
    digest = hashlib.sha256(large).digest()
    with running(start_daemon()) as daemon:
        pid = listening_pid(daemon)
        async with connect(daemon.url) as peer, connect(daemon.url) as other:
            before = peak_bytes(pid)
            ids = [await peer.send("fs/readFile", {"path": (tmp_path / "large").as_uri()}) for _ in range(6)]
            answer = await other.request("fs/readFile", {"path": (tmp_path / "small").as_uri()})
            assert answer.ok() == {"dataBase64": "aGVsbG8="}
            assert await other.run("p", "echo", "hello") == (0, b"hello\n")
            for request_id in ids:
                answer = await peer.answer_to(request_id)
                data = base64.b64decode(answer.ok()["dataBase64"])
                assert hashlib.sha256(data).digest() == digest
                peer.arrivals.clear()
                del peer.answers[request_id], answer, data
            used = peak_bytes(pid) - before
            print(f"peak {used / MIB:.0f} MiB for answers of {answer_bytes / MIB:.0f} MiB")
            assert used < 1.3 * answer_bytes + 16 * MIB
            await until(lambda: resident_kib(pid) * 1024 < before + answer_bytes // 2)


@pytest.mark.case(308)
async def test_a_large_folder_is_listed_beside_small_answers(tmp_path: Path) -> None:
    """Its answer is made like that of a large file, and is the same as a small one's in form."""
    for number in range(3_000):
        os.close(os.open(tmp_path / f"{number:04}", os.O_CREAT | os.O_WRONLY))
    with running(start_daemon()) as daemon:
        async with connect(daemon.url) as peer:
            listing = await peer.send("fs/readDirectory", {"path": tmp_path.as_uri()})
            (await peer.request("environment/status", {})).ok()
            entries: list[dict[str, Any]] = (await peer.answer_to(listing)).ok()["entries"]
            assert sorted(entry["fileName"] for entry in entries) == [f"{n:04}" for n in range(3_000)]
            assert entries[0] == {**entries[0], "isDirectory": False, "isFile": True}
            # With an id of text, too: its envelope is put around the result by hand.
            params = {"path": tmp_path.as_uri()}
            request = {"id": '\u00e4"', "method": "fs/readDirectory", "params": params}
            await peer.send_raw(json.dumps(request))
            assert len((await peer.answer_to('\u00e4"')).ok()["entries"]) == 3_000


@pytest.mark.case(308)
async def test_a_discovery_that_hangs_holds_up_no_large_answer(tmp_path: Path) -> None:
    """Its root is on a mount whose server is gone."""
    mount = tmp_path / "mount"
    mount.mkdir()
    (tmp_path / "large").write_bytes(bytes(MIB))
    with dead_mount(mount), running(start_daemon()) as daemon:
        async with connect(daemon.url) as peer:
            root = {"id": "r", "path": (mount / "x").as_uri()}
            await peer.send("capabilityRoots/discoverV1", {"roots": [root]})
            answer = await peer.request("fs/readFile", {"path": (tmp_path / "large").as_uri()})
            assert base64.b64decode(answer.ok()["dataBase64"]) == bytes(MIB)


async def test_the_turn_of_a_huge_reply_comes_when_the_last_one_is_sent(nursery: trio.Nursery) -> None:
    """Not when it is only taken to be sent; other replies have room then already."""
    outbox = Outbox(lambda _: True)
    turns: list[str] = []

    async def take_turn() -> None:
        await outbox.wait_for_huge_turn()
        turns.append("mine")

    outbox.reply(bytes(MAX_REPLY_BYTES + 1))
    nursery.start_soon(take_turn)
    await trio.testing.wait_all_tasks_blocked()
    assert not outbox.has_reply_room
    await outbox.wait()
    assert len(outbox.take()) == 1
    assert outbox.has_reply_room
    await trio.testing.wait_all_tasks_blocked()
    assert turns == []
    nursery.start_soon(outbox.wait)  # it is sent
    await trio.testing.wait_all_tasks_blocked()
    assert turns == ["mine"]
    outbox.nudge()
