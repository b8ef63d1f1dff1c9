"""The command `tsupervise`, also as `python -m tsupervise`.

`tsupervise run` stays as the keeper of a daemon, so nothing may be loaded here that it does not need.
"""

from __future__ import annotations

import sys

from ._keeper import KEPT_BY, die_with_keeper, keep


def main() -> None:
    """Be the keeper, or the daemon that it starts, or any other command."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] and sys.platform == "linux":
        sys.exit(keep(arguments))
    if arguments and arguments[0].startswith(KEPT_BY):
        die_with_keeper(int(arguments[0].removeprefix(KEPT_BY)))
        arguments = arguments[1:]
    from .cli import main as run_command

    run_command(arguments, prog_name="tsupervise")


if __name__ == "__main__":
    main()
