"""The parts of the executor's configuration files that a client asks for. Blocks: for a thread.

The files are those of the Codex command line. They are read and never obeyed: a client merges them with its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from tsupervise_protocol.environment_messages import (
    ConfigLayer,
    ConfigLayers,
    EnvironmentConfigReadParams,
    EnvironmentConfigReadResult,
    KeyPath,
)
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.path_uri import file_uri

from ._disk import os_text, shown
from ._environment_info import home_directory, uri_or_none
from ._files import open_to_read, read_up_to

SYSTEM_FOLDER = b"/etc/codex"
"""Where the files of the whole machine are."""

MAX_FILE_BYTES = 1 << 20
"""The largest file that is parsed: some seconds' work, for what has a few kilobytes."""


_TOO_DEEP = "it is nested too deeply"


class _Layer(NamedTuple):
    source: str
    """`{}` stands for the path."""
    path: bytes
    is_system: bool = False
    """Whether a client's layer from elsewhere comes behind this one."""


def read_environment_config(
    params: EnvironmentConfigReadParams, environ: Mapping[str, str], system_folder: bytes = SYSTEM_FOLDER
) -> EnvironmentConfigReadResult:
    """Read what was asked for, lowest precedence first. All files must be sound, whatever is asked for.

    Args:
        environ: the daemon's own; CODEX_HOME and HOME of it say where the user's files are.

    Raises:
        RpcError: INTERNAL_ERROR, a file is broken or cannot be read, or CODEX_HOME is no folder.
    """
    home = home_directory(environ)
    codex_home = _codex_home(environ.get("CODEX_HOME"), home)
    config = (
        _Layer("system ({})", system_folder + b"/config.toml", is_system=True),
        _Layer("user ({})", codex_home + b"/config.toml"),
        _Layer("legacy managed_config.toml ({})", system_folder + b"/managed_config.toml"),
    )
    requirements = (_Layer("{}", system_folder + b"/requirements.toml", is_system=True),)
    return EnvironmentConfigReadResult(
        user_home_dir=uri_or_none(home),
        codex_home_dir=file_uri(codex_home),
        hostname=socket.gethostname(),
        config=_read_layers(config, params.config_paths),
        requirements=_read_layers(requirements, params.requirements_paths),
    )


def _codex_home(named: str | None, home: str | None) -> bytes:
    if not named:
        if home is None:
            text = "the user of the daemon has no home directory, and CODEX_HOME is not set"
            raise RpcError(ErrorCode.INTERNAL_ERROR, text)
        return os.path.abspath(os.path.join(os.fsencode(home), b".codex"))
    path = os.path.realpath(os.fsencode(named))
    if not os.path.isdir(path):
        text = f"CODEX_HOME of the daemon is not a folder: {shown(path)}"
        raise RpcError(ErrorCode.INTERNAL_ERROR, text)
    return path


def _read_layers(layers: Sequence[_Layer], key_paths: Sequence[KeyPath]) -> ConfigLayers:
    import tomli_w

    found: list[ConfigLayer] = []
    insertion_index = 0
    for layer in layers:
        selected = _select(_parsed(layer.path), key_paths)
        if selected:
            try:
                text = tomli_w.dumps(selected)
            except RecursionError:  # it goes deeper to write than to read
                raise _broken(layer.path, _TOO_DEEP) from None
            found.append(
                ConfigLayer(
                    source=layer.source.format(layer.path.decode("utf-8", "replace")),
                    base_dir=file_uri(os.path.dirname(layer.path)),
                    toml=text,
                )
            )
            if layer.is_system:
                insertion_index = len(found)
    return ConfigLayers(layers=found, cloud_insertion_index=insertion_index)


def _parsed(path: bytes) -> dict[str, Any]:
    """What a file says; nothing if there is none."""
    import tomllib

    try:
        with open_to_read(path, follow=True) as fd:
            data = read_up_to(fd, MAX_FILE_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _broken(path, os_text(error)) from None
    except RpcError as error:
        raise _broken(path, error.message) from None
    if data is None:
        raise _broken(path, f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError:
        raise _broken(path, _TOO_DEEP) from None
    except UnicodeDecodeError as error:
        raise _broken(path, f"byte {error.start} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise _broken(path, str(error)) from None


def _select(table: dict[str, Any], key_paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The parts of a table that are named. What is met on the way and is no table is told whole: a client that
    merges must see that it stands there. So is an empty table."""
    selected: dict[str, Any] = {}
    for key, value in table.items():
        below = [path[1:] for path in key_paths if path[0] == key]
        if below and all(below) and isinstance(value, dict):
            value = _select(cast("dict[str, Any]", value), below)
        if below:
            selected[key] = value
    return selected


def _broken(path: bytes, reason: str) -> RpcError:
    return RpcError(ErrorCode.INTERNAL_ERROR, f"cannot use the configuration in {shown(path)}: {reason}")
