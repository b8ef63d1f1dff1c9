"""What this process was started with: its environment, and a hangup that is not to matter."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable


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


def heeded(signals: Iterable[signal.Signals]) -> list[signal.Signals]:
    """The signals without SIGHUP, if whoever started us has it ignored: `nohup` means what it says."""
    hangup_matters = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [number for number in signals if hangup_matters or number is not signal.SIGHUP]
