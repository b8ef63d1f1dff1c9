"""Starting a child where the C library's posix_spawn lacks what it takes: by `subprocess`.

It does what `_posix_spawn` does, at the price of a fork, and with the things missing that LACKS names.
"""

from __future__ import annotations

import subprocess

from ._posix_spawn import SpawnPlan

LACKS = (
    "starts take longer, a program may run for a moment before its limits hold, and on a terminal arg0 is not "
    "shown and a program that cannot be run is told by exit code 126 or 127 and not by an error"
)
"""What a user of this way of starting should know."""

# A shell that leads its session opens the terminal, which makes it the controlling one, and becomes the program.
_ON_TERMINAL = 'exec 0<>"$0" 1>&0 2>&0; exec "$@"'


def fork_spawn(plan: SpawnPlan) -> int:
    """Start the child of a plan and return its pid.

    Raises:
        OSError: the errno of the fork, or of the exec.
    """
    env = dict(entry.split(b"=", 1) for entry in plan.env)
    if plan.terminal is not None:
        shell: list[bytes] = [b"/bin/sh", b"-c", _ON_TERMINAL.encode(), plan.terminal]
        process = subprocess.Popen(
            [*shell, plan.path, *plan.argv[1:]],
            cwd=plan.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    else:
        assert plan.stdio is not None, "a child has a terminal or three descriptors"
        stdin, stdout, stderr = plan.stdio
        process = subprocess.Popen(
            list(plan.argv),
            executable=plan.path,
            cwd=plan.cwd,
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    # The child is watched and reaped by its owner; this object must not think that it is still its own.
    process.returncode = 0
    return process.pid
