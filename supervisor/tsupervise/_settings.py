"""The numbers an operator may choose, with their defaults and where these come from."""

from __future__ import annotations

from dataclasses import dataclass

from ._event_log import RETAINED_BYTES
from ._retained_total import RETAINED_TOTAL_BYTES


@dataclass(frozen=True, slots=True)
class Settings:
    """Times and bounds of a supervisor.

    Args:
        detached_ttl_s: how long a session lives without a connection, in seconds. 80 is what clients of this
            protocol count on: the newest tries for 45 s to come back.
        retention_s: how long a closed process can still be read, in seconds, from its close on.
        retained_bytes: output retained for each process, in bytes.
        retained_total_bytes: output retained for all processes together, in bytes.
    """

    detached_ttl_s: float = 80.0
    retention_s: float = 80.0
    retained_bytes: int = RETAINED_BYTES
    retained_total_bytes: int = RETAINED_TOTAL_BYTES
