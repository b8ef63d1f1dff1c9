"""Random calls about a small folder: each must leave what a model of a folder says, and answer as it does.

The model is a tree in memory: names to bytes, folders, or texts of links. It knows the rules of the methods and
nothing of files; so does whoever reads it.
"""

from __future__ import annotations

import base64
import os
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemons import Daemon
from tsupervise_protocol.path_uri import file_uri
from wire import Peer, connect

INVALID_REQUEST, SYSTEM, NOT_FOUND = -32600, -32603, -32004

MAX_LINKS = 40
"""The kernel's."""


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Unsure(Exception):
    """A step that the model leaves out."""


@dataclass(eq=False)
class File:
    data: bytes


@dataclass(eq=False)
class Link:
    text: str
    """Relative, one or two names."""


@dataclass(eq=False)
class Folder:
    entries: dict[str, Node] = field(default_factory=dict[str, "Node"])


Node = File | Link | Folder


@dataclass(eq=False)
class Model:
    root: Folder = field(default_factory=Folder)

    def place(self, path: tuple[str, ...], budget: list[int]) -> tuple[Folder, str]:
        """The folder that a path's last name is in; links before it are followed."""
        way: list[Folder] = [self.root]
        self._walk(way, path[:-1], budget)
        return way[-1], path[-1]

    def _walk(self, way: list[Folder], names: tuple[str, ...], budget: list[int]) -> None:
        for name in names:
            if name == "..":
                if len(way) > 1:
                    way.pop()
                continue
            node = way[-1].entries.get(name)
            if node is None:
                raise Refused(NOT_FOUND)
            if isinstance(node, Link):
                budget[0] -= 1
                if budget[0] < 0:
                    raise Refused(SYSTEM)
                self._walk(way, tuple(node.text.split("/")), budget)
            elif isinstance(node, Folder):
                way.append(node)
            else:
                raise Refused(SYSTEM)

    def lookup(self, path: tuple[str, ...], *, follow: bool = True) -> tuple[Folder, str, Node | None]:
        """Where a path leads: the folder, the name in it, and what is there."""
        budget = [MAX_LINKS]
        way: list[Folder] = [self.root]
        names = path
        while True:
            self._walk(way, names[:-1], budget)
            folder, name = way[-1], names[-1]
            if name == "..":
                raise AssertionError("texts of links end with a name")
            node = folder.entries.get(name)
            if not (follow and isinstance(node, Link)):
                return folder, name, node
            budget[0] -= 1
            if budget[0] < 0:
                raise Refused(SYSTEM)
            names = tuple(node.text.split("/"))

    # --- the methods ---

    def read(self, path: tuple[str, ...]) -> dict[str, Any]:
        node = self.lookup(path)[2]
        if node is None:
            raise Refused(NOT_FOUND)
        if not isinstance(node, File):
            raise Refused(INVALID_REQUEST)
        return {"dataBase64": base64.b64encode(node.data).decode()}

    def write(self, path: tuple[str, ...], data: bytes) -> dict[str, Any]:
        folder, name, node = self.lookup(path)
        if isinstance(node, Folder):
            raise Refused(SYSTEM)
        if isinstance(node, File):
            node.data = data
        else:
            folder.entries[name] = File(data)
        return {}

    def create(self, path: tuple[str, ...], recursive: bool) -> dict[str, Any]:
        try:
            folder, name, node = self.lookup(path, follow=False)
        except Refused as refused:
            if not recursive or refused.code != NOT_FOUND:
                raise
            self.create(path[:-1], recursive=True)
            folder, name, node = self.lookup(path, follow=False)
        if node is None:
            folder.entries[name] = Folder()
        elif not recursive or not self.is_folder(path):
            raise Refused(SYSTEM)
        return {}

    def is_folder(self, path: tuple[str, ...]) -> bool:
        try:
            return isinstance(self.lookup(path)[2], Folder)
        except Refused:
            return False

    def metadata(self, path: tuple[str, ...]) -> dict[str, Any]:
        link = isinstance(self.lookup(path, follow=False)[2], Link)
        node = self.lookup(path)[2]
        if node is None:
            raise Refused(NOT_FOUND)
        return {
            "isDirectory": isinstance(node, Folder),
            "isFile": isinstance(node, File),
            "isSymlink": link,
            **({"size": len(node.data)} if isinstance(node, File) else {}),
        }

    def entries(self, path: tuple[str, ...]) -> dict[str, Any]:
        node = self.lookup(path)[2]
        if node is None:
            raise Refused(NOT_FOUND)
        if not isinstance(node, Folder):
            raise Refused(SYSTEM)
        found: dict[str, Any] = {}
        for name, entry in node.entries.items():
            target: Node | None = entry
            if isinstance(entry, Link):
                try:
                    target = self.lookup((*self.path_to(node), name))[2]
                except Refused:
                    target = None
            if target is not None:
                found[name] = (isinstance(target, Folder), isinstance(target, File))
        return found

    def path_to(self, folder: Folder) -> tuple[str, ...]:
        def search(node: Folder, path: tuple[str, ...]) -> tuple[str, ...] | None:
            if node is folder:
                return path
            for name, entry in node.entries.items():
                if isinstance(entry, Folder) and (found := search(entry, (*path, name))) is not None:
                    return found
            return None

        path = search(self.root, ())
        assert path is not None
        return path

    def remove(self, path: tuple[str, ...], recursive: bool, force: bool) -> dict[str, Any]:
        try:
            folder, name, node = self.lookup(path, follow=False)
            if node is None:
                raise Refused(NOT_FOUND)
        except Refused as refused:
            if force and refused.code == NOT_FOUND:
                return {}
            raise
        if isinstance(node, Folder) and node.entries and not recursive:
            raise Refused(SYSTEM)
        del folder.entries[name]
        return {}

    def copy(self, source: tuple[str, ...], target: tuple[str, ...], recursive: bool) -> dict[str, Any]:
        node = self.lookup(source, follow=False)[2]
        if node is None:
            raise Refused(NOT_FOUND)
        if isinstance(node, Link):
            folder, name, there = self.lookup(target, follow=False)
            if there is not None:
                raise Refused(SYSTEM)
            folder.entries[name] = Link(node.text)
        elif isinstance(node, File):
            folder, name, there = self.lookup(target)
            if there is node:
                raise Refused(INVALID_REQUEST)
            self.write(target, node.data)
        elif not recursive:
            raise Refused(INVALID_REQUEST)
        else:
            # Only to where nothing is, in a folder that is there: else it depends on the order of entries how
            # far a copy comes.
            try:
                folder, name, there = self.lookup(target, follow=False)
            except Refused:
                raise Unsure from None
            if there is not None:
                raise Unsure
            if self.path_to(folder)[: len(self.path_to(node))] == self.path_to(node):
                raise Refused(INVALID_REQUEST)
            folder.entries[name] = deepcopy(node)
        return {}

    def link(self, path: tuple[str, ...], text: str) -> None:
        folder, name, there = self.lookup(path, follow=False)
        if there is not None:
            raise Unsure
        folder.entries[name] = Link(text)


names = st.sampled_from(["a", "b", "c\n", "\u00e4 %"])
paths = st.lists(names, min_size=1, max_size=3).map(lambda names: ("top", *names))
"""One below the top, so that a link upwards leads to where the model knows what is."""
texts = st.one_of(names, st.tuples(names, names).map("/".join), names.map(lambda name: f"../{name}"))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("readFile"), paths),
        st.tuples(st.just("getMetadata"), paths),
        st.tuples(st.just("readDirectory"), paths),
        st.tuples(st.just("writeFile"), paths, st.binary(max_size=5)),
        st.tuples(st.just("createDirectory"), paths, st.booleans()),
        st.tuples(st.just("remove"), paths, st.booleans(), st.booleans()),
        st.tuples(st.just("copy"), paths, paths, st.booleans()),
        st.tuples(st.just("link"), paths, texts),
    ),
    min_size=1,
    max_size=40,
)


async def ask(peer: Peer, top: Path, step: tuple[Any, ...]) -> tuple[Any, int | None]:
    """The result of a step, in the words of the model, or the code of its error."""

    def uri(path: tuple[str, ...]) -> str:
        return file_uri(os.fsencode(top.joinpath(*path)))

    method, path, *rest = step
    params: dict[str, Any] = {"path": uri(path)}
    match method:
        case "writeFile":
            params["dataBase64"] = base64.b64encode(rest[0]).decode()
        case "createDirectory":
            params["recursive"] = rest[0]
        case "remove":
            params |= {"recursive": rest[0], "force": rest[1]}
        case "copy":
            params = {"sourcePath": uri(path), "destinationPath": uri(rest[0]), "recursive": rest[1]}
        case _:
            pass
    answer = await peer.request(f"fs/{method}", params)
    if answer.error is not None:
        return None, answer.code
    result = answer.result
    if method == "readDirectory":
        result = {e["fileName"]: (e["isDirectory"], e["isFile"]) for e in result["entries"]}
    elif method == "getMetadata":
        result = {key: result[key] for key in ("isDirectory", "isFile", "isSymlink", "size")}
        if not result["isFile"]:
            del result["size"]
    return result, None


def expect(model: Model, step: tuple[Any, ...]) -> tuple[Any, int | None]:
    method, path, *rest = step
    calls: dict[str, Any] = {
        "readFile": model.read,
        "getMetadata": model.metadata,
        "readDirectory": model.entries,
        "writeFile": model.write,
        "createDirectory": model.create,
        "remove": model.remove,
        "copy": model.copy,
        "link": model.link,
    }
    try:
        return calls[method](path, *rest), None
    except Refused as refused:
        return None, refused.code


def found_at(path: Path) -> Any:
    """What is on the disk, in plain values."""
    if path.is_symlink():
        return "link", os.readlink(path)
    if path.is_dir():
        return {entry.name: found_at(entry) for entry in path.iterdir()}
    return path.read_bytes()


def plain(node: Node) -> Any:
    """The same of the model."""
    match node:
        case Link(text):
            return "link", text
        case Folder(entries):
            return {name: plain(entry) for name, entry in entries.items()}
        case File(data):
            return data


async def play(url: str, top: Path, history: list[tuple[Any, ...]]) -> None:
    os.makedirs(top / "top")
    model = Model(Folder({"top": Folder()}))
    async with connect(url) as peer:
        for step in history:
            try:
                expected = expect(model, step)
            except Unsure:
                continue
            if step[0] != "link":
                assert await ask(peer, top, step) == expected, step
            elif expected[1] is None:
                os.symlink(step[2], top.joinpath(*step[1]))
    assert found_at(top) == plain(model.root)


@pytest.mark.case(309)
def test_calls_in_any_order_do_what_the_model_says(
    daemon: Daemon, tmp_path: Path, long_profile: bool
) -> None:
    """Every answer, every error by its code, and in the end all that is on the disk."""
    numbers = count()

    @settings(
        max_examples=3_000 if long_profile else 30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(history=steps)
    def check(history: list[tuple[Any, ...]]) -> None:
        trio.run(play, daemon.url, tmp_path / str(next(numbers)), history)

    check()
