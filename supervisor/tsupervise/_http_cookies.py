"""The few cookies that are kept: those by which a load balancer finds the server again, of the hosts that want it.

Everything else is for the client to keep or to forget: it gets every Set-Cookie, and nothing is written to a disk.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from email.message import Message
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Any

from ._http_url import HttpUrl

HOSTS = ("chatgpt.com", "chat.openai.com", "chatgpt-staging.com")
"""As in the reference, like all three tables."""

DOMAINS = (".chatgpt.com", ".chatgpt-staging.com")
"""All hosts below these, too."""

NAMES = {
    *("__cf_bm", "__cflb", "__cfruid", "__cfseq", "__cfwaitingroom", "_cfuvid"),
    *("cf_clearance", "cf_ob_info", "cf_use_ob"),
}

NAME_PREFIX = "cf_chl_"

MAX_COOKIES = 256
"""When there are more, all are forgotten: they are hints, and the next response brings new ones."""

MAX_COOKIE_BYTES = 4096
"""Of a name and its value, as in browsers; a longer one is not kept."""


class AffinityCookies:
    """The store of one daemon, for all connections and requests."""

    def __init__(self) -> None:
        self._jar = CookieJar(
            # A cookie without a domain is for the host that has set it alone: as in browsers, and not the default.
            _Policy(rfc2965=False, strict_ns_domain=DefaultCookiePolicy.DomainStrictNonDomain)
        )

    def __len__(self) -> int:
        return len(self._jar)

    def cookie_for(self, url: HttpUrl) -> bytes | None:
        """The value of the Cookie field for a request to `url`; None if there is nothing to send."""
        if not _is_allowed(url.scheme, url.host):
            return None
        request = urllib.request.Request(str(url))
        self._jar.add_cookie_header(request)
        value = request.get_header("Cookie")
        return None if value is None else value.encode("latin-1")

    def remember(self, url: HttpUrl, fields: Sequence[tuple[bytes, bytes]]) -> None:
        """Take what a response from `url` sets, and this store keeps."""
        if not _is_allowed(url.scheme, url.host):
            return
        for name, value in fields:
            if name.lower() == b"set-cookie":
                self._jar.extract_cookies(_Response(value), urllib.request.Request(str(url)))  # type: ignore[arg-type]
        if len(self._jar) > MAX_COOKIES:
            self._jar.clear()


class _Response:
    """As much of a response as the standard library asks for."""

    def __init__(self, set_cookie: bytes) -> None:
        self._message = Message()
        self._message["Set-Cookie"] = set_cookie.decode("latin-1")

    def info(self) -> Message:
        return self._message


class _Policy(DefaultCookiePolicy):
    """The usual rules of domain, path, time and `Secure`, and ours on top; asked when storing and when sending."""

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        return _may_be_kept(cookie, request) and super().set_ok(cookie, request)

    def return_ok(self, cookie: Cookie, request: Any) -> bool:
        return _may_be_kept(cookie, request) and super().return_ok(cookie, request)


def _may_be_kept(cookie: Cookie, request: urllib.request.Request) -> bool:
    named = cookie.name in NAMES or cookie.name.startswith(NAME_PREFIX)
    if not named or cookie.value is None or len(cookie.name) + len(cookie.value) > MAX_COOKIE_BYTES:
        return False
    return _is_allowed(request.type, request.host)


def _is_allowed(scheme: str, host: str) -> bool:
    host = host.partition(":")[0]
    return scheme == "https" and (host in HOSTS or host.endswith(DOMAINS))
