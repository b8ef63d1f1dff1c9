"""Who may come in: the user at the other end, or the token that is shown, and whether there is room.

It owns the count of those who are in, and knows neither sockets nor HTTP beyond the answer that it gives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from ._http_door import Answer
from ._ws_auth import TokenAuth

MAX_CONNECTIONS = 512
"""Half of the 1,024 descriptors that a process usually may have: the rest is for what it runs."""


@dataclass(slots=True)
class Doorkeeper:
    """Decides about one upgrade after the other.

    Args:
        auth: asks every peer for a token; None for no token.
        any_user: without `auth`, whether it does not matter which user connects. If it does, it must be the
            user that this process runs as, or root, who could do all of it without us.
        max_connections: how many may be in at a time.
    """

    auth: TokenAuth | None = None
    any_user: bool = False
    max_connections: int = MAX_CONNECTIONS
    connections: int = 0
    """How many are in."""

    def refusal(
        self, authorization: bytes | None, peer_uid: Callable[[], int | None], *, enters: bool = True
    ) -> Answer | None:
        """Why a request is refused, None if it is not.

        Args:
            authorization: the header of that name, if there is one.
            peer_uid: tells the user at the other end, None for unknown.
            enters: whether there must be room, as for an upgrade.
        """
        if self.auth is not None:
            flaw = self.auth.refusal(authorization)
            if flaw is not None:
                return Answer(HTTPStatus.UNAUTHORIZED, flaw)
        elif not self.any_user:
            uid = peer_uid()
            if uid not in (os.geteuid(), 0):
                who = "a user that this machine cannot tell" if uid is None else f"user {uid}"
                return Answer(
                    HTTPStatus.FORBIDDEN,
                    f"this daemon serves user {os.geteuid()} and root, and this connection comes from {who}; "
                    "start it with --ws-auth to let in who has a token, or with --allow-other-users",
                )
        if enters and self.connections >= self.max_connections:
            text = f"this daemon has {self.connections} connections and takes no more (--max-connections)"
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, text, (("retry-after", "1"),))
        return None

    @contextmanager
    def entered(self) -> Generator[None]:
        """Count a connection for the time of the block. There must be no await between `refusal` and this."""
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1
