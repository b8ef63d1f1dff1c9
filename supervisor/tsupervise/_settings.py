"""The numbers an operator may choose, with their defaults and where these come from."""

from __future__ import annotations

from dataclasses import dataclass

from ._event_log import RETAINED_BYTES
from ._retained_total import RETAINED_TOTAL_BYTES

SPILL_BYTES = 1 << 30
"""Output of one process in its spill file, in bytes of the file."""

SPILL_TOTAL_BYTES = 16 << 30
"""Output in all spill files together, in bytes of these."""

MAX_SESSIONS = 4096
"""More than a minute of reconnecting clients leaves behind, and a few MiB of memory."""

MAX_PROCESSES = 4096
"""Of all sessions together; descriptors usually run out before."""

MAX_SESSION_PROCESSES = 1024

MAX_OPEN_REQUESTS = 2_048
"""Clients of this protocol stop at 1,025."""

MAX_OPEN_BYTES = 64 << 20
"""One message of the largest size."""

MAX_HTTP_BODY_BYTES = 256 << 20
"""Of a response that is not streamed. Messages of more than 64 MiB are for clients that take them."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Times and bounds of a supervisor.

    Args:
        detached_ttl_s: how long a session lives without a connection, in seconds. 80 is what clients of this
            protocol count on: the newest tries for 45 s to come back.
        retention_s: how long a closed process can still be read, in seconds, from its close on.
        retained_bytes: output retained in memory for each process, in bytes.
        retained_total_bytes: output retained in memory for all processes together, in bytes.
        spill_dir: a directory for output that is retained beyond that, on a file system that can give back parts
            of a file; None to retain no more.
        spill_bytes: the most that the file of one process takes there, in bytes; then its oldest output goes.
        spill_total_bytes: the most that all files take there together, in bytes.
        max_sessions: how many there may be, detached ones included.
        max_processes: how many that are not closed there may be.
        max_session_processes: how many of these one session may have.
        max_open_requests: requests of one connection that may wait at a time.
        max_open_bytes: bytes of these requests; the first may have more.
        max_http_body_bytes: the body of an HTTP response that is not streamed, in bytes; one that is longer fails.
    """

    detached_ttl_s: float = 80.0
    retention_s: float = 80.0
    retained_bytes: int = RETAINED_BYTES
    retained_total_bytes: int = RETAINED_TOTAL_BYTES
    spill_dir: str | None = None
    spill_bytes: int = SPILL_BYTES
    spill_total_bytes: int = SPILL_TOTAL_BYTES
    max_sessions: int = MAX_SESSIONS
    max_processes: int = MAX_PROCESSES
    max_session_processes: int = MAX_SESSION_PROCESSES
    max_open_requests: int = MAX_OPEN_REQUESTS
    max_open_bytes: int = MAX_OPEN_BYTES
    max_http_body_bytes: int = MAX_HTTP_BODY_BYTES
