"""A blocking WebSocket JSON-RPC client on a bare socket: little to run, and the same for every server.

It owns one connection and the processes started on it, and knows nothing about measuring. Small messages
are decoded; the bytes of a large output are only counted. It does not retry, resume or reorder: a server
that surprises it ends the measurement with a `WireError`.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

HANDSHAKE_S = 10.0
CLEAN_UP_S = 5.0
"""How long `close` may take to end the processes that a failed measurement has left."""

TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A
"""First bytes of unfragmented frames (RFC 6455, 5.2)."""

RECEIVE_BUFFER = 1 << 20

Message = dict[str, Any]

_process_numbers = itertools.count(1)


class WireError(Exception):
    """The server refused a request, broke the framing, or ended the connection."""


class Request(NamedTuple):
    """A request that is ready to send, so that encoding it is not part of what is timed."""

    id: int
    frame: bytes
    process_id: str = ""


class Connection:
    """One session on one server. `quickack` asks the kernel before each read to acknowledge at once.

    Reads block without limit; a caller that wants one sets `set_patience` or raises from a signal handler.
    """

    def __init__(self, url: str, *, quickack: bool) -> None:
        parts = urlsplit(url)
        if parts.scheme != "ws" or parts.hostname is None or parts.port is None:
            raise WireError(f"{url!r} is not a ws://HOST:PORT URL")
        self._quickack = quickack
        self._mask = os.urandom(4)
        self._last_id = 0
        self._live: set[str] = set()
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._view = memoryview(self._buffer)
        self._start: int = 0
        self._end: int = 0
        self._socket = socket.create_connection((parts.hostname, parts.port), HANDSHAKE_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._upgrade(parts.netloc)
            self.call("initialize", {"clientName": "bench"})
            self._send_frame(TEXT, b'{"method":"initialized"}')
        except BaseException:
            self._socket.close()
            raise
        self.set_patience(None)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_patience(self, seconds: float | None) -> None:
        """Let each read or send raise TimeoutError after `seconds` without progress; None waits for ever."""
        self._socket.settimeout(seconds)

    def prepare(self, method: str, params: Message) -> Request:
        self._last_id += 1
        text = json.dumps({"id": self._last_id, "method": method, "params": params})
        return Request(self._last_id, self._framed(TEXT, text.encode()))

    def prepare_start(self, *argv: str, tty: bool = False, pipe_stdin: bool = False) -> Request:
        """A `process/start` under a process id that no other request of this program has."""
        process_id = f"bench-{os.getpid()}-{next(_process_numbers)}"
        request = self.prepare(
            "process/start",
            {
                "processId": process_id,
                "argv": argv,
                "cwd": "file:///tmp",
                "env": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
                "tty": tty,
                "pipeStdin": pipe_stdin,
            },
        )
        return request._replace(process_id=process_id)

    def prepare_write(self, process_id: str, data: bytes) -> Request:
        chunk = base64.b64encode(data).decode()
        write_id = str(self._last_id + 1)
        return self.prepare("process/write", {"processId": process_id, "chunk": chunk, "writeId": write_id})

    def prepare_terminate(self, process_id: str) -> Request:
        return self.prepare("process/terminate", {"processId": process_id})

    def send(self, request: Request) -> None:
        if request.process_id:
            self._live.add(request.process_id)
        self._socket.sendall(request.frame)

    def receive(self) -> Message:
        """Wait for the next message; raise WireError if it is an error response."""
        return self._decoded(*self._next_payload())

    def call(self, method: str, params: Message) -> Message:
        """Send one request, pass over notifications, return its result."""
        request = self.prepare(method, params)
        self.send(request)
        while (message := self.receive()).get("id") != request.id:
            pass
        return message["result"]

    def start(self, *argv: str, tty: bool = False, pipe_stdin: bool = False) -> str:
        """Send a `process/start` without waiting for its answer; return the process id."""
        request = self.prepare_start(*argv, tty=tty, pipe_stdin=pipe_stdin)
        self.send(request)
        return request.process_id

    def read_output(self, process_id: str, enough: Callable[[bytes], bool]) -> bytes:
        """Read until `enough(all output of the process since this call)`; return that output."""
        output = b""
        while not enough(output):
            message = self.receive()
            if (method := message.get("method")) is None or message["params"]["processId"] != process_id:
                continue
            if method == "process/output":
                output += output_of(message)
            elif method == "process/closed":
                raise WireError(f"{process_id} closed too early, after {output[-200:]!r}")
        return output

    def count_output(self) -> int:
        """Read until the one running process has closed; return how many bytes it has put out.

        The base64 text is measured and not decoded, or else a fast server would wait for this client.
        """
        total = 0
        while True:
            start, end = self._next_payload()
            chunk = self._buffer.find(b'"chunk":"', start, end)
            if chunk < 0:
                message = self._decoded(start, end)
                if message.get("method") == "process/closed":
                    return total
                if message.get("method") == "process/output":  # spaced in another way
                    total += len(output_of(message))
                continue
            chunk += len(b'"chunk":"')
            quote = self._buffer.find(b'"', chunk, end)
            total += (quote - chunk) // 4 * 3 - self._buffer.count(b"=", quote - 2, quote)

    def read_for_ever(self) -> None:
        """Read and throw away."""
        while True:
            self.receive()

    def close(self) -> None:
        """Terminate what still runs, wait for its end within a limit, and drop the connection."""
        try:
            self.set_patience(CLEAN_UP_S)
            for process_id in self._live:
                self.send(self.prepare_terminate(process_id))
            deadline = time.monotonic() + CLEAN_UP_S
            while self._live and time.monotonic() < deadline:
                self.receive()
        except (OSError, WireError, ValueError):
            # The measurement has said already what went wrong; the session's end does the rest.
            pass
        finally:
            self._socket.close()

    def _decoded(self, start: int, end: int) -> Message:
        message: Message = json.loads(self._buffer[start:end].decode())
        if "error" in message:
            raise WireError(f"request {message.get('id')} was refused: {message['error']}")
        if message.get("method") == "process/closed":
            self._live.discard(message["params"]["processId"])
        return message

    def _upgrade(self, host: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            # One byte at a time, so that no frame behind the head is taken with it.
            byte = self._socket.recv(1)
            if not byte:
                raise WireError("the server ended the connection during the upgrade")
            head += byte
        if not head.startswith(b"HTTP/1.1 101 "):
            raise WireError(f"the server refused the upgrade: {head.splitlines()[0].decode()}")

    def _next_payload(self) -> tuple[int, int]:
        """Wait for a text frame; its payload is `_buffer[start:end]` until the next call."""
        while True:
            start, buffer = self._start, self._buffer
            available = self._end - start
            needed = 2
            if available >= needed:
                first, length = buffer[start], buffer[start + 1]
                head = 2 if length < 126 else 4 if length == 126 else 10
                if available < head:
                    needed = head
                else:
                    size = length if head == 2 else int.from_bytes(buffer[start + 2 : start + head], "big")
                    needed = head + size
                    if available >= needed:
                        self._start = start + needed
                        if first == TEXT:
                            return start + head, start + needed
                        self._control(first, bytes(buffer[start + head : start + needed]))
                        continue
            self._fill(needed)

    def _fill(self, needed: int) -> None:
        """Receive once, with room behind `_start` for a frame of `needed` bytes."""
        pending = self._end - self._start
        if not pending:
            self._start = self._end = 0
        if self._start + needed > len(self._buffer):
            rest = self._buffer[self._start : self._end]
            if needed > len(self._buffer):
                self._buffer = bytearray(needed)
                self._view = memoryview(self._buffer)
            self._buffer[:pending] = rest
            self._start, self._end = 0, pending
        if self._quickack:
            # Not a lasting setting: the kernel takes it back whenever it sees a dialogue (tcp(7)).
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        received: int = self._socket.recv_into(self._view[self._end :])
        if not received:
            raise WireError("the server ended the connection")
        self._end += received

    def _control(self, first: int, payload: bytes) -> None:
        if first == PING:
            self._send_frame(PONG, payload)
        elif first == CLOSE:
            code = int.from_bytes(payload[:2], "big")
            raise WireError(
                f"the server closed the connection: {code} {payload[2:].decode(errors='replace')}"
            )
        elif first != PONG:
            raise WireError(f"a frame that begins with {first:#x} where a whole text frame was expected")

    def _send_frame(self, first: int, payload: bytes) -> None:
        self._socket.sendall(self._framed(first, payload))

    def _framed(self, first: int, payload: bytes) -> bytes:
        size = len(payload)
        if size < 126:
            head = bytes((first, 0x80 | size))
        elif size < 1 << 16:
            head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
        mask = (self._mask * (size // 4 + 1))[:size]
        masked = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
        return head + self._mask + masked.to_bytes(size, "big")


def output_of(message: Message) -> bytes:
    """The raw bytes of a `process/output`."""
    return base64.b64decode(message["params"]["chunk"])
