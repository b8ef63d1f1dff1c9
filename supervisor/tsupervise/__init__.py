"""A structured-concurrency process supervisor: a daemon, its async client, and both in one process.

The names are loaded when they are first asked for, so that `tsupervise --version` need not import trio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from . import sync
    from ._http_call import EnvHeader, HttpResponse
    from ._missing_watch import MissingWatch
    from ._observed_process import ObservedProcess
    from ._process_handle import EventStream, ProcessHandle
    from ._remote_file import RemoteFile
    from ._remote_files import RemoteEntry, RemoteFiles, Walk, WalkedEntry
    from ._remote_process import RemoteProcess
    from .client import Client, connect, open_client
    from .completed import Completed
    from .embedded import open_supervisor
    from .errors import (
        BadAnswer,
        CannotSpill,
        CommandCrashed,
        CommandFailed,
        ConnectFailed,
        ConnectionLost,
        FileChanged,
        FileError,
        FileInterrupted,
        HttpBodyFailed,
        NoSuchProcess,
        NotSupported,
        OutcomeUnknown,
        OutputLost,
        ProcessFailed,
        ServerRefused,
        StdinClosed,
        TooManyCalls,
        TooMuchOutput,
        TsuperviseError,
    )
    from .events import Closed, Event, Exited, Lost, Output

__all__ = [
    "BadAnswer",
    "CannotSpill",
    "Client",
    "Closed",
    "CommandCrashed",
    "CommandFailed",
    "Completed",
    "ConnectFailed",
    "ConnectionLost",
    "EnvHeader",
    "Event",
    "EventStream",
    "Exited",
    "FileChanged",
    "FileError",
    "FileInterrupted",
    "HttpBodyFailed",
    "HttpResponse",
    "Lost",
    "MissingWatch",
    "NoSuchProcess",
    "NotSupported",
    "ObservedProcess",
    "OutcomeUnknown",
    "Output",
    "OutputLost",
    "ProcessFailed",
    "ProcessHandle",
    "RemoteEntry",
    "RemoteFile",
    "RemoteFiles",
    "RemoteProcess",
    "ServerRefused",
    "StdinClosed",
    "TooManyCalls",
    "TooMuchOutput",
    "TsuperviseError",
    "Walk",
    "WalkedEntry",
    "__version__",
    "connect",
    "open_client",
    "open_supervisor",
    "sync",
]

_HOMES = {
    "_http_call": ("EnvHeader", "HttpResponse"),
    "_missing_watch": ("MissingWatch",),
    "_observed_process": ("ObservedProcess",),
    "_process_handle": ("EventStream", "ProcessHandle"),
    "_remote_file": ("RemoteFile",),
    "_remote_files": ("RemoteEntry", "RemoteFiles", "Walk", "WalkedEntry"),
    "_remote_process": ("RemoteProcess",),
    "client": ("Client", "connect", "open_client"),
    "completed": ("Completed",),
    "embedded": ("open_supervisor",),
    "errors": (
        "BadAnswer",
        "CannotSpill",
        "CommandCrashed",
        "CommandFailed",
        "ConnectFailed",
        "ConnectionLost",
        "FileChanged",
        "FileError",
        "FileInterrupted",
        "HttpBodyFailed",
        "NoSuchProcess",
        "NotSupported",
        "OutcomeUnknown",
        "OutputLost",
        "ProcessFailed",
        "ServerRefused",
        "StdinClosed",
        "TooManyCalls",
        "TooMuchOutput",
        "TsuperviseError",
    ),
    "events": ("Closed", "Event", "Exited", "Lost", "Output"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name == "sync":
        return import_module(".sync", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
