"""The one error of an HTTP request that was sent, or should have been."""

from __future__ import annotations


class HttpFailure(Exception):
    """There is no response, or no more of its body.

    Args:
        message: why, without anything of the request or the response but hosts, ports and schemes.
    """
