"""`http/request` on the wire: real servers on loopback, the same tests for this daemon and for the reference."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from daemons import Daemon, running, start_daemon
from http_calls import body_of, call, deltas, params, send, streamed, until_done, values
from upstreams import Handler, Received, answering, proxy, redirect, response, upstream
from wire import PATIENCE_S, Peer, connect


@contextmanager
def daemon_with(target: str, **environment: str) -> Generator[Daemon]:
    """A server of its own, with variables in its environment and no proxies but those."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with running(start_daemon(target, env={**inherited, **environment})) as daemon:
        yield daemon


def hanging(entered: trio.Event | None = None, gone: trio.Event | None = None, first: bytes = b"") -> Handler:
    """Sends `first` and then nothing, until the client goes."""

    async def handle(received: Received, stream: trio.abc.Stream) -> None:
        await stream.send_all(first)
        if entered is not None:
            entered.set()
        try:
            assert not await stream.receive_some()
        finally:  # a reset counts as well: what was sent last may not have been read
            if gone is not None:
                gone.set()

    return handle


@pytest.mark.case(263)
async def test_a_body_goes_out_with_its_length_and_the_response_comes_back(daemon: Daemon) -> None:
    """All bytes of both, whatever they are."""
    body = bytes(range(256)) * 40

    async def echo(received: Received, stream: trio.abc.Stream) -> None:
        await stream.send_all(response(received.body))

    async with upstream(echo) as server, connect(daemon.url) as peer:
        result = (await call(peer, server.url("/a?b=c"), "POST", body=body)).ok()
    [received] = server.received
    assert (received.method, received.target) == ("POST", "/a?b=c")
    assert received.all("content-length") == [str(len(body))]
    assert received.body == body
    assert (result["status"], body_of(result)) == (200, body)


@pytest.mark.case(263)
async def test_nothing_is_added_to_a_request_but_accept_and_host(daemon: Daemon) -> None:
    """No name of a program, no encodings; and what the caller gives is not doubled."""
    async with upstream(answering(b"" + response())) as server, connect(daemon.url) as peer:
        (await call(peer, server.url())).ok()
        (await call(peer, server.url(), headers=[("Accept", "a/b"), ("HOST", "me")])).ok()
        (await call(peer, server.url(), "GET", body=b"x")).ok()
    host = f"127.0.0.1:{server.port}"
    assert sorted(server.received[0].fields) == [("accept", "*/*"), ("host", host)]
    assert sorted(server.received[1].fields) == [("accept", "a/b"), ("host", "me")]
    assert sorted(server.received[2].fields)[1] == ("content-length", "1")


@pytest.mark.case(264)
async def test_headers_of_a_response_are_all_there(daemon: Daemon) -> None:
    """In lower case, doubles kept, and without those whose value is no plain text; bodies are not unpacked."""
    fields = [
        ("X-One", "1"),
        ("SET-COOKIE", "a=b"),
        ("Set-Cookie", "c=d"),
        ("X-Bad", "\xe4"),
        ("X-Tab", "a\tb"),
    ]
    data = response(b"\x1f\x8b", *fields, ("Content-Encoding", "gzip"), status=404)
    data = b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + data
    async with upstream(answering(data)) as server, connect(daemon.url) as peer:
        result = (await call(peer, server.url())).ok()
    assert result["status"] == 404
    assert values(result, "set-cookie") == ["a=b", "c=d"]
    assert (values(result, "x-tab"), values(result, "x-bad")) == (["a\tb"], [])
    assert (values(result, "content-encoding"), body_of(result)) == (["gzip"], b"\x1f\x8b")
    assert values(result, "link") == []


@pytest.mark.case(320)
@pytest.mark.ours_only("the reference puts fields of one name together")
async def test_headers_keep_their_order_both_ways(daemon: Daemon) -> None:
    """Fields of one name stay where they stand among the others."""
    names = ["X-One", "X-Two", "X-One", "X-Three", "X-Two"]
    fields = [(name, str(number)) for number, name in enumerate(names)]
    async with upstream(answering(response(b"", *fields))) as server, connect(daemon.url) as peer:
        result = (await call(peer, server.url(), headers=fields)).ok()
    expected = [(name.lower(), value) for name, value in fields]
    assert [field for field in server.received[0].fields if field[0].startswith("x-")] == expected
    got = [(header["name"], header["value"]) for header in result["headers"]]
    assert [field for field in got if field[0].startswith("x-")] == expected


@pytest.mark.case(265)
async def test_ten_redirects_are_followed_and_eleven_are_not(daemon: Daemon) -> None:
    """The eleventh is an error and not an answer."""
    routes = {f"/{number}": redirect(f"/{number - 1}") for number in range(1, 12)}
    async with upstream(answering(routes)) as server, connect(daemon.url) as peer:
        assert body_of((await call(peer, server.url("/10"))).ok()) == b"ok"
        answer = await call(peer, server.url("/11"))
    assert answer.code == -32603
    assert "too many redirects" in answer.message


@pytest.mark.case(266)
@pytest.mark.parametrize(
    ("status", "method", "expected"),
    [
        *((301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET"), (303, "PUT", "GET")),
        *((307, "POST", "POST"), (308, "POST", "POST"), (302, "PUT", "PUT"), (303, "HEAD", "HEAD")),
    ],
)
async def test_the_method_after_a_redirect(daemon: Daemon, status: int, method: str, expected: str) -> None:
    """What becomes a GET loses its body and what describes it; the rest is repeated as it was."""
    async with upstream(answering({"/a": redirect("b", status)})) as server, connect(daemon.url) as peer:
        headers = [("Content-Type", "text/x"), ("X-K", "k")]
        (await call(peer, server.url("/a"), method, body=b"hello", headers=headers)).ok()
    second = server.received[1]
    repeated = expected == method and status != 303
    assert (second.method, second.target) == (expected, "/b")
    assert second.body == (b"hello" if repeated else b"")
    assert second.all("content-type") == (["text/x"] if repeated else [])
    assert second.all("content-length") == (["5"] if repeated else [])
    assert second.all("x-k") == ["k"]
    assert second.all("referer") == [server.url("/a")]


@pytest.mark.case(267)
async def test_credentials_do_not_go_to_another_origin(daemon: Daemon) -> None:
    """Only where the request itself went; the referer shrinks to the origin."""
    names = ("Authorization", "Cookie", "Proxy-Authorization", "X-K")
    async with (
        upstream(answering({})) as other,
        upstream(answering({"/a?secret": redirect(other.url("/b"))})) as server,
        connect(daemon.url) as peer,
    ):
        headers = [(name, f"v-{name}") for name in names]
        (await call(peer, server.url("/a?secret"), headers=headers)).ok()
    assert all(server.received[0].all(name.lower()) for name in names)
    [received] = other.received
    assert [received.all(name.lower()) for name in names] == [[], [], [], ["v-X-K"]]
    assert received.all("referer") == [server.url("/")]
    assert received.all("host") == [f"127.0.0.1:{other.port}"]


@pytest.mark.case(267)
async def test_another_name_of_the_same_machine_is_another_origin(daemon: Daemon) -> None:
    """Names are compared, not addresses."""

    async def turn(received: Received, stream: trio.abc.Stream) -> None:
        if received.target == "/a":
            await stream.send_all(redirect(server.url("/b", host="localhost")))
        else:
            await stream.send_all(response())

    async with upstream(turn) as server, connect(daemon.url) as peer:
        (await call(peer, server.url("/a"), headers=[("authorization", "x"), ("x-k", "k")])).ok()
    assert server.received[1].all("authorization") == []
    assert server.received[1].all("x-k") == ["k"]


@pytest.mark.case(268)
async def test_a_redirect_that_is_not_to_be_followed_is_the_answer(daemon: Daemon) -> None:
    """With its body; so is one that leads nowhere. One to another scheme is an error."""
    routes = {
        "/a": redirect("/b", body=b"moved"),
        "/nowhere": response(b"?", status=302),
        "/bad": redirect("http://[", body=b"bad"),
        "/300": redirect("/b", status=300, body=b"choose"),
        "/ftp": redirect("ftp://127.0.0.1/"),
    }
    async with upstream(answering(routes)) as server, connect(daemon.url) as peer:
        stopped = (await call(peer, server.url("/a"), redirectPolicy="stop")).ok()
        assert (stopped["status"], body_of(stopped), values(stopped, "location")) == (302, b"moved", ["/b"])
        for path, body in (("/nowhere", b"?"), ("/bad", b"bad"), ("/300", b"choose")):
            assert body_of((await call(peer, server.url(path))).ok()) == body
        answer = await call(peer, server.url("/ftp"))
    assert answer.code == -32603
    assert answer.message.endswith("unsupported URL scheme: ftp")


@pytest.mark.case(269)
async def test_the_time_for_a_request_is_limited(daemon: Daemon) -> None:
    """It fails when it is over, and at once if there is none; the connection to the server is closed."""
    gone = trio.Event()
    async with upstream(hanging(gone=gone)) as server, connect(daemon.url) as peer:
        answer = await call(peer, server.url(), timeoutMs=300)
        assert (answer.code, answer.message.split(":")[0]) == (-32603, "http/request failed")
        with trio.fail_after(PATIENCE_S):
            await gone.wait()
        assert (await call(peer, server.url(), timeoutMs=0)).code == -32603


@pytest.mark.case(269)
async def test_the_time_for_a_body_is_limited(daemon: Daemon) -> None:
    """The same time: it does not begin anew with the body."""
    async with upstream(hanging(first=response(b"abc", length=9))) as server, connect(daemon.url) as peer:
        answer = await call(peer, server.url(), timeoutMs=300)
    assert (answer.code, answer.message.split(":")[0]) == (
        -32603,
        "failed to read http/request response body",
    )


@pytest.mark.case(270)
async def test_a_streamed_body_that_stalls_ends_with_an_error(daemon: Daemon) -> None:
    """What has come before is there, and the end says that it is not all."""
    async with upstream(hanging(first=response(b"abc", length=9))) as server, connect(daemon.url) as peer:
        result = (await call(peer, server.url(), streamResponse=True, timeoutMs=700)).ok()
        assert (result["status"], result["bodyBase64"]) == (200, "")
        last = await until_done(peer)
    assert (streamed(peer), last["seq"]) == (b"abc", 2)
    assert last["error"]


@pytest.mark.case(271)
async def test_a_streamed_body_comes_in_its_parts(daemon: Daemon) -> None:
    """After the answer, each as soon as it is there, numbered from 1; the last one is empty."""
    send_part, receive_part = trio.open_memory_channel[bytes](0)

    async def in_parts(received: Received, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        async for part in receive_part:
            await stream.send_all(b"%x\r\n%b\r\n" % (len(part), part))

    async with upstream(in_parts) as server, connect(daemon.url) as peer:
        (await call(peer, server.url(), streamResponse=True)).ok()
        assert deltas(peer) == []
        for number, part in enumerate((b"one", b"two", b"three"), 1):
            await send_part.send(part)
            await peer.until(lambda number=number: len(deltas(peer)) == number)
        await send_part.send(b"")
        assert (await until_done(peer)) == {
            "requestId": "r",
            "seq": 4,
            "deltaBase64": "",
            "done": True,
            "error": None,
        }
    assert streamed(peer) == b"onetwothree"


@pytest.mark.case(271)
async def test_an_empty_body_is_its_end_alone(daemon: Daemon) -> None:
    """Numbered 1."""
    async with upstream(answering(response(status=204))) as server, connect(daemon.url) as peer:
        (await call(peer, server.url(), streamResponse=True)).ok()
        assert (await until_done(peer))["seq"] == 1


@pytest.mark.case(272)
async def test_a_large_body_is_streamed_whole(daemon: Daemon) -> None:
    """No part is larger than clients take, no number is missing, no byte either."""
    body = os.urandom(5 << 20)
    async with upstream(answering(response(body))) as server, connect(daemon.url) as peer:
        (await call(peer, server.url(), streamResponse=True)).ok()
        assert (await until_done(peer))["error"] is None
    assert streamed(peer) == body
    assert all(len(part["deltaBase64"]) <= (1 << 20) * 4 // 3 + 4 for part in deltas(peer))


@pytest.mark.case(273)
async def test_a_name_is_one_stream_at_a_time(daemon: Daemon) -> None:
    """Free again after its end, and after a request that came to nothing; requests without a stream share names."""
    entered = trio.Event()
    hang = hanging(entered, first=response(b"abc", length=9))

    async def handle(received: Received, stream: trio.abc.Stream) -> None:
        await (hang if received.target == "/hang" else answering({}))(received, stream)

    async with upstream(handle) as server, connect(daemon.url) as peer:
        first = await call(peer, server.url("/hang"), requestId="f1", streamResponse=True, timeoutMs=1500)
        assert first.ok()["status"] == 200
        second = await call(peer, server.url(), requestId="f1", streamResponse=True)
        assert second.code == -32602
        assert body_of((await call(peer, server.url(), requestId="f1")).ok()) == b"ok"
        await until_done(peer, "f1")
        (await call(peer, server.url(), requestId="f1", streamResponse=True)).ok()
        refused = await call(peer, "http://127.0.0.1:1/", requestId="f2", streamResponse=True)
        assert refused.code == -32603
        (await call(peer, server.url(), requestId="f2", streamResponse=True)).ok()
        await until_done(peer, "f2")


@pytest.mark.case(274)
@pytest.mark.parametrize("streaming", [True, False])
async def test_the_end_of_a_connection_ends_its_requests(daemon: Daemon, streaming: bool) -> None:
    """The server that they were sent to sees its connection closed."""
    entered, gone = trio.Event(), trio.Event()
    async with upstream(hanging(entered, gone, response(b"abc", length=9))) as server:
        async with connect(daemon.url) as peer:
            await send(peer, server.url(), streamResponse=streaming)
            await entered.wait()
            if streaming:
                await peer.until(lambda: streamed(peer) == b"abc")
        with trio.fail_after(PATIENCE_S):
            await gone.wait()


@pytest.mark.case(275, 276)
async def test_a_header_is_filled_from_the_environment(target: str) -> None:
    """Behind the value that is given; without the variable nothing is sent."""
    with daemon_with(target, V="tok") as daemon:
        async with upstream(answering({})) as server, connect(daemon.url) as peer:
            header = {"name": "authorization", "value": "Bearer ", "valueEnvVar": "V"}
            (await call(peer, server.url(), headers=[header])).ok()
            assert server.received[0].all("authorization") == ["Bearer tok"]
            missing = await call(peer, server.url(), headers=[{**header, "valueEnvVar": "NO_SUCH_VARIABLE"}])
            assert (missing.code, server.connections) == (-32602, 1)
            assert "NO_SUCH_VARIABLE" in missing.message
            (await call(peer, server.url(), headers=[{**header, "valueEnvVar": None}])).ok()
            info = (await peer.request("environment/info")).ok()
    assert info["capabilities"]["httpHeaderEnvVars"] is True


@pytest.mark.case(321)
@pytest.mark.ours_only("the reference sends it on to wherever a redirect leads")
async def test_a_header_from_the_environment_stays_with_its_origin() -> None:
    """Whatever its name is, a redirect elsewhere goes without it."""
    with daemon_with("ours", V="tok") as daemon:
        async with upstream(answering({})) as other:
            routes = {"/a": redirect(other.url()), "/b": redirect("/c")}
            async with upstream(answering(routes)) as server, connect(daemon.url) as peer:
                headers = [{"name": "x-key", "value": "", "valueEnvVar": "V"}, ("x-k", "k")]
                (await call(peer, server.url("/a"), headers=headers)).ok()
                (await call(peer, server.url("/b"), headers=headers)).ok()
    assert (other.received[0].all("x-key"), other.received[0].all("x-k")) == ([], ["k"])
    assert [received.all("x-key") for received in server.received] == [["tok"]] * 3


@pytest.mark.case(277)
@pytest.mark.parametrize(
    ("url", "fields"),
    [
        *(("ftp://x", {}), ("/rel", {}), ("http://", {}), ("http://x:99999/", {}), ("http://a b/", {})),
        *(
            ("", {"method": "G T"}),
            ("", {"method": ""}),
            ("", {"headers": [{"name": "bad name", "value": "x"}]}),
        ),
        *(
            ("", {"headers": [{"name": "x", "value": "a\nb"}]}),
            ("", {"headers": [{"name": "", "value": "x"}]}),
        ),
        *(("", {"bodyBase64": "aGk"}), ("", {"redirectPolicy": "maybe"}), ("", {"timeoutMs": -1})),
        *(("", {"streamResponse": None}), ("", {"headers": None})),
    ],
)
async def test_a_request_that_is_none_is_refused(daemon: Daemon, url: str, fields: dict[str, Any]) -> None:
    """Before anything is sent."""
    async with upstream(answering({})) as server, connect(daemon.url) as peer:
        request = {**params(url or server.url()), **fields}
        assert (await peer.request("http/request", request)).code == -32602
        assert server.connections == 0


@pytest.mark.case(277)
async def test_failures_of_the_network_are_errors(daemon: Daemon) -> None:
    """A port that is closed, a response that is none, no response, and a body that is cut short."""
    routes = {"/bad": b"HTTQ 5\r\n\r\n", "/none": b"", "/short": response(b"abc", length=9)}
    async with upstream(answering(routes)) as server, connect(daemon.url) as peer:
        for url in ("http://127.0.0.1:1/", server.url("/bad"), server.url("/none")):
            answer = await call(peer, url)
            assert (answer.code, answer.message.split(":")[0]) == (-32603, "http/request failed")
        answer = await call(peer, server.url("/short"))
        assert answer.code == -32603
        assert answer.message.startswith("failed to read http/request response body: ")
        (await call(peer, server.url("/short"), streamResponse=True)).ok()
        assert (await until_done(peer))["error"]


@pytest.mark.case(278, 279)
@pytest.mark.ours_only("the reference handles one request of a connection at a time")
async def test_requests_do_not_wait_for_one_another(daemon: Daemon) -> None:
    """Two that hang are with their server at the same time, and everything else is answered meanwhile."""
    go = trio.Event()
    arrived = trio.Semaphore(0)

    async def wait(received: Received, stream: trio.abc.Stream) -> None:
        arrived.release()
        await go.wait()
        await stream.send_all(response(b"ok"))

    async with upstream(wait) as server, connect(daemon.url) as peer:
        ids = [await send(peer, server.url()) for _ in range(2)]
        with trio.fail_after(PATIENCE_S):
            await arrived.acquire()
            await arrived.acquire()
        assert (await peer.request("environment/status")).ok() == {"status": "ready"}
        assert await peer.run("p", "echo", "hi") == (0, b"hi\n")
        assert not any(request_id in peer.answers for request_id in ids)
        go.set()
        for request_id in ids:
            assert body_of((await peer.answer_to(request_id)).ok()) == b"ok"


# --- proxies, authorities, cookies -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def secure_upstream(authority: trustme.CA, handler: Handler, *names: str) -> AsyncGenerator[Any]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
    async with upstream(handler, context) as server:
        yield server


def bundle(authority: trustme.CA, folder: Path) -> str:
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@pytest.mark.case(322)
async def test_requests_go_through_the_proxies_of_the_environment(
    target: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """In absolute form for http, by CONNECT for https, and not at all where NO_PROXY says so."""
    async with (
        secure_upstream(authority, answering({}), "far.example") as far,
        proxy({"far.example:443": far.port}) as between,
        upstream(answering({})) as near,
    ):
        environment = {
            "HTTP_PROXY": f"http://us%20er:pass@127.0.0.1:{between.port}",
            "https_proxy": f"http://127.0.0.1:{between.port}",
            "NO_PROXY": "127.0.0.1,.near.example",
            "CODEX_CA_CERTIFICATE": bundle(authority, tmp_path),
        }
        with daemon_with(target, **environment) as daemon:
            async with connect(daemon.url) as peer:
                plain = (await call(peer, "http://far.example/a?b")).ok()
                secure = (await call(peer, "https://far.example/s")).ok()
                direct = (await call(peer, near.url("/d"))).ok()
                refused = await call(peer, "https://elsewhere.example/")
    assert body_of(plain) == b"http://far.example/a?b"
    assert between.received[0].all("proxy-authorization") == ["Basic dXMgZXI6cGFzcw=="]
    assert between.received[0].all("host") == ["far.example"]
    assert (body_of(secure), far.received[0].target) == (b"ok", "/s")
    assert far.received[0].all("proxy-authorization") == []
    assert (body_of(direct), near.connections) == (b"ok", 1)
    assert refused.code == -32603
    assert [received.method for received in between.received] == ["GET", "CONNECT", "CONNECT"]


@pytest.mark.case(323)
async def test_an_address_is_connected_to_and_believed_without_its_brackets(
    target: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """IPv6, with TLS and without."""
    with daemon_with(target, CODEX_CA_CERTIFICATE=bundle(authority, tmp_path)) as daemon:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("::1").configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
        async with (
            upstream(answering({}), host="::1") as plain,
            upstream(answering({}), context, host="::1") as secure,
            connect(daemon.url) as peer,
        ):
            for url in (plain.url(host="[::1]"), secure.url(host="[::1]", scheme="https")):
                assert body_of((await call(peer, url)).ok()) == b"ok"
    assert plain.received[0].all("host") == [f"[::1]:{plain.port}"]


@pytest.mark.case(323)
async def test_authorities_of_the_environment_are_believed(
    target: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """Theirs and no others'; a bundle that cannot be read fails the request."""
    bundle_path = bundle(authority, tmp_path)
    async with secure_upstream(authority, answering({}), "127.0.0.1") as server:
        url = server.url(scheme="https")
        for environment, works in (
            ({"SSL_CERT_FILE": bundle_path}, True),
            ({"CODEX_CA_CERTIFICATE": "", "SSL_CERT_FILE": bundle_path}, True),
            ({}, False),
            ({"CODEX_CA_CERTIFICATE": str(tmp_path / "missing")}, False),
        ):
            with daemon_with(target, **environment) as daemon:
                async with connect(daemon.url) as peer:
                    answer = await call(peer, url)
                    assert (answer.error is None) == works
                    assert works or answer.code == -32603


def cookie_setter(*lines: str) -> bytes:
    return response(b"", *(("Set-Cookie", line) for line in lines))


@pytest.mark.case(280)
async def test_only_affinity_cookies_of_listed_hosts_are_kept(
    target: str, authority: trustme.CA, tmp_path: Path
) -> None:
    """For all connections, sent to such hosts alone and by https; the client still sees every Set-Cookie."""
    names = ("chatgpt.com", "a.chatgpt.com", "evilchatgpt.com", "foo.chat.openai.com")
    routes = {
        "/set": cookie_setter("__cflb=one; Path=/", "session=secret; Path=/", "cf_chl_x=two; Path=/deep"),
        "/domain": cookie_setter("_cfuvid=all; Domain=chatgpt.com; Path=/"),
        "/again": cookie_setter("__cflb=three; Path=/"),
        "/gone": cookie_setter("__cflb=; Path=/; Max-Age=0"),
    }
    async with (
        secure_upstream(authority, answering(routes), *names) as server,
        proxy({f"{name}:443": server.port for name in names}) as between,
    ):
        environment = {
            "ALL_PROXY": f"http://127.0.0.1:{between.port}",
            "CODEX_CA_CERTIFICATE": bundle(authority, tmp_path),
        }
        with daemon_with(target, **environment) as daemon:

            async def cookies(peer: Peer, url: str, **fields: Any) -> list[str]:
                seen = between.received if url.startswith("http:") else server.received
                (await call(peer, url, **fields)).ok()
                return sorted("; ".join(seen[-1].all("cookie")).split("; "))

            async with connect(daemon.url) as peer:
                result = (await call(peer, "https://chatgpt.com/set")).ok()
                assert len(values(result, "set-cookie")) == 3
            async with connect(daemon.url) as peer:
                assert await cookies(peer, "https://chatgpt.com/x") == ["__cflb=one"]
                assert await cookies(peer, "https://chatgpt.com/deep/x") == ["__cflb=one", "cf_chl_x=two"]
                assert await cookies(peer, "http://chatgpt.com/x") == [""]
                for name in names[1:]:
                    assert await cookies(peer, f"https://{name}/x") == [""]
                assert await cookies(peer, "https://chatgpt.com/x", headers=[("cookie", "mine=1")]) == [
                    "mine=1"
                ]
                (await call(peer, "https://evilchatgpt.com/set")).ok()
                assert await cookies(peer, "https://evilchatgpt.com/x") == [""]
                (await call(peer, "https://a.chatgpt.com/domain")).ok()
                (await call(peer, "https://chatgpt.com/again")).ok()
                assert await cookies(peer, "https://chatgpt.com/x") == ["__cflb=three", "_cfuvid=all"]
                (await call(peer, "https://chatgpt.com/gone")).ok()
                assert await cookies(peer, "https://chatgpt.com/x") == ["_cfuvid=all"]
