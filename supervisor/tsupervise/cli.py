"""The command line: options and exit codes, and nothing else. All that is heavy is imported when it is used."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem, get_completion_class

from ._detach_keys import DEFAULT_KEYS, BadKeys, parse_keys
from ._listen_address import ListenAddress, ListenRefused, TcpAddress, check_exposure, parse_listen_url
from ._version import __version__

if TYPE_CHECKING:
    import socket

    from tsupervise_protocol.messages import Limits, SignalName

    from ._listener import ListenOptions
    from ._way_in import WayIn
    from ._ws_auth import AuthOptions
    from .client import Client

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


class _Misuse(click.ClickException):
    """A command line that makes no sense, told in one line like every other error."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"tsupervise: {self.message}", file, err=True)


@contextmanager
def _in_one_line() -> Generator[None]:
    try:
        yield
    except click.UsageError as error:
        path = "tsupervise" if error.ctx is None else error.ctx.command_path
        raise _Misuse(f"{error.format_message().rstrip('.')} (see `{path} --help`)") from None


class _Commands(click.Group):
    """Commands in the order in which they are explained."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with _in_one_line():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _in_one_line():
            return super().invoke(ctx)


_EPILOG = """
An ID is what `ps` and `exec --detach` print, or the name of a process, if only one live process of the daemon has
that name.

Exit codes: `exec`, `attach` and `wait` exit as the process did: 128 + n after signal n, 126 and 127 if it could
not be executed or found. Else 0; 125 after a failure of tsupervise itself, such as no daemon, an unknown ID or a
lost connection; 2 after a command line that makes no sense. `run` exits with 1 if it cannot listen.
"""


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
    invoke_without_command=True,
)
@click.version_option(__version__)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Supervise processes: one daemon owns them, clients start, feed, watch and stop them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command()
@click.option(
    "--listen",
    default="ws://127.0.0.1:0",
    metavar="URL",
    show_default=True,
    help="ws://IP:PORT (port 0: any free one, printed as the one line on stdout), wss://IP:PORT, unix:///PATH, "
    "stdio, or systemd for a socket that is passed.",
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
    "--max-http-body-bytes",
    type=click.IntRange(min=0),
    default=256 << 20,
    metavar="N",
    show_default=True,
    help="Body of a response to `http/request` that is not streamed.",
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
    help="Output retained in memory for each process.",
)
@click.option(
    "--retained-total-bytes",
    type=click.IntRange(min=0),
    default=256 << 20,
    metavar="N",
    show_default=True,
    help="Output retained in memory for all processes; that of the oldest closed ones goes first.",
)
@click.option(
    "--spill-dir",
    metavar="DIR",
    help="Retain older output in files in this directory; without it, it is dropped.",
)
@click.option(
    "--spill-bytes",
    type=click.IntRange(min=1 << 20),
    metavar="N",
    help="The most that the file of one process takes; then its oldest output goes.  [default: 1 GiB]",
)
@click.option(
    "--spill-total-bytes",
    type=click.IntRange(min=1 << 20),
    metavar="N",
    help="The most that all these files take together.  [default: 16 GiB]",
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
    "--audit-log",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Append a JSON line for each session and process: who, what, when, how it ended.",
)
@click.option(
    "--otel/--no-otel",
    default=None,
    help="Send a trace span of each request by OTLP; without either, if OTEL_EXPORTER_OTLP_ENDPOINT is set.",
)
@click.option(
    "--drain",
    type=_Seconds(min=0),
    default=0.0,
    metavar="S",
    show_default=True,
    help="After the first signal, take no new work and let what runs end, for so many seconds.",
)
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
@click.option(
    "--no-cgroup",
    is_flag=True,
    help="Contain processes without control groups, even where the system has them.",
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
    max_http_body_bytes: int,
    handshake_timeout: float,
    detached_ttl: float,
    retention: float,
    retained_bytes: int,
    retained_total_bytes: int,
    spill_dir: str | None,
    spill_bytes: int | None,
    spill_total_bytes: int | None,
    log_level: str,
    log_format: str,
    audit_log: str | None,
    otel: bool | None,
    drain: float,
    exit_on_stdin_close: bool,
    insecure: bool,
    no_cgroup: bool,
) -> None:
    """Run the daemon, until SIGTERM, SIGINT or SIGHUP; a second one makes it leave at once.

    Where it listens, it writes to a file in $XDG_RUNTIME_DIR/tsupervise (else /tmp/tsupervise-UID), by which
    the other commands of the same user find it.

    Exit codes: 0 after these, and at the end of stdin; 1 if it cannot start, or a peer on stdio breaks the
    protocol; 2 for wrong options; 128 + n if signal n has killed it.
    """
    from ._service_manager import passed_listener, take_handover

    # First of all: it is not for anybody else, in whatever way this goes on.
    handover = take_handover(os.environ)
    passed = None
    if spill_dir is None and (spill_bytes is not None or spill_total_bytes is not None):
        raise click.UsageError("--spill-bytes and --spill-total-bytes need a --spill-dir")

    from ._audit_log import CannotAudit
    from ._listener import CannotListen
    from ._log_output import log_to_stderr
    from ._settings import SPILL_BYTES, SPILL_TOTAL_BYTES, Settings
    from ._tracing import CannotTrace
    from ._ws_auth import AuthOptions, AuthRefused
    from .errors import CannotSpill
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
        spill_dir=spill_dir,
        spill_bytes=SPILL_BYTES if spill_bytes is None else spill_bytes,
        spill_total_bytes=SPILL_TOTAL_BYTES if spill_total_bytes is None else spill_total_bytes,
        max_sessions=max_sessions,
        max_processes=max_processes,
        max_session_processes=max_session_processes,
        max_open_requests=max_open_requests,
        max_open_bytes=max_open_bytes,
        max_http_body_bytes=max_http_body_bytes,
    )
    try:
        if listen == "systemd":
            passed, address = passed_listener(handover, encrypted=tls_cert is not None)
        else:
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
            passed=passed,
        )
        log_to_stderr(log_level, as_json=log_format == "json")
        code = serve_forever(
            ServerOptions(
                door,
                settings,
                exit_on_stdin_close,
                use_cgroups=not no_cgroup,
                handover=handover,
                drain_s=drain,
                audit_log=audit_log,
                traces=otel,
            )
        )
    except (AuthRefused, CannotAudit, CannotListen, CannotSpill, CannotTrace, ListenRefused) as refusal:
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
    passed: socket.socket | None,
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
    socket_mode = 0o666 if allow_other_users else 0o600
    return ListenOptions(address, doorkeeper, tls, socket_mode, handshake_s, passed)


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


class _Daemon(NamedTuple):
    """The one that a command is for."""

    url: str | None
    """None for the one that this user has running."""
    way_in: WayIn


def _at_daemon(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a daemon, and what comes of them as `daemon`."""

    @wraps(command)
    def with_daemon(
        *, url: str | None, token_file: str | None, tls_ca: str | None, insecure_token: bool, **others: Any
    ) -> None:
        command(daemon=_Daemon(url, _way_in(token_file, tls_ca, insecure_token)), **others)

    return click.option(
        "--url",
        envvar="TSUPERVISE_URL",
        metavar="URL",
        help="The daemon; without it, the one that you have running.",
    )(_way_in_options(with_daemon))


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, with the names of the protocol.")


def _daemon_of(ctx: click.Context) -> _Daemon | None:
    """The daemon that a command line which is not finished is for; None if that makes no sense yet."""
    url, token_file, tls_ca = (ctx.params.get(name) for name in ("url", "token_file", "tls_ca"))
    try:
        return _Daemon(url, _way_in(token_file, tls_ca, bool(ctx.params.get("insecure_token"))))
    except click.ClickException:
        return None


def _complete_id(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ._completion import known_processes

    daemon = _daemon_of(ctx)
    found = [] if daemon is None else known_processes(*daemon, incomplete)
    return [CompletionItem(name, help=text) for name, text in found]


def _complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ._completion import known_paths

    colon = ":" if incomplete.startswith(":") else ""
    daemon = _daemon_of(ctx)
    found = [] if daemon is None else known_paths(*daemon, incomplete.removeprefix(":"))
    return [CompletionItem(colon + path) for path in found]


def _complete_either(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    complete = _complete_path if incomplete.startswith(":") else _complete_file
    return complete(ctx, param, incomplete)


def _complete_file(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


_id = click.argument("name", metavar="ID", shell_complete=_complete_id)
_ids = click.argument("names", metavar="ID...", nargs=-1, required=True, shell_complete=_complete_id)


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
    help="The daemon to run it under. Without it, it is supervised by this command itself; with --detach, by the "
    "daemon that you have running.",
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
@click.option(
    "-d", "--detach", is_flag=True, help="Leave it to the daemon, print its ID, and do not wait for it."
)
@click.option("--name", metavar="NAME", help="With --detach: a name to use as its ID.")
@click.option(
    "-i", "--interactive", is_flag=True, help="With --detach: keep its stdin open for `attach` to write to."
)
@click.option("--json", "as_json", is_flag=True, help="With --detach: print the IDs as JSON.")
@_limit_options
@_way_in_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=_complete_file)
def exec_(
    url: str | None,
    tty: bool,
    cwd: str | None,
    env: dict[str, str],
    recovery: float,
    detach: bool,
    name: str | None,
    interactive: bool,
    as_json: bool,
    token_file: str | None,
    tls_ca: str | None,
    insecure_token: bool,
    command: tuple[str, ...],
    timeout: float | None,
    **limits: Any,
) -> None:
    """Run COMMAND under supervision, as if it ran here.

    stdin, stdout and stderr are passed on, and so are INT, TERM, HUP and QUIT. The exit code is that of
    the command: 128 + n after signal n, 127 if it was not found, 126 if it cannot be executed, 125 if the
    daemon failed or cannot enforce a limit, 124 if its time was over. Under --tty, Ctrl-C gives up if a lost
    connection stays away.

    Limits hold for the command with all that it starts, but --nofile and --core for each process by itself. What
    cannot be enforced is refused: --memory, --pids and --cpus need control groups.

    With --detach it runs on at the daemon, in the daemon's environment, with its output kept for `logs` and
    `attach`, until it ends, `tsupervise kill` or `tsupervise end` ends it, or the daemon ends.
    """
    if not detach and (name is not None or interactive or as_json):
        raise click.UsageError("--name, --interactive and --json go with --detach")
    if name == "":
        raise click.UsageError("--name must not be empty")

    from ._exec_command import ExecOptions, run_exec

    # Whoever runs it is on this machine.
    if url is None and (detach or cwd is not None):
        cwd = os.path.abspath(cwd or ".")
    way_in = _way_in(token_file, tls_ca, insecure_token)
    options = ExecOptions(command, url, tty, cwd, env, recovery, way_in, timeout, _limits(**limits))
    if not detach:
        sys.exit(run_exec(options))

    from ._brief_commands import start_detached

    start = partial(start_detached, options=options, name=name, interactive=interactive, as_json=as_json)
    _run_at(_Daemon(url, way_in), "exec", start, leaves_session=True)


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


@main.command()
@_at_daemon
@_json
@click.option("-a", "--all", "closed_too", is_flag=True, help="Also those that are closed.")
def ps(daemon: _Daemon, as_json: bool, closed_too: bool) -> None:
    """List the processes of all clients, oldest first.

    Like `docker ps`, it leaves out those that have ended and whose output is complete (state `closed`), unless
    --all is given. These are remembered for 80 s (`run --retention`).

    SESSION tells what becomes of a process without its client: `attached` and `detached` ones are killed
    a while (`run --detached-ttl`) after their client has gone, `kept` ones (`exec --detach`) are not.
    """
    from ._brief_commands import list_processes

    _run_at(daemon, "ps", partial(list_processes, closed_too=closed_too, as_json=as_json))


@main.command()
@_at_daemon
@click.option("-f", "--follow", is_flag=True, help="Go on with what it writes, until it is closed.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), metavar="LINES", help="Only so many of the last lines."
)
@_json
@_id
def logs(daemon: _Daemon, follow: bool, lines: int | None, as_json: bool, name: str) -> None:
    """Print what a process has written, as far as it is retained.

    What it wrote to stderr comes on stderr. A gap is told on stderr. With --json, there is one object in
    each line: `event` is output (`seq`, `stream`, and `chunk` in base64), exited (`seq`, `exitCode`,
    `termSignal`), closed (`seq`) or lost (`firstSeq`, `seq`).
    """
    from ._logs_command import print_logs

    _run_at(daemon, "logs", partial(print_logs, name=name, lines=lines, follow=follow, as_json=as_json))


def _parse_keys(ctx: click.Context, param: click.Parameter, value: str) -> bytes:
    try:
        return parse_keys(value)
    except BadKeys as error:
        raise click.BadParameter(str(error), ctx, param) from None


@main.command()
@_at_daemon
@click.option(
    "--detach-keys",
    "keys",
    default=DEFAULT_KEYS,
    show_default=True,
    metavar="KEYS",
    callback=_parse_keys,
    help="What to press to leave.",
)
@_id
def attach(daemon: _Daemon, keys: bytes, name: str) -> None:
    """See and use a process from this terminal.

    It begins with a screen of recent output. The detach keys leave the process running, and so does closing
    the window; `attach` again comes back. When the process ends, this exits with its exit code.

    A process on a terminal (`exec --detach --tty`) gets every key, and the size of this terminal. Any other
    gets whole lines (`exec --detach --interactive`); Ctrl-C interrupts it and Ctrl-D ends its input.
    """
    from ._attach_command import attach as run

    _run_at(daemon, "attach", partial(run, name=name, keys=keys))


_SIGNALS = {
    "HUP": "hangup",
    "INT": "interrupt",
    "QUIT": "quit",
    "KILL": "kill",
    "USR1": "usr1",
    "USR2": "usr2",
    "TERM": "terminate",
    "CONT": "continue",
    "STOP": "stop",
    "WINCH": "winch",
}


def _parse_signal(ctx: click.Context, param: click.Parameter, value: str) -> str:
    name = value.upper().removeprefix("SIG")
    if name.isdecimal():
        name = {str(signal.Signals[f"SIG{known}"].value): known for known in _SIGNALS}.get(name, name)
    if name not in _SIGNALS:
        raise click.BadParameter(f"no signal {value!r}; there are {', '.join(_SIGNALS)}", ctx, param)
    return _SIGNALS[name]


def _complete_signal(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _SIGNALS if name.startswith(incomplete.upper())]


@main.command()
@_at_daemon
@click.option(
    "-s",
    "--signal",
    "signal_name",
    default="TERM",
    show_default=True,
    metavar="SIG",
    callback=_parse_signal,
    shell_complete=_complete_signal,
    help="HUP, INT, QUIT, KILL, USR1, USR2, TERM, CONT, STOP or WINCH.",
)
@_json
@_ids
def kill(daemon: _Daemon, signal_name: SignalName, as_json: bool, names: tuple[str, ...]) -> None:
    """Send a signal to processes.

    It goes to the process group; on a terminal to its foreground group. KILL takes with it whatever else
    the process has started.
    """
    from ._brief_commands import send_signal

    _run_at(daemon, "kill", partial(send_signal, names=names, signal=signal_name, as_json=as_json))


@main.command()
@_at_daemon
@_json
@_id
def wait(daemon: _Daemon, as_json: bool, name: str) -> None:
    """Wait until a process has ended, and exit as it did."""
    from ._brief_commands import wait_for

    _run_at(daemon, "wait", partial(wait_for, name=name, as_json=as_json))


@main.command()
@_at_daemon
@_json
@_ids
def end(daemon: _Daemon, as_json: bool, names: tuple[str, ...]) -> None:
    """End whole sessions: kill their processes, and forget them and their output.

    A session is named by its id, or by the ID of any of its processes. For a process from `exec --detach`,
    which has a session of its own, this is the opposite of that; for others it also ends what their
    client has started besides.
    """
    from ._brief_commands import end_sessions

    _run_at(daemon, "end", partial(end_sessions, names=names, as_json=as_json))


@main.command()
@_at_daemon
@_json
def status(daemon: _Daemon, as_json: bool) -> None:
    """Print what the daemon is and holds."""
    from ._brief_commands import show_status

    _run_at(daemon, "status", partial(show_status, as_json=as_json))


def _path_there(text: str) -> str:
    path = text.removeprefix(":")
    if not path.startswith("/"):
        raise click.UsageError(f"a path at the daemon must be absolute, got {text!r}")
    return path


@main.command()
@_at_daemon
@click.option("-r", "--recursive", is_flag=True, help="Copy a directory with all that is in it.")
@click.argument("source", metavar="SOURCE", shell_complete=_complete_either)
@click.argument("target", metavar="TARGET", shell_complete=_complete_either)
def cp(daemon: _Daemon, recursive: bool, source: str, target: str) -> None:
    """Copy a file to the daemon's machine, or from there.

    A path there is written with a colon in front, `:/srv/data`; one of the two must be. A local name that begins
    with a colon is written ./:name.

    If TARGET is a directory, the copy is put into it. A file that is there is overwritten and keeps its mode;
    a new one gets that of its source, as far as the umask lets it and the daemon can tell, and its owner may
    write it. A symbolic link is copied as the file that it leads to; in a directory, links to directories and
    whatever is no regular file are left out, and told.

    After a lost connection it goes on where it was. What is incomplete when it fails, or is interrupted, is told.
    """
    upload = target.startswith(":")
    if upload == source.startswith(":"):
        raise click.UsageError("one of SOURCE and TARGET must be at the daemon: put a colon in front, :/path")
    if upload:
        target = _path_there(target)
    else:
        source = _path_there(source)

    from ._copy_command import copy

    body = partial(copy, source=source, target=target, upload=upload, recursive=recursive)
    _run_at(daemon, "cp", body)


@main.command()
@_at_daemon
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, shell_complete=_complete_path)
def cat(daemon: _Daemon, paths: tuple[str, ...]) -> None:
    """Print files of the daemon's machine."""
    from ._file_commands import print_files

    _run_at(daemon, "cat", partial(print_files, paths=[_path_there(path) for path in paths]))


@main.command()
@_at_daemon
@click.option("-l", "--long", is_flag=True, help="Also what they are, their size in bytes, and their age.")
@click.argument("path", metavar="PATH", shell_complete=_complete_path)
def ls(daemon: _Daemon, long: bool, path: str) -> None:
    """List a directory of the daemon's machine.

    Dangling symbolic links are left out. Not on a terminal, names are written byte for byte.
    """
    from ._file_commands import list_files

    _run_at(daemon, "ls", partial(list_files, path=_path_there(path), long=long))


def _run_at(
    daemon: _Daemon, command: str, body: Callable[[Client], Awaitable[int]], *, leaves_session: bool = False
) -> NoReturn:
    from ._at_daemon import run_at_daemon

    name = f"tsupervise {command}"
    sys.exit(run_at_daemon(*daemon, body, client_name=name, leaves_session=leaves_session))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, options, IDs and paths in your shell.

    For bash, put `eval "$(tsupervise completion bash)"` into ~/.bashrc; for zsh the same, with zsh, into
    ~/.zshrc. For fish, `tsupervise completion fish > ~/.config/fish/completions/tsupervise.fish`.
    """
    completes = get_completion_class(shell)
    assert completes is not None, "click knows these shells"
    click.echo(completes(main, {}, "tsupervise", "_TSUPERVISE_COMPLETE").source())
