"""What the package offers, and what it costs to ask for its version."""

from __future__ import annotations

import subprocess
import sys

import tsupervise


def test_every_public_name_is_there_and_no_other_is_promised() -> None:
    """`__all__` is exact: a name that is removed, or added without thought, fails here."""
    assert tsupervise.__all__ == [
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
    for name in tsupervise.__all__:
        assert getattr(tsupervise, name) is not None
    assert set(tsupervise.__all__) <= set(dir(tsupervise))


def test_the_version_needs_no_event_loop() -> None:
    """`tsupervise --version` loads neither trio nor the codec, so that it answers at once."""
    program = (
        "import sys; from tsupervise.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print(sorted({'trio', 'msgspec', 'trio_websocket'} & sys.modules.keys()))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    version, loaded = ended.stdout.splitlines()
    assert version.endswith(tsupervise.__version__)
    assert loaded == "[]"
