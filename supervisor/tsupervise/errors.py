"""What a client's calls can fail with. A leaf above the protocol's own errors.

Catch `TsuperviseError` for everything, or one class for one cause:

=================================================  ====================================================
what happened                                      what says so
=================================================  ====================================================
the command ended, and not with 0                  `CommandFailed`, from `run(check=True)`
a signal ended the command                         `CommandCrashed`, a `CommandFailed`
it could not be started, or a call was refused     `ServerRefused`
it wrote more than `run` collects, and was ended   `TooMuchOutput`
it takes no input, or none any more                `StdinClosed`
output came faster than it was read, and is gone   `OutputLost`; the next read goes on behind the gap
nobody knows how the command ended, or whether a   `OutcomeUnknown`
call was carried out
the process can be followed no longer              `ProcessFailed`; others go on
the connection is gone for good                    `ConnectionLost`; the session lives on at the server
there never was a connection                       `ConnectFailed`
no process is meant by a name, or several are      `NoSuchProcess`
the server cannot do this, and was not asked       `NotSupported`
too many calls are open already                    `TooManyCalls`
the server cannot do something with a file         `FileError`, and the builtin error of the same cause,
                                                   such as `FileNotFoundError`
a file has changed, and cannot be gone on with     `FileChanged`
a file that was being written cannot be gone on    `FileInterrupted`
with after a lost connection
the body of an HTTP response came to no good end   `HttpBodyFailed`
an answer makes no sense                           `BadAnswer`
=================================================  ====================================================
"""

from __future__ import annotations

import errno
import re
import shlex
import signal
from collections.abc import Sequence

from tsupervise_protocol.errors import ErrorCode, RpcError

from .completed import Completed

TAIL_BYTES = 2048
"""How much of the end of stderr the text of a `CommandFailed` shows."""

COMMAND_CHARACTERS = 200
"""How much of a command line an error's text shows."""


class TsuperviseError(Exception):
    """Base of all errors that a client raises on purpose."""


class ConnectFailed(TsuperviseError):
    """No connection came about: nobody listens, a refusal, or no answer in time."""


class ConnectionLost(TsuperviseError):
    """The connection is gone for good, and with it every call and stream of its client.

    The session and its processes live on at the server for its detached time.
    """


class OutcomeUnknown(TsuperviseError):
    """The connection went while this call waited for its answer: it may have been carried out or not.

    The client comes back by itself; what can be repeated without harm is repeated and does not raise this.
    A process that may have been started is terminated. `Client.run` raises it as well for a command of
    which the server does not know how it ended.
    """


class ProcessFailed(TsuperviseError):
    """This client can follow one process no longer; its other processes are not touched.

    Args:
        process_id: the process.
        reason: why.
    """

    def __init__(self, process_id: str, reason: str) -> None:
        super().__init__(f"process {process_id!r}: {reason}")
        self.process_id = process_id


class NoSuchProcess(TsuperviseError):
    """No process is meant by a name, or several are.

    Args:
        name: what was asked for.
        reason: which of the two, and what there is.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"no process {name!r}: {reason}")
        self.name = name


class StdinClosed(TsuperviseError):
    """Bytes were written to a process that takes no input, or takes none any more.

    Args:
        process_id: the process.
        reason: which of the two, and what to do.
    """

    def __init__(self, process_id: str, reason: str) -> None:
        super().__init__(f"cannot write to process {process_id!r}: {reason}")
        self.process_id = process_id


class OutputLost(TsuperviseError):
    """Output came faster than it was read, and the server does not retain it any more.

    The numbers count events of the whole process: what is missing may be of its other stream.

    Args:
        process_id: the process.
        first_seq: the number of the first event that is lost.
        seq: the number of the last one.
    """

    def __init__(self, process_id: str, first_seq: int, seq: int) -> None:
        super().__init__(
            f"process {process_id!r}: events {first_seq} to {seq} came faster than they were read, and are "
            "retained no more; read faster, start it with lossless=True, or let the daemon retain more "
            "(--spill-dir, --spill-bytes)"
        )
        self.process_id = process_id
        self.first_seq = first_seq
        self.seq = seq


class CommandFailed(TsuperviseError):
    """A command ended with an exit code other than 0.

    Args:
        completed: all that is known of it.
    """

    def __init__(self, completed: Completed) -> None:
        super().__init__(
            f"{_command_text(completed.argv)} {_end_text(completed)}{_tail_text(completed.stderr)}"
        )
        self.completed = completed


class CommandCrashed(CommandFailed):
    """A command was ended by a signal, `completed.term_signal`, as the server says.

    A server that does not say so leaves nothing but an exit code of 128 + n, which any command can choose.
    """


class TooMuchOutput(TsuperviseError):
    """A command wrote more than was to be collected, and was ended.

    Args:
        argv: the command.
        max_output_bytes: the bound.
    """

    def __init__(self, argv: Sequence[str], max_output_bytes: int) -> None:
        super().__init__(
            f"{_command_text(argv)} wrote more than {max_output_bytes} bytes and was ended; raise "
            f"max_output_bytes, or use open_process and read its stdout as it comes"
        )


class CannotSpill(TsuperviseError):
    """A supervisor cannot keep older output in the directory that its settings name. It has not started."""


class NotSupported(TsuperviseError):
    """The server does not announce what was asked of it, so it was not asked."""


class TooManyCalls(TsuperviseError):
    """As many calls are open on this connection as a client may have. Nothing was sent."""


class ServerRefused(TsuperviseError, RpcError):
    """The server answered a call with an error.

    Args:
        method: the method that was called.
        code: the code of the answer, see `tsupervise_protocol.errors.ErrorCode`.
        message: the server's own text.
    """

    def __init__(self, method: str, code: int, message: str) -> None:
        super().__init__(code, message)
        self.method = method

    def __str__(self) -> str:
        return f"{self.method}: {super().__str__()}"


class FileError(ServerRefused, OSError):
    """The server cannot do what was asked with a file; `errno` and `filename` are as of any OSError.

    One of an everyday cause is the builtin error of that cause as well: `except FileNotFoundError` works.

    Args:
        refusal: what the server says.
        path: of the file there.
        path2: where it is copied to; `filename2`.
    """

    def __init__(self, refusal: ServerRefused, path: str, path2: str | None = None) -> None:
        super().__init__(refusal.method, refusal.code, refusal.message)
        self.errno = errno_of(refusal)
        # Some servers name the path in their text, which with two of them tells which is meant.
        self.strerror = refusal.message if path2 else refusal.message.removesuffix(f": {path}")
        self.filename = path
        self.filename2 = path2

    def __str__(self) -> str:
        target = "" if self.filename2 is None else f" -> {self.filename2!r}"
        return f"{self.filename!r}{target}: {self.strerror}"


class RemoteFileNotFound(FileError, FileNotFoundError):
    """There is no such file."""


class RemoteFileExists(FileError, FileExistsError):
    """There is one already."""


class RemotePermissionDenied(FileError, PermissionError):
    """The user that the daemon runs as may not do that."""


class RemoteIsADirectory(FileError, IsADirectoryError):
    """It is a directory."""


class RemoteNotADirectory(FileError, NotADirectoryError):
    """It, or something on the way to it, is none."""


_OS_ERROR = re.compile(r"\(os error (\d+)\)")

_FILE_ERRORS: dict[int | None, type[FileError]] = {
    errno.ENOENT: RemoteFileNotFound,
    errno.EEXIST: RemoteFileExists,
    errno.EACCES: RemotePermissionDenied,
    errno.EPERM: RemotePermissionDenied,
    errno.EISDIR: RemoteIsADirectory,
    errno.ENOTDIR: RemoteNotADirectory,
}


def errno_of(refusal: ServerRefused) -> int | None:
    """The number of the system's error that a server tells of, if it tells of one."""
    match = _OS_ERROR.search(refusal.message)
    if match is not None:
        return int(match[1])
    return errno.ENOENT if refusal.code == ErrorCode.NOT_FOUND else None


def file_error(refusal: ServerRefused, path: str, path2: str | None = None) -> FileError:
    """The error for a refused call that is about a file.

    Args:
        path: of the file at the server, for the text.
        path2: where it is copied to.
    """
    return _FILE_ERRORS.get(errno_of(refusal), FileError)(refusal, path, path2)


class FileChanged(TsuperviseError):
    """After a lost connection a file is not what it was, so that reading or writing cannot go on in it.

    Args:
        path: of the file at the server.
        reason: what is different.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path!r} has changed while the connection was lost: {reason}; begin again")
        self.path = path


class FileInterrupted(TsuperviseError):
    """The connection was lost while a file was being written, and this server cannot go on in the middle of one.

    Part of the file is there; write it from the beginning again.

    Args:
        path: of the file at the server.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path!r} is incomplete: the connection was lost, and this server cannot go on with a file "
            "(it does not announce 'tsuperviseFileUpdate'); write it again"
        )
        self.path = path


class BadAnswer(TsuperviseError):
    """What the server answered is not what its protocol says. Other calls go on."""


class HttpBodyFailed(TsuperviseError):
    """The body of an HTTP response ended early, as the server or a broken stream tells. The headers were there."""


def _command_text(argv: Sequence[str]) -> str:
    text = shlex.join(argv)
    return text if len(text) <= COMMAND_CHARACTERS else f"{text[:COMMAND_CHARACTERS]}..."


def _end_text(completed: Completed) -> str:
    number = completed.term_signal
    if number is None:
        return f"ended with exit code {completed.exit_code}"
    try:
        return f"was ended by {signal.Signals(number).name}"
    except ValueError:
        return f"was ended by signal {number}"


def _tail_text(stderr: bytes) -> str:
    if not stderr:
        return ""
    tail = stderr[-TAIL_BYTES:].decode(errors="backslashreplace").rstrip()
    return f"; stderr: {'...' if len(stderr) > TAIL_BYTES else ''}{tail}"
