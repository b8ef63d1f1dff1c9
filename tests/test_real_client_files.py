"""The real client and the files, the configuration and the HTTP of the place where a server runs.

Driven as in `test_real_client`: the client is the reference binary, told what to do by a scripted model.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemons import REFERENCE, Daemon
from mcp_http_server import SESSION, mcp_http_server
from scripted_model import Call, Turn
from test_real_client import execute, needs_client, run_client

LINE_BYTES = 64

LARGE_BYTES = 10 << 20
"""Of a file that is changed: what the client writes goes into one frame, which may have 16 MiB of base64."""

HUGE_BYTES = 20 << 20
"""Of a file that is read. The reference server sends it as one frame, which its own client does not take."""


def lines_of(size: int) -> list[str]:
    """The lines, all different, of a text of about so many bytes."""
    return [f"line {number}".ljust(LINE_BYTES - 1) for number in range(size // LINE_BYTES)]


def patch(*lines: str) -> Call:
    """A patch, which the client applies itself, with the file methods of the server."""
    text = "\n".join(("*** Begin Patch", *lines, "*** End Patch"))
    return execute(f"apply_patch <<'EOF'\n{text}\nEOF")


@pytest.mark.case(360)
@needs_client
async def test_the_real_client_finds_instructions_and_changes_files(daemon: Daemon, tmp_path: Path) -> None:
    """It reads AGENTS.md of its folder, and its patches create, change and delete files; large ones, too."""
    assert REFERENCE is not None
    (tmp_path / "AGENTS.md").write_text("Always speak of MARMALADE.\n")
    (tmp_path / "changed").write_text("one\ntwo\n")
    (tmp_path / "deleted").write_text("nobody needs this\n")
    lines = lines_of(LARGE_BYTES)
    large = tmp_path / "large"
    large.write_text("\n".join(lines) + "\n")
    (tmp_path / "huge").write_text("\n".join(lines_of(HUGE_BYTES)) + "\n")
    small_patch = patch(
        *("*** Add File: folder/created", "+new"),
        *("*** Update File: changed", "@@", " one", "-two", "+three"),
        "*** Delete File: deleted",
    )
    middle = len(lines) // 2
    large_patch = patch("*** Update File: large", "@@", f"-{lines[middle]}", "+changed in the middle")
    no_such_line = patch("*** Update File: huge", "@@", "-no such line", "+two")
    missing = patch("*** Update File: nowhere", "@@", "-one", "+two")
    turns: list[Turn] = [[small_patch], [large_patch], [missing]]
    if daemon.is_ours:
        turns.append([no_such_line])
    model = await run_client(REFERENCE, tmp_path, daemon.url, turns)
    assert "Always speak of MARMALADE." in model.told
    [[small_answer], [large_answer], [missing_answer], *huge_answers] = model.outputs
    assert re.findall(r"^[AMD] .+", small_answer, re.MULTILINE) == [
        "A folder/created",
        "M changed",
        "D deleted",
    ]
    assert "M large" in large_answer
    assert "nowhere" in missing_answer
    assert "No such file" in missing_answer
    # Who says so has read it all.
    assert all("Failed to find expected lines" in answer for [answer] in huge_answers), huge_answers
    assert (tmp_path / "folder" / "created").read_text() == "new\n"
    assert (tmp_path / "changed").read_text() == "one\nthree\n"
    assert not (tmp_path / "deleted").exists()
    lines[middle] = "changed in the middle"
    assert large.read_text() == "\n".join(lines) + "\n"


@pytest.mark.case(361)
@needs_client
async def test_the_real_client_calls_a_tool_over_the_http_of_the_server(
    daemon: Daemon, tmp_path: Path
) -> None:
    """An MCP server that is reached through the executor answers a call, and asks back by its event stream."""
    assert REFERENCE is not None
    async with mcp_http_server() as mcp:
        config = f"""
[mcp_servers.greeter]
url = "{mcp.url}"
http_headers = {{ "X-Greeting" = "hello" }}
environment_id = "remote"
"""
        turns: list[Turn] = [[Call("greet", {"name": "Ada"}, "mcp__greeter")]]
        model = await run_client(REFERENCE, tmp_path, daemon.url, turns, more_config=config)
    assert "hello Ada" in model.outputs[0][0], mcp.requests
    assert mcp.pinged.is_set()
    # It says goodbye with a DELETE as well, if its end leaves it the time.
    assert {"POST initialize", "POST tools/call", "GET"} <= set(mcp.requests)
    assert all(headers["x-greeting"] == "hello" for headers in mcp.headers)
    assert [headers.get("mcp-session-id") for headers in mcp.headers[1:]] == [SESSION] * (
        len(mcp.headers) - 1
    )
