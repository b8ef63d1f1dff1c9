"""Where a daemon listens: what `--listen` accepts, and which places need a second thought.

The refusals of a malformed value read as other servers of this protocol word them: start scripts match them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

_IP_AND_PORT = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+)):([0-9]+)", re.ASCII)


class ListenRefused(Exception):
    """A daemon cannot, or must not, listen there."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address to bind: never a host name, which could change its meaning."""

    host: IPv4Address | IPv6Address
    port: int
    """0 for any free one."""

    @property
    def url(self) -> str:
        """The URL by which clients connect."""
        return (
            f"ws://[{self.host}]:{self.port}" if self.host.version == 6 else f"ws://{self.host}:{self.port}"
        )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        mapped = self.host.ipv4_mapped if isinstance(self.host, IPv6Address) else None
        return (mapped or self.host).is_loopback


ListenAddress = TcpAddress | Literal["stdio"]


def parse_listen_url(url: str) -> ListenAddress:
    """Read a `--listen` value: `ws://IP:PORT`, `stdio` or `stdio://`.

    Raises:
        ListenRefused: it is neither.
    """
    if url in ("stdio", "stdio://"):
        return "stdio"
    if not url.startswith("ws://"):
        raise ListenRefused(f"unsupported --listen URL `{url}`; expected `ws://IP:PORT` or `stdio`")
    invalid = ListenRefused(f"invalid websocket --listen URL `{url}`; expected `ws://IP:PORT`")
    match = _IP_AND_PORT.fullmatch(url.removeprefix("ws://"))
    if match is None or int(match[3]) > 65535:
        raise invalid
    try:
        host = IPv6Address(match[1]) if match[1] is not None else IPv4Address(match[2])
    except ValueError:
        raise invalid from None
    return TcpAddress(host, int(match[3]))


def check_exposure(address: ListenAddress, *, insecure: bool) -> None:
    """Raise ListenRefused for an address beyond this machine, unless that is wanted.

    Args:
        insecure: whether `--insecure` was given.
    """
    if insecure or address == "stdio" or address.is_loopback:
        return
    raise ListenRefused(
        f"refused to listen on {address.url}: whoever can reach it can run any program as this user, and "
        "there is no authentication yet; listen on 127.0.0.1 or [::1] and forward the port (`ssh -L`), or "
        "pass --insecure if only peers that you trust can reach that address"
    )
