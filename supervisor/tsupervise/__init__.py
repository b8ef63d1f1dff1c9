"""A structured-concurrency process supervisor: a daemon, its async client, and both in one process.

The names are loaded when they are first asked for, so that `tsupervise --version` need not import trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from ._remote_process import EventStream, RemoteProcess
    from .client import Client, connect, open_client
    from .embedded import open_supervisor
    from .errors import (
        CannotSpill,
        ConnectFailed,
        ConnectionLost,
        NotSupported,
        OutcomeUnknown,
        ProcessFailed,
        ServerRefused,
        StdinClosed,
        TooManyCalls,
        TsuperviseError,
    )
    from .events import Closed, Event, Exited, Lost, Output

__all__ = [
    "CannotSpill",
    "Client",
    "Closed",
    "ConnectFailed",
    "ConnectionLost",
    "Event",
    "EventStream",
    "Exited",
    "Lost",
    "NotSupported",
    "OutcomeUnknown",
    "Output",
    "ProcessFailed",
    "RemoteProcess",
    "ServerRefused",
    "StdinClosed",
    "TooManyCalls",
    "TsuperviseError",
    "__version__",
    "connect",
    "open_client",
    "open_supervisor",
]

_HOMES = {
    "_remote_process": ("EventStream", "RemoteProcess"),
    "client": ("Client", "connect", "open_client"),
    "embedded": ("open_supervisor",),
    "errors": (
        "CannotSpill",
        "ConnectFailed",
        "ConnectionLost",
        "NotSupported",
        "OutcomeUnknown",
        "ProcessFailed",
        "ServerRefused",
        "StdinClosed",
        "TooManyCalls",
        "TsuperviseError",
    ),
    "events": ("Closed", "Event", "Exited", "Lost", "Output"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
