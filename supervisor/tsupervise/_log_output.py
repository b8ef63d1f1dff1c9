"""How the daemon's log lines look on stderr: text for people, or one JSON object for each line."""

from __future__ import annotations

import logging
import os
import select
from datetime import UTC, datetime

import msgspec


class JsonFormatter(logging.Formatter):
    """One JSON object: `time` (RFC 3339, UTC), `level`, `logger`, `message`, and `traceback` if there is one.

    An event of the journal has its name as `event`, and its members beside the others.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "members", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        # File names that are no UTF-8 come as lone surrogates, which the encoder would refuse.
        printable = {
            name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
            for name, value in fields.items()
        }
        return msgspec.json.encode(printable).decode()


class UnhinderedHandler(logging.Handler):
    """Writes lines to a descriptor, and drops them while nobody reads it: a daemon must not wait for its log.

    When there is room again, the first line says how many were dropped.
    """

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        # A pipe that polls as writable takes at least a page at once; a line of ours is shorter, unless it
        # carries a long traceback.
        if not any(events & select.POLLOUT for _, events in self._poll.poll(0)):
            self._dropped += 1
            return
        try:
            line = self.format(record)
            if self._dropped:
                text = f"{self._dropped} lines were dropped here: nobody read the log"
                line = (
                    self.format(logging.makeLogRecord({**vars(record), "msg": text, "args": ()}))
                    + "\n"
                    + line
                )
                self._dropped = 0
            os.write(self._fd, (line + "\n").encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True


def log_to_stderr(level: str, *, as_json: bool) -> None:
    """Send all log records of this process to stderr.

    Args:
        level: the lowest that is shown, in lower case.
        as_json: one JSON object for each line, instead of text.
    """
    handler = UnhinderedHandler()
    if as_json:
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # At EMFILE it tries again ten times a second; what went wrong is in its message.
    logging.getLogger("trio.serve_listeners").addFilter(_without_traceback)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Only our own lines are shown below warnings: at debug level a library would log what is in the messages.
    logging.getLogger("tsupervise").setLevel(level.upper())
