"""Blocking calls to file systems, in threads of their own; and what the system's errors are on the wire."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TypeVar

import trio

from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.messages import SandboxRequest
from tsupervise_protocol.path_uri import PathUriError, parse_file_uri

_T = TypeVar("_T")

THREADS = 4
"""How many calls run at a time. More make nothing faster and take turns with the loop."""

_CODES = {
    errno.ENOENT: ErrorCode.NOT_FOUND,
    errno.EACCES: ErrorCode.INVALID_REQUEST,
    errno.EPERM: ErrorCode.INVALID_REQUEST,
    errno.EINVAL: ErrorCode.INVALID_REQUEST,
}
"""By class of error alone, whatever was tried; all others are INTERNAL_ERROR."""


class Disk:
    """The threads of one daemon that touch file systems."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(THREADS)

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a blocking call. It is not abandoned when the caller is cancelled: it may hold a descriptor.

        Raises:
            RpcError: the call has failed with OSError, see `os_failure`.
        """
        try:
            return await trio.to_thread.run_sync(call, limiter=self._threads)
        except OSError as error:
            raise os_failure(error) from None


def os_failure(error: OSError) -> RpcError:
    """What a client is told of an error of the system: its class by the code, the system's own words."""
    number = error.errno or 0
    code = _CODES.get(number, ErrorCode.INTERNAL_ERROR)
    return RpcError(code, f"{os.strerror(number)} (os error {number})")


def native_path(member: str, uri: str) -> bytes:
    """The path that a request names.

    Args:
        member: what holds the URI, for the error text.

    Raises:
        RpcError: it is no URI of a file here.
    """
    try:
        return parse_file_uri(uri)
    except PathUriError as error:
        raise RpcError(ErrorCode.INVALID_PARAMS, f"{member}: {error}") from None


def refuse_sandbox(sandbox: SandboxRequest | None) -> None:
    """See that no confinement is asked for.

    Raises:
        RpcError: INVALID_PARAMS, one is, and cannot be enforced.
    """
    if sandbox is not None and not sandbox.asks_for_nothing:
        raise RpcError(
            ErrorCode.INVALID_PARAMS,
            "sandbox intent cannot be enforced on this executor: send sandbox: null to run without one",
        )
