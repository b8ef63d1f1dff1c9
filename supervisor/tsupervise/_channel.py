"""What lies between a door and a connection: whole messages, in order, and nothing of how they travel.

A WebSocket, a pair of stdio pipes and a pair of queues in one process are the same thing above this line.
`MessageChannel` is what both ends need; `ClientChannel` and `ServerChannel` add what only one of them asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol

import trio


class CloseCode(IntEnum):
    """Why a connection is closed, in the numbers of WebSocket close frames (RFC 6455, 7.4.1)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    """The server is shutting down."""
    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    POLICY_VIOLATION = 1008
    """A well-formed message that must never be sent, or a peer that let the connection starve."""
    TOO_BIG = 1009


class MessageChannel(Protocol):
    """Whole messages in both directions. One task receives, one task sends."""

    async def receive(self) -> Sequence[bytes]:
        """Wait for messages; return at least one, in order, or () once the peer has ended or is gone.

        Raises:
            MalformedMessage: on the client's side: what came is no message, or too large for one.
        """
        ...

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages, in order; a cancelled send ends the channel, for half a message may be out.

        Raises:
            trio.BrokenResourceError: the peer is gone.
        """
        ...

    async def aclose(self, code: CloseCode, reason: str) -> None:
        """Tell the peer why, if the channel can, and close. Bounded in time, safe to call twice."""
        ...


class ClientChannel(MessageChannel, Protocol):
    """A channel as a client has it."""

    @property
    def end_reason(self) -> str:
        """How the channel ended, once it has."""
        ...

    async def watch(self, excused_s: Callable[[], float]) -> None:
        """Watch over the server; return when it must be taken for gone, which `end_reason` tells then.

        Args:
            excused_s: how much longer than usual the server may be silent now, in seconds.
        """
        ...


class ServerChannel(MessageChannel, Protocol):
    """A channel as a door hands it to a connection."""

    @property
    def label(self) -> str:
        """The door and the peer, for the answer to a malformed message."""
        ...

    @property
    def peer(self) -> str:
        """Where the peer is, in a few words."""
        ...

    def peer_uid(self) -> int | None:
        """The user at the other end; None if that cannot be known."""
        ...

    def set_waker(self, wake: Callable[[], None]) -> None:
        """`wake` is called when the channel has something of its own to send: call `send(())` then."""
        ...

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        """Send what can be sent without waiting, while no `send` is under way.

        Returns:
            Whether everything is out. If not, the channel keeps the rest: call `send(())` to send it, and
            nothing else before.
        """
        ...

    async def keep_alive(self) -> None:
        """Watch over the peer; return when it must be taken for gone."""
        ...

    async def is_alive(self, within_s: float) -> bool:
        """Ask the peer for a sign of life and wait for any byte, at most `within_s` seconds."""
        ...


class MemoryChannel:
    """One end of a channel inside this process. Made by `memory_channels`."""

    label = "JSON-RPC message from exec-server in this process"
    peer = "this process"
    end_reason = "the other end of the channel has closed"

    def __init__(
        self,
        incoming: trio.MemoryReceiveChannel[Sequence[bytes]],
        outgoing: trio.MemorySendChannel[Sequence[bytes]],
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._kept: Sequence[bytes] = ()

    async def receive(self) -> Sequence[bytes]:
        try:
            return await self._incoming.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return ()

    async def send(self, messages: Sequence[bytes]) -> None:
        messages, self._kept = [*self._kept, *messages], ()
        if messages:
            await self._outgoing.send(messages)

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        try:
            self._outgoing.send_nowait(messages)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._kept = messages
        return not self._kept

    async def aclose(self, code: CloseCode, reason: str) -> None:
        self._incoming.close()
        self._outgoing.close()
        await trio.lowlevel.checkpoint()

    def peer_uid(self) -> int | None:
        return os.geteuid()

    def set_waker(self, wake: Callable[[], None]) -> None:
        """It never has anything of its own to send."""

    async def keep_alive(self) -> None:
        await trio.sleep_forever()

    async def watch(self, excused_s: Callable[[], float]) -> None:
        await trio.sleep_forever()

    async def is_alive(self, within_s: float) -> bool:
        await trio.lowlevel.checkpoint()
        return True


def memory_channels() -> tuple[MemoryChannel, MemoryChannel]:
    """Two joined ends. A send waits until the other end receives: nothing is buffered in between."""
    to_left, from_right = trio.open_memory_channel[Sequence[bytes]](0)
    to_right, from_left = trio.open_memory_channel[Sequence[bytes]](0)
    return MemoryChannel(from_right, to_right), MemoryChannel(from_left, to_left)
