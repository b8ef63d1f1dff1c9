"""The handlers of files that stay open: `fs/open`, `fs/readBlock`, `fs/writeBlock`, `fs/close`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from tsupervise_protocol.base64_text import decode_base64, encode_base64
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.file_messages import (
    MAX_BLOCK_BYTES,
    MAX_HANDLE_ID_BYTES,
    CloseFileParams,
    OpenParams,
    OpenResult,
    ReadBlockParams,
    WriteBlockParams,
)
from tsupervise_protocol.messages import EmptyResult

from ._disk import native_path, refuse_sandbox
from ._disk_answers import made_when_room
from ._files import NEW_FILE_MODE
from ._rows import Outcome, Peer, Result, Row


def _open(peer: Peer, params: OpenParams) -> Outcome:
    _check(peer, params.handle_id)
    refuse_sandbox(params.sandbox)
    path = native_path("path", params.path)

    async def run() -> OpenResult:
        unix_mode = NEW_FILE_MODE if params.unix_mode is None else params.unix_mode
        await peer.supervisor.disk.run(
            lambda: peer.files.open(params.handle_id, path, params.mode, unix_mode)
        )
        return OpenResult(handle_id=params.handle_id)

    return run()


def _read_block(peer: Peer, params: ReadBlockParams) -> Outcome:
    _check(peer, params.handle_id)
    _check_block_length("read", params.len)

    def make(head: bytes, tail: bytes) -> bytes:
        data = peer.files.read(params.handle_id, params.offset, params.len)
        eof = b"true" if len(data) < params.len else b"false"
        return b"".join((head, b'{"chunk":"', encode_base64(data), b'","eof":', eof, b"}", tail))

    async def run() -> Result:
        return made_when_room(peer, make)

    return run()


def _write_block(peer: Peer, params: WriteBlockParams) -> Outcome:
    _check(peer, params.handle_id)
    try:
        data = decode_base64(params.chunk)
    except ValueError as error:
        raise RpcError(ErrorCode.INVALID_PARAMS, f"chunk: {error}") from None
    _check_block_length("write", len(data))

    async def run() -> EmptyResult:
        await peer.supervisor.disk.run(lambda: peer.files.write(params.handle_id, params.offset, data))
        return EmptyResult()

    return run()


def _close(peer: Peer, params: CloseFileParams) -> Outcome:
    _check(peer, params.handle_id)

    async def run() -> EmptyResult:
        await peer.supervisor.disk.run(lambda: peer.files.close(params.handle_id))
        return EmptyResult()

    return run()


def _check(peer: Peer, handle_id: str) -> None:
    _ = peer.session  # another connection may hold it by now
    if len(handle_id.encode("utf-8", "surrogatepass")) > MAX_HANDLE_ID_BYTES:
        text = f"file handle ID must not exceed {MAX_HANDLE_ID_BYTES} bytes"
        raise RpcError(ErrorCode.INVALID_REQUEST, text)


def _check_block_length(what: str, length: int) -> None:
    if not 1 <= length <= MAX_BLOCK_BYTES:
        text = f"file {what} block length must be between 1 and {MAX_BLOCK_BYTES}"
        raise RpcError(ErrorCode.INVALID_REQUEST, text)


def _by_handle(params: Any) -> Hashable:
    return "file", params.handle_id


# What is done to one open file is done in order of arrival, its close included.
OPEN_FILE_ROWS = {
    "fs/open": Row(_open, lane=_by_handle),
    "fs/readBlock": Row(_read_block, lane=_by_handle),
    "fs/writeBlock": Row(_write_block, lane=_by_handle),
    "fs/close": Row(_close, lane=_by_handle),
}
