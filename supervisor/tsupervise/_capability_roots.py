"""Plugins and skills below a folder: their files, found and read for a client that knows what they mean.

Nothing found is obeyed or checked beyond what it takes to find the next file. Blocks: for a thread.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable

import msgspec

from tsupervise_protocol.environment_messages import (
    CapabilityFile,
    DiscoveredRoot,
    PluginFiles,
    SkillFiles,
)
from tsupervise_protocol.errors import RpcError
from tsupervise_protocol.file_messages import WalkOptions
from tsupervise_protocol.path_uri import PathUri, PathUriError

from ._disk import os_text
from ._files import open_to_read, read_up_to
from ._walk import walk

MAX_ROOTS = 128
"""How many roots one request may name; the reference takes as many."""

FILE_BYTES = 1 << 20
"""The largest file that is told, in bytes; larger ones are passed over. The reference's bound."""

ROOT_BYTES = 16 << 20
"""How many bytes of files are told of one root. The reference's bound."""

_WALK = WalkOptions(max_depth=6, max_directories=2_000, max_entries=20_000, follow_directory_symlinks=True)
"""How far is searched below a root; the reference's bounds."""

_MANIFEST_FOLDERS = (".codex-plugin", ".claude-plugin", ".cursor-plugin")
"""Where a plugin has its manifest, the first that there is."""

_MANIFESTS = tuple(f"{folder}/plugin.json".encode() for folder in _MANIFEST_FOLDERS)

_SKILL = re.compile(r".*/SKILL\.md")
_PLUGIN = re.compile(rf"(.*)/({'|'.join(map(re.escape, _MANIFEST_FOLDERS))})/plugin\.json")

Check = Callable[[], object]


def discover(root_id: str, root: PathUri, check: Check) -> DiscoveredRoot:
    """Find and read the files of one root. What is wrong with it is in the result.

    Args:
        check: called between steps; raises when nobody wants the rest any more.
    """
    try:
        path = root.native()
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except PathUriError as error:
        return _failed(root_id, root, f"cannot look at the capability root: {error}")
    except OSError as error:
        return _failed(root_id, root, f"cannot look at the capability root {root}: {os_text(error)}")
    if not is_folder:
        return _failed(root_id, root, f"the capability root {root} is not a directory")
    try:
        return _Discovery(root, check).run(root_id, path)
    except OSError as error:
        return _failed(root_id, root, f"cannot list the capability root {root}: {os_text(error)}")


def _failed(root_id: str, root: PathUri, text: str) -> DiscoveredRoot:
    return DiscoveredRoot(id=root_id, path=str(root), error=text)


class _Discovery:
    """One root being discovered."""

    def __init__(self, root: PathUri, check: Check) -> None:
        self._root = root
        self._check = check
        self._room = ROOT_BYTES
        self._warnings: list[str] = []

    def run(self, root_id: str, path: bytes) -> DiscoveredRoot:
        folder = str(self._root).removesuffix("/")
        found = walk(path, folder, _WALK, self._check)
        self._warnings += [f"cannot look at {error.path}: {error.message}" for error in found.errors]
        if found.truncated:
            self._warnings.append(f"{self._root} has more than is searched: not everything has been found")
        files = [entry.path for entry in found.entries if entry.kind == "file"]
        manifest = self._first_manifest(self._root)
        return DiscoveredRoot(
            id=root_id,
            path=str(self._root),
            plugin=None if manifest is None else self._plugin(manifest),
            namespace_manifests=[
                *filter(None, [manifest or self._manifest_above()]),
                *self._read_all(_nested_manifests(folder, files)),
            ],
            skills=[
                SkillFiles(instructions=skill, metadata=self._metadata(PathUri.parse(skill.path)))
                for skill in self._read_all(filter(_SKILL.fullmatch, sorted(files)))
            ],
            warnings=self._warnings,
        )

    def _first_manifest(self, folder: PathUri) -> CapabilityFile | None:
        return next((file for name in _MANIFESTS if (file := self._read_below(folder, name))), None)

    def _manifest_above(self) -> CapabilityFile | None:
        folder = self._root.parent
        while folder is not None:
            if manifest := self._first_manifest(folder):
                return manifest
            folder = folder.parent
        return None

    def _plugin(self, manifest: CapabilityFile) -> PluginFiles:
        declared = _declarations(manifest.contents)
        servers = None
        if not bytes(declared.mcp_servers).startswith(b"{"):
            servers = self._declared(f"mcpServers in {manifest.path}", declared.mcp_servers, b".mcp.json")
        apps = self._declared(f"apps in {manifest.path}", declared.apps, b".app.json")
        return PluginFiles(manifest=manifest, mcp_config=servers, apps_config=apps)

    def _declared(self, place: str, declared: msgspec.Raw, usual: bytes) -> CapabilityFile | None:
        """The file that a manifest names, or the one that is usual if it names none that may be."""
        try:
            text = msgspec.json.decode(declared, type=str)
        except msgspec.DecodeError:
            return self._read_below(self._root, usual)
        name = text.encode().removeprefix(b"./")
        try:
            if not text.startswith("./"):
                raise ValueError("the path must begin with ./")
            target = self._root.join(name)
            if not name or b".." in re.split(rb"[/\\]", name) or not target.starts_with(self._root):
                raise ValueError("the path must lead below the capability root")
        except ValueError as error:
            self._warnings.append(f"{place} is passed over: {error}")
            return self._read_below(self._root, usual)
        return self._read(target)

    def _metadata(self, skill: PathUri) -> CapabilityFile | None:
        return self._read_below(skill, b"../agents/openai.yaml")

    def _read_all(self, uris: Iterable[str]) -> list[CapabilityFile]:
        return [file for uri in uris if (file := self._read(PathUri.parse(uri)))]

    def _read_below(self, folder: PathUri, name: bytes) -> CapabilityFile | None:
        try:
            return self._read(folder.join(name))
        except PathUriError:  # in the opaque form: nothing is below
            return None

    def _read(self, uri: PathUri) -> CapabilityFile | None:
        """The text of a regular file, if there is one; what is wrong with it is a warning."""
        self._check()
        try:
            contents = self._text(uri.native())
        except (FileNotFoundError, PathUriError):
            return None
        except OSError as error:
            self._warnings.append(f"cannot read {uri}: {os_text(error)}")
        except RpcError as error:
            self._warnings.append(f"cannot read {uri}: {error.message}")
        except UnicodeDecodeError as error:
            self._warnings.append(f"{uri} is passed over: byte {error.start} is not UTF-8")
        except _TooMuch as error:
            self._warnings.append(f"{uri} is passed over: {error}")
        else:
            return None if contents is None else CapabilityFile(path=str(uri), contents=contents)
        return None

    def _text(self, path: bytes) -> str | None:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            return None
        # By its size first: what is passed over is not read, however many there are.
        limit = min(FILE_BYTES, self._room)
        data = None
        if found.st_size <= limit:
            with open_to_read(path, follow=True) as fd:
                data = read_up_to(fd, limit)
        if data is None:
            if found.st_size > FILE_BYTES or limit == FILE_BYTES:
                raise _TooMuch(f"it has more than {FILE_BYTES} bytes")
            raise _TooMuch(f"the files of this root have more than {ROOT_BYTES} bytes")
        text = data.decode()
        self._room -= len(data)
        return text


class _TooMuch(Exception):
    """A file is larger than what is told."""


class _Declarations(msgspec.Struct, rename="camel"):
    """What a manifest says of other files; the rest of it is the client's."""

    mcp_servers: msgspec.Raw = msgspec.Raw(b"null")
    """The path of a file, or servers themselves; then no file is read."""
    apps: msgspec.Raw = msgspec.Raw(b"null")
    """The path of a file."""


def _declarations(contents: str) -> _Declarations:
    try:
        return msgspec.json.decode(contents, type=_Declarations)
    except (msgspec.DecodeError, RecursionError):
        return _Declarations()


def _nested_manifests(root: str, files: list[str]) -> list[str]:
    """The first manifest of each plugin below a root, by the plugins' folders."""
    plugins: dict[str, list[str]] = {}
    for match in filter(None, map(_PLUGIN.fullmatch, files)):
        if match[1].startswith(f"{root}/"):
            plugins.setdefault(match[1], []).append(match[2])
    return [
        f"{plugin}/{min(folders, key=_MANIFEST_FOLDERS.index)}/plugin.json"
        for plugin, folders in sorted(plugins.items())
    ]
