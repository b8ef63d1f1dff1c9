"""The messages of `http/request`, each a frozen type: a request that the server sends on, and what comes back."""

from typing import Literal

from msgspec import field

from .messages import U64, Message

MAX_DELTA_BYTES = 1 << 20
"""The most that one `http/request/bodyDelta` carries, in bytes before base64; clients refuse more."""

RedirectPolicy = Literal["follow", "stop"]


class HttpHeader(Message, frozen=True):
    name: str
    value: str


class HttpRequestHeader(HttpHeader, frozen=True, kw_only=True):
    value_env_var: str | None = None
    """A variable of the server's environment; what it holds is sent behind `value`."""


class HttpRequestParams(Message, frozen=True):
    method: str
    url: str
    request_id: str
    """Names the body of a streamed response on its connection."""
    headers: list[HttpRequestHeader] = field(default_factory=list[HttpRequestHeader])
    """In the order in which they are sent."""
    body_base64: str | None = None
    timeout_ms: U64 | None = None
    """For all of it, the body of the response included."""
    redirect_policy: RedirectPolicy = "follow"
    stream_response: bool = False

    def __post_init__(self) -> None:
        if self.timeout_ms is not None and self.timeout_ms >= 1 << 64:
            raise ValueError(f"timeoutMs must be below 2^64, got {self.timeout_ms}")


class HttpResponse(Message, frozen=True):
    status: int
    headers: list[HttpHeader]
    """Names in lower case, in the order in which they came."""
    body_base64: str
    """Empty if the body is streamed."""


class BodyDeltaNotification(Message, frozen=True):
    """A part of a streamed body, or its end."""

    request_id: str
    seq: int
    """From 1 on, without holes."""
    delta_base64: str
    done: bool
    """True in the last one, which carries no bytes."""
    error: str | None
    """In the last one: why the body is not whole; null if it is."""
