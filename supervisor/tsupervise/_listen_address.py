"""Where a daemon listens: what `--listen` accepts, and which places need a second thought.

The refusals of a malformed value read as other servers of this protocol word them: start scripts match them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

MAX_UNIX_PATH_BYTES = 107
"""struct sockaddr_un of linux/un.h, less the zero byte at the end."""

_IP_AND_PORT = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]+)", re.ASCII)


class ListenRefused(Exception):
    """A daemon cannot, or must not, listen there."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address to bind: never a host name, which could change its meaning."""

    host: IPv4Address | IPv6Address
    port: int
    """0 for any free one."""
    encrypted: bool = False
    """Whether TLS is spoken there."""

    @property
    def url(self) -> str:
        """The URL by which clients connect."""
        host = f"[{self.host}]" if self.host.version == 6 else f"{self.host}"
        return f"{'wss' if self.encrypted else 'ws'}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        mapped = self.host.ipv4_mapped if isinstance(self.host, IPv6Address) else None
        return (mapped or self.host).is_loopback


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: str
    """Absolute."""

    @property
    def url(self) -> str:
        """The URL by which clients connect."""
        return f"unix://{self.path}"


SocketAddress = TcpAddress | UnixAddress

ListenAddress = SocketAddress | Literal["stdio"]


def parse_listen_url(url: str) -> ListenAddress:
    """Read a `--listen` value: `ws://IP:PORT`, `wss://IP:PORT`, `unix:///PATH`, `stdio` or `stdio://`.

    Raises:
        ListenRefused: it is none of these.
    """
    if url in ("stdio", "stdio://"):
        return "stdio"
    if url.startswith("unix://"):
        return _parse_unix_url(url)
    scheme, separator, authority = url.partition("://")
    if scheme not in ("ws", "wss") or not separator:
        raise ListenRefused(
            f"unsupported --listen URL `{url}`; expected `ws://IP:PORT`, `wss://IP:PORT`, `unix:///PATH` "
            "or `stdio`"
        )
    invalid = ListenRefused(f"invalid websocket --listen URL `{url}`; expected `{scheme}://IP:PORT`")
    match = _IP_AND_PORT.fullmatch(authority)
    if match is None or int(match[3]) > 65535:
        raise invalid
    try:
        host = IPv6Address(match[1]) if match[1] is not None else IPv4Address(match[2])
    except ValueError:
        raise invalid from None
    return TcpAddress(host, int(match[3]), encrypted=scheme == "wss")


def _parse_unix_url(url: str) -> UnixAddress:
    path = url.removeprefix("unix://")
    if not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise ListenRefused(f"invalid unix --listen URL `{url}`; expected `unix:///PATH`, an absolute path")
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        raise ListenRefused(
            f"invalid unix --listen URL `{url}`; the path of a socket has at most {MAX_UNIX_PATH_BYTES} bytes"
        )
    return UnixAddress(path)


def check_exposure(address: ListenAddress, *, has_auth: bool, insecure: bool) -> None:
    """Raise ListenRefused for an address beyond this machine that lets strangers in, unless that is wanted.

    Args:
        has_auth: whether every peer has to show a token.
        insecure: whether `--insecure` was given.
    """
    if insecure or not isinstance(address, TcpAddress) or address.is_loopback:
        return
    if has_auth and address.encrypted:
        return
    missing = [
        *([] if has_auth else ["authentication (--ws-auth)"]),
        *([] if address.encrypted else ["encryption (wss:// with --tls-cert and --tls-key)"]),
    ]
    raise ListenRefused(
        f"refused to listen on {address.url}: whoever can reach it could run any program as this user. It "
        f"lacks {' and '.join(missing)}. Add what is missing; or listen on 127.0.0.1 or [::1] and forward the "
        "port (`ssh -L`); or pass --insecure if only peers that you trust can reach that address"
    )
