"""The environment that this process was started with."""

from __future__ import annotations

import os


def own_environment() -> dict[str, str]:
    """os.environ without what nobody has set.

    A Python that is started without a locale puts LC_CTYPE into its environment, and children would inherit it.
    """
    environ = dict(os.environ)
    if "LC_CTYPE" in environ:
        try:
            with open("/proc/self/environ", "rb") as file:
                initial = file.read().split(b"\0")
        except OSError:
            return environ
        if not any(entry.startswith(b"LC_CTYPE=") for entry in initial):
            del environ["LC_CTYPE"]
    return environ
