"""The command line: options and exit codes, and nothing else. All that is heavy is imported when it is used."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from ._listen_address import ListenRefused, check_exposure, parse_listen_url
from ._version import __version__

_STDIN_CLOSE_VARIABLES = ("TSUPERVISE_EXIT_ON_STDIN_CLOSE", "CODEX_EXEC_SERVER_EXIT_ON_STDIN_CLOSE")
"""Set to `true` or `false`; the second is the name that launchers of other servers of this protocol know."""


def _stdin_close_variable() -> bool:
    # Not click's own reading of variables: for a flag that takes any text for one of the two.
    for name in _STDIN_CLOSE_VARIABLES:
        value = os.environ.get(name)
        if value not in (None, "true", "false"):
            raise click.UsageError(f"{name} must be `true` or `false`, not {value!r}")
        if value is not None:
            return value == "true"
    return False


class _Seconds(click.FloatRange):
    """A length of time; not `nan`, which a range lets through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no length of time.", param, ctx)
        return seconds


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Supervise processes: one daemon owns them, clients start, feed, watch and stop them."""


@main.command()
@click.option(
    "--listen",
    default="ws://127.0.0.1:0",
    metavar="URL",
    show_default=True,
    help="ws://IP:PORT (port 0: any free one, printed as the one line on stdout) or stdio.",
)
@click.option(
    "--detached-ttl",
    type=_Seconds(min=0),
    default=80.0,
    metavar="S",
    show_default=True,
    help="How long a session and its processes outlive their connection, in seconds.",
)
@click.option(
    "--retention",
    type=_Seconds(min=0),
    default=80.0,
    metavar="S",
    show_default=True,
    help="How long a closed process can still be read, in seconds.",
)
@click.option(
    "--retained-bytes",
    type=click.IntRange(min=0),
    default=1 << 20,
    metavar="N",
    show_default=True,
    help="Output retained for each process.",
)
@click.option(
    "--retained-total-bytes",
    type=click.IntRange(min=0),
    default=256 << 20,
    metavar="N",
    show_default=True,
    help="Output retained for all processes; that of the oldest closed ones goes first.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Logs go to stderr.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--exit-on-stdin-close",
    is_flag=True,
    default=_stdin_close_variable,
    help="Shut down when stdin ends, as it does when the parent dies.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen beyond this machine, though whoever connects can run programs."
)
@click.option(
    "--no-cgroup",
    is_flag=True,
    help="Contain processes without control groups, even where the system has them.",
)
def run(
    listen: str,
    detached_ttl: float,
    retention: float,
    retained_bytes: int,
    retained_total_bytes: int,
    log_level: str,
    log_format: str,
    exit_on_stdin_close: bool,
    insecure: bool,
    no_cgroup: bool,
) -> None:
    """Run the daemon, until SIGTERM, SIGINT or SIGHUP."""
    try:
        address = parse_listen_url(listen)
        check_exposure(address, insecure=insecure)
    except ListenRefused as refusal:
        raise click.ClickException(str(refusal)) from None

    from ._log_output import log_to_stderr
    from ._settings import Settings
    from .server import CannotListen, ServerOptions, serve_forever

    settings = Settings(
        detached_ttl_s=detached_ttl,
        retention_s=retention,
        retained_bytes=retained_bytes,
        retained_total_bytes=retained_total_bytes,
    )
    log_to_stderr(log_level, as_json=log_format == "json")
    options = ServerOptions(address, settings, exit_on_stdin_close, use_cgroups=not no_cgroup)
    try:
        code = serve_forever(options)
    except CannotListen as refusal:
        raise click.ClickException(str(refusal)) from None
    sys.exit(code)


def _parse_env(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for value, (name, equals, _) in zip(values, pairs, strict=True):
        if not name or not equals:
            raise click.BadParameter(f"expected NAME=VALUE, got {value!r}", ctx, param)
    return {name: value for name, _, value in pairs}


@main.command("exec", context_settings={"allow_interspersed_args": False})
@click.option(
    "--url",
    envvar="TSUPERVISE_URL",
    metavar="URL",
    help="The daemon to run it under; without it, it is supervised by this command itself.",
)
@click.option("-t", "--tty", is_flag=True, help="Run it on a terminal of its own.")
@click.option("--cwd", metavar="DIR", help="Its working directory; absolute if --url is given.")
@click.option(
    "--env", "-e", multiple=True, metavar="NAME=VALUE", callback=_parse_env, help="Added to its environment."
)
@click.option(
    "--recovery",
    type=_Seconds(min=0),
    default=45.0,
    metavar="S",
    show_default=True,
    help="How long to try to come back after a lost connection, in seconds.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    url: str | None,
    tty: bool,
    cwd: str | None,
    env: dict[str, str],
    recovery: float,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND under supervision, as if it ran here.

    stdin, stdout and stderr are passed on, and so are INT, TERM, HUP and QUIT. The exit code is that of
    the command: 128 + n after signal n, 127 if it was not found, 126 if it cannot be executed, 125 if the
    daemon failed.
    """
    from ._exec_command import ExecOptions, run_exec

    if cwd is not None and url is None:
        cwd = os.path.abspath(cwd)
    sys.exit(run_exec(ExecOptions(command, url, tty, cwd, env, recovery)))
