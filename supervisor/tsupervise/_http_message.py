"""One HTTP request as it goes out: made from the params of `http/request`, or from a redirect. It does no I/O."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tsupervise_protocol.base64_text import decode_base64
from tsupervise_protocol.errors import ErrorCode, RpcError
from tsupervise_protocol.http_messages import HttpHeader, HttpRequestHeader, HttpRequestParams

from ._http_url import BadUrl, HttpUrl, UnsupportedScheme, parse_url

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_VISIBLE = re.compile(rb"[\t\x20-\x7e]*")


class Field(NamedTuple):
    """A header field."""

    name: bytes
    """In lower case."""
    value: bytes
    from_environment: bool = False
    """Whether a part of it is from the environment of the daemon, and for the first origin only."""


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """What goes to one server, but for the fields that are added at the last moment, see `fields_to_send`."""

    method: str
    url: HttpUrl
    fields: tuple[Field, ...]
    body: bytes

    def has_field(self, name: bytes) -> bool:
        return any(field.name == name for field in self.fields)

    def fields_to_send(self, cookie: bytes | None) -> list[tuple[bytes, bytes]]:
        """All fields in order; what is missing and needed comes behind the caller's.

        Args:
            cookie: what the cookie store has for the URL; a field of the caller's goes before it.
        """
        fields = [(field.name, field.value) for field in self.fields]
        if not self.has_field(b"accept"):
            fields.append((b"accept", b"*/*"))
        if not self.has_field(b"host"):
            fields.append((b"host", self.url.authority.encode()))
        if cookie is not None and not self.has_field(b"cookie"):
            fields.append((b"cookie", cookie))
        if self.body and not (self.has_field(b"content-length") or self.has_field(b"transfer-encoding")):
            fields.append((b"content-length", b"%d" % len(self.body)))
        return fields


def request_of(params: HttpRequestParams, environ: Mapping[str, str]) -> OutgoingRequest:
    """What is to be sent first.

    Args:
        environ: the environment of the daemon, for `valueEnvVar`.

    Raises:
        RpcError: INVALID_PARAMS; the text names what is wrong, and no value.
    """
    if not _TOKEN.fullmatch(params.method):
        raise _invalid("method is invalid: letters, digits and !#$%&'*+-.^_`|~ only, and at least one")
    url = _url_of(params.url)
    fields = [_field_of(header, environ) for header in params.headers]
    if url.user_info is not None and all(field.name != b"authorization" for field in fields):
        credentials = base64.b64encode(b":".join(url.user_info))
        fields.insert(0, Field(b"authorization", b"Basic " + credentials))
    try:
        body = decode_base64(params.body_base64 or "")
    except ValueError as error:
        raise _invalid(f"bodyBase64: {error}") from None
    _check_length(fields, body)
    return OutgoingRequest(params.method, url, tuple(fields), body)


def _check_length(fields: Sequence[Field], body: bytes) -> None:
    """See that the length that a caller gives is that of the body: the server would wait for the rest."""
    lengths = [field.value for field in fields if field.name == b"content-length"]
    if not lengths:
        return
    if lengths != [b"%d" % len(body)]:
        raise _invalid(f"content-length is not that of the body, which has {len(body)} bytes")
    if any(field.name == b"transfer-encoding" for field in fields):
        raise _invalid("content-length and transfer-encoding exclude each other")


def _url_of(text: str) -> HttpUrl:
    try:
        return parse_url(text)
    except BadUrl as error:
        raise _invalid(f"url is invalid: {error}") from None
    except UnsupportedScheme as error:
        text = f"http/request only supports http and https URLs, got {error.scheme[:40]}"
        raise RpcError(ErrorCode.INVALID_PARAMS, text) from None


def _field_of(header: HttpRequestHeader, environ: Mapping[str, str]) -> Field:
    if not _TOKEN.fullmatch(header.name):
        # Not told which: what is no name may be a whole header, with its secret.
        raise _invalid("header name is invalid: letters, digits and !#$%&'*+-.^_`|~ only, and at least one")
    name = header.name.lower()
    value = header.value.encode(errors="replace")
    variable = header.value_env_var
    if variable is not None:
        if variable not in environ:
            raise _invalid(f"header {name} requires executor environment variable {variable}")
        value += os.fsencode(environ[variable])
    if _NO_VALUE.search(value):
        raise _invalid(f"header value is invalid for {name}: it has a control character in it")
    # Blanks around a value do not belong to it.
    return Field(name.encode(), value.strip(b" \t"), from_environment=variable is not None)


def _invalid(text: str) -> RpcError:
    return RpcError(ErrorCode.INVALID_PARAMS, f"http/request {text}")


def headers_of(fields: Sequence[tuple[bytes, bytes]]) -> list[HttpHeader]:
    """The fields of a response as a client gets them: those that cannot be told as text are left out."""
    return [
        HttpHeader(name=name.decode("ascii").lower(), value=value.decode("ascii"))
        for name, value in fields
        if _VISIBLE.fullmatch(value)
    ]
