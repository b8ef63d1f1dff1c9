"""Who may connect: users of this machine, sockets in the file system, TLS, names of hosts, and how many."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from click.testing import CliRunner

from daemons import START_S, Daemon, command_of, running, start_daemon
from in_process import open_house
from knock import bearer, knock, reply_on, request
from tsupervise._channel import CloseCode
from tsupervise._doorkeeper import Doorkeeper
from tsupervise._listen_address import TcpAddress
from tsupervise._listener import MAX_AT_DOOR, ListenOptions, open_listener
from tsupervise._settings import Settings
from tsupervise._unix_listener import unix_listener
from tsupervise.cli import main
from wire import PATIENCE_S, connect, open_stream

pytestmark = pytest.mark.ours_only("the reference lets in whoever can connect")

NOT_ALLOWED = -32012
LIMIT_REACHED = -32013
STRANGER = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

KNOCK = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
import encodings.idna, trio
from knock import reply_on, request
from wire import open_stream
os.setgroups([])
os.setuid(int(sys.argv[2]))  # and not before: the interpreter may be out of the other user's reach
async def main():
    got = []
    for url, path, fields in json.loads(sys.argv[3]):
        try:
            async with await open_stream(url) as stream:
                reply = await reply_on(stream, request(*map(tuple, fields), path=path))
                got.append([reply.status, reply.text])
        except OSError as error:
            got.append([0, type(error.__cause__ or error).__name__])
    print(json.dumps(got))
trio.run(main)
"""


NOTHING: list[tuple[str, str]] = []


async def knock_as(uid: int, *visits: tuple[str, str, list[tuple[str, str]]]) -> list[tuple[int, str]]:
    """What another user of the machine is told, for each URL, path and list of more header fields."""
    path = json.dumps([str(Path(__file__).parent), *sys.path])
    done = await trio.run_process(
        [sys.executable, "-c", KNOCK, path, str(uid), json.dumps(visits)], capture_stdout=True
    )
    return [(status, text) for status, text in json.loads(done.stdout)]


# --- users of the machine ------------------------------------------------------------------------


@pytest.mark.case(145)
@root_only
@pytest.mark.parametrize("listen", ["ws://127.0.0.1:0", "ws://[::1]:0"])
async def test_another_user_of_the_machine_is_refused(listen: str) -> None:
    """403 and a text that names the ways in; the same user may ask whether the daemon is ready."""
    with running(start_daemon(listen=listen)) as daemon:
        [upgrade, readiness] = await knock_as(STRANGER, (daemon.url, "/", []), (daemon.url, "/readyz", []))
        assert upgrade[0] == 403
        for word in (f"user {STRANGER}", "--allow-other-users", "--ws-auth"):
            assert word in upgrade[1]
        assert readiness == (200, "")
        assert await knock_as(0, (daemon.url, "/", [])) == [(101, "")]


@pytest.mark.case(145)
@root_only
async def test_root_may_connect_to_the_daemon_of_another_user() -> None:
    """Root could do all of it anyway; a third user may not."""
    # The capability lets it read this Python, wherever that lies.
    user = [f"--reuid={STRANGER - 1}", f"--regid={STRANGER - 1}", "--clear-groups"]
    may_read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", *user, *may_read, *command_of("ours")]
    with running(start_daemon(command=command)) as daemon:
        assert (await knock(daemon)).status == 101
        assert await knock_as(STRANGER - 1, (daemon.url, "/", [])) == [(101, "")]
        assert (await knock_as(STRANGER, (daemon.url, "/", [])))[0][0] == 403


@pytest.mark.case(145)
@root_only
async def test_other_users_come_in_where_that_is_wanted(tmp_path: Path) -> None:
    """With --allow-other-users without a token; with --ws-auth with the token, and nobody without."""
    with running(start_daemon("ours", "--allow-other-users")) as daemon:
        assert await knock_as(STRANGER, (daemon.url, "/", [])) == [(101, "")]
    secret = tmp_path / "token"
    secret.write_text("sesame")
    auth = ("--ws-auth", "capability-token", "--ws-token-file", str(secret))
    with running(start_daemon("ours", *auth)) as daemon:
        with_it, without = (daemon.url, "/", [bearer("sesame")]), (daemon.url, "/", NOTHING)
        assert [status for status, _ in await knock_as(STRANGER, with_it, without)] == [101, 401]
        assert (await knock(daemon)).status == 401


ASK = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
import encodings.idna, trio
from wire import connect
os.setgroups([])
os.setuid(int(sys.argv[2]))
async def main():
    async with connect(sys.argv[3], headers=[("Authorization", "Bearer sesame")]) as peer:
        answer = await peer.request("operator/list")
        print(json.dumps([answer.error and answer.error["code"], (await peer.run("p", "true"))[0]]))
trio.run(main)
"""


@pytest.mark.case(154)
@root_only
async def test_a_token_opens_the_door_and_makes_nobody_an_operator(tmp_path: Path) -> None:
    """Who has one runs processes; those of others stay with the daemon's own user and root."""
    (tmp_path / "token").write_text("sesame")
    auth = ("--ws-auth", "capability-token", "--ws-token-file", str(tmp_path / "token"))
    path = json.dumps([str(Path(__file__).parent), *sys.path])
    with running(start_daemon("ours", *auth)) as daemon:
        for uid, code in ((STRANGER, NOT_ALLOWED), (0, None)):
            done = await trio.run_process(
                [sys.executable, "-c", ASK, path, str(uid), daemon.url], capture_stdout=True
            )
            assert json.loads(done.stdout) == [code, 0]


@pytest.mark.case(145)
def test_a_peer_whose_user_cannot_be_told_is_refused() -> None:
    """Where the kernel does not tell, nobody is let in on a guess."""
    refusal = Doorkeeper().refusal(None, lambda: None)
    assert refusal is not None
    assert refusal.status == 403
    assert "--allow-other-users" in refusal.text
    assert Doorkeeper(any_user=True).refusal(None, lambda: None) is None


# --- a socket in the file system -----------------------------------------------------------------


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user may look into; pytest's own are private."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.case(146)
async def test_a_unix_socket_speaks_the_same_protocol(tmp_path: Path) -> None:
    """The printed line is its URL; its file is for one user only, and is gone afterwards."""
    path = tmp_path / "door.sock"
    with running(start_daemon(listen=f"unix://{path}")) as daemon:
        assert daemon.url == f"unix://{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["door.sock"]
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
            # 3 MB, so that a full socket is met as well.
            code, output = await peer.run("q", "head", "-c", "3000000", "/dev/zero")
            assert (code, len(output)) == (0, 3_000_000)
            status = (await peer.request("operator/status")).ok()
            assert status["listen"] == daemon.url
        assert daemon.stop() == 0
    assert not path.exists()


@pytest.mark.case(146)
@root_only
async def test_another_user_cannot_open_the_socket(reachable: Path) -> None:
    """The file keeps strangers out; where its rights do not, the kernel's word about the peer does."""
    path = reachable / "door.sock"
    with running(start_daemon(listen=f"unix://{path}")) as daemon:
        assert await knock_as(STRANGER, (daemon.url, "/", [])) == [(0, "PermissionError")]
        path.chmod(0o666)
        [(code, text)] = await knock_as(STRANGER, (daemon.url, "/", []))
        assert code == 403
        assert f"user {STRANGER}" in text
        assert await knock_as(0, (daemon.url, "/", [])) == [(101, "")]
        async with connect(daemon.url) as peer:
            assert (await peer.request("operator/list")).ok() == {"processes": []}
    with running(start_daemon("ours", "--allow-other-users", listen=f"unix://{path}")) as daemon:
        assert await knock_as(STRANGER, (daemon.url, "/", [])) == [(101, "")]


@pytest.mark.case(146)
async def test_the_socket_of_a_dead_daemon_is_replaced_and_of_a_live_one_is_not(tmp_path: Path) -> None:
    """SIGKILL leaves the file; the next daemon takes its place. A second daemon is refused, and harms nothing."""
    path = tmp_path / "door.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with running(start_daemon(listen=f"unix://{path}")) as daemon:
        second = run_to_its_end("--listen", f"unix://{path}")
        assert (second.returncode, second.stdout) == (1, "")
        assert "listens there already" in second.stderr
        async with connect(daemon.url) as peer:
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
        path.unlink()
        path.write_text("somebody else's by now")
    assert path.read_text() == "somebody else's by now"


@pytest.mark.case(146)
def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A file or folder at the path ends the start, as does a folder that is not there."""
    (tmp_path / "file").write_text("precious")
    for name, words in (("file", "no socket"), (".", "no socket"), ("no/folder", "os error 2")):
        ended = run_to_its_end("--listen", f"unix://{tmp_path}/{name}")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert words in ended.stderr
    assert (tmp_path / "file").read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.case(146)
def test_the_socket_has_its_rights_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment can others open it, whatever the umask; and at no moment is it there and deaf."""
    seen: list[tuple[str, int]] = []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("socket.bind", "os.link", "os.chmod", "os.remove"):
            with contextlib.suppress(OSError):
                seen.extend((entry.name, entry.stat().st_mode & 0o777) for entry in tmp_path.iterdir())

    watching = True
    sys.addaudithook(look)
    before = os.umask(0)
    try:
        with unix_listener(str(tmp_path / "s"), 0o600, 5):
            seen.extend((entry.name, entry.stat().st_mode & 0o777) for entry in tmp_path.iterdir())
    finally:
        os.umask(before)
        watching = False
    assert {mode for _, mode in seen} == {0o600}
    assert {name for name, _ in seen} >= {"s"}


@pytest.mark.case(146)
def test_two_that_start_at_once_in_a_folder_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if both have the same number, as in two containers that share it: each gets its own socket."""
    link, others = os.link, contextlib.ExitStack()

    def start_another(*paths: str, **options: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        others.enter_context(unix_listener(str(tmp_path / "b"), 0o600, 5))
        link(*paths, **options)

    monkeypatch.setattr(os, "link", start_another)
    with others, unix_listener(str(tmp_path / "a"), 0o600, 5) as first:
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "a"))
            first.settimeout(PATIENCE_S)
            first.accept()[0].close()


@pytest.mark.case(146)
@pytest.mark.parametrize(
    "url", ["unix://relative", "unix://", "unix:///", "unix:///" + "x" * 107, "unix:/tmp/x"]
)
def test_a_path_that_cannot_be_one_is_refused(url: str) -> None:
    """Relative, empty, a folder, or longer than a socket's address may be."""
    ended = refused_start("--listen", url)
    assert "unix:///PATH" in ended or "107 bytes" in ended


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a server's `cert` and `key`, the `ca` that a client trusts, and another `key2`."""
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca")
    ours = ca.issue_cert("127.0.0.1", "localhost")
    ours.cert_chain_pems[0].write_to_path(folder / "cert")
    ours.private_key_pem.write_to_path(folder / "key")
    ca.issue_cert("other").private_key_pem.write_to_path(folder / "key2")
    return folder


@pytest.fixture(scope="module")
def encrypted(certificates: Path) -> Iterator[Daemon]:
    tls = ("--tls-cert", str(certificates / "cert"), "--tls-key", str(certificates / "key"))
    with running(start_daemon("ours", *tls, listen="wss://127.0.0.1:0")) as daemon:
        yield daemon


@pytest.mark.case(147)
async def test_tls_carries_the_same_protocol(encrypted: Daemon, certificates: Path) -> None:
    """A client that trusts the certificate has its processes, floods included, and a polite end."""
    assert encrypted.url.startswith("wss://127.0.0.1:")
    tls = ssl.create_default_context(cafile=str(certificates / "ca"))
    async with connect(encrypted.url, tls=tls) as peer:
        assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
        code, output = await peer.run("q", "head", "-c", "3000000", "/dev/zero")
        assert (code, len(output)) == (0, 3_000_000)
        (await peer.start("r", "cat", pipeStdin=True)).ok()
        for number in range(50):
            await peer.write("r", b"x" * 20_000, str(number))
        await peer.until(lambda: len(peer.output("r")) == 1_000_000)
        assert (await peer.request("operator/list")).ok()["processes"], "its user is told by the socket below"
        await peer.ws.aclose(1000, "bye")
        closed = peer.ws.closed
        assert closed is not None
        assert (closed.code, closed.reason) == (1000, "bye")


@pytest.mark.case(147)
@pytest.mark.parametrize("surplus", [0, 50_000])
async def test_a_refusal_arrives_through_tls_whole(
    encrypted: Daemon, certificates: Path, surplus: int
) -> None:
    """Its text, and then a proper end of the stream, unless more was sent than anybody reads."""
    tls = ssl.create_default_context(cafile=str(certificates / "ca"))
    with trio.fail_after(PATIENCE_S):
        async with await open_stream(encrypted.url, tls) as stream:
            reply = await reply_on(stream, request(host="x.example") + b"x" * surplus)
            assert reply.status == 421
            assert "localhost" in reply.text
            if not surplus:
                assert await stream.receive_some() == b""


@pytest.mark.case(147)
async def test_what_speaks_no_tls_is_sent_away(encrypted: Daemon, certificates: Path) -> None:
    """A plain client ends without an answer; a client that does not trust us leaves; the next one is served."""
    with trio.fail_after(PATIENCE_S):
        async with await trio.open_tcp_stream("127.0.0.1", int(encrypted.url.rpartition(":")[2])) as plain:
            await plain.send_all(request())
            received = b""
            with contextlib.suppress(trio.BrokenResourceError):
                while more := await plain.receive_some():
                    received += more
            assert b"HTTP" not in received
        with pytest.raises(trio.BrokenResourceError):
            async with await open_stream(encrypted.url, ssl.create_default_context()) as stream:
                await stream.send_all(request())
    async with connect(
        encrypted.url, tls=ssl.create_default_context(cafile=str(certificates / "ca"))
    ) as peer:
        assert await peer.run("p", "echo", "hello") == (0, b"hello\n")


@pytest.mark.case(147)
def test_certificates_that_cannot_be_used_end_the_start(certificates: Path) -> None:
    """Missing, of the wrong key, no certificate, or without use: each says which option is meant."""
    cert, key, other = (str(certificates / name) for name in ("cert", "key", "key2"))
    wss = ("--listen", "wss://127.0.0.1:0")
    assert "--tls-cert and --tls-key" in refused_start(*wss)
    assert "--tls-cert and --tls-key" in refused_start(*wss, "--tls-cert", cert)
    assert "wss://" in refused_start("--tls-cert", cert, "--tls-key", key)
    assert "wss://" in refused_start("--listen", "stdio", "--tls-key", key)
    assert other in refused_start(*wss, "--tls-cert", cert, "--tls-key", other)
    assert "No such file" in refused_start(*wss, "--tls-cert", cert, "--tls-key", "/no/such")
    assert key in refused_start(*wss, "--tls-cert", key, "--tls-key", key)


# --- beyond this machine -------------------------------------------------------------------------


@pytest.mark.case(148)
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "192.0.2.1"])
def test_a_listener_beyond_loopback_needs_a_token_and_tls(host: str, certificates: Path) -> None:
    """What is missing is named; either of the two alone is not enough."""
    tls = ("--tls-cert", str(certificates / "cert"), "--tls-key", str(certificates / "key"))
    auth = ("--ws-auth", "capability-token", "--ws-token-sha256", "a" * 64)
    neither = refused_start("--listen", f"ws://{host}:0")
    assert "--ws-auth" in neither
    assert "--tls-cert" in neither
    assert "--insecure" in neither
    only_auth = refused_start("--listen", f"ws://{host}:0", *auth)
    assert "--tls-cert" in only_auth
    assert "--ws-auth" not in only_auth
    only_tls = refused_start("--listen", f"wss://{host}:0", *tls)
    assert "--ws-auth" in only_tls
    assert "--tls-cert" not in only_tls


@pytest.mark.case(148)
async def test_with_both_or_by_its_own_name_it_listens(certificates: Path) -> None:
    """With a token and TLS, or with --insecure, for whoever can reach it."""
    tls = ("--tls-cert", str(certificates / "cert"), "--tls-key", str(certificates / "key"))
    token = "0b3c8a2d7c1e4f5a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c"
    auth = ("--ws-auth", "capability-token", "--ws-token-sha256", token)
    with running(start_daemon("ours", *tls, *auth, listen="wss://0.0.0.0:0")) as daemon:
        assert daemon.url.startswith("wss://0.0.0.0:")
    with running(start_daemon("ours", "--insecure", listen="ws://0.0.0.0:0")) as daemon:
        local = daemon.url.replace("0.0.0.0", "127.0.0.1")
        async with connect(local) as peer:
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
        if os.geteuid() == 0:
            assert await knock_as(STRANGER, (local, "/", [])) == [(101, "")]
        assert (await knock(daemon, host="any.name")).status == 101


# --- names ---------------------------------------------------------------------------------------

NAMES: dict[str, tuple[str | None, int]] = {
    "address and port": ("127.0.0.1:4500", 101),
    "address": ("127.0.0.1", 101),
    "another address": ("192.0.2.1:80", 101),
    "IPv6": ("[::1]:4500", 101),
    "localhost": ("localhost:4500", 101),
    "LocalHost": ("LocalHost", 101),
    "empty": ("", 101),
    "a name that may mean us": ("rebound.example:4500", 421),
    "a name with an address in it": ("127.0.0.1.example", 421),
    "a name below localhost": ("evil.localhost", 421),
    "two names": ("localhost, evil.example", 421),
    "IPv6 without brackets": ("::1", 421),
    "an address in short": ("127.1", 421),
    "an address as a number": ("2130706433", 421),
    "no header": (None, 400),
}


@pytest.mark.case(149)
@pytest.mark.parametrize(("host", "status"), NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("path", ["/", "/readyz"])
async def test_a_page_that_has_made_its_name_mean_us_is_refused(
    daemon: Daemon, host: str | None, status: int, path: str
) -> None:
    """On loopback the Host header must be an address or localhost, also where no token is needed."""
    reply = await knock(daemon, host=host, path=path)
    assert reply.status == (200 if (status, path) == (101, "/readyz") else status)
    if status == 421:
        assert "localhost" in reply.text
    assert (await knock(daemon, ("Origin", "http://x"), host=host or "x", path=path)).status == 403


# --- how many ------------------------------------------------------------------------------------


@pytest.mark.case(145)
async def test_counts_are_for_those_who_may_come_in(tmp_path: Path) -> None:
    """Without the token everybody learns that the daemon is up, and nobody how busy it is."""
    secret = tmp_path / "secret"
    secret.write_text("secret-token")
    secret.chmod(0o600)
    with running(
        start_daemon("ours", "--ws-auth", "capability-token", "--ws-token-file", str(secret))
    ) as daemon:
        for path in ("/livez", "/readyz"):
            assert (await knock(daemon, path=path)).status == 200
        assert (await knock(daemon, path="/metrics")).status == 401
        assert (await knock(daemon, bearer("other"), path="/metrics")).status == 401
        reply = await knock(daemon, bearer("secret-token"), path="/metrics")
        assert reply.status == 200
        assert 'tsupervise_http_responses_total{status="401"} 2' in reply.text


@pytest.mark.case(150)
async def test_one_connection_too_many_is_told_so() -> None:
    """503 and a text; readiness and counts are still answered; when one has left there is room again."""
    with running(start_daemon("ours", "--max-connections", "3")) as daemon:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(connect(daemon.url))
            async with connect(daemon.url):
                reply = await knock(daemon)
                assert reply.status == 503
                assert "--max-connections" in reply.text
                assert "retry-after: 1" in reply.head
                for path in ("/readyz", "/metrics"):
                    assert (await knock(daemon, path=path)).status == 200
            with trio.fail_after(PATIENCE_S):
                while (await knock(daemon)).status == 503:
                    pass  # until the server has noticed that the third has left


@contextlib.asynccontextmanager
async def connect_when_there_is_room(daemon: Daemon):
    with trio.fail_after(PATIENCE_S):
        while (await knock(daemon)).status == 503:
            pass
    async with connect(daemon.url) as peer:
        yield peer


@pytest.mark.case(150)
async def test_one_session_too_many_is_told_so() -> None:
    """A new one is refused by a code of its own; an old one can be resumed, and makes room when it ends."""
    async with open_house(Settings(max_sessions=2)) as house:
        first, _ = await house.connect(), await house.connect()
        third = house.knock()
        refused = await third.handshake()
        assert (refused.code, "--max-sessions" in refused.message) == (LIMIT_REACHED, True)
        session_id = house.supervisor.sessions[0].session_id
        await first.drop()
        assert (await third.handshake()).code == LIMIT_REACHED
        (await third.handshake(session_id)).ok()
        (await third.request("session/end")).ok()
        (await house.knock().handshake()).ok()


@pytest.mark.case(150)
async def test_one_process_too_many_is_told_so() -> None:
    """Of one session, and of all; what has ended does not count, and neither does a start that failed."""
    async with open_house(Settings(max_session_processes=2, max_processes=3)) as house:
        one, other = await house.connect(), await house.connect()
        for name in "ab":
            (await one.start(name)).ok()
        refused = await one.start("c")
        assert (refused.code, "--max-session-processes" in refused.message) == (LIMIT_REACHED, True)
        assert (await one.start("a")).code == -32600
        (await other.start("a")).ok()
        refused = await other.start("b")
        assert (refused.code, "--max-processes" in refused.message) == (LIMIT_REACHED, True)
        house.children[0].end(0)
        await one.until_closed("a")
        (await other.start("b")).ok()
        assert (await one.start("c")).code == LIMIT_REACHED
        await other.request("session/end")
        (await one.start("c")).ok()


@pytest.mark.case(150)
async def test_a_start_that_fails_takes_no_place(tmp_path: Path) -> None:
    """A hundred of them leave as much room as before."""
    with running(start_daemon("ours", "--max-processes", "1")) as daemon:
        async with connect(daemon.url) as peer:
            for number in range(100):
                assert (await peer.start(f"p{number}", "/no/such/program")).code == -32603
            assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
            assert await peer.run("q", "echo", "hello") == (0, b"hello\n")


@pytest.mark.case(150)
async def test_requests_that_wait_are_counted_as_told() -> None:
    """The operator's own numbers hold, by count and by bytes."""
    async with open_house(Settings(max_open_requests=2)) as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        parked = [await peer.send("process/read", {"processId": "p", "waitMs": 60_000}) for _ in range(2)]
        refused = await peer.request("process/read", {"processId": "p", "waitMs": 60_000})
        assert (refused.code, refused.message.startswith("2 requests")) == (-32011, True)
        house.children[0].end(0)
        for number in parked:
            (await peer.answer_to(number)).ok()
    async with open_house(Settings(max_open_bytes=100)) as house:
        peer = await house.connect()
        (await peer.start("p")).ok()
        await peer.send("process/read", {"processId": "p", "waitMs": 60_000})
        assert (await peer.read("p", waitMs=60_000)).code == -32011


@pytest.mark.case(150)
async def test_who_never_says_initialize_is_sent_away(autojump_clock: trio.testing.MockClock) -> None:
    """With 1008 and the reason, when the time is over; a failed attempt does not count, a good one does."""
    async with open_house() as house:
        silent, failed, good = (house.knock(handshake_s=10.0) for _ in range(3))
        assert (await failed.handshake("unknown")).error
        (await good.handshake()).ok()
        await trio.sleep(9.9)
        assert not any(peer.gone.is_set() for peer in (silent, failed, good))
        await trio.sleep(0.2)
        for peer in (silent, failed):
            assert peer.gone.is_set()
            farewell = peer.connection._farewell  # pyright: ignore[reportPrivateUsage]
            assert farewell == (CloseCode.POLICY_VIOLATION, "no initialize within 10 s")
        await trio.sleep(1000)
        (await good.request("environment/status")).ok()


@pytest.mark.case(150)
async def test_who_takes_too_long_at_the_door_is_sent_away() -> None:
    """A half request ends without an answer, a WebSocket without `initialize` with 1008, by the same option."""
    with running(start_daemon("ours", "--handshake-timeout", "0.2")) as daemon, trio.fail_after(PATIENCE_S):
        async with connect(daemon.url) as quick:
            async with await trio.open_tcp_stream(*daemon.address) as stream:
                await stream.send_all(request()[:40])
                assert await stream.receive_some() == b""
            async with connect(daemon.url, handshake=False) as silent:
                await silent.until_ended()
                closed = silent.ws.closed
                assert closed is not None
                assert (closed.code, closed.reason) == (1008, "no initialize within 0.2 s")
            assert await quick.run("p", "echo", "hello") == (0, b"hello\n")


@pytest.mark.case(150)
async def test_a_crowd_that_sends_no_request_does_not_block_the_door() -> None:
    """The one that has waited longest makes room for the next, and who sends a request at once gets in."""
    with running(start_daemon("ours", "--handshake-timeout", "600")) as daemon:
        async with AsyncExitStack() as stack:
            crowd = [
                await stack.enter_async_context(await trio.open_tcp_stream(*daemon.address))
                for _ in range(MAX_AT_DOOR + 20)
            ]
            async with connect(daemon.url) as peer:
                assert await peer.run("p", "echo", "hello") == (0, b"hello\n")
            with trio.fail_after(PATIENCE_S):
                for stream in crowd[:20]:
                    assert await stream.receive_some() == b""
                assert (await reply_on(crowd[-1], request())).status == 101


@pytest.mark.case(150)
async def test_a_crowd_that_was_refused_and_stays_does_not_take_all_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until it has left, a peer has a place at the door like one that has not asked yet."""
    monkeypatch.setattr("tsupervise._listener.MAX_AT_DOOR", 4)
    monkeypatch.setattr("tsupervise._websocket_channel.LINGER_S", 600)
    options = ListenOptions(TcpAddress(IPv4Address("127.0.0.1"), 0), handshake_s=600)
    with open_listener(options) as listener, trio.fail_after(PATIENCE_S):
        async with open_house() as house, AsyncExitStack() as stack:
            house.nursery.start_soon(listener.serve, house.supervisor)
            crowd: list[trio.abc.Stream] = []
            for _ in range(7):
                crowd.append(await stack.enter_async_context(await open_stream(listener.url)))
                assert (await reply_on(crowd[-1], request(path="/nothing"))).status == 404
            for stream in crowd[:3]:
                with pytest.raises(trio.BrokenResourceError):
                    await send_for_ever(stream)
            for stream in crowd[3:]:
                await stream.send_all(b"x")
            async with connect(listener.url) as peer:
                (await peer.request("environment/status")).ok()
            house.nursery.cancel_scope.cancel()


async def send_for_ever(stream: trio.abc.SendStream) -> None:
    while True:
        await stream.send_all(b"x")


def run_to_its_end(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command_of("ours"), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


def refused_start(*options: str) -> str:
    """The text with which a start ends that must not succeed; in this process, for it is much quicker."""

    def serve_forever(options: object) -> int:
        raise AssertionError("it would have listened")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsupervise.server.serve_forever", serve_forever)
        done = CliRunner().invoke(main, ["run", *options])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    return done.stderr
