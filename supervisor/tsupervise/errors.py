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
=================================================  ====================================================
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence

from tsupervise_protocol.errors import RpcError

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
