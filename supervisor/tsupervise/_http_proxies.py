"""Which proxy a request goes through: what the environment of the daemon says, as curl and others read it."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

from ._http_failure import HttpFailure
from ._http_url import BadUrl, HttpUrl, UnsupportedScheme, parse_url

_VARIABLES = {
    "http": ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"),
    "https": ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
}
"""By the scheme of the request; the first that is set and not empty counts."""


def proxy_for(url: HttpUrl, environ: Mapping[str, str]) -> HttpUrl | None:
    """The proxy for a request to `url`, with its user and password; None to go there directly.

    Raises:
        HttpFailure: the variable holds what is no proxy; a request never goes around one by mistake.
    """
    names = _VARIABLES[url.scheme]
    if "REQUEST_METHOD" in environ:
        # In a CGI program whoever sends a request with a `Proxy` header sets this one.
        names = tuple(name for name in names if name != "HTTP_PROXY")
    name = next((name for name in names if environ.get(name)), None)
    if name is None or _is_exempt(url.host, environ.get("NO_PROXY") or environ.get("no_proxy") or ""):
        return None
    text = environ[name]
    try:
        return parse_url(text if "://" in text else f"http://{text}")
    except BadUrl as error:
        raise HttpFailure(f"{name} is no URL of a proxy: {error}") from None
    except UnsupportedScheme as error:
        text = f"{name}: proxies are reached by http and https only, not by {error.scheme[:40]}"
        raise HttpFailure(text) from None


def _is_exempt(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host: itself, a domain above it, its address, a network of it, or `*`."""
    entries = [entry.strip().lower() for entry in no_proxy.split(",")]
    if "*" in entries:
        return True
    host = host.strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        names = [entry.lstrip(".") for entry in entries]
        return any(name and (host == name or host.endswith(f".{name}")) for name in names)
    return any(_has_address(entry, address) for entry in entries)


def _has_address(entry: str, address: object) -> bool:
    try:
        return address in ip_network(entry.strip("[]"), strict=False)  # type: ignore[operator]
    except ValueError:
        return False
