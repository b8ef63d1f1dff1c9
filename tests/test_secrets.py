"""What must stay between a client and its process is in no log, metric, trace or error, whatever goes wrong."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from daemons import running, start_daemon
from knock import bearer, knock
from otlp import collecting
from tsupervise import connect as client_of
from wire import Answer, Peer, connect, start_params

pytestmark = [pytest.mark.case(152), pytest.mark.ours_only("about our own log and texts")]

CANARY = "canary"
"""In everything that is secret, and nowhere else; each place has its own one."""


def canary(place: str) -> str:
    return f"{CANARY}-{place}"


TOKEN = canary("token")


def bad_requests() -> list[tuple[str, dict[str, Any]]]:
    """Requests that are refused, each with a secret in the member that is wrong or beside it."""
    good = start_params("x", "true", canary("argument"), env={"A": canary("value")})
    chunk = base64.b64encode(canary("input").encode()).decode()
    return [
        ("process/start", {**good, "argv": canary("argv")}),
        ("process/start", {**good, "argv": [canary("program"), 5]}),
        ("process/start", {**good, "env": canary("env")}),
        ("process/start", {**good, "env": {"A": [canary("value")]}}),
        ("process/start", {**good, "env": {"A": canary("value"), "B": 5}}),
        ("process/start", {**good, "env": {"A": canary("zero") + "\0"}}),
        ("process/start", {**good, "argv": ["true", canary("zero") + "\0"]}),
        ("process/start", {**good, "envPolicy": {"set": {"A": canary("set")}}}),
        ("process/start", {**good, "metadata": canary("metadata")}),
        ("process/start", {**good, "tty": canary("tty")}),
        ("process/start", {**good, "cwd": "file:///no/such/folder"}),
        ("process/start", {**good, "argv": ["/no/such/program", canary("argument")]}),
        ("process/start", {**good, "argv": ["true", "x" * (200 << 10) + canary("long")]}),
        ("process/start", {**good, "processId": "live"}),
        ("process/start", {**good, "sandbox": {"type": canary("sandbox")}}),
        ("process/start", {**good, "networkProxy": {"password": canary("proxy")}}),
        ("process/write", {"processId": "live", "chunk": canary("input"), "writeId": "1"}),
        ("process/write", {"processId": "live", "chunk": [canary("input")], "writeId": "2"}),
        ("process/write", {"processId": "live", "chunk": chunk + "\n", "writeId": "3"}),
        ("process/write", {"processId": "live", "chunk": chunk, "writeId": ""}),
        ("operator/write", {"uid": "none", "chunk": chunk, "writeId": "4"}),
    ]


MALFORMED = (
    b'{"id":1,"method":"process/write","params":{"chunk":"%s","chunk":"%s"}}',
    b'{"id":1,"method":"process/start","params":{"env":{"A":"%s"},"env":{"A":"%s"}}}',
    b'{"id":1,"method":"process/start","params":{"env":{"A":"%s"}},"trace":"%s"}',
    b'{"id":["%s"],"method":"%s"}',
    b'{"id":1,"method":5,"params":"%s","x":"%s"}',
    b'%s {"env":"%s"}',
    b'{"id":1,"params":"%s","method":"process/start"} %s',
    b'{"id":1,"params":"%s',
    b'{"id":1,"method":"process/start","params":{"argv":["%s\\udc80"],"env":{"A":"%s\\udc80"}}}',
)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_secrets_are_in_no_log_line_and_in_no_error(
    tmp_path: Path, log_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens, environments, arguments, input and output go through a daemon that tells all it can: in its log, the
    audit log, metrics and traces."""
    secret, log, audit = tmp_path / "secret", tmp_path / "log", tmp_path / "audit"
    secret.write_text(TOKEN)
    secret.chmod(0o640)
    options = (
        *("--ws-auth", "capability-token", "--ws-token-file", str(secret)),
        *("--log-level", "debug", "--log-format", log_format),
        *("--audit-log", str(audit), "--otel"),
    )
    texts: list[str] = []
    caplog.set_level(logging.DEBUG)
    with (
        collecting() as (collector, traces),
        running(start_daemon("ours", *options, env=exporting_to(collector), stderr=log)) as daemon,
    ):
        for header in (TOKEN, canary("wrong"), f"{canary('wrong')} twice", canary("wrong") + "\xff", ""):
            reply = await knock(daemon, bearer(header), path="/")
            texts.append(reply.head + reply.text)
        texts.append((await knock(daemon, bearer(TOKEN), ("Origin", "x"))).text)
        texts.append((await knock(daemon, bearer(TOKEN), host="x.example")).text)
        async with connect(daemon.url, headers=[bearer(TOKEN)]) as peer:
            await live(peer)
            for method, params in bad_requests():
                answer = await peer.request(method, params)
                assert answer.error is not None, f"{method} was to be refused: {params}"
                texts.append(answer.message)
            for malformed in MALFORMED:
                texts.append((await malformed_answer(peer, malformed)).message)
            (await peer.request("session/end")).ok()
            session, name = peer.session_id, peer.session_name
        texts += await client_errors(daemon.url)
        reply = await knock(daemon, bearer(TOKEN), path="/metrics")
        assert reply.status == 200
        texts.append(reply.text)
        assert await trio.to_thread.run_sync(daemon.stop) == 0
    assert "process/start" in str(traces)
    assert "process.ended" in audit.read_text()
    texts += [str(traces), audit.read_text(), log.read_text(), caplog.text]
    assert "session" in texts[-2], "the daemon has logged"
    assert "chmod 600" in texts[-2], "the file was open to others"
    assert session is not None
    assert f'"session":"{name}"' in audit.read_text()
    # Whoever knows a session's id may resume it.
    found = [text for text in texts if CANARY in text or session in text]
    assert found == []


def exporting_to(collector: str) -> dict[str, str]:
    return {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector}


async def live(peer: Peer) -> None:
    """A process that gets, holds and prints secrets, in all the usual ways, up to being killed."""
    script = "echo $A; cat; exit 3"
    env = {"A": canary("value")}
    (await peer.start("live", "sh", "-c", script, canary("argument"), env=env, pipeStdin=True)).ok()
    await peer.until_output("live", canary("value").encode())
    await peer.write("live", canary("input").encode(), canary("write-id"))
    await peer.until_output("live", canary("input").encode())
    (await peer.request("process/read", {"processId": "live"})).ok()
    (await peer.start("killed", "sleep", "60", metadata={"label": canary("label")})).ok()
    await peer.terminate("killed")
    await peer.until_closed("killed")


async def malformed_answer(peer: Peer, pattern: bytes) -> Answer:
    peer.answers.pop(-1, None)
    await peer.ws.send_message(pattern.replace(b"%s", CANARY.encode()).decode())
    await peer.until(lambda: -1 in peer.answers)
    return peer.answers[-1]


async def client_errors(url: str) -> list[str]:
    """What the Python client and the command say about what goes wrong."""
    texts: list[str] = []
    for token in (canary("wrong"), TOKEN):
        try:
            async with client_of(url, token=token) as client:
                await client.start(["/no/such", canary("argument")], env={"A": canary("value")})
        except Exception as error:
            texts.append(f"{error!r} {error}")
    done = await trio.run_process(
        [
            *(sys.executable, "-m", "tsupervise", "exec", "--url", url, "--env", f"A={canary('value')}"),
            "true",
        ],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 125
    return [*texts, done.stdout.decode()]
