"""_environment_info: what is told of the place where processes run."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tsupervise import _environment_info
from tsupervise._environment_info import CAPABILITIES, environment_info, find_shell
from tsupervise_protocol.messages import UNSET, EnvironmentInfo, ShellInfo
from tsupervise_protocol.path_uri import file_uri


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Makes an executable file below the test's own folder and returns its path."""

    def make(name: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def no_system_shells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides the shells of this machine, so that only the test's own can be found."""
    monkeypatch.setattr(_environment_info, "_SHELL_FOLDERS", (str(tmp_path / "nothing"),))


def info(**environ: str) -> EnvironmentInfo:
    return environment_info("1.2.3", ["tsuperviseX"], environ)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("zsh", "zsh"),
        ("bash", "bash"),
        ("sh", "sh"),
        ("pwsh", "powershell"),
        ("cmd.exe", "cmd"),
        ("bash.old", "bash"),
    ],
)
def test_a_login_shell_that_clients_know_is_taken(
    program: Callable[[str], str], file: str, name: str
) -> None:
    """The file name decides what kind of shell it is; it may stand anywhere."""
    path = program(file)
    assert find_shell(path, "/usr/bin") == ShellInfo(name=name, path=path)


@pytest.mark.parametrize("login", ["", "/usr/sbin/nologin", "/usr/bin/fish", "bash/", "/no/such/zsh"])
@pytest.mark.usefixtures("no_system_shells")
def test_without_a_usable_login_shell_bash_is_searched_first(
    program: Callable[[str], str], login: str
) -> None:
    """A login shell that is unknown or missing is replaced by bash, found through PATH."""
    bash = program("bash")
    program("sh")
    assert find_shell(login, os.path.dirname(bash)) == ShellInfo(name="bash", path=bash)


@pytest.mark.usefixtures("no_system_shells")
def test_a_login_shell_that_moved_is_found_by_its_name(program: Callable[[str], str]) -> None:
    """A missing zsh is first of all another zsh."""
    zsh = program("zsh")
    program("bash")
    assert find_shell("/no/such/zsh", os.path.dirname(zsh)) == ShellInfo(name="zsh", path=zsh)


@pytest.mark.usefixtures("no_system_shells")
def test_zsh_is_taken_where_there_is_no_bash(program: Callable[[str], str]) -> None:
    """The second choice is zsh."""
    zsh = program("zsh")
    assert find_shell("", os.path.dirname(zsh)) == ShellInfo(name="zsh", path=zsh)


@pytest.mark.usefixtures("no_system_shells")
def test_the_last_resort_is_bin_sh() -> None:
    """There is always an answer."""
    assert find_shell("", "") == ShellInfo(name="sh", path="/bin/sh")


@pytest.mark.usefixtures("no_system_shells")
def test_a_file_that_cannot_be_run_is_no_shell(program: Callable[[str], str]) -> None:
    """Neither the user database nor PATH makes a shell of a plain file."""
    bash = program("bash")
    os.chmod(bash, 0o644)
    assert find_shell(bash, os.path.dirname(bash)).path == "/bin/sh"


def test_a_usual_folder_is_searched_without_a_path() -> None:
    """A daemon that was started without PATH still finds the system's shells, by an absolute path."""
    shell = find_shell("", "")
    assert os.path.isabs(shell.path)
    assert os.access(shell.path, os.X_OK)


@pytest.mark.usefixtures("no_system_shells")
@pytest.mark.parametrize("search_path", ["", ".", ":", "bin::."])
def test_a_relative_folder_of_path_is_passed_over(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, search_path: str
) -> None:
    """The shell must be the same one in any working directory, whoever names it."""
    program("bash")
    program("bin/bash")
    monkeypatch.chdir(tmp_path)
    assert find_shell("", search_path).path == "/bin/sh"
    assert find_shell("bin/bash", search_path).path == "/bin/sh"


def test_the_shell_variable_is_not_asked() -> None:
    """SHELL tells how somebody works right now, not what the account is set up for."""
    assert info(SHELL="/bin/nonsense").shell == info().shell


def test_the_working_directory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The working directory of the daemon, as a URI."""
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert info().cwd == file_uri(str(folder))


def test_a_removed_working_directory_is_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon whose folder is gone says that it does not know, and falls back to /tmp."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    result = info(TMPDIR="relative")
    assert result.cwd is None
    assert (result.temporary_directories, result.temp_dir) == ([], "file:///tmp")


@pytest.mark.parametrize(
    ("home", "uri"),
    [("/home/me", "file:///home/me"), ("/a/../b c/", "file:///b%20c"), ("/é\udcff", "file:///%C3%A9%FF")],
)
def test_home_is_the_home_directory(home: str, uri: str) -> None:
    """HOME is told as a canonical URI."""
    assert info(HOME=home).user_home_dir == uri


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}])
def test_without_home_the_user_database_is_asked(environ: dict[str, str]) -> None:
    """HOME missing or empty is no answer."""
    assert info(**environ).user_home_dir == file_uri(pwd.getpwuid(os.getuid()).pw_dir)


def test_a_relative_home_is_not_told() -> None:
    """A HOME that has no URI is left unknown."""
    assert info(HOME="home").user_home_dir is None


def test_a_user_without_an_entry_has_a_shell_and_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run under an id that the user database does not know."""

    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    result = info()
    assert result.user_home_dir is None
    assert os.path.isabs(result.shell.path)


def test_temporary_directories_come_from_tmpdir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TMPDIR if it is set, relative to the working directory; else none named, and /tmp to be used."""
    monkeypatch.chdir(tmp_path)
    expected = {
        "/var/t/": "file:///var/t",
        "t": file_uri(str(tmp_path / "t")),
    }
    for tmpdir, uri in expected.items():
        result = info(TMPDIR=tmpdir)
        assert (result.temporary_directories, result.temp_dir) == ([uri], uri)
    for result in (info(), info(TMPDIR="")):
        assert (result.temporary_directories, result.temp_dir) == ([], "file:///tmp")


def test_no_capability_is_claimed_but_those_that_are_kept_and_the_ones_passed_in() -> None:
    """Every name that clients ask about is there; the rest of them is false."""
    capabilities = info().capabilities
    assert capabilities.keys() == {*CAPABILITIES, "tsuperviseX"}
    assert {name for name, holds in capabilities.items() if holds} == {"environmentConfigRead", "tsuperviseX"}
    assert len(CAPABILITIES) == 15


def test_the_rest_is_plain() -> None:
    """The version is the caller's and has its own provider id, the platform is named, PATH is left alone."""
    result = info()
    assert result.executor_version == "1.2.3"
    assert result.platform_os in ("linux", "macos")
    assert result.prepend_path_dirs is UNSET
    assert re.fullmatch("sha256:[0-9a-f]{64}", result.provider_id or "")
    assert result.provider_id == info(HOME="/other").provider_id
    assert result.provider_id != environment_info("1.2.4", []).provider_id
