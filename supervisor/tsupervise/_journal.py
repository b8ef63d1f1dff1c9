"""What happens to sessions and processes, told once: counted, logged, and written to the audit log.

Each step of a life has one line in the log, `EVENT: name=value ...`, and in JSON the same as members. Of what a
client sends only names of its choosing, the program and the working directory are shown, never arguments,
environments, input or output; and no more than MAX_TEXT characters of each, with what could forge a line escaped.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from ._audit_log import AuditLog
from ._event_log import Exit
from ._metrics import Metrics, ProcessBytes
from ._process import Process

log = logging.getLogger("tsupervise")

SESSION_CHARACTERS = 8
"""Of a session's id, which stand for it. Whoever knows all of it may resume the session: 90 random bits stay
untold."""

MAX_TEXT = 300
"""Characters of a name, a program or a path in one line."""

_PLAIN = re.compile(r"[\w.:/@+\[\]-]+")
"""Values that need no quotes."""


def tell(level: int, event: str, **ids: object) -> None:
    """Log one event.

    Args:
        level: of `logging`.
        event: `what.happened`.
        ids: what it happened to, and how; None is left out.
    """
    if log.isEnabledFor(level):
        members = _known(ids)
        log.log(level, "%s", _Text(event, members), extra={"members": {"event": event, **members}})


class _Text:
    """The text of an event, made only if it is shown."""

    def __init__(self, event: str, members: Mapping[str, object]) -> None:
        self._event = event
        self._members = members

    def __str__(self) -> str:
        pairs = " ".join(f"{name}={_quoted(value)}" for name, value in self._members.items())
        what = self._event.replace(".", " ")
        return f"{what}: {pairs}" if pairs else what


def _known(ids: Mapping[str, object]) -> dict[str, object]:
    return {
        name: printable(value[:MAX_TEXT]) if isinstance(value, str) else value
        for name, value in ids.items()
        if value is not None
    }


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else msgspec.json.encode(text).decode()


def printable(text: str) -> str:
    """Text with its lone surrogates spelt out: file names that are no UTF-8 come with such."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


class Account(Protocol):
    """What is told of a session."""

    session_id: str
    client_name: str
    origin: Mapping[str, object]
    """Where its client is, or was last: `peer`, and `peer_uid` if it is known."""


def name_of(session: Account) -> str:
    """What a session is called where others may read it, see SESSION_CHARACTERS."""
    return session.session_id[:SESSION_CHARACTERS]


class Journal:
    """The account of one daemon.

    Args:
        audit: the audit log, if there is one.
        metrics: where things are counted.
    """

    def __init__(self, metrics: Metrics | None = None, audit: AuditLog | None = None) -> None:
        self.metrics = metrics or Metrics()
        self._audit = audit

    def _note(self, level: int, event: str, /, **ids: object) -> None:
        tell(level, event, **ids)
        if self._audit is not None:
            self._audit.write(event, _known(ids))

    # --- sessions ------------------------------------------------------------------------------------

    def session_opened(self, session: Account) -> None:
        self.metrics.sessions_opened += 1
        self._note(logging.INFO, "session.opened", **_who(session))

    def session_resumed(self, session: Account) -> None:
        self.metrics.sessions_resumed += 1
        self._note(logging.INFO, "session.resumed", **_who(session))

    def session_detached(self, session: Account) -> None:
        tell(logging.INFO, "session.detached", session=name_of(session))

    def session_ended(self, session: Account) -> None:
        self.metrics.sessions_ended += 1
        self._note(logging.INFO, "session.ended", session=name_of(session))

    # --- processes -----------------------------------------------------------------------------------

    def start_failed(self, session: Account, process: Process) -> None:
        """A start came to nothing: refused by the system, or cancelled."""
        self.metrics.processes_ended["start_failed"] += 1
        self._note(logging.DEBUG, "process.start_failed", **_who(session), **_what(process))

    def process_started(self, session: Account, process: Process) -> None:
        self.metrics.processes_started += 1
        # The one that is on the way of every start: nothing is made for nobody.
        if self._audit is not None or log.isEnabledFor(logging.DEBUG):
            self._note(logging.DEBUG, "process.started", **_who(session), **_what(process), pid=process.pid)

    def process_exited(self, session: Account, process: Process) -> None:
        """Its exit is known; output may still come."""
        event = process.log.exit
        assert event is not None, "the exit is recorded before it is told"
        result = "signal" if event.term_signal is not None else "failure" if event.code else "success"
        self._ended(session, process, result, event)

    def process_killed(self, session: Account, process: Process) -> None:
        """It was killed with its session, which heard of no exit any more."""
        self._ended(session, process, "killed", None)

    def _ended(self, session: Account, process: Process, result: str, event: Exit | None) -> None:
        self.metrics.processes_ended[result] += 1
        if self._audit is None and not log.isEnabledFor(logging.DEBUG):
            return
        usage = event.usage if event is not None else None
        self._note(
            logging.DEBUG,
            "process.ended",
            **_who(session),
            **_what(process),
            pid=process.pid,
            result=result,
            exit_code=event.code if event is not None else None,
            term_signal=event.term_signal if event is not None else None,
            reason=event.reason if event is not None else None,
            started=_time(process.started_at_ms),
            duration_ms=max(0, time.time_ns() // 1_000_000 - process.started_at_ms),
            input_bytes=process.input_bytes,
            output_bytes=process.log.output_bytes,
            user_ms=usage.user_ms if usage is not None else None,
            system_ms=usage.system_ms if usage is not None else None,
            max_rss_bytes=usage.max_rss_bytes if usage is not None else None,
        )

    def process_closed(self, session: Account, process: Process) -> None:
        """Its output has ended, too."""
        tell(logging.DEBUG, "process.closed", session=name_of(session), uid=process.uid)

    def process_forgotten(self, process: Process) -> None:
        """From here on nobody can ask how much it wrote."""
        self.metrics.forgotten.add(bytes_of(process))


def bytes_of(process: Process) -> ProcessBytes:
    """What went through a process so far."""
    log = process.log
    return ProcessBytes(process.input_bytes, log.output_bytes, log.output_bytes - log.retained_bytes)


def _who(session: Account) -> dict[str, object]:
    return {"session": name_of(session), "client": session.client_name, **session.origin}


def _what(process: Process) -> dict[str, object]:
    params = process.params
    return {
        "uid": process.uid,
        "process_id": params.process_id,
        "program": params.argv[0],
        "cwd": params.cwd,
        "tty": params.tty,
    }


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
