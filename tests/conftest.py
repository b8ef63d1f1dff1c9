"""Fixtures that several test modules share: the servers under test.

`daemon` runs each test against this daemon and, where TSUPERVISE_REFERENCE names a `codex` binary,
against the reference too; a test marked `ours_only(reason)` shows a promise that the reference does not
keep, or a part that it does not have. `door` is the same for tests of the Python client, which has a
supervisor in the test's own process for a third. Servers live for the whole session of tests: a test that ends,
floods or configures one starts its own through `daemons.start_daemon`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from daemons import REFERENCE, Daemon, start_daemon
from doors import Door

TARGETS = ("ours", "reference") if REFERENCE else ("ours",)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--profile",
        choices=("short", "long"),
        default="short",
        help="short: what CI runs; long: the big numbers as well",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many modules run at a time: two keep two cores busy. With figures to be seen, one by one."""
    figures = config.getoption("--profile") == "long" or config.getoption("capture") == "no"
    return 0 if figures else 2


def pytest_configure() -> None:
    # Children inherit what is ignored, and `nohup pytest` or `pytest &` must show the same as `pytest`.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where daemons of the tests say that they are there: not where those of the user do.

    In the environment, so that whatever a test starts has it.
    """
    folder = str(tmp_path_factory.mktemp("runtime"))
    os.environ["XDG_RUNTIME_DIR"] = folder
    return folder


@pytest.fixture(scope="session")
def long_profile(pytestconfig: pytest.Config) -> bool:
    """Whether --profile=long was asked for."""
    return pytestconfig.getoption("--profile") == "long"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    ours_only = metafunc.definition.get_closest_marker("ours_only")
    targets = TARGETS[:1] if ours_only else TARGETS
    if "target" in metafunc.fixturenames:
        metafunc.parametrize("target", targets, scope="session")
    if "door_target" in metafunc.fixturenames:
        metafunc.parametrize("door_target", (*targets, "embedded"), scope="session")


@pytest.fixture(scope="session")
def shared_daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    """The session's servers by target, started when first asked for."""
    started: dict[str, Daemon] = {}
    yield started
    codes = {target: daemon.stop() for target, daemon in started.items()}
    assert codes.get("ours", 0) == 0, f"the daemon ended with {codes['ours']}"


@pytest.fixture
def daemon_of(
    shared_daemons: dict[str, Daemon], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Daemon]:
    """Gives a running server of a kind, shared by the session's tests."""

    def give(target: str) -> Daemon:
        running = shared_daemons.get(target)
        if running is None or running.process.poll() is not None:
            log = tmp_path_factory.getbasetemp() / f"{target}.log"
            running = shared_daemons[target] = start_daemon(target, stderr=log)
        return running

    return give


@pytest.fixture
def daemon(target: str, daemon_of: Callable[[str], Daemon]) -> Daemon:
    """A running server of the kind under test, shared by the session's tests."""
    return daemon_of(target)


@pytest.fixture
def door(door_target: str, daemon_of: Callable[[str], Daemon]) -> Door:
    """A way to a client: by a running server of each kind, and by a supervisor in the tests' own process."""
    return Door(door_target, None if door_target == "embedded" else daemon_of(door_target).url)
