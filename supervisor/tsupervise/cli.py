"""The command line: options and exit codes, and nothing else. All that is heavy is imported when it is used."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ._listen_address import ListenRefused, check_exposure, parse_listen_url
from ._version import __version__

if TYPE_CHECKING:
    from tsupervise_protocol.messages import Limits

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
    try:
        code = serve_forever(ServerOptions(address, settings, exit_on_stdin_close))
    except CannotListen as refusal:
        raise click.ClickException(str(refusal)) from None
    sys.exit(code)


def _parse_env(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for value, (name, equals, _) in zip(values, pairs, strict=True):
        if not name or not equals:
            raise click.BadParameter(f"expected NAME=VALUE, got {value!r}", ctx, param)
    return {name: value for name, _, value in pairs}


def _parse_size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)([KMGT]?)", value.upper())
    if match is None:
        raise click.BadParameter(f"expected a number, and K, M, G or T or nothing, got {value!r}", ctx, param)
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def _parse_umask(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if re.fullmatch(r"[0-7]+", value) is None:
        raise click.BadParameter(f"expected an octal number such as 077, got {value!r}", ctx, param)
    return int(value, 8)


_LIMIT_OPTIONS = (
    click.option("--timeout", type=_Seconds(min=0, min_open=True), metavar="S", help="Kill it after that."),
    click.option(
        "--memory", callback=_parse_size, metavar="SIZE", help="Memory of all its processes, such as 512M."
    ),
    click.option("--pids", type=int, metavar="N", help="Its processes and threads at a time."),
    click.option(
        "--cpus", type=float, metavar="N", help="CPU time per time, of all: 0.5 is half of one CPU."
    ),
    click.option("--nofile", type=int, metavar="N", help="Open files of each of its processes."),
    click.option("--core", callback=_parse_size, metavar="SIZE", help="Size of a core file."),
    click.option("--nice", type=int, metavar="N", help="Its nice value."),
    click.option("--umask", callback=_parse_umask, metavar="MODE", help="Its umask, such as 077."),
)


def _limit_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_LIMIT_OPTIONS):
        command = option(command)
    return command


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
@_limit_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    url: str | None,
    tty: bool,
    cwd: str | None,
    env: dict[str, str],
    recovery: float,
    command: tuple[str, ...],
    timeout: float | None,
    **limits: Any,
) -> None:
    """Run COMMAND under supervision, as if it ran here.

    stdin, stdout and stderr are passed on, and so are INT, TERM, HUP and QUIT. The exit code is that of
    the command: 128 + n after signal n, 127 if it was not found, 126 if it cannot be executed, 125 if the
    daemon failed or cannot enforce a limit, 124 if its time was over.

    Limits hold for the command with all that it starts, but --nofile and --core for each process by itself. What
    cannot be enforced is refused: --memory, --pids and --cpus need control groups.
    """
    from ._exec_command import ExecOptions, run_exec

    if cwd is not None and url is None:
        cwd = os.path.abspath(cwd)
    sys.exit(run_exec(ExecOptions(command, url, tty, cwd, env, recovery, timeout, _limits(**limits))))


def _limits(
    *,
    memory: int | None,
    pids: int | None,
    cpus: float | None,
    nofile: int | None,
    core: int | None,
    nice: int | None,
    umask: int | None,
) -> Limits | None:
    from tsupervise_protocol.messages import Limits

    try:
        limits = Limits(
            memory_bytes=memory,
            pids=pids,
            cpu_quota=cpus,
            nofile=nofile,
            core_bytes=core,
            nice=nice,
            umask=umask,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return None if limits == Limits() else limits
