"""What goes wrong on the wire: the error codes, and the one exception that carries a code.

A leaf: it imports nothing of ours.
"""

from enum import IntEnum


class ErrorCode(IntEnum):
    """The codes of error answers. Clients act on the code; the text is for people."""

    INVALID_REQUEST = -32600
    """Malformed message, handshake order, unknown session, unknown or taken process id."""
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    """The operating system refused, or a fault of the server."""
    NOT_FOUND = -32004
    """A path does not exist (filesystem methods only)."""
    SESSION_ATTACHED = -32010
    """The session to be resumed still has a connection: try again soon."""
    TOO_MANY_REQUESTS = -32011
    """Our own: this connection has more requests open than the server keeps."""
    NOT_ALLOWED = -32012
    """Our own: the method is for the user that the server runs as, and the peer is somebody else."""
    LIMIT_REACHED = -32013
    """Our own: the server has as many sessions or processes as it may have."""

    SHUTTING_DOWN = -32014
    """Our own: the server lets what runs come to its end, and takes no new session and no new process."""


class RpcError(Exception):
    """A request that fails with an answer: its code and its text.

    Args:
        code: one of `ErrorCode`, or whatever a peer sent.
        message: what failed, on what, why, and what to do when that is known.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} (code {int(self.code)})"


class MalformedMessage(Exception):
    """Bytes that are no JSON-RPC message. The connection goes on; the text says what is wrong and where."""


class ProtocolViolation(Exception):
    """A well-formed message that the peer must never send. The connection ends with a reason."""
