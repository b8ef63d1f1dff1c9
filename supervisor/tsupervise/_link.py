"""One connection of a client: its channel, the calls that are open on it, and the three tasks that serve it.

One task receives, one sends and one watches; none ever waits for a caller. A link is never mended: once it has
ended, whatever comes next is another one.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from tsupervise_protocol.codec import (
    MALFORMED_ID,
    Failure,
    Notification,
    ServerRequest,
    decode_from_server,
    decode_notification,
    encode_error,
    encode_notification,
)
from tsupervise_protocol.errors import ErrorCode, MalformedMessage
from tsupervise_protocol.file_messages import MissingChangedNotification
from tsupervise_protocol.http_messages import BodyDeltaNotification
from tsupervise_protocol.messages import Message

from ._calls import CallTable, Pending
from ._channel import ClientChannel, CloseCode
from ._http_bodies import HttpBodies
from ._missing_watch import MissingWatches
from ._process_table import ProcessTable
from ._recovery import Disconnected
from .errors import ServerRefused

LAST_WORDS_S = 1.0
"""After a send has failed: how long answers that are already on their way may take to be read."""


class Link:
    """See the module.

    Args:
        channel: it belongs to the link; whoever runs the link closes it, with `close_code`.
        processes: where events go.
        on_end: called once, at the end, before any call is told of it.
    """

    def __init__(
        self, channel: ClientChannel, processes: ProcessTable, on_end: Callable[[Link], None]
    ) -> None:
        self.generation = 0
        """Given when it is taken into use; until then it is an attempt."""
        self.disconnect: Disconnected | None = None
        """How it ended, once it has."""
        self.ended = trio.Event()
        self.close_code = CloseCode.NORMAL
        self.http_bodies = HttpBodies()
        self.watches = MissingWatches()
        self._channel = channel
        self._processes = processes
        self._on_end = on_end
        self._calls = CallTable()

    def begin(self, method: str, params: Message) -> Pending:
        """Open a call; there is no await in here, so that it cannot slip in behind the end.

        Raises:
            Disconnected: the link has ended.
            ValueError: as `CallTable.begin`.
        """
        if self.disconnect is not None:
            raise self.disconnect
        return self._calls.begin(method, params)

    def free(self, pending: Pending) -> None:
        """Forget a call, and do not send it if that has not happened."""
        self._calls.free(pending)

    def take_back(self, pending: Pending) -> bool:
        """Forget a call if it has not been sent; return whether that is so."""
        return self._calls.take_back(pending)

    def result_of(self, pending: Pending) -> Message:
        """The result of a call that is done.

        Raises:
            ServerRefused: the server answered with an error.
            Disconnected: the link ended before the answer.
        """
        if pending.error is not None:
            raise ServerRefused(pending.method, pending.error.code, pending.error.message)
        if pending.result is None:
            assert self.disconnect is not None, "a call that is done has an answer, or the link has ended"
            raise self.disconnect
        return pending.result

    async def call(self, method: str, params: Message) -> Message:
        """Call a method on this link and no other.

        Raises:
            ServerRefused, Disconnected: as `result_of`.
        """
        return self.result_of(await self.settle(method, params))

    async def settle(self, method: str, params: Message) -> Pending:
        """Call a method on this link and see the call to its end: the answer, or that of the link.

        Raises:
            Disconnected, ValueError: as `begin`.
        """
        pending = self.begin(method, params)
        try:
            await pending.done.wait()
        finally:
            self.free(pending)
        return pending

    def notify_initialized(self) -> None:
        """Send the last message of the handshake."""
        self._calls.post(encode_notification("initialized"))

    def end(self, disconnect: Disconnected, code: CloseCode = CloseCode.NORMAL) -> None:
        """End the link, unless it has ended already."""
        if self.disconnect is None:
            self.disconnect = disconnect
            self.close_code = code
            self._on_end(self)
            self._calls.end()
            self.http_bodies.end(str(disconnect))
            self.watches.end()
            self.ended.set()

    async def receive(self) -> None:
        """Receive until the link ends: one of the three tasks."""
        try:
            while messages := await self._channel.receive():
                for message in messages:
                    await self._take(message)
        except MalformedMessage as error:
            self.end(
                Disconnected(f"the server broke the protocol: {error}", is_final=True),
                CloseCode.PROTOCOL_ERROR,
            )
        else:
            self.end(Disconnected(self._channel.end_reason))

    async def send(self) -> None:
        """Send until the link ends: another one."""
        while True:
            messages = await self._calls.take_outbox()
            try:
                await self._channel.send(messages)
            except trio.BrokenResourceError:
                break
        # Answers that have arrived before the end count: the receiver tells of it once it has them.
        await trio.sleep(LAST_WORDS_S)
        self.end(Disconnected(self._channel.end_reason))

    async def watch(self) -> None:
        """End the link when the server must be taken for gone: the third task."""
        await self._channel.watch(lambda: self._calls.excused_s)
        self.end(Disconnected(self._channel.end_reason))

    async def _take(self, data: bytes) -> None:
        message = decode_from_server(data)
        if isinstance(message, Notification):
            await self._take_notification(message)
        elif isinstance(message, ServerRequest):
            text = f"this client has no method {message.method[:200]!r}"
            self._calls.post(encode_error(message.id, ErrorCode.METHOD_NOT_FOUND, text))
        elif isinstance(message, Failure) and message.id == MALFORMED_ID:
            # It names no call, so whoever waits for the answer would wait for ever.
            raise MalformedMessage(f"it could not read a message of ours: {message.error.message}")
        else:
            self._calls.answer(message)

    async def _take_notification(self, message: Notification) -> None:
        match decode_notification(message):
            case None:
                pass  # of a kind that we do not know
            case BodyDeltaNotification() as delta:
                self.http_bodies.take(delta)
            case MissingChangedNotification(watch_id=watch_id):
                self.watches.fire(watch_id)
            case event:
                slow = self._processes.take(event)
                # An attempt waits for no reader: the handshake would wait with it, and all other processes.
                if slow is not None and self.generation:
                    await slow.wait_until_read()
