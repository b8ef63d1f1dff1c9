"""Who may import whom: every module of both packages against a table, and the checker against planted errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tsupervise
import tsupervise_protocol

PACKAGES = {
    package.__name__: Path(package.__file__ or "").parent for package in (tsupervise_protocol, tsupervise)
}

ROOMS = {
    "protocol": """errors base64_text path_uri messages file_messages http_messages environment_messages methods
        json_limits handshake codec __init__""",
    # For everything above.
    "shared": "_version completed errors events _background _channel _inherited _tracing",
    # Each may import what stands before it.
    "core": """_process_tag _cgroup _limit_groups _posix_spawn _spawn_gate _limits _usage _containment _spill_index
        _event_log _lifecycle _stdin_queue _retained_total _settings _fd _fork_spawn _child_environment
        _environment_info _http_failure _http_url _http_message _http_redirect _http_cookies _http_proxies _http_tls
        _http_network _http_client _outbox _http_body _metrics _audit_log _spawn _hole_punch _spill_file _spill
        _process _journal _disk _walk _open_files _inotify _path_watch _session _supervisor _rows _birth_time _files
        _file_trees _disk_answers _file_handlers _open_file_handlers _path_watch_handlers _walk_handlers
        _environment_config _capability_roots _environment_handlers _http_handlers _handlers _connection""",
    "doors": """_listen_address _discovery _peer_user _ws_auth _http_door _doorkeeper _websocket _socket_stream
        _tls_stream _unix_listener _websocket_channel _stdio_channel _listener _service_manager _shutdown
        _name_lookup server""",
    "client": """_event_order _recovery _way_in _websocket_client _calls _process_streams _process_handle
        _remote_process _observed_process _process_table _http_bodies _missing_watch _link _lifeline _run_command
        _remote_file _remote_files _http_call client""",
    "embedded": "embedded",
    "sync": "_loop_thread _sync_files sync",
    "command line": """_keeper _log_output _detach_keys _table _terminal _relay _at_daemon _exec_command
        _brief_commands _recent_output _logs_command _attach_command _file_commands _progress _copy_command
        _completion cli __main__""",
    "front": "__init__",
}

MAY_IMPORT = {
    "protocol": "protocol",
    "shared": "protocol, shared",
    "core": "protocol, shared, core",
    "doors": "protocol, shared, core, doors",
    "client": "protocol, shared, client",
    "embedded": "protocol, shared, core, client",
    "sync": "protocol, shared, core, client, embedded, sync",
    "command line": "protocol, shared, core, doors, client, embedded, command line",
    "front": "shared, client, embedded, sync",
}

CYCLES = {
    *(
        (f"tsupervise.{handle}", "tsupervise.client")
        for handle in (
            *("_process_handle", "_remote_process", "_observed_process"),
            *("_remote_file", "_remote_files", "_http_call"),
        )
    ),
    ("tsupervise._process_streams", "tsupervise._process_handle"),
}
"""Allowed upwards, for annotations only."""

ONLY_IN = {
    "trio_websocket": {"tsupervise._websocket_client"},
    "h11": {"tsupervise._http_door"},
    "httpcore2": {"tsupervise._http_network", "tsupervise._http_client"},
    "idna": {"tsupervise._http_url"},
    "jwt": {"tsupervise._ws_auth"},
    "websockets": {"tsupervise._websocket"},
    "click": {"tsupervise.cli"},
    "rich": {"tsupervise._table", "tsupervise._progress"},
    "tomli_w": {"tsupervise._environment_config"},
    "ctypes": {
        *(
            "tsupervise._posix_spawn",
            "tsupervise._keeper",
            "tsupervise._hole_punch",
            "tsupervise._containment",
            "tsupervise._usage",
            "tsupervise._birth_time",
            "tsupervise._inotify",
        )
    },
    "subprocess": {"tsupervise._fork_spawn"},
    "threading": {
        "tsupervise._loop_thread",
        "tsupervise._spill_file",
        "tsupervise._spawn_gate",
        "tsupervise._disk",
        "tsupervise._open_files",
    },
    "asyncio": set[str](),
    "opentelemetry": {"tsupervise._tracing"},
}
"""Foreign packages that one module hides from all others."""

WITHOUT_TRIO = {
    *("__init__", "__main__", "_version", "cli", "completed", "errors", "events", "_settings", "_log_output"),
    *("_spill_index", "_spill_file", "_hole_punch", "_birth_time", "_files", "_file_trees"),
    *("_event_log", "_lifecycle", "_metrics", "_stdin_queue", "_retained_total", "_event_order", "_recovery"),
    *("_child_environment", "_environment_info", "_inherited", "_posix_spawn", "_keeper"),
    *("_walk", "_open_files", "_inotify", "_environment_config", "_capability_roots"),
    *("_cgroup", "_process_tag", "_limit_groups", "_limits", "_usage", "_spawn_gate"),
    *(
        "_http_door",
        "_websocket",
        "_listen_address",
        "_peer_user",
        "_ws_auth",
        "_doorkeeper",
        "_unix_listener",
    ),
    *("_discovery", "_detach_keys", "_table"),
    *("_http_failure", "_http_url", "_http_message", "_http_redirect"),
    *("_http_cookies", "_http_proxies", "_http_tls"),
}
"""Modules of `tsupervise` that decide or compute, and never wait in the loop."""

INPUT_AND_OUTPUT = {
    *("os", "io", "socket", "select", "selectors", "pathlib", "tempfile", "shutil", "fcntl", "signal"),
    *("time", "threading", "logging", "trio"),
}
"""What the protocol package must not know of."""


def room_of(module: str) -> str:
    """The room that a module of ours belongs to; a new module needs a place in the table."""
    package, _, name = module.partition(".")
    name = name or "__init__"
    if package == "tsupervise_protocol":
        assert name in ROOMS["protocol"].split(), f"give {module} a place in the table"
        return "protocol"
    rooms = [room for room, names in ROOMS.items() if room != "protocol" and name in names.split()]
    assert len(rooms) == 1, f"give {module} a place in the table"
    return rooms[0]


def imports(source: str, module: str) -> Iterator[str]:
    """Every module that a source text names in an import, in whatever spelling, wherever it stands."""
    is_package = module in PACKAGES
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(base, names, level):
                origin = module.split(".")
                if level:
                    above = origin[: len(origin) - level + is_package]
                    base = ".".join([*above, base] if base else above)
                assert base is not None
                # A name may be a module of its own; then the package around it is not what is meant.
                inner = [f"{base}.{alias.name}" for alias in names]
                yield from (name if exists(name) else base for name in inner)
            case ast.Call(ast.Name("__import__" | "import_module") | ast.Attribute(_, "import_module"), args):
                match args:
                    case [ast.Constant(str(name)), *_]:
                        yield module.split(".")[0] + name if name.startswith(".") else name
                    case _:
                        yield "a module whose name is computed"
            case _:
                pass


def exists(module: str) -> bool:
    package, _, name = module.partition(".")
    return package in PACKAGES and (PACKAGES[package] / f"{name}.py").exists()


def violations(source: str, module: str) -> list[str]:
    """What a module imports and must not."""
    return sorted({target for target in imports(source, module) if not allowed(module, target)})


def allowed(module: str, target: str) -> bool:
    package = target.split(".")[0]
    if target == "a module whose name is computed":
        return module == "tsupervise"  # its table of lazy names is read by the next test
    if package not in PACKAGES:
        return not (
            (package in ONLY_IN and module not in ONLY_IN[package])
            or (package == "trio" and last(module) in WITHOUT_TRIO)
            or (package in INPUT_AND_OUTPUT and module.startswith("tsupervise_protocol"))
        )
    ours, theirs = room_of(module), room_of(target)
    if theirs not in MAY_IMPORT[ours].split(", "):
        return False
    names = ROOMS[ours].split()
    upwards = ours == theirs and names.index(last(target)) >= names.index(last(module))
    return not upwards or (module, target) in CYCLES


def last(module: str) -> str:
    return module.partition(".")[2] or "__init__"


MODULES = {
    f"{package}.{path.stem}".removesuffix(".__init__"): path
    for package, folder in PACKAGES.items()
    for path in sorted(folder.glob("*.py"))
}


@pytest.mark.parametrize("module", list(MODULES))
def test_imports_go_one_way(module: str) -> None:
    """Each module imports only what the table lets it."""
    assert violations(MODULES[module].read_text(), module) == []


def test_there_are_no_packages_inside_the_packages() -> None:
    """The table knows one level only."""
    folders = [path for folder in PACKAGES.values() for path in folder.glob("*/__init__.py")]
    assert folders == []


def test_the_lazy_names_of_the_front_come_from_rooms_that_it_may_import() -> None:
    """They are imported by a computed name, so the table of them is checked here."""
    homes = {
        getattr(tsupervise, name).__module__
        for name in tsupervise.__all__
        if name not in {"__version__", "sync"}
    }
    homes = {home for home in homes if home.startswith("tsupervise.")}
    assert {room_of(home) for home in homes} <= set(MAY_IMPORT["front"].split(", "))


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("tsupervise.client", "import tsupervise._session", "tsupervise._session"),
        ("tsupervise.client", "import tsupervise._session as s", "tsupervise._session"),
        ("tsupervise.client", "import trio, tsupervise._session", "tsupervise._session"),
        ("tsupervise.client", "from tsupervise import _session", "tsupervise._session"),
        ("tsupervise.client", "from tsupervise import events, _session as s", "tsupervise._session"),
        ("tsupervise.client", "from tsupervise._session import Session", "tsupervise._session"),
        ("tsupervise.client", "from . import _session", "tsupervise._session"),
        ("tsupervise.client", "from ._session import Session as S", "tsupervise._session"),
        ("tsupervise.client", "from ._session import *", "tsupervise._session"),
        ("tsupervise.client", "def f():\n    from . import _session", "tsupervise._session"),
        ("tsupervise.client", "if TYPE_CHECKING:\n    from ._session import S", "tsupervise._session"),
        ("tsupervise.client", "try:\n    import tsupervise._session\nfinally: pass", "tsupervise._session"),
        ("tsupervise.client", "importlib.import_module('tsupervise._session')", "tsupervise._session"),
        ("tsupervise.client", "import_module('._session', __package__)", "tsupervise._session"),
        ("tsupervise.client", "__import__('tsupervise._session')", "tsupervise._session"),
        ("tsupervise.client", "import_module(name)", "a module whose name is computed"),
        ("tsupervise.client", "from .embedded import open_supervisor", "tsupervise.embedded"),
        ("tsupervise.client", "import trio_websocket._impl", "trio_websocket._impl"),
        ("tsupervise.client", "from trio_websocket import WebSocketConnection", "trio_websocket"),
        ("tsupervise", "from ._session import Session", "tsupervise._session"),
        ("tsupervise", "from . import _session", "tsupervise._session"),
        ("tsupervise._session", "from ._connection import Connection", "tsupervise._connection"),
        ("tsupervise._session", "from .client import Client", "tsupervise.client"),
        ("tsupervise._connection", "from ._websocket import WebSocket", "tsupervise._websocket"),
        ("tsupervise._connection", "from tsupervise import Client", "tsupervise"),
        ("tsupervise._event_log", "import trio.lowlevel", "trio.lowlevel"),
        ("tsupervise._websocket_channel", "from websockets.frames import Frame", "websockets.frames"),
        ("tsupervise.server", "import h11", "h11"),
        ("tsupervise.server", "from .cli import main", "tsupervise.cli"),
        ("tsupervise.__main__", "import click", "click"),
        ("tsupervise._spawn", "import subprocess", "subprocess"),
        ("tsupervise._background", "from ._fd import Fd", "tsupervise._fd"),
        ("tsupervise_protocol.messages", "from .codec import Request", "tsupervise_protocol.codec"),
        ("tsupervise_protocol.codec", "import trio", "trio"),
        ("tsupervise_protocol.codec", "from os import read", "os"),
        ("tsupervise_protocol.codec", "from socket import socket", "socket"),
        ("tsupervise_protocol.codec", "from tsupervise.errors import TsuperviseError", "tsupervise.errors"),
        ("tsupervise_protocol", "from . import codec; import os.path", "os.path"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, found: str) -> None:
    """In every spelling of an import, at every depth, and nothing else is reported."""
    assert violations(source, module) == [found]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tsupervise.client", "import trio\nfrom . import events\nfrom tsupervise_protocol import codec"),
        ("tsupervise.embedded", "from ._connection import Connection\nfrom . import client, _supervisor"),
        ("tsupervise._remote_process", "if TYPE_CHECKING:\n    from .client import Client"),
        ("tsupervise_protocol.codec", "import json\nfrom .messages import METHODS\nfrom . import errors"),
        ("tsupervise.cli", "import os, click\nfrom .server import serve_forever"),
    ],
)
def test_what_is_allowed_is_not_reported(module: str, source: str) -> None:
    """The checker is no stricter than its table."""
    assert violations(source, module) == []


def test_a_module_without_a_place_is_found() -> None:
    """Whoever adds a module says where it belongs."""
    with pytest.raises(AssertionError, match=r"give tsupervise\._helpers a place"):
        violations("import tsupervise.events", "tsupervise._helpers")
