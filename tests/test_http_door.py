"""The request head before the upgrade, as a pure object. Requests are fed whole and one byte at a time."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from tsupervise._http_door import MAX_HEAD_BYTES, MAX_HEADER_FIELDS, Answer, HttpDoor, Page, Respond, Upgrade

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
"""The headers of a WebSocket request, with the key of the example in RFC 6455, 1.3."""

PAGES = {
    b"/readyz": Page(lambda: Answer(HTTPStatus.OK)),
    b"/metrics": Page(lambda: Answer(HTTPStatus.OK, "counts"), is_open=False),
}

ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"connection: upgrade\r\n"
    b"upgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def request(method: str, target: str, *fields: dict[str, str], version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost"]
    lines += [f"{name}: {value}" for field in fields for name, value in field.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def without(name: str) -> dict[str, str]:
    return {field: value for field, value in UPGRADE.items() if field != name}


def knock(head: bytes) -> Respond | Upgrade:
    """What the door says to `head`, which must be the same however the bytes arrive."""
    at_once = HttpDoor(PAGES).receive(head)
    assert at_once is not None, "the head must be complete"
    door, index = HttpDoor(PAGES), 0
    while (answer := door.receive(head[index : index + 1])) is None:
        index += 1
    assert answer == at_once
    return at_once


def refused(head: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the response to `head`, which must be a last one."""
    answer = knock(head)
    assert isinstance(answer, Respond)
    head, _, body = answer.data.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    version, status, phrase = line.split(" ", 2)
    assert version == "HTTP/1.1"
    assert phrase
    headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
    assert headers["connection"] == "close"
    return int(status), headers, body


class TestReadiness:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("fields", [{}, UPGRADE, {"Authorization": "Bearer x"}])
    @pytest.mark.parametrize("path", ["/readyz", "/readyz?verbose", "http://localhost:1/readyz"])
    def test_ready_is_an_empty_200(self, method: str, path: str, fields: dict[str, str]) -> None:
        """Whatever else a probe sends, the answer has no body, and an upgrade is not meant here."""
        status, headers, body = refused(request(method, path, fields))
        assert (status, headers["content-length"], body) == (200, "0", b"")

    def test_an_old_probe_is_answered(self) -> None:
        """HTTP/1.0 without a Host header will do."""
        assert refused(b"GET /readyz HTTP/1.0\r\n\r\n")[0] == 200

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
    def test_only_get_and_head_probe(self, method: str) -> None:
        """Other methods are told which ones there are."""
        status, headers, body = refused(request(method, "/readyz"))
        assert (status, headers["allow"], body) == (405, "GET,HEAD", b"")


class TestOrigin:
    @pytest.mark.parametrize("origin", ["x", "", "null", "http://localhost"])
    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/"), ("GET", "/readyz"), ("HEAD", "/readyz"), ("POST", "/"), ("GET", "/foo")],
    )
    @pytest.mark.parametrize("fields", [{}, UPGRADE])
    def test_a_web_page_gets_nothing(
        self, method: str, path: str, origin: str, fields: dict[str, str]
    ) -> None:
        """An Origin header, even an empty one, is refused before path and method are looked at."""
        status, _, body = refused(request(method, path, {"Origin": origin}, fields))
        assert (status, body) == (403, b"")


REFUSALS = {
    "unknown path": (request("GET", "/foo"), 404, ""),
    "unknown path with upgrade": (request("GET", "/foo", UPGRADE), 404, ""),
    "path with a slash too many": (request("GET", "/readyz/"), 404, ""),
    "two slashes": (request("GET", "//", UPGRADE), 404, ""),
    "escaped path": (request("GET", "/ready%7a"), 404, ""),
    "no path at all": (request("OPTIONS", "*"), 404, ""),
    "post": (request("POST", "/", UPGRADE), 405, "GET"),
    "no upgrade": (request("GET", "/"), 400, "Connection"),
    "no connection header": (request("GET", "/", without("Connection")), 400, "Connection"),
    "no upgrade header": (request("GET", "/", without("Upgrade")), 400, "Upgrade"),
    "another protocol": (request("GET", "/", {**UPGRADE, "Upgrade": "h2c"}), 400, "Upgrade"),
    "no version": (request("GET", "/", without("Sec-WebSocket-Version")), 400, "Version"),
    "version 12": (request("GET", "/", {**UPGRADE, "Sec-WebSocket-Version": "12"}), 400, "Version"),
    "no key": (request("GET", "/", without("Sec-WebSocket-Key")), 400, "Key"),
    "HTTP/1.0": (request("GET", "/", UPGRADE, version="1.0"), 400, "HTTP/1.1"),
    "HTTP/2": (request("GET", "/readyz", version="2.0"), 400, ""),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
    "HTTP/0.9": (b"GET /readyz\r\n\r\n", 400, ""),
    "no HTTP": (b"hello there\r\n\r\n", 400, ""),
    "a TLS hello": (bytes.fromhex("16030102000100"), 400, ""),
    "a JSON line": (b'{"id":1,"method":"initialize"}\r\n\r\n', 400, ""),
    "a broken field": (b"GET /readyz HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400, ""),
}


class TestRefusals:
    @pytest.mark.parametrize(("head", "status", "word"), REFUSALS.values(), ids=REFUSALS)
    def test_each_refusal_has_its_status(self, head: bytes, status: int, word: str) -> None:
        """Status by kind; where the client could do better, one line that names what is wrong."""
        got, headers, body = refused(head)
        assert got == status
        assert headers["content-length"] == str(len(body))
        assert word in body.decode()
        assert bool(word) == bool(body)
        assert "\n" not in body.decode()

    def test_a_refused_head_request_gets_no_body(self) -> None:
        """HEAD is told the length of a text that it is not sent."""
        status, headers, body = refused(request("HEAD", "/"))
        assert (status, body) == (405, b"")
        assert int(headers["content-length"]) > 0

    def test_a_body_is_not_waited_for(self) -> None:
        """The answer is due when the head is there, however much is announced to follow."""
        assert refused(request("POST", "/", {"Content-Length": "1000000"}))[0] == 405

    def test_a_head_of_the_limit_is_read(self) -> None:
        """The bound counts the whole head, its last empty line included."""
        room = MAX_HEAD_BYTES - len(request("GET", "/readyz", {"A": ""}))
        assert refused(request("GET", "/readyz", {"A": "x" * room}))[0] == 200
        assert refused(request("GET", "/readyz", {"A": "x" * (room + 1)}))[0] == 431

    def test_an_endless_head_is_cut_off(self) -> None:
        """A head that never ends is refused once it is over the bound."""
        door = HttpDoor(PAGES)
        parts = [b"GET /readyz HTTP/1.1\r\nA: ", *[b"x" * 1024] * (MAX_HEAD_BYTES // 1024)]
        answers = [door.receive(part) for part in parts]
        assert answers[:-1] == [None] * (len(parts) - 1)
        last = answers[-1]
        assert isinstance(last, Respond)
        assert last.data.startswith(b"HTTP/1.1 431 ")

    def test_too_many_fields_are_refused(self) -> None:
        """A hundred header fields are enough for anybody."""
        fields = {f"A{number}": "" for number in range(MAX_HEADER_FIELDS - 1)}  # the Host header is one too
        assert refused(request("GET", "/readyz", fields))[0] == 200
        assert refused(request("GET", "/readyz", fields, {"B": ""}))[0] == 431


class TestUpgrade:
    @pytest.mark.parametrize(
        "head",
        [
            request("GET", "/", UPGRADE),
            request("GET", "/?any=query", UPGRADE),
            request("GET", "http://localhost", UPGRADE),
            request("GET", "/", {**UPGRADE, "Connection": "keep-alive, UPGRADE"}),
            request("GET", "/", {"connection": "keep-alive"}, UPGRADE),
            request("GET", "/", {**UPGRADE, "Upgrade": "WebSocket"}),
            request("GET", "/", UPGRADE, {"Authorization": "Bearer x", "Cookie": "a=b"}),
            request("GET", "/", UPGRADE, {"Sec-WebSocket-Extensions": "permessage-deflate"}),
            request("GET", "/", UPGRADE, {"Sec-WebSocket-Protocol": "chat, superchat"}),
        ],
    )
    def test_a_websocket_request_is_accepted_plainly(self, head: bytes) -> None:
        """Offers of compression and of subprotocols are declined by silence; the rest does not matter."""
        assert knock(head) == Upgrade(ACCEPTED, b"")

    @pytest.mark.parametrize("key", ["", "short", "not base64 at all"])
    def test_any_key_will_do(self, key: str) -> None:
        """The key proves something to the client only."""
        assert isinstance(knock(request("GET", "/", {**UPGRADE, "Sec-WebSocket-Key": key})), Upgrade)

    def test_what_came_with_the_head_is_handed_on(self) -> None:
        """An impatient client's first frames are not lost."""
        answer = HttpDoor(PAGES).receive(request("GET", "/", UPGRADE) + b"\x81\x85first")
        assert answer == Upgrade(ACCEPTED, b"\x81\x85first")

    def test_another_implementation_is_content(self) -> None:
        """A library client's handshake succeeds, with its usual offers made and none taken up."""
        client = ClientProtocol(parse_uri("ws://localhost/"))
        client.send_request(client.connect())
        answer = knock(b"".join(client.data_to_send()))
        assert isinstance(answer, Upgrade)
        client.receive_data(answer.data)
        assert client.handshake_exc is None
        assert (client.extensions, client.subprotocol) == ([], None)
