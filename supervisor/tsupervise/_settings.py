"""The numbers an operator may choose, with their defaults and where these come from."""

from __future__ import annotations

from dataclasses import dataclass

from ._event_log import RETAINED_BYTES
from ._retained_total import RETAINED_TOTAL_BYTES

SPILL_BYTES = 1 << 30
"""Output of one process in its spill file, in bytes of the file."""

SPILL_TOTAL_BYTES = 16 << 30
"""Output in all spill files together, in bytes of these."""


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
    """

    detached_ttl_s: float = 80.0
    retention_s: float = 80.0
    retained_bytes: int = RETAINED_BYTES
    retained_total_bytes: int = RETAINED_TOTAL_BYTES
    spill_dir: str | None = None
    spill_bytes: int = SPILL_BYTES
    spill_total_bytes: int = SPILL_TOTAL_BYTES
