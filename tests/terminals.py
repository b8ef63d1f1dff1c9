"""The installed `tsupervise` on a terminal of its own, driven by pexpect as a person would."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pexpect

TSUPERVISE = str(Path(sysconfig.get_path("scripts")) / "tsupervise")
PATIENCE_S = 20.0

Terminal = Any
"""A `pexpect.spawn`; the published types of pexpect know only half of it."""


def spawn(
    arguments: Sequence[str], size: tuple[int, int] = (24, 80), env: Mapping[str, str] | None = None
) -> Terminal:
    child = cast(
        "Terminal",
        pexpect.spawn(arguments[0], list(arguments[1:]), timeout=PATIENCE_S, dimensions=size, env=env),
    )
    # pexpect's own pauses are for programs that it cannot wait for.
    child.delaybeforesend = None
    child.delayafterread = None
    child.delayafterclose = child.delayafterterminate = 0
    child.ptyproc.delayafterclose = child.ptyproc.delayafterterminate = 0
    return child


def exit_code(child: Terminal) -> int:
    """Wait for the end of a command on a terminal; -n after signal n."""
    child.expect(pexpect.EOF)
    child.close()
    return -child.signalstatus if child.exitstatus is None else child.exitstatus
