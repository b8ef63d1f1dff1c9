"""`tsupervise cp`, `cat` and `ls`, as a person and a script use them, at each server and over links that fail."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from daemons import Daemon, running, start_daemon
from fault_proxy import Direction, fault_proxy
from procfs import listening_pid, status_field, until
from small_disk import small_file_system
from terminals import PATIENCE_S, TSUPERVISE, Terminal, exit_code, spawn
from tsupervise import connect
from tsupervise._copy_command import copy
from tsupervise._progress import Progress

# The test process has threads by now; pexpect's child does nothing but exec.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

MIB = 1 << 20

LOSSY = "the reference tells names that are not UTF-8 with losses only"


@dataclass
class Person:
    """Somebody at a shell, for whom one server is the daemon."""

    url: str
    folder: Path

    @property
    def env(self) -> Mapping[str, str]:
        return {**os.environ, "TSUPERVISE_URL": self.url, "TERM": "xterm"}

    def run(self, *arguments: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [TSUPERVISE, *arguments],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
        )

    def say(self, *arguments: str | bytes | Path) -> bytes:
        """Run what succeeds without a word on stderr; returns what it prints."""
        ended = self.run(*arguments)
        assert (ended.returncode, ended.stderr) == (0, b"")
        return ended.stdout

    def fail(self, *arguments: str | bytes | Path, code: int = 125) -> str:
        """Run what fails; returns the one line, or more, that it says."""
        ended = self.run(*arguments)
        assert (ended.returncode, ended.stdout) == (code, b"")
        lines = ended.stderr.decode(errors="surrogateescape").splitlines()
        assert lines
        assert all(line.startswith("tsupervise: ") for line in lines)
        return "\n".join(line.removeprefix("tsupervise: ") for line in lines)


@pytest.fixture
def person(daemon: Daemon, tmp_path: Path) -> Person:
    return Person(daemon.url, tmp_path)


def there(path: Path | bytes) -> bytes:
    """A path at the daemon, as it is spelled."""
    return b":" + os.fsencode(path)


def tree_of(folder: Path) -> dict[bytes, bytes | None]:
    """What is in a folder: the bytes of files, None for folders."""
    root = os.fsencode(folder)
    found: dict[bytes, bytes | None] = {}
    for path, folders, files in os.walk(root):
        found.update((os.path.relpath(os.path.join(path, name), root), None) for name in folders)
        for name in files:
            with open(os.path.join(path, name), "rb") as file:
                found[os.path.relpath(os.path.join(path, name), root)] = file.read()
    return found


# --- cp --------------------------------------------------------------------------------------------------


@pytest.mark.case(350)
@pytest.mark.parametrize("size", [0, 3 * MIB + 1])
def test_a_file_goes_there_and_comes_back(person: Person, tmp_path: Path, size: int) -> None:
    """Byte for byte, without a word; into a folder under its own name; over a file, which keeps its mode."""
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "folder").mkdir()
    existing = tmp_path / "existing"
    existing.write_bytes(b"longer than before" * 100_000)
    existing.chmod(0o700)
    assert person.say("cp", "file", there(tmp_path / "there")) == b""
    assert (tmp_path / "there").read_bytes() == data
    person.say("cp", "file", there(tmp_path / "folder"))
    assert (tmp_path / "folder" / "file").read_bytes() == data
    person.say("cp", "file", there(existing))
    assert (existing.read_bytes(), stat.S_IMODE(existing.stat().st_mode)) == (data, 0o700)
    person.say("cp", there(tmp_path / "there"), "back")
    assert (tmp_path / "back").read_bytes() == data
    (tmp_path / "here").mkdir()
    person.say("cp", there(tmp_path / "there"), "here")
    assert (tmp_path / "here" / "there").read_bytes() == data


@pytest.mark.case(355)
@pytest.mark.ours_only("the reference tells no modes and takes none")
@pytest.mark.parametrize("size", [0, 3 * MIB])
def test_a_new_file_gets_the_mode_of_its_source(person: Person, tmp_path: Path, size: int) -> None:
    """There and back: what can be executed still can, what is private stays so, and its owner may write it."""
    for mode, copied in ((0o755, 0o755), (0o600, 0o600), (0o500, 0o700)):
        source, up, down = (tmp_path / f"{name}-{mode:o}" for name in ("source", "up", "down"))
        source.write_bytes(bytes(size))
        source.chmod(mode)
        person.say("cp", source, there(up))
        person.say("cp", there(source), down)
        assert [stat.S_IMODE(path.stat().st_mode) for path in (up, down)] == [copied] * 2


def grow_tree(folder: Path, names: Sequence[bytes]) -> None:
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "zero").touch()
    (folder / "big").write_bytes(os.urandom(MIB + 3))
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(name)


@pytest.mark.case(350)
def test_a_folder_goes_there_and_comes_back(person: Person, tmp_path: Path) -> None:
    """With all that is in it, empty files and folders and odd names too; into one that is there it is merged."""
    tree = tmp_path / "tree"
    grow_tree(tree, [b"sp ace", b"new\nline", b"-dash", b":colon", "größe".encode()])
    person.say("cp", "-r", "tree", there(tmp_path / "there"))
    assert tree_of(tmp_path / "there") == tree_of(tree)
    person.say("cp", "--recursive", there(tmp_path / "there"), "back")
    assert tree_of(tmp_path / "back") == tree_of(tree)
    person.say("cp", "-r", "tree", there(tmp_path / "there"))
    assert tree_of(tmp_path / "there" / "tree") == tree_of(tree)
    (tmp_path / "there" / "tree" / "extra").touch()
    person.say("cp", "-r", "tree", there(tmp_path / "there"))
    assert (tmp_path / "there" / "tree" / "extra").exists()
    person.say("cp", "-r", "tree/.", there(tmp_path / "flat"))
    person.say("cp", "-r", "tree/.", there(tmp_path / "flat"))
    assert tree_of(tmp_path / "flat") == tree_of(tree)


@pytest.mark.case(350)
@pytest.mark.ours_only(LOSSY)
def test_names_that_are_not_text_survive(person: Person, tmp_path: Path) -> None:
    """There and back, of files and of folders."""
    tree = tmp_path / "tree"
    grow_tree(tree, [b"n\xff", b"n\xfe"])
    (tree / os.fsdecode(b"f\xff")).mkdir()
    (tree / os.fsdecode(b"f\xff") / "in").touch()
    person.say("cp", "-r", "tree", there(tmp_path / "there"))
    person.say("cp", "-r", there(tmp_path / "there"), "back")
    assert tree_of(tmp_path / "back") == tree_of(tree)
    person.say("cp", there(os.fsencode(tree) + b"/n\xff"), b"one\xff")
    assert (tmp_path / os.fsdecode(b"one\xff")).read_bytes() == b"n\xff"


@pytest.mark.case(351)
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_links_are_followed_to_files_and_nowhere_else(person: Person, tmp_path: Path, up: bool) -> None:
    """What is left out is told, with the exit code of a failure; all the rest is copied."""
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "file").write_bytes(b"file")
    (tree / "link").symlink_to("file")
    (tree / "loop").symlink_to(".")
    (tree / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    target = tmp_path / "copy"
    text = (
        person.fail("cp", "-r", "tree", there(target)) if up else person.fail("cp", "-r", there(tree), "copy")
    )
    assert re.search(r"left out '.*/loop': a symbolic link to a directory", text)
    assert re.search(r"left out '.*/fifo': not a regular file", text)
    # No server lists what leads nowhere.
    assert bool(re.search(r"left out '.*/dangling': a symbolic link that leads to no file", text)) == up
    assert tree_of(target) == {b"folder": None, b"file": b"file", b"link": b"file"}
    person.say("cp", "tree/link", there(tmp_path / "one"))
    assert not (tmp_path / "one").is_symlink()


@pytest.mark.case(351)
def test_what_fails_is_told_and_the_rest_is_copied(person: Person, tmp_path: Path) -> None:
    """In both directions: a file where a folder should be, and a folder where a file should be."""
    grow_tree(tmp_path / "tree", [b"a", b"z"])
    for target in ("up", "down"):
        (tmp_path / target / "tree").mkdir(parents=True)
        (tmp_path / target / "tree" / "a").mkdir()
        (tmp_path / target / "tree" / "sub").write_bytes(b"in the way")
    for text in (
        person.fail("cp", "-r", "tree", there(tmp_path / "up")),
        person.fail("cp", "-r", there(tmp_path / "tree"), "down"),
    ):
        assert re.search(r"/a': Is a directory", text)
        assert re.search(r"/sub': File exists", text)
    for target in ("up", "down"):
        assert tree_of(tmp_path / target / "tree")[b"z"] == b"z"
        assert (tmp_path / target / "tree" / "sub").read_bytes() == b"in the way"


@pytest.mark.case(351)
def test_a_failure_tells_the_side_that_it_is_on(person: Person, tmp_path: Path) -> None:
    """A path at the daemon has its colon, a local one has none; no name at all is no file."""
    (tmp_path / "file").touch()
    missing = tmp_path / "no" / "file"
    assert person.fail("cp", "file", there(missing)).startswith(f"':{missing}': No such file")
    assert person.fail("cp", there(missing), "new").startswith(f"':{missing}': No such file")
    assert person.fail("cp", there(tmp_path / "file"), missing) == f"'{missing}': No such file or directory"
    assert person.fail("cp", "", there(tmp_path / "new")) == "'': No such file or directory"


@pytest.mark.case(353)
@pytest.mark.ours_only("a disk is as full for the reference")
def test_what_is_incomplete_is_not_said_to_be_all(person: Person, tmp_path: Path) -> None:
    """Blocks that are only on their way to a full disk are not counted."""
    (tmp_path / "file").write_bytes(bytes(5 * MIB))
    with small_file_system(3 * MIB, tmp_path / "small") as small:
        text = person.fail("cp", "file", there(small / "file"))
    assert (left := re.search(r"No space left.*; .* is incomplete: about (\d\.\d) MiB of 5\.0 MiB", text))
    assert float(left[1]) <= 3


@pytest.mark.case(351)
def test_a_command_line_that_makes_no_sense_is_refused(person: Person) -> None:
    """With 2, and in a line that says how a path at the daemon is spelled."""
    assert "one of SOURCE and TARGET" in person.fail("cp", "file", "other", code=2)
    assert "one of SOURCE and TARGET" in person.fail("cp", ":/file", ":/other", code=2)
    assert "must be absolute" in person.fail("cp", "file", ":other", code=2)
    assert "must be absolute" in person.fail("ls", "other", code=2)


@pytest.mark.case(351)
async def test_a_copy_that_makes_no_sense_is_refused(
    daemon: Daemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With 125, a line that says what is wrong, and nothing done: above all not to the source."""
    grow_tree(tmp_path / "tree", [])
    (tmp_path / "file").write_bytes(b"mine")
    os.mkfifo(tmp_path / "fifo")
    async with connect(daemon.url) as client:
        for text, name, target, options in (
            ("with -r", "tree", "new", ""),
            ("No such file", "missing", "new", ""),
            ("No such file", "file", "missing/new", ""),
            ("no directory", "file", "new/", ""),
            ("not a (regular )?file", "fifo", "new", ""),
            ("(not a regular file|No such device)", "file", "fifo", ""),
            ("Not a directory", "file", "file/below", ""),
            ("itself", "file", "file", ""),
            ("itself", "tree", "tree/sub", "-r"),
            ("itself", "tree", "tree/sub/new", "-r"),
        ):
            for upload in (True, False):
                code = await copy(
                    client,
                    f"{tmp_path}/{name}",
                    f"{tmp_path}/{target}",
                    upload=upload,
                    recursive=bool(options),
                )
                said = capfd.readouterr()
                assert (code, said.out) == (125, "")
                assert re.fullmatch(rf"tsupervise: .*{text}.*\n", said.err), (upload, said.err)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "tree" / "sub" / "tree").exists()


# --- over a link that fails ------------------------------------------------------------------------------


def fill(path: Path, size: int) -> str:
    """Write so many bytes of which no two MiB are alike; returns their digest."""
    source = random.Random(size)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for start in range(0, size, MIB):
            block = source.randbytes(min(MIB, size - start))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_WITH_PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Runs a command, and prints the most memory that it had resident, in KiB."""


async def copy_over_cuts(
    daemon: Daemon, source: str, target: str, size: int, direction: Direction, cuts: int = 5
) -> tuple[str, int]:
    """Copy while the link is cut so often, evenly; returns what was said, and the peak of memory in KiB."""
    step = size * 4 // 3 // (cuts + 1)
    with trio.fail_after(600):
        async with fault_proxy(daemon.address) as proxy:

            def arm() -> None:
                if proxy.cuts < cuts:
                    proxy.cut_after(direction, step, how="rst" if proxy.cuts % 2 else "fin")

            proxy.when_carrying = arm
            ended = await trio.run_process(
                [sys.executable, "-c", _WITH_PEAK, TSUPERVISE, "cp", "--url", proxy.url, source, target],
                capture_stdout=True,
                capture_stderr=True,
            )
            assert proxy.cuts == cuts
    return ended.stderr.decode(), int(ended.stdout)


@pytest.mark.case(352)
@pytest.mark.ours_only("the reference can only write a file anew")
async def test_a_copy_goes_on_where_it_was(tmp_path: Path, long_profile: bool) -> None:
    """Up and down, the link cut five times on the way: digests are equal, and nobody keeps the file in memory."""
    size = (1 << 30) + 12345 if long_profile else 32 * MIB + 12345
    digest = fill(tmp_path / "file", size)
    with running(start_daemon()) as daemon:
        idle_kib = int(status_field(listening_pid(daemon), "VmHWM").split()[0])
        turns: list[tuple[str, str, Direction]] = [
            (f"{tmp_path}/file", f":{tmp_path}/up", "forth"),
            (f":{tmp_path}/up", f"{tmp_path}/down", "back"),
        ]
        for source, target, direction in turns:
            text, peak_kib = await copy_over_cuts(daemon, source, target, size, direction)
            daemon_kib = int(status_field(listening_pid(daemon), "VmHWM").split()[0])
            print(f"{direction}: client {peak_kib} KiB, daemon {daemon_kib} KiB (idle {idle_kib} KiB)")
            assert text == ""
            assert digest_of(Path(target.removeprefix(":"))) == digest
            assert peak_kib < 128 * 1024
            assert daemon_kib - idle_kib < 64 * 1024


@pytest.mark.case(352)
async def test_a_server_that_cannot_go_on_gets_a_file_again(daemon: Daemon, tmp_path: Path) -> None:
    """From its beginning, and the person is told; a download goes on there as well."""
    if daemon.is_ours:
        return
    size = 16 * MIB + 5
    digest = fill(tmp_path / "file", size)
    text, _ = await copy_over_cuts(daemon, f"{tmp_path}/file", f":{tmp_path}/up", size, "forth", cuts=2)
    assert text.count("cannot go on with") == 2
    assert digest_of(tmp_path / "up") == digest
    text, _ = await copy_over_cuts(daemon, f":{tmp_path}/file", f"{tmp_path}/down", size, "back", cuts=2)
    assert text == ""
    assert digest_of(tmp_path / "down") == digest


@pytest.mark.case(351)
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
async def test_a_file_that_shrinks_while_it_is_copied_is_told(
    daemon: Daemon,
    tmp_path: Path,
    up: bool,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left of it is copied, and not passed off as all; one that only claims to be larger is no failure."""
    source = tmp_path / "file"
    fill(source, 16 * MIB)

    async def shrink(progress: Progress, done: int) -> None:
        progress.done = done
        os.truncate(source, 2 * MIB)

    async with connect(daemon.url) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Progress, "reach", shrink)
            code = await copy(client, str(source), f"{tmp_path}/copy", upload=up, recursive=False)
        assert code == 125
        text = f"'{'' if up else ':'}{source}' has become shorter while it was copied; '.*copy' is incomplete"
        assert re.search(text, capfd.readouterr().err)
        if up:
            assert digest_of(tmp_path / "copy") == digest_of(source)
        claims = Path("/sys/kernel/fscaps")
        assert await copy(client, str(claims), f"{tmp_path}/claims", upload=up, recursive=False) == 0
        assert digest_of(tmp_path / "claims") == digest_of(claims)


# --- on a terminal ---------------------------------------------------------------------------------------


async def at_terminal(
    daemon: Daemon, folder: Path, arguments: Sequence[str], play: Callable[[Terminal], None], **env: str
) -> None:
    """Let somebody copy over a link that stops for good after 8 MiB; the play ends the command."""
    with trio.fail_after(PATIENCE_S * 2):
        async with fault_proxy(daemon.address) as proxy:
            for direction in ("forth", "back"):
                if (arguments[-1].startswith(":")) == (direction == "forth"):
                    proxy.cut_after(direction, 8 * MIB, stall_s=600)
            child_env = {**os.environ, "TSUPERVISE_URL": proxy.url, "TERM": "xterm", **env}

            def sit() -> None:
                child = spawn([TSUPERVISE, *arguments], (24, 100), child_env)
                try:
                    play(child)
                finally:
                    child.close(force=True)

            await trio.to_thread.run_sync(sit)


@pytest.mark.case(353)
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
async def test_a_person_sees_how_far_it_is_and_what_is_left(daemon: Daemon, tmp_path: Path, up: bool) -> None:
    """A line that is drawn over; after Ctrl-C it is told what is incomplete, and the exit code is that of one."""
    fill(tmp_path / "file", 64 * MIB)
    source, target = f"{tmp_path}/file", f"{tmp_path}/copy"
    arguments = ["cp", source, f":{target}"] if up else ["cp", f":{source}", target]

    def play(child: Terminal) -> None:
        child.expect(r"[1-9]\d*\.\d MiB of 64\.0 MiB")
        child.sendintr()
        left = ":" * up + target
        child.expect_exact(f"tsupervise: interrupted; '{left}' is incomplete: about ")
        child.expect(r"(\d+\.\d) MiB of 64\.0 MiB\r\n")
        assert 0 < float(child.match[1]) < 64
        assert exit_code(child) == 128 + signal.SIGINT

    await at_terminal(daemon, tmp_path, arguments, play)
    assert 0 < (tmp_path / "copy").stat().st_size < 64 * MIB


@pytest.mark.case(353)
@pytest.mark.ours_only("what is drawn does not depend on the server")
async def test_without_rich_the_line_is_plain(daemon: Daemon, tmp_path: Path) -> None:
    """The same figures, and a share in percent in place of a bar."""
    fill(tmp_path / "file", 64 * MIB)
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError")

    def play(child: Terminal) -> None:
        child.expect(r"copy  [1-9]%  [1-9]\d*\.\d MiB of 64\.0 MiB")
        child.sendintr()
        assert exit_code(child) == 128 + signal.SIGINT

    arguments = ["cp", f"{tmp_path}/file", f":{tmp_path}/copy"]
    await at_terminal(daemon, tmp_path, arguments, play, PYTHONPATH=str(tmp_path))


@pytest.mark.case(353)
@pytest.mark.ours_only("it is about this program's end")
async def test_a_connection_that_is_gone_for_good_leaves_no_half_file_unsaid(tmp_path: Path) -> None:
    """The daemon dies on the way: the exit code is that of a failure, and what is incomplete is told."""
    fill(tmp_path / "file", 64 * MIB)
    with running(start_daemon("ours", "--retention", "1")) as daemon:
        async with fault_proxy(daemon.address) as proxy:
            proxy.cut_after("forth", 8 * MIB, for_s=3600)
            arguments = [TSUPERVISE, "cp", f"{tmp_path}/file", f":{tmp_path}/copy"]
            async with trio.open_nursery() as nursery:

                async def restart_elsewhere() -> None:
                    await until(lambda: not proxy.is_armed)
                    daemon.process.kill()
                    daemon.process.wait()
                    proxy.target = ("127.0.0.1", 1)
                    proxy.refusal = b""
                    with running(start_daemon("ours")) as other:
                        proxy.target = other.address
                        proxy.cut(0.0)
                        await done.wait()

                done = trio.Event()
                nursery.start_soon(restart_elsewhere)
                with trio.fail_after(PATIENCE_S):
                    ended = await trio.run_process(
                        arguments,
                        env={**os.environ, "TSUPERVISE_URL": proxy.url},
                        capture_stderr=True,
                        check=False,
                    )
                done.set()
    assert ended.returncode == 125
    assert re.search(rb"could not be resumed.*; ':.*/copy' is incomplete: about .* of 64.0 MiB", ended.stderr)


# --- cat and ls ------------------------------------------------------------------------------------------


@pytest.mark.case(354)
def test_cat_prints_files(person: Person, tmp_path: Path) -> None:
    """One after the other, of any size; one that fails is told, and is no reason to stop."""
    big = os.urandom(2 * MIB + 1)
    (tmp_path / "big").write_bytes(big)
    (tmp_path / "empty").touch()
    (tmp_path / "small").write_bytes(b"small")
    assert (
        person.say("cat", tmp_path / "small", there(tmp_path / "empty"), tmp_path / "big") == b"small" + big
    )
    ended = person.run("cat", tmp_path / "missing", tmp_path / "small")
    assert (ended.returncode, ended.stdout) == (125, b"small")
    assert b"missing': No such file" in ended.stderr
    assert "not a file" in person.fail("cat", tmp_path)
    command = f"{TSUPERVISE} cat {tmp_path}/big | head -c 3"
    ended = subprocess.run(["sh", "-c", command], env=person.env, capture_output=True, timeout=PATIENCE_S)
    assert (ended.stdout, ended.stderr) == (big[:3], b"")


@pytest.mark.case(354)
def test_ls_lists_a_folder(person: Person, tmp_path: Path) -> None:
    """Names in order, byte for byte for a program; with -l what they are."""
    folder = tmp_path / "folder"
    grow_tree(folder, [b"new\nline", b"sp ace"])
    (folder / "link").symlink_to("big")
    os.utime(folder / "big", (86400, 86400))
    assert person.say("ls", there(folder)) == b"big\nlink\nnew\nline\nsp ace\nsub\n"
    assert person.say("ls", folder / "big") == os.fsencode(folder / "big") + b"\n"
    heading, *rows = person.say("ls", "-l", folder).decode().splitlines()
    assert heading.split() == ["KIND", "SIZE", "MODIFIED", "NAME"]
    assert re.fullmatch(r"file +1048579  1970-01-0[12] \d\d:\d\d  big", rows[0])
    assert [(row.split()[0], row.split("  ")[-1]) for row in rows] == [
        ("file", "big"),
        ("link", "link"),
        ("file", "new\\nline"),
        ("file", "sp ace"),
        ("directory", "sub"),
    ]
    assert "No such file" in person.fail("ls", tmp_path / "missing")


@pytest.mark.case(354)
@pytest.mark.ours_only(LOSSY)
def test_ls_prints_names_that_are_not_text(person: Person, tmp_path: Path) -> None:
    """A program gets the bytes that it needs to open the file."""
    (tmp_path / os.fsdecode(b"n\xff")).touch()
    assert person.say("ls", tmp_path) == b"n\xff\n"
    assert b"n\\udcff" in person.say("ls", "-l", tmp_path)


@pytest.mark.case(354)
def test_paths_at_the_daemon_are_completed(person: Person, tmp_path: Path) -> None:
    """Of `cp` behind a colon, of `cat` and `ls` at once; a folder ends with a slash."""
    (tmp_path / "beginning").touch()
    (tmp_path / "begun").mkdir()
    words = {"cat": f"{tmp_path}/beg", "ls": f"{tmp_path}/beg", "cp": f":{tmp_path}/beg"}
    for command, word in words.items():
        ended = subprocess.run(
            [TSUPERVISE],
            env={
                **person.env,
                "_TSUPERVISE_COMPLETE": "zsh_complete",
                "COMP_WORDS": f"tsupervise {command} {word}",
                "COMP_CWORD": "2",
            },
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert f"{word}inning" in ended.stdout.splitlines()
        assert f"{word}un/" in ended.stdout.splitlines()
