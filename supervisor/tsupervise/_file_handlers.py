"""`fs/*` for whole files and folders: from params to the calls of `_files` and `_file_trees`, and back.

Requests run side by side, in no order. An answer that may be large is tried as a small one first; if it is none, it
is made again, in its thread, once the last large one of this connection is sent: so each connection takes the
memory of one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from io import BytesIO
from typing import Any

import msgspec
import trio

from tsupervise_protocol.base64_text import decode_base64, encode_base64, encode_base64_str
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.file_messages import (
    CanonicalizeParams,
    CanonicalizeResult,
    CopyParams,
    CreateDirectoryParams,
    FileParams,
    GetMetadataParams,
    ReadDirectoryParams,
    ReadDirectoryResult,
    ReadFileParams,
    ReadFileResult,
    RemoveParams,
    WriteFileParams,
)
from tsupervise_protocol.messages import EmptyResult, Message
from tsupervise_protocol.path_uri import file_uri

from ._disk import native_path, refuse_sandbox
from ._file_trees import copy, remove
from ._files import (
    MAX_LISTED_ENTRIES,
    NEW_FILE_MODE,
    canonical,
    list_directory,
    make_directory,
    metadata,
    open_to_read,
    read_pieces,
    read_up_to,
    write_file,
)
from ._rows import LargeResult, Outcome, Peer, Result, Row

SMALL_FILE_BYTES = 256 << 10
"""A file up to this size is read without waiting for its turn."""

SMALL_LIST_ENTRIES = 1_000
"""So is a folder with up to so many entries."""

_still_wanted = trio.from_thread.check_cancelled


def _read_file(peer: Peer, params: ReadFileParams) -> Outcome:
    path = _path(peer, params, "path", params.path)
    follow = _or_true(params.follow_symlinks)
    return _small_or_large(
        peer, partial(_read_small, path, follow), lambda head, tail: _read_large(path, follow, head, tail)
    )


def _read_small(path: bytes, follow: bool) -> ReadFileResult | None:
    with open_to_read(path, follow=follow) as fd:
        data = read_up_to(fd, SMALL_FILE_BYTES)
    return None if data is None else ReadFileResult(data_base64=encode_base64_str(data))


def _read_large(path: bytes, follow: bool, head: bytes, tail: bytes) -> bytes:
    # It grows in place, and is given away as it is.
    answer = BytesIO()
    answer.write(head + b'{"dataBase64":"')
    with open_to_read(path, follow=follow) as fd:
        for piece in read_pieces(fd):
            _still_wanted()
            answer.write(encode_base64(piece))
    answer.write(b'"}' + tail)
    return answer.getvalue()


def _write_file(peer: Peer, params: WriteFileParams) -> Outcome:
    path = _path(peer, params, "path", params.path)
    unix_mode = NEW_FILE_MODE if params.unix_mode is None else params.unix_mode
    follow = _or_true(params.follow_symlinks)
    return _done(peer, partial(_write_decoded, path, params.data_base64, follow, unix_mode))


def _write_decoded(path: bytes, text: str, follow: bool, unix_mode: int) -> None:
    try:
        data = decode_base64(text)
    except ValueError as error:
        raise RpcError(ErrorCode.INVALID_REQUEST, f"dataBase64: {error}") from None
    write_file(path, data, follow=follow, unix_mode=unix_mode, check=_still_wanted)


def _create_directory(peer: Peer, params: CreateDirectoryParams) -> Outcome:
    path = _path(peer, params, "path", params.path)
    recursive, follow = _or_true(params.recursive), _or_true(params.follow_symlinks)
    return _done(peer, partial(make_directory, path, recursive=recursive, follow=follow))


def _get_metadata(peer: Peer, params: GetMetadataParams) -> Outcome:
    path = _path(peer, params, "path", params.path)
    return peer.supervisor.disk.run(partial(metadata, path, follow=_or_true(params.follow_symlinks)))


def _canonicalize(peer: Peer, params: CanonicalizeParams) -> Outcome:
    path = _path(peer, params, "path", params.path)
    return peer.supervisor.disk.run(lambda: CanonicalizeResult(path=file_uri(canonical(path))))


def _read_directory(peer: Peer, params: ReadDirectoryParams) -> Outcome:
    path = _path(peer, params, "path", params.path)
    return _small_or_large(peer, partial(_list_small, path), lambda head, tail: _list_large(path, head, tail))


def _list_small(path: bytes) -> ReadDirectoryResult | None:
    entries = list_directory(path, SMALL_LIST_ENTRIES, _still_wanted)
    return None if entries is None else ReadDirectoryResult(entries=entries)


def _list_large(path: bytes, head: bytes, tail: bytes) -> bytes:
    entries = list_directory(path, MAX_LISTED_ENTRIES, _still_wanted)
    if entries is None:
        raise RpcError(
            ErrorCode.INTERNAL_ERROR,
            f"the directory has {MAX_LISTED_ENTRIES + 1} entries or more; the limit is {MAX_LISTED_ENTRIES}",
        )
    return head + msgspec.json.encode(ReadDirectoryResult(entries=entries)) + tail


def _remove(peer: Peer, params: RemoveParams) -> Outcome:
    path = _path(peer, params, "path", params.path)
    return _done(
        peer,
        partial(
            remove,
            path,
            recursive=_or_true(params.recursive),
            force=_or_true(params.force),
            follow=_or_true(params.follow_symlinks),
            check=_still_wanted,
        ),
    )


def _copy(peer: Peer, params: CopyParams) -> Outcome:
    source = _path(peer, params, "sourcePath", params.source_path)
    target = _path(peer, params, "destinationPath", params.destination_path)
    return _done(peer, partial(copy, source, target, recursive=params.recursive, check=_still_wanted))


# --- what they have in common ------------------------------------------------------------------------


def _path(peer: Peer, params: FileParams, member: str, uri: str) -> bytes:
    _ = peer.session  # another connection may hold it by now
    refuse_sandbox(params.sandbox)
    return native_path(member, uri)


def _or_true(value: bool | None) -> bool:
    return value is None or value


async def _done(peer: Peer, call: Callable[[], object]) -> EmptyResult:
    await peer.supervisor.disk.run(call)
    return EmptyResult()


async def _small_or_large(
    peer: Peer, make_small: Callable[[], Message | None], make_large: Callable[[bytes, bytes], bytes]
) -> Result:
    """An answer that may be large.

    Args:
        make_small: makes it if it is small; None if it is not.
        make_large: makes the whole response between the beginning and the end of its envelope.
    """
    disk, outbox = peer.supervisor.disk, peer.outbox

    def make_if_room() -> Message | LargeResult | None:
        # Asked anew in the thread: thousands may have waited for the same room.
        return (make_small() or large) if outbox.has_reply_room else None

    async def encode(head: bytes, tail: bytes) -> bytes:
        async with outbox.huge_reply:
            await outbox.wait_for_huge_turn()
            return await disk.run(lambda: make_large(head, tail))

    large = LargeResult(encode)
    while True:
        await outbox.wait_for_reply_room()
        result = await disk.run(make_if_room)
        if result is not None:
            return result


def _in_no_order(params: Any) -> Hashable:
    return object()


def _row(handler: Callable[[Peer, Any], Outcome]) -> Row:
    return Row(handler, lane=_in_no_order, holds_lane=False)


FILE_ROWS: dict[str, Row] = {
    "fs/readFile": _row(_read_file),
    "fs/writeFile": _row(_write_file),
    "fs/createDirectory": _row(_create_directory),
    "fs/getMetadata": _row(_get_metadata),
    "fs/canonicalize": _row(_canonicalize),
    "fs/readDirectory": _row(_read_directory),
    "fs/remove": _row(_remove),
    "fs/copy": _row(_copy),
}
