"""Files at a server by the Python client: each thing that can be done with a path, and files that are open."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from doors import Door
from tsupervise import (
    Client,
    FileError,
    NotSupported,
    RemoteEntry,
    TsuperviseError,
    WalkedEntry,
)
from tsupervise._remote_files import WHOLE_BYTES
from tsupervise_protocol.file_messages import MAX_BLOCK_BYTES

NO_UPDATE = "the reference can only write a file anew"


@pytest.fixture
async def client(door: Door) -> AsyncGenerator[Client]:
    async with door.open() as client:
        yield client


# --- whole files -----------------------------------------------------------------------------------------


@pytest.mark.case(340)
@pytest.mark.parametrize("size", [0, 1, 100_000, WHOLE_BYTES, WHOLE_BYTES + 1, WHOLE_BYTES + MAX_BLOCK_BYTES])
async def test_what_is_written_is_read(client: Client, tmp_path: Path, size: int) -> None:
    """A file of any size comes back byte for byte, in one message or in blocks."""
    data = os.urandom(size)
    path = tmp_path / "file"
    await client.files.write_file(path, data)
    assert path.read_bytes() == data
    assert await client.files.read_file(path) == data
    await client.files.write_file(path, b"shorter"[:size])
    assert path.read_bytes() == b"shorter"[:size]


@pytest.mark.case(340)
@pytest.mark.parametrize("name", [b"sp ace", b"new\nline", b"n\xff\xfe", b"%41#?", "größe".encode()])
async def test_any_name_of_the_system_is_a_path(client: Client, tmp_path: Path, name: bytes) -> None:
    """As bytes, as text and as a path object; what comes back as a path is the same again."""
    path = os.fsencode(tmp_path) + b"/" + name
    await client.files.write_file(path, b"here")
    assert await client.files.read_file(os.fsdecode(path)) == b"here"
    assert await client.files.read_file(Path(os.fsdecode(path))) == b"here"
    assert os.fsencode(await client.files.canonicalize(path)) == path


@pytest.mark.case(340)
@pytest.mark.ours_only("the reference tells names that are not UTF-8 with losses only")
async def test_names_that_are_not_text_are_listed_as_they_are(client: Client, tmp_path: Path) -> None:
    """Two names that look the same once they are text stay two."""
    names = [b"a", b"n\xfe", b"n\xff"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch()
    listed = await client.files.list_directory(tmp_path)
    assert [os.fsencode(entry.name) for entry in listed] == names


@pytest.mark.case(341)
async def test_an_error_is_the_builtin_one_of_its_cause(client: Client, tmp_path: Path) -> None:
    """`except FileNotFoundError` works, and so does catching all that a client raises."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    files = client.files
    with pytest.raises(FileNotFoundError, match=r"missing.*No such file") as missing:
        await files.read_file(tmp_path / "missing")
    assert isinstance(missing.value, TsuperviseError)
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, str(tmp_path / "missing"))
    with pytest.raises(NotADirectoryError):
        await files.stat(tmp_path / "file" / "below")
    with pytest.raises(FileExistsError):
        await files.make_directory(tmp_path / "folder")
    with pytest.raises(IsADirectoryError):
        await files.write_file(tmp_path / "folder", b"")
    with pytest.raises(FileError, match="not a file"):
        await files.read_file(tmp_path / "folder")
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(FileError, match="File too large") as too_large:
        await files.read_file(tmp_path / "file", max_bytes=4)
    assert too_large.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        async with client.open_file(tmp_path / "missing"):
            pass
    with pytest.raises(ValueError, match="not absolute"):
        await files.stat("relative")
    # Of two paths, either may be at fault.
    with pytest.raises(FileNotFoundError, match=r"/file' -> '.*/no/file'") as missing:
        await files.copy(tmp_path / "file", tmp_path / "no" / "file")
    assert missing.value.filename2 == str(tmp_path / "no" / "file")


# --- folders ---------------------------------------------------------------------------------------------


@pytest.mark.case(340)
async def test_nothing_is_made_or_removed_that_was_not_asked_for(client: Client, tmp_path: Path) -> None:
    """Parents are made, and what is in a directory is removed, only if one says so."""
    files = client.files
    deep = tmp_path / "a" / "b"
    with pytest.raises(FileNotFoundError):
        await files.make_directory(deep)
    await files.make_directory(deep, parents=True)
    await files.make_directory(deep, parents=True)
    assert deep.is_dir()
    with pytest.raises(FileError) as full:
        await files.remove(tmp_path / "a")
    assert full.value.errno == errno.ENOTEMPTY
    with pytest.raises(FileNotFoundError):
        await files.remove(tmp_path / "missing")
    await files.remove(tmp_path / "missing", missing_ok=True)
    with pytest.raises(FileError, match="recursive"):
        await files.copy(tmp_path / "a", tmp_path / "c")
    await files.copy(tmp_path / "a", tmp_path / "c", recursive=True)
    await files.remove(tmp_path / "a", recursive=True)
    assert await files.exists(tmp_path / "c" / "b")
    assert not await files.exists(tmp_path / "a")


@pytest.mark.case(340)
async def test_directories_are_listed_and_walked(client: Client, tmp_path: Path) -> None:
    """With links told as what they lead to; a walk is bounded, and says if there is more."""
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "folder" / ".hidden").mkdir(parents=True)
    (tmp_path / "folder" / ".hidden" / "below").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert await client.files.list_directory(tmp_path) == [
        RemoteEntry("file", is_directory=False, is_file=True),
        RemoteEntry("folder", is_directory=True, is_file=False),
        RemoteEntry("link", is_directory=False, is_file=True),
    ]
    found = await client.files.stat(tmp_path / "link")
    assert (found.is_file, found.is_symlink, found.size) == (True, True, 5)
    walk = await client.files.walk(tmp_path)
    assert WalkedEntry(str(tmp_path / "folder" / ".hidden" / "below"), "file") in walk.entries
    assert (len(walk.entries), walk.errors, walk.truncated) == (4, [], False)
    assert len((await client.files.walk(tmp_path, prune_hidden=True)).entries) == 3
    assert (await client.files.walk(tmp_path, max_entries=1)).truncated
    with pytest.raises(FileNotFoundError):
        await client.files.walk(tmp_path / "missing")


@pytest.mark.case(342)
async def test_a_watch_tells_when_a_path_comes_into_being(client: Client, tmp_path: Path) -> None:
    """Once; a later watch ends it; one that cannot watch says so."""
    first = await client.files.watch_missing([tmp_path / "never"])
    second = await client.files.watch_missing([tmp_path / "a" / "b"])
    assert not first.is_watching
    await first.wait()
    assert second.is_watching
    (tmp_path / "a").mkdir()
    await second.wait()
    assert not second.is_watching
    assert not (await client.files.watch_missing([tmp_path])).is_watching


# --- what an agent looks for -----------------------------------------------------------------------------


@pytest.mark.case(342)
async def test_configuration_and_plugins_are_found(client: Client, tmp_path: Path) -> None:
    """Directories come back in their order, each with what is in it or what is wrong with it."""
    skill = tmp_path / "root" / "skills" / "one"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text("how to do it")
    found, missing = await client.files.discover_roots([tmp_path / "root", tmp_path / "missing"])
    assert [skill.instructions.contents for skill in found.skills] == ["how to do it"]
    assert (found.id, found.error, missing.id) == ("0", None, "1")
    assert missing.error
    config = await client.files.read_config(tmp_path, [["no_such_table", "key"]])
    assert (config.config.layers, config.requirements.layers) == ([], [])
    with pytest.raises(ValueError, match="at least one"):
        await client.files.read_config(tmp_path, [])


# --- open files ------------------------------------------------------------------------------------------


@pytest.mark.case(343)
@pytest.mark.parametrize("size", [0, 1, 3 * MAX_BLOCK_BYTES, 9 * MAX_BLOCK_BYTES + 17])
async def test_a_file_is_read_block_by_block(client: Client, tmp_path: Path, size: int) -> None:
    """In order, from wherever one begins, and its end is told once and again."""
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    async with client.open_file(tmp_path / "file") as file:
        assert file.size == size
        blocks = [block async for block in file]
        assert b"".join(blocks) == data
        assert all(len(block) == MAX_BLOCK_BYTES for block in blocks[:-1])
        assert file.position == size
        assert await file.read_some() == b""
        assert await file.read_at(size // 2, 2 * MAX_BLOCK_BYTES) == data[size // 2 :][: 2 * MAX_BLOCK_BYTES]
    async with client.open_file(tmp_path / "file", offset=size // 3) as file:
        assert b"".join([block async for block in file]) == data[size // 3 :]


@pytest.mark.case(343)
async def test_a_file_is_written_in_blocks_and_at_places(client: Client, tmp_path: Path) -> None:
    """What is asked for is there at the end of the block, with zeros where nothing was written."""
    path = tmp_path / "file"
    path.write_bytes(b"old" * 1000)
    path.chmod(0o751)
    data = os.urandom(5 * MAX_BLOCK_BYTES + 3)
    async with client.open_file(path, "replace") as file:
        await file.write(data[:10])
        await file.write(data[10:])
        await file.write_at(len(data) + 2, b"end")
        assert file.position == len(data)
        await file.flush()
        assert path.read_bytes() == data + b"\0\0end"
    assert path.stat().st_mode & 0o777 == 0o751
    async with client.open_file(path, "replace"):
        pass
    assert path.read_bytes() == b""


@pytest.mark.case(344)
@pytest.mark.ours_only(NO_UPDATE)
async def test_a_file_can_be_written_into(client: Client, tmp_path: Path) -> None:
    """In the mode `update` what is not written over stays; a file that is not there is made."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with client.open_file(path, "update", offset=4) as file:
        await file.write(b"ab")
    assert path.read_bytes() == b"0123ab6789"
    async with client.open_file(tmp_path / "new", "update") as file:
        await file.write(b"new")
    assert (tmp_path / "new").read_bytes() == b"new"


@pytest.mark.case(344)
async def test_a_server_that_cannot_write_into_a_file_is_not_asked_to(door: Door, tmp_path: Path) -> None:
    """It would empty the file, or refuse in words of its own."""
    if door.is_ours:
        return
    async with door.open() as client:
        with pytest.raises(NotSupported, match="tsuperviseFileUpdate"):
            async with client.open_file(tmp_path / "file", "update"):
                pass


@pytest.mark.case(355)
async def test_a_file_is_made_with_a_mode_where_the_server_can(client: Client, tmp_path: Path) -> None:
    """Whole or in blocks; a server that cannot is not asked to, and what is no mode is refused here."""
    sizes = {"small": 1, "large": WHOLE_BYTES + 1}
    if not client.has("tsuperviseFileModes"):
        with pytest.raises(NotSupported, match="tsuperviseFileModes"):
            await client.files.write_file(tmp_path / "small", b"", unix_mode=0o700)
        with pytest.raises(NotSupported, match="tsuperviseFileModes"):
            async with client.open_file(tmp_path / "small", "replace", unix_mode=0o700):
                pass
        assert not (tmp_path / "small").exists()
        return
    for name, size in sizes.items():
        await client.files.write_file(tmp_path / name, bytes(size), unix_mode=0o700)
        assert (await client.files.stat(tmp_path / name)).unix_mode == 0o700
        async with client.open_file(tmp_path / name) as file:
            assert file.unix_mode == 0o700
    for mode in (-1, 0o1000):
        with pytest.raises(ValueError, match="unix_mode"):
            await client.files.write_file(tmp_path / "small", b"", unix_mode=mode)


@pytest.mark.case(343)
async def test_an_open_file_refuses_what_makes_no_sense(client: Client, tmp_path: Path) -> None:
    """The wrong direction, after its end, and places before its beginning."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    async with client.open_file(path) as file:
        with pytest.raises(io.UnsupportedOperation):
            await file.write(b"")
        with pytest.raises(ValueError, match="below 0"):
            await file.read_at(-1, 1)
        await file.aclose()
        await file.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await file.read_some()
    async with client.open_file(path, "replace") as file:
        with pytest.raises(io.UnsupportedOperation):
            await file.read_some()
    with pytest.raises(ValueError, match="below 0"):
        async with client.open_file(path, offset=-1):
            pass


@pytest.mark.case(343)
async def test_handles_do_not_pile_up(client: Client, tmp_path: Path) -> None:
    """However a block is left, its file is closed there: a connection may have 128 open."""
    (tmp_path / "file").write_bytes(os.urandom(3 * MAX_BLOCK_BYTES))
    for turn in range(150):
        with trio.CancelScope() as scope:
            async with client.open_file(tmp_path / "file") as file:
                if turn % 3 == 0:
                    await file.read_some()
                elif turn % 3 == 1:
                    scope.cancel()
                    await file.read_some()
