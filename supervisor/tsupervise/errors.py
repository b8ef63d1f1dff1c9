"""What a client's calls can fail with. A leaf above the protocol's own errors.

The tree is two levels deep: catch `TsuperviseError` for everything, or one class for one cause.
"""

from __future__ import annotations

from tsupervise_protocol.errors import RpcError


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
    A process that may have been started is terminated.
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
