"""How commands find daemons: the files in the user's runtime directory, and whom to trust there."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
from pathlib import Path

import pytest

from daemons import running, start_daemon
from procfs import children_of
from tsupervise import __version__
from tsupervise._discovery import DiscoveryFailed, announced, directory, find_url, running_daemons

URL = "ws://127.0.0.1:4500"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory with no daemon in it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_daemon_is_found_while_it_listens_and_not_after(runtime: Path) -> None:
    """What it tells is where it is and what it is, in a file that only its user can read."""
    folder = runtime / "tsupervise"
    with running(start_daemon()) as daemon:
        [found] = running_daemons()
        assert find_url() == found.url == daemon.url
        assert found.version == __version__
        assert {found.pid} == children_of(daemon.pid), "the daemon itself, and not its keeper"
        [file] = folder.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text()) == {
            "url": daemon.url,
            "pid": found.pid,
            "startTime": found.start_time,
            "version": __version__,
        }
        assert daemon.stop() == 0
    assert list(folder.iterdir()) == []
    with pytest.raises(DiscoveryFailed, match="no daemon is running; start one with `tsupervise run`"):
        find_url()


def test_a_killed_daemon_is_not_found_and_its_file_goes(runtime: Path) -> None:
    """It could not clean up; whoever looks next does."""
    with running(start_daemon()) as daemon:
        [found] = running_daemons()
        os.kill(found.pid, signal.SIGKILL)
        daemon.process.wait()
        folder = runtime / "tsupervise"
        assert len(list(folder.iterdir())) == 1
        assert running_daemons() == []
        assert list(folder.iterdir()) == []


def test_the_next_daemon_takes_a_stale_file_away(runtime: Path) -> None:
    """Also one that was never finished, and one whose number belongs to another process by now."""
    folder = runtime / "tsupervise"
    folder.mkdir(0o700)
    for name in (f"{os.getpid()}-1.json", f".{os.getpid()}-2.json", "4194305-3.json"):
        (folder / name).write_text("{}")
    with announced(URL):
        [file] = folder.iterdir()
        assert json.loads(file.read_text())["url"] == URL


def test_of_several_daemons_none_is_chosen() -> None:
    """The error names them all, and the option that chooses."""
    with running(start_daemon()) as one, running(start_daemon()) as other:
        with pytest.raises(DiscoveryFailed, match="several daemons are running: ") as caught:
            find_url()
        assert one.url in str(caught.value)
        assert other.url in str(caught.value)
        assert "--url" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", '{"url": 1}', "[]", "null"])
def test_a_file_that_makes_no_sense_is_passed_over(runtime: Path, text: str) -> None:
    """It may be of a later version, so it stays."""
    with announced(URL):
        strange = runtime / "tsupervise" / "strange.json"
        strange.write_text(text)
        assert find_url() == URL
        assert strange.exists()


def refused(runtime: Path, how: str) -> str:
    """Make the directory one that must not be trusted; returns what is said about it."""
    folder = runtime / "tsupervise"
    if how == "a link":
        (runtime / "elsewhere").mkdir(0o700)
        folder.symlink_to(runtime / "elsewhere")
        return "Not a directory"
    folder.mkdir()
    folder.chmod(0o777 if how == "everybody's" else 0o700)
    if how == "somebody else's":
        os.chown(folder, 12345, -1)
        return "belongs to user 12345 and not to you"
    return r"can be written by others \(mode 0777\)"


@pytest.mark.parametrize("how", [pytest.param("somebody else's", marks=as_root), "everybody's", "a link"])
def test_a_directory_that_others_can_write_is_refused(
    runtime: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is read from it; a daemon says so, writes nothing there, and goes on."""
    text = refused(runtime, how)
    with pytest.raises(DiscoveryFailed, match=text):
        running_daemons()
    with caplog.at_level(logging.WARNING), announced(URL):
        assert list((runtime / "tsupervise").iterdir()) == []
    [record] = caplog.records
    assert "will not find this daemon without --url" in record.getMessage()


def test_a_daemon_without_a_place_to_say_so_runs_on(runtime: Path, tmp_path: Path) -> None:
    """Its log has the warning."""
    (runtime / "tsupervise").write_text("no directory")
    log = tmp_path / "log"
    with running(start_daemon(stderr=log)) as daemon:
        assert daemon.url
    assert "commands will not find this daemon without --url" in log.read_text()


@pytest.mark.parametrize("value", ["", "relative/path", "/nowhere/at/all"])
def test_without_a_runtime_directory_there_is_one_below_tmp(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """The user's number is in its name."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert directory() == f"/tmp/tsupervise-{os.geteuid()}"


@as_root
def test_the_runtime_directory_of_another_user_is_left_alone(runtime: Path) -> None:
    """As under `sudo -E`: what root left there, its owner could not use any more."""
    os.chown(runtime, 12345, -1)
    assert directory() == "/tmp/tsupervise-0"
