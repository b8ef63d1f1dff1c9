"""How the Python client and the commands get in: tokens, certificates, sockets in the file system."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trustme

from daemons import Daemon, running, start_daemon
from fault_proxy import fault_proxy
from procfs import until
from tsupervise import ConnectFailed, connect
from tsupervise._way_in import Credentials
from wire import PATIENCE_S

pytestmark = [pytest.mark.case(151), pytest.mark.ours_only("about this client")]

TSUPERVISE = str(Path(sysconfig.get_path("scripts")) / "tsupervise")

TOKEN = "sesame-0451"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, a certificate, and whom to trust for it."""
    folder = tmp_path_factory.mktemp("way-in")
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "wrong").write_text("open-barley\n")
    (folder / "empty").write_text("\n")
    (folder / "two").write_text("two words\n")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca")
    ours = authority.issue_cert("127.0.0.1")
    ours.cert_chain_pems[0].write_to_path(folder / "cert")
    ours.private_key_pem.write_to_path(folder / "key")
    return folder


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Daemon]:
    """A daemon that asks for the token."""
    auth = ("--ws-auth", "capability-token", "--ws-token-file", str(folder / "token"))
    with running(start_daemon("ours", *auth)) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def encrypted(folder: Path) -> Iterator[Daemon]:
    """A daemon that speaks TLS and asks for the token, too."""
    options = (
        *("--ws-auth", "capability-token", "--ws-token-file", str(folder / "token")),
        *("--tls-cert", str(folder / "cert"), "--tls-key", str(folder / "key")),
    )
    with running(start_daemon("ours", *options, listen="wss://127.0.0.1:0")) as daemon:
        yield daemon


async def says_hello(client_url: str, **way_in: object) -> None:
    """A connection with these keywords is as good as any."""
    async with (
        connect(client_url, **way_in) as client,  # pyright: ignore
        client.open_process(["echo", "hello"]) as process,
    ):
        events = [event async for event in process.events()]
    assert getattr(events[0], "data", b"") == b"hello\n"


async def refusal(url: str, **way_in: object) -> str:
    with trio.fail_after(PATIENCE_S), pytest.raises(ConnectFailed) as refused:
        async with connect(url, **way_in):  # pyright: ignore
            pass
    return str(refused.value)


async def test_a_token_is_shown(guarded: Daemon, folder: Path) -> None:
    """As text or from a file; without it, and with a wrong one, the server's reason is told."""
    await says_hello(guarded.url, token=TOKEN)
    await says_hello(guarded.url, token_file=folder / "token")
    assert "missing websocket bearer token" in await refusal(guarded.url)
    for wrong in ({"token": "open-barley"}, {"token_file": str(folder / "wrong")}):
        text = await refusal(guarded.url, **wrong)
        assert "401: invalid websocket bearer token" in text
        assert "barley" not in text


async def test_a_file_without_a_token_is_told(guarded: Daemon, folder: Path) -> None:
    """A file that is not there, or empty, or has two words, and not what is in it."""
    for name, words in (("no-such", "No such file"), ("empty", "no token in"), ("two", "no token in")):
        text = await refusal(guarded.url, token_file=folder / name)
        assert words in text
        assert str(folder / name) in text
        assert "words" not in text


def test_a_token_that_no_header_can_carry_is_a_mistake() -> None:
    """It is not shown, neither in the error nor in the text of the credentials; nor are two sources taken."""
    for bad in ("", "two words", "line\r\nfeed: x", "caf\xe9"):
        with pytest.raises(ValueError, match="a token is printable ASCII") as error:
            Credentials(token=bad)
        assert not bad or bad not in str(error.value)
    with pytest.raises(ValueError, match="not both"):
        Credentials(token="a", token_file="b")
    assert "sesame" not in repr(Credentials(token=TOKEN))


async def test_a_renewed_token_is_read_at_the_next_attempt(
    guarded: Daemon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the file has a wrong one the client is refused and tries again; with the right one it is back."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with caplog.at_level(logging.INFO):
        async with fault_proxy(guarded.address) as proxy, connect(proxy.url, token_file=token) as client:
            session_id = client.session_id
            process = await client.start(["sleep", "60"])
            token.write_text("open-barley")
            proxy.cut(0.0)
            await until(lambda: "401" in caplog.text)
            token.write_text(TOKEN)
            with trio.fail_after(PATIENCE_S):
                assert await process.terminate()
            assert client.session_id == session_id
    assert TOKEN not in caplog.text
    assert "barley" not in caplog.text


async def test_a_token_does_not_go_where_others_can_read_it(guarded: Daemon, folder: Path) -> None:
    """Plainly to another machine only if that is allowed; to this one, and encrypted, always."""
    address = address_of_this_machine()
    received: list[bytes] = []

    async def listen(stream: trio.SocketStream) -> None:
        async with stream:
            received.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=address)
        nursery.start_soon(trio.serve_listeners, listen, [listener])
        url = f"ws://{address}:{listener.socket.getsockname()[1]}"
        text = await refusal(url, token=TOKEN)
        assert "wss://" in text
        assert TOKEN not in text
        await until(lambda: received == [b""])
        await refusal(url)
        assert b"GET / HTTP/1.1" in received[1]
        await refusal(url, token=TOKEN, insecure_token=True)
        assert f"Authorization: Bearer {TOKEN}".lower().encode() in received[2].lower()
        nursery.cancel_scope.cancel()


def address_of_this_machine() -> str:
    """One that is not on loopback, though nothing that is sent there leaves the machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return probe.getsockname()[0]


async def test_what_a_server_echoes_is_not_repeated() -> None:
    """A refusal that has the token in it is shown without."""

    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            request = bytes(await stream.receive_some())
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(request)}\r\nConnection: close\r\n\r\n"
            await stream.send_all(head.encode() + request)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        text = await refusal(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", token=TOKEN)
        nursery.cancel_scope.cancel()
    assert "Bearer ..." in text
    assert TOKEN not in text


async def test_a_certificate_is_believed_if_it_is_trusted(encrypted: Daemon, folder: Path) -> None:
    """With the authority that has signed it; without, the text says why not, and what to do."""
    trusting = ssl.create_default_context(cafile=str(folder / "ca"))
    await says_hello(encrypted.url, token=TOKEN, ssl_context=trusting)
    text = await refusal(encrypted.url, token=TOKEN)
    assert "certificate is not trusted" in text
    assert "--tls-ca" in text


async def test_speaking_tls_and_plainly_past_each_other_is_told(encrypted: Daemon, guarded: Daemon) -> None:
    """wss:// to a plain listener, and ws:// to an encrypted one."""
    assert "wss://" in await refusal(guarded.url.replace("ws://", "wss://"))
    assert "closed before it was answered" in await refusal(encrypted.url.replace("wss://", "ws://"))


async def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    """The client takes the URL that the daemon prints; a path to nothing is told."""
    with running(start_daemon(listen=f"unix://{tmp_path}/a?b#c")) as daemon:
        await says_hello(daemon.url)
        assert exec_hello({}, "--url", daemon.url) == (0, b"hello\n", b"")
    assert "No such file" in await refusal(daemon.url)


def exec_hello(env: dict[str, str], *options: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [TSUPERVISE, "exec", *options, "--", "echo", "hello"],
        env={"PATH": "/usr/bin:/bin", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_takes_options_or_variables(encrypted: Daemon, folder: Path) -> None:
    """--token-file and --tls-ca, TSUPERVISE_TOKEN_FILE and TSUPERVISE_TLS_CA."""
    token, authority = str(folder / "token"), str(folder / "ca")
    options = ("--url", encrypted.url, "--token-file", token, "--tls-ca", authority)
    assert exec_hello({}, *options) == (0, b"hello\n", b"")
    variables = {
        "TSUPERVISE_URL": encrypted.url,
        "TSUPERVISE_TOKEN_FILE": token,
        "TSUPERVISE_TLS_CA": authority,
    }
    assert exec_hello(variables) == (0, b"hello\n", b"")
    code, _, text = exec_hello({**variables, "TSUPERVISE_TOKEN_FILE": str(folder / "wrong")})
    assert (code, b"401" in text, b"barley" in text) == (125, True, False)
    code, _, text = exec_hello({**variables, "TSUPERVISE_TLS_CA": token})
    assert (code, b"--tls-ca" in text, TOKEN.encode() in text) == (1, True, False)


def test_every_command_that_asks_the_daemon_shows_the_token(guarded: Daemon, folder: Path) -> None:
    """Not only `exec`: each does its work with the token, and says what is missing without it."""

    def run(command: str, *arguments: str, token: bool = True) -> subprocess.CompletedProcess[str]:
        variables = {"TSUPERVISE_TOKEN_FILE": str(folder / "token")} if token else {}
        return subprocess.run(
            [TSUPERVISE, command, *arguments],
            env={"PATH": "/usr/bin:/bin", "TSUPERVISE_URL": guarded.url, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    started = run("exec", "--detach", "--", "sh", "-c", "echo hello; exec sleep 600")
    assert started.returncode == 0
    uid = started.stdout.split()[0]
    for arguments, output, code in (
        (("ps",), uid, 0),
        (("status",), "pid", 0),
        (("logs", uid), "hello\n", 0),
        (("kill", uid), "", 0),
        (("wait", uid), "", 143),
        (("attach", uid), "hello\n", 143),
        (("end", uid), "", 0),
    ):
        done = run(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert output in done.stdout, arguments
    refused = run("ps", token=False)
    assert refused.returncode == 125
    assert "missing websocket bearer token" in refused.stderr
