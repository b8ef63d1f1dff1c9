"""What a client shows at a server's door, and whom it believes there: tokens and certificates."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from typing import TypedDict

import trio

from .errors import ConnectFailed

_TOKEN = re.compile(r"[\x21-\x7e]+")
"""What an Authorization header can carry."""


class WayIn(TypedDict, total=False):
    """The keywords of `connect` that tell how to get in; it explains them."""

    token: str | None
    token_file: str | os.PathLike[str] | None
    ssl_context: ssl.SSLContext | None
    insecure_token: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """Those keywords, checked. Its text never has the token in it.

    Raises:
        ValueError: a token and a file with one, or a token that no header can carry.
    """

    token: str | None = field(default=None, repr=False)
    token_file: str | os.PathLike[str] | None = None
    ssl_context: ssl.SSLContext | None = None
    insecure_token: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and self.token_file is not None:
            raise ValueError("give a token or a token_file, not both")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError("a token is printable ASCII without blanks, and not empty")

    async def read_token(self) -> str | None:
        """The token of this moment, None for none: a file is read anew, for whoever renews it.

        Raises:
            ConnectFailed: the file cannot be read, or has no token in it.
        """
        if self.token_file is None:
            return self.token
        path = os.fspath(self.token_file)
        try:
            token = (await trio.Path(path).read_text("utf-8")).strip()
        except OSError as error:
            raise ConnectFailed(f"cannot read the token in {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            token = ""
        if not _TOKEN.fullmatch(token):
            raise ConnectFailed(f"there is no token in {path}: it is printable ASCII without blanks")
        return token
