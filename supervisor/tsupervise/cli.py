"""The command line: options and exit codes, and nothing else. All that is heavy is imported when it is used."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from ._listen_address import ListenAddress, ListenRefused, TcpAddress, check_exposure, parse_listen_url
from ._version import __version__

if TYPE_CHECKING:
    from ._listener import ListenOptions
    from ._way_in import WayIn
    from ._ws_auth import AuthOptions

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
    help="ws://IP:PORT (port 0: any free one, printed as the one line on stdout), wss://IP:PORT, unix:///PATH "
    "or stdio.",
)
@click.option(
    "--ws-auth",
    type=click.Choice(["capability-token", "signed-bearer-token"]),
    metavar="MODE",
    help="Ask every peer for a token: capability-token (one secret for all) or signed-bearer-token (JSON Web "
    "Tokens, HS256). Without it, only the user that the daemon runs as and root may connect.",
)
@click.option("--ws-token-file", metavar="PATH", help="capability-token: a file with the token.")
@click.option("--ws-token-sha256", metavar="HEX", help="capability-token: the SHA-256 of the token instead.")
@click.option(
    "--ws-shared-secret-file",
    metavar="PATH",
    help="signed-bearer-token: a file with the secret that tokens are signed with, 32 bytes at least.",
)
@click.option("--ws-issuer", metavar="NAME", help="signed-bearer-token: the `iss` that a token must have.")
@click.option("--ws-audience", metavar="NAME", help="signed-bearer-token: what its `aud` must be or contain.")
@click.option(
    "--ws-max-clock-skew-seconds",
    type=click.IntRange(min=0, max=(1 << 64) - 1),
    metavar="S",
    help="signed-bearer-token: how far clocks may be apart.  [default: 30]",
)
@click.option(
    "--tls-cert", metavar="PATH", help="wss: the certificate, with those that lead to its root; PEM."
)
@click.option("--tls-key", metavar="PATH", help="wss: its key, not encrypted; PEM.")
@click.option(
    "--allow-other-users",
    is_flag=True,
    help="Let all users of this machine connect without a token, and run programs as this user.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=512,
    metavar="N",
    show_default=True,
    help="Connections at a time; more are answered 503.",
)
@click.option(
    "--max-sessions",
    type=click.IntRange(min=1),
    default=4096,
    metavar="N",
    show_default=True,
    help="Sessions at a time, detached ones included.",
)
@click.option(
    "--max-processes",
    type=click.IntRange(min=1),
    default=4096,
    metavar="N",
    show_default=True,
    help="Processes at a time, of all sessions.",
)
@click.option(
    "--max-session-processes",
    type=click.IntRange(min=1),
    default=1024,
    metavar="N",
    show_default=True,
    help="Processes at a time, of one session.",
)
@click.option(
    "--max-open-requests",
    type=click.IntRange(min=1),
    default=2048,
    metavar="N",
    show_default=True,
    help="Requests of one connection that wait at a time.",
)
@click.option(
    "--max-open-bytes",
    type=click.IntRange(min=0),
    default=64 << 20,
    metavar="N",
    show_default=True,
    help="Bytes of requests of one connection that wait at a time.",
)
@click.option(
    "--handshake-timeout",
    type=_Seconds(min=0),
    default=10.0,
    metavar="S",
    show_default=True,
    help="How long a peer may take for its HTTP request, and again for `initialize`, in seconds.",
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
    "--insecure",
    is_flag=True,
    help="Listen beyond this machine without both --ws-auth and wss: who can reach it may run programs.",
)
def run(
    listen: str,
    ws_auth: Literal["capability-token", "signed-bearer-token"] | None,
    ws_token_file: str | None,
    ws_token_sha256: str | None,
    ws_shared_secret_file: str | None,
    ws_issuer: str | None,
    ws_audience: str | None,
    ws_max_clock_skew_seconds: int | None,
    tls_cert: str | None,
    tls_key: str | None,
    allow_other_users: bool,
    max_connections: int,
    max_sessions: int,
    max_processes: int,
    max_session_processes: int,
    max_open_requests: int,
    max_open_bytes: int,
    handshake_timeout: float,
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
    from ._listener import CannotListen
    from ._log_output import log_to_stderr
    from ._settings import Settings
    from ._ws_auth import AuthOptions, AuthRefused
    from .server import ServerOptions, serve_forever

    auth = AuthOptions(
        ws_auth,
        ws_token_file,
        ws_token_sha256,
        ws_shared_secret_file,
        ws_issuer,
        ws_audience,
        ws_max_clock_skew_seconds,
    )
    settings = Settings(
        detached_ttl_s=detached_ttl,
        retention_s=retention,
        retained_bytes=retained_bytes,
        retained_total_bytes=retained_total_bytes,
        max_sessions=max_sessions,
        max_processes=max_processes,
        max_session_processes=max_session_processes,
        max_open_requests=max_open_requests,
        max_open_bytes=max_open_bytes,
    )
    try:
        address = parse_listen_url(listen)
        auth.check()
        check_exposure(address, has_auth=ws_auth is not None, insecure=insecure)
        door = _door(
            address,
            auth,
            (tls_cert, tls_key),
            allow_other_users=allow_other_users,
            max_connections=max_connections,
            handshake_s=handshake_timeout,
        )
        log_to_stderr(log_level, as_json=log_format == "json")
        code = serve_forever(ServerOptions(door, settings, exit_on_stdin_close))
    except (AuthRefused, CannotListen, ListenRefused) as refusal:
        raise click.ClickException(str(refusal)) from None
    sys.exit(code)


def _door(
    address: ListenAddress,
    auth: AuthOptions,
    tls_files: tuple[str | None, str | None],
    *,
    allow_other_users: bool,
    max_connections: int,
    handshake_s: float,
) -> ListenOptions | Literal["stdio"]:
    """Read the files that the options name, and see that there is a use for what was given."""
    from ._doorkeeper import Doorkeeper
    from ._listener import ListenOptions, load_certificate
    from ._ws_auth import AuthRefused, read_auth

    cert, key = tls_files
    tls = None
    if isinstance(address, TcpAddress) and address.encrypted:
        if cert is None or key is None:
            text = f"unsupported --listen URL `{address.url}` without both --tls-cert and --tls-key"
            raise ListenRefused(text)
        tls = load_certificate(cert, key)
    elif cert is not None or key is not None:
        raise ListenRefused("--tls-cert and --tls-key are for a wss:// listener")
    if address == "stdio":
        if auth.mode is not None:
            raise AuthRefused("--ws-auth is for listeners: on stdio there is one peer, who has started us")
        return "stdio"
    is_beyond = isinstance(address, TcpAddress) and not address.is_loopback
    # Beyond this machine nobody knows users; who listens there without a token has said --insecure.
    doorkeeper = Doorkeeper(read_auth(auth), allow_other_users or is_beyond, max_connections)
    return ListenOptions(address, doorkeeper, tls, 0o666 if allow_other_users else 0o600, handshake_s)


def _parse_env(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for value, (name, equals, _) in zip(values, pairs, strict=True):
        if not name or not equals:
            raise click.BadParameter(f"expected NAME=VALUE, got {value!r}", ctx, param)
    return {name: value for name, _, value in pairs}


_AnyFunction = TypeVar("_AnyFunction", bound=Callable[..., Any])


def _way_in_options(command: _AnyFunction) -> _AnyFunction:
    """The options of commands that connect to a daemon; `_way_in` makes of their values what `connect` takes."""
    for option in (
        click.option(
            "--insecure-token", is_flag=True, help="Send the token to another machine even without wss."
        ),
        click.option(
            "--tls-ca",
            envvar="TSUPERVISE_TLS_CA",
            metavar="PATH",
            help="wss: whom to trust instead of the authorities of this system; PEM.",
        ),
        click.option(
            "--token-file",
            envvar="TSUPERVISE_TOKEN_FILE",
            metavar="PATH",
            help="A file with the token that the daemon asks for, read anew for each connection.",
        ),
    ):
        command = option(command)
    return command


def _way_in(token_file: str | None, tls_ca: str | None, insecure_token: bool) -> WayIn:
    way_in: WayIn = {"token_file": token_file, "insecure_token": insecure_token}
    if tls_ca is not None:
        import ssl

        try:
            way_in["ssl_context"] = ssl.create_default_context(cafile=tls_ca)
        except OSError as error:
            reason = error.strerror if isinstance(error, FileNotFoundError | PermissionError) else str(error)
            raise click.ClickException(f"cannot use --tls-ca {tls_ca}: {reason}") from None
    return way_in


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
@_way_in_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    url: str | None,
    tty: bool,
    cwd: str | None,
    env: dict[str, str],
    recovery: float,
    token_file: str | None,
    tls_ca: str | None,
    insecure_token: bool,
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
    way_in = _way_in(token_file, tls_ca, insecure_token)
    sys.exit(run_exec(ExecOptions(command, url, tty, cwd, env, recovery, way_in)))
