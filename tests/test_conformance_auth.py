"""Tokens: which options go together, which headers are accepted, and the reason that each other one gets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from daemons import START_S, Daemon, command_of, running, start_daemon
from knock import bearer, knock
from tsupervise.cli import main
from wire import connect

TOKEN = "correct-horse-battery-staple"
SECRET = "x" * 40

MISSING = "missing websocket bearer token"
UNREADABLE = "invalid authorization header"
WRONG = "invalid websocket bearer token"
BAD_JWT = "invalid websocket jwt"
EXPIRED = "expired websocket jwt"
EARLY = "websocket jwt is not valid yet"
ISSUER = "websocket jwt issuer mismatch"
AUDIENCE = "websocket jwt audience mismatch"

Starter = Callable[..., Daemon]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with secrets, good and bad."""
    folder = tmp_path_factory.mktemp("secrets")
    for name, content in {
        "token": f"  {TOKEN}\n",
        "secret": f"{SECRET}\n",
        "exact": "y" * 32,
        "short": "x" * 31 + "\n\n",
        "empty": " \n",
    }.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
    (folder / "binary").write_bytes(b"\xff\xfe" * 40)
    return folder


@pytest.fixture(scope="module")
def start(target: str, files: Path) -> Iterator[Starter]:
    """Starts each server that is asked for once, for the tests of this module."""
    started: dict[tuple[str, ...], Daemon] = {}
    with ExitStack() as stack:

        def start(*options: str) -> Daemon:
            if options not in started:
                at_files = [str(files / option[1:]) if option[0] == "@" else option for option in options]
                started[options] = stack.enter_context(running(start_daemon(target, *at_files)))
            return started[options]

        yield start


BY_FILE = ("--ws-auth", "capability-token", "--ws-token-file", "@token")
BY_DIGEST = (
    *("--ws-auth", "capability-token", "--ws-token-sha256"),
    hashlib.sha256(TOKEN.encode()).hexdigest().upper(),
)
SIGNED = ("--ws-auth", "signed-bearer-token", "--ws-shared-secret-file", "@secret")
STRICT = (*SIGNED, "--ws-issuer", " me ", "--ws-audience", "here", "--ws-max-clock-skew-seconds", "0")
BLANK = (*SIGNED, "--ws-issuer", " ", "--ws-audience", " ")


HEADERS: dict[str, tuple[str | None, str | None]] = {
    "right": (f"Bearer {TOKEN}", None),
    "scheme in small letters": (f"bearer {TOKEN}", None),
    "blanks around the token": (f"BEARER    {TOKEN}  ", None),
    "a tab behind the blank": (f"Bearer \t{TOKEN}", None),
    "none": (None, MISSING),
    "wrong": ("Bearer wrong", WRONG),
    "the beginning of the right one": (f"Bearer {TOKEN[:-1]}", WRONG),
    "more than the right one": (f"Bearer {TOKEN}x", WRONG),
    "two words": (f"Bearer {TOKEN} {TOKEN}", WRONG),
    "basic": ("Basic abc", UNREADABLE),
    "empty": ("", UNREADABLE),
    "the scheme alone": ("Bearer", UNREADABLE),
    "blanks for a token": ("Bearer   ", UNREADABLE),
    "no blank": (f"Bearer{TOKEN}", UNREADABLE),
    "a tab for the blank": (f"Bearer\t{TOKEN}", UNREADABLE),
    "beyond ASCII": (f"Bearer {TOKEN}\xe9", UNREADABLE),
}


@pytest.mark.case(15)
@pytest.mark.parametrize("options", [BY_FILE, BY_DIGEST], ids=["file", "digest"])
@pytest.mark.parametrize(("header", "reason"), HEADERS.values(), ids=HEADERS)
async def test_only_the_token_opens_the_door(
    start: Starter, options: tuple[str, ...], header: str | None, reason: str | None
) -> None:
    """With the right header 101, without it 401 and a reason, and no hint at a scheme."""
    reply = await knock(start(*options), *(() if header is None else (("Authorization", header),)))
    if reason is None:
        assert reply.status == 101
    else:
        assert (reply.status, reply.text) == (401, reason)
        assert "www-authenticate" not in reply.head


@pytest.mark.case(15)
async def test_a_token_is_looked_at_after_origin_and_never_for_readiness(start: Starter) -> None:
    """A web page is 403 even with the token; a probe needs none; the first of two headers counts."""
    daemon = start(*BY_FILE)
    assert (await knock(daemon, ("Origin", "x"), bearer(TOKEN))).status == 403
    assert (await knock(daemon, ("Origin", ""))).status == 403
    assert (await knock(daemon, path="/readyz")).status == 200
    assert (await knock(daemon, bearer("wrong"), path="/readyz")).status == 200
    assert (await knock(daemon, bearer("wrong"), path="/foo")).status == 404
    assert (await knock(daemon, bearer(TOKEN), bearer("wrong"))).status == 101
    assert (await knock(daemon, bearer("wrong"), bearer(TOKEN))).status == 401


@pytest.mark.case(15)
async def test_without_the_option_a_header_means_nothing(daemon: Daemon) -> None:
    """Whatever a client sends where nobody asks for it is passed over."""
    assert (await knock(daemon, ("Authorization", "Basic nonsense"))).status == 101


@pytest.mark.case(15)
async def test_who_has_the_token_is_served(start: Starter) -> None:
    """A whole conversation behind the door."""
    async with connect(start(*BY_FILE).url, headers=[bearer(TOKEN)]) as peer:
        assert await peer.run("p", "echo", "hello") == (0, b"hello\n")


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(claims: Mapping[str, Any] | bytes, header: Mapping[str, Any] | None = None, **how: Any) -> str:
    """A token made by hand, `key` and `digest` being those of a good one unless given."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    first = json.dumps({"alg": "HS256", "typ": "JWT"} if header is None else header).encode()
    text = f"{encoded(first)}.{encoded(payload)}"
    mac = hmac.new(how.get("key", SECRET).encode(), text.encode(), how.get("digest", hashlib.sha256))
    return f"{text}.{encoded(mac.digest())}"


def soon(**claims: Any) -> dict[str, Any]:
    """Claims of a token that is good for an hour, and more."""
    return {"exp": int(time.time()) + 3600, **claims}


def now(offset: int) -> int:
    return int(time.time()) + offset


JWTS: dict[str, tuple[Callable[[], str], str | None]] = {
    "good": (lambda: signed(soon()), None),
    "no typ": (lambda: signed(soon(), {"alg": "HS256"}), None),
    "a key id": (lambda: signed(soon(), {"alg": "HS256", "kid": "1"}), None),
    "expired within the skew": (lambda: signed({"exp": now(-20)}), None),
    "expired": (lambda: signed({"exp": now(-40)}), EXPIRED),
    "expired before time began": (lambda: signed({"exp": -(2**63)}), EXPIRED),
    "as late as can be": (lambda: signed({"exp": 2**63 - 1}), None),
    "exp too large": (lambda: signed({"exp": 2**63}), BAD_JWT),
    "no exp": (lambda: signed({}), BAD_JWT),
    "exp null": (lambda: signed({"exp": None}), BAD_JWT),
    "exp with a fraction": (lambda: signed({"exp": now(60) + 0.5}), BAD_JWT),
    "exp as decimal": (lambda: signed({"exp": float(now(60))}), BAD_JWT),
    "exp as text": (lambda: signed({"exp": str(now(60))}), BAD_JWT),
    "exp true": (lambda: signed({"exp": True}), BAD_JWT),
    "early within the skew": (lambda: signed(soon(nbf=now(20))), None),
    "early": (lambda: signed(soon(nbf=now(60))), EARLY),
    "nbf null": (lambda: signed(soon(nbf=None)), None),
    "nbf as text": (lambda: signed(soon(nbf="0")), BAD_JWT),
    "issued in the future": (lambda: signed(soon(iat=now(9999))), None),
    "any issuer and audience": (lambda: signed(soon(iss="a", aud=["b"])), None),
    "issuer a number": (lambda: signed(soon(iss=5)), BAD_JWT),
    "audience a number": (lambda: signed(soon(aud=5)), BAD_JWT),
    "audience a list with a number": (lambda: signed(soon(aud=["a", 5])), BAD_JWT),
    "another secret": (lambda: signed(soon(), key="y" * 40), BAD_JWT),
    "the secret with its line end": (lambda: signed(soon(), key=SECRET + "\n"), BAD_JWT),
    "HS512": (lambda: signed(soon(), {"alg": "HS512"}, digest=hashlib.sha512), BAD_JWT),
    "HS384": (lambda: signed(soon(), {"alg": "HS384"}, digest=hashlib.sha384), BAD_JWT),
    "HS512 in name only": (lambda: signed(soon(), {"alg": "HS512"}), BAD_JWT),
    "alg in small letters": (lambda: signed(soon(), {"alg": "hs256"}), BAD_JWT),
    "no alg": (lambda: signed(soon(), {"typ": "JWT"}), BAD_JWT),
    "alg none": (lambda: signed(soon(), {"alg": "none"}).rpartition(".")[0] + ".", BAD_JWT),
    "alg none, two parts": (lambda: signed(soon(), {"alg": "none"}).rpartition(".")[0], BAD_JWT),
    "RS256": (lambda: signed(soon(), {"alg": "RS256"}), BAD_JWT),
    "no signature": (lambda: signed(soon()).rpartition(".")[0] + ".", BAD_JWT),
    "two parts": (lambda: signed(soon()).rpartition(".")[0], BAD_JWT),
    "four parts": (lambda: signed(soon()) + ".x", BAD_JWT),
    "only dots": (lambda: "..", BAD_JWT),
    "no token at all": (lambda: TOKEN, BAD_JWT),
    "a changed payload": (lambda: swapped_payload(), BAD_JWT),
    "junk in the signature": (lambda: signed(soon())[:-1] + "!", BAD_JWT),
    "payload an array": (lambda: signed(b"[1]"), BAD_JWT),
    "payload no JSON": (lambda: signed(b"hello"), BAD_JWT),
    "payload not a number": (lambda: signed(b'{"exp":NaN}'), BAD_JWT),
    "payload and more": (lambda: signed(json.dumps(soon()).encode() + b" x"), BAD_JWT),
    "payload with blanks": (lambda: signed(b" " + json.dumps(soon()).encode() + b"\n"), None),
}


@pytest.mark.case(16)
@pytest.mark.ours_only("the reference skips over any depth")
async def test_a_token_nested_too_deep_is_no_token(start: Starter) -> None:
    """However well it is signed, it is refused like any other that cannot be read."""
    deep = b'{"exp":9999999999,"x":' + b"[" * 15_000 + b"]" * 15_000 + b"}"
    reply = await knock(start(*SIGNED), bearer(signed(deep)))
    assert (reply.status, reply.text) == (401, BAD_JWT)


def swapped_payload() -> str:
    head, _, signature = signed(soon()).split(".")
    return ".".join([head, encoded(json.dumps(soon(admin=True)).encode()), signature])


@pytest.mark.case(16)
@pytest.mark.parametrize("options", [SIGNED, BLANK], ids=["", "blank names"])
@pytest.mark.parametrize(("make", "reason"), JWTS.values(), ids=JWTS)
async def test_only_a_well_signed_token_in_its_time_opens_the_door(
    start: Starter, options: tuple[str, ...], make: Callable[[], str], reason: str | None
) -> None:
    """HS256 only, with an `exp` that is an integer; a blank issuer or audience asks for none."""
    reply = await knock(start(*options), bearer(make()))
    assert (reply.status, reply.text) == ((101, "") if reason is None else (401, reason))


NAMED: dict[str, tuple[Callable[[], dict[str, Any]], str | None]] = {
    "both right": (lambda: soon(iss="me", aud="here"), None),
    "audience in a list": (lambda: soon(iss="me", aud=["there", "here"]), None),
    "neither": (lambda: soon(), ISSUER),
    "wrong issuer": (lambda: soon(iss="you", aud="here"), ISSUER),
    "issuer with blanks": (lambda: soon(iss=" me ", aud="here"), ISSUER),
    "issuer null": (lambda: soon(iss=None, aud="here"), ISSUER),
    "no audience": (lambda: soon(iss="me"), AUDIENCE),
    "wrong audience": (lambda: soon(iss="me", aud="her"), AUDIENCE),
    "audience not in the list": (lambda: soon(iss="me", aud=["there"]), AUDIENCE),
    "empty list": (lambda: soon(iss="me", aud=[]), AUDIENCE),
    "both wrong: the issuer is told": (lambda: soon(iss="you", aud="there"), ISSUER),
    "expired, and wrong issuer": (lambda: {"exp": 1, "iss": "you"}, EXPIRED),
    "early, and wrong issuer": (lambda: soon(nbf=now(60), iss="you"), EARLY),
    "expired and early": (lambda: {"exp": 1, "nbf": now(60)}, EXPIRED),
    "without a skew, just expired": (lambda: {"exp": now(-2), "iss": "me", "aud": "here"}, EXPIRED),
    "without a skew, early": (lambda: soon(nbf=now(20), iss="me", aud="here"), EARLY),
}


@pytest.mark.case(16)
@pytest.mark.parametrize(("make", "reason"), NAMED.values(), ids=NAMED)
async def test_issuer_and_audience_must_be_the_configured_ones(
    start: Starter, make: Callable[[], dict[str, Any]], reason: str | None
) -> None:
    """In this order the first flaw is told: expired, early, issuer, audience."""
    reply = await knock(start(*STRICT), bearer(signed(make())))
    assert (reply.status, reply.text) == ((101, "") if reason is None else (401, reason))


@pytest.mark.case(16)
async def test_who_has_a_signed_token_is_served(start: Starter) -> None:
    """A whole conversation behind the door; the token is looked at once, when it opens."""
    async with connect(start(*SIGNED).url, headers=[bearer(signed({"exp": now(-20)}))]) as peer:
        assert await peer.run("p", "echo", "hello") == (0, b"hello\n")


TOKEN_MODE = ("--ws-auth", "capability-token")
JWT_MODE = ("--ws-auth", "signed-bearer-token")
DIGEST = ("--ws-token-sha256", "a" * 64)

INCONSISTENT: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no source of the token": (TOKEN_MODE, 1, "--ws-token-file"),
    "two sources": ((*TOKEN_MODE, "--ws-token-file", "@token", *DIGEST), 1, "--ws-token-sha256"),
    "no such file": ((*TOKEN_MODE, "--ws-token-file", "@nothing"), 1, "os error 2"),
    "empty file": ((*TOKEN_MODE, "--ws-token-file", "@empty"), 1, "empty"),
    "file that is no text": ((*TOKEN_MODE, "--ws-token-file", "@binary"), 1, "binary"),
    "a folder": ((*TOKEN_MODE, "--ws-token-file", "/"), 1, "os error 21"),
    "a relative path to nothing": ((*TOKEN_MODE, "--ws-token-file", "no/such"), 1, "os error 2"),
    "digest that is none": ((*TOKEN_MODE, "--ws-token-sha256", "xyz"), 1, "--ws-token-sha256"),
    "digest too long": ((*TOKEN_MODE, "--ws-token-sha256", "a" * 65), 1, "--ws-token-sha256"),
    "issuer for a token": ((*TOKEN_MODE, *DIGEST, "--ws-issuer", "x"), 1, "--ws-issuer"),
    "blank issuer for a token": ((*TOKEN_MODE, *DIGEST, "--ws-issuer", " "), 1, "--ws-issuer"),
    "secret for a token": (
        (*TOKEN_MODE, *DIGEST, "--ws-shared-secret-file", "@secret"),
        1,
        "--ws-shared-secret-file",
    ),
    "skew for a token": (
        (*TOKEN_MODE, *DIGEST, "--ws-max-clock-skew-seconds", "1"),
        1,
        "--ws-max-clock-skew-seconds",
    ),
    "no secret": (JWT_MODE, 1, "--ws-shared-secret-file"),
    "short secret": ((*JWT_MODE, "--ws-shared-secret-file", "@short"), 1, "32 bytes"),
    "empty secret": ((*JWT_MODE, "--ws-shared-secret-file", "@empty"), 1, "empty"),
    "no such secret": ((*JWT_MODE, "--ws-shared-secret-file", "@nothing"), 1, "os error 2"),
    "token file beside a secret": ((*SIGNED, "--ws-token-file", "@token"), 1, "--ws-token-file"),
    "digest beside a secret": ((*SIGNED, *DIGEST), 1, "--ws-token-sha256"),
    "skew that is none": ((*SIGNED, "--ws-max-clock-skew-seconds", "soon"), 2, "soon"),
    "skew with a fraction": ((*SIGNED, "--ws-max-clock-skew-seconds", "1.5"), 2, "1.5"),
    "skew below zero": ((*SIGNED, "--ws-max-clock-skew-seconds=-1"), 2, "-1"),
    "skew beyond 63 bits": ((*SIGNED, "--ws-max-clock-skew-seconds", str(2**63)), 1, "64"),
    "options without a mode": (("--ws-token-file", "@token"), 1, "--ws-auth"),
    "issuer without a mode": (("--ws-issuer", "x"), 1, "--ws-auth"),
    "skew without a mode": (("--ws-max-clock-skew-seconds", "3"), 1, "--ws-auth"),
    "unknown mode": (("--ws-auth", "nothing"), 2, "capability-token"),
    "mode in capitals": (("--ws-auth", "Capability-Token", *DIGEST), 2, "capability-token"),
    "token on stdio": (("--listen", "stdio", *TOKEN_MODE, *DIGEST), 1, "stdio"),
    "token file on stdio": (("--listen", "stdio", *TOKEN_MODE, "--ws-token-file", "@nothing"), 1, "stdio"),
    "options without a mode on stdio": (("--listen", "stdio", "--ws-token-file", "@token"), 1, "--ws-auth"),
}


def run_to_its_end(target: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a start that must fail; ours in this process, which is much quicker."""
    if target == "ours":
        monkeypatch.setattr("tsupervise.server.serve_forever", None)
        done = CliRunner().invoke(main, ["run", *options])
        return done.exit_code, done.stdout, done.stderr
    ended = subprocess.run(
        [*command_of(target), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.case(17)
@pytest.mark.parametrize(("options", "code", "word"), INCONSISTENT.values(), ids=INCONSISTENT)
def test_options_that_do_not_go_together_end_the_start(
    target: str,
    files: Path,
    options: tuple[str, ...],
    code: int,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 1 (2 for a value that no option has), a text that names what is wrong, and no listener."""
    at_files = [str(files / option[1:]) if option[:1] == "@" else option for option in options]
    listen = [] if "--listen" in options else ["--listen", "ws://127.0.0.1:0"]
    ended, stdout, stderr = run_to_its_end(target, [*listen, *at_files], monkeypatch)
    assert (ended, stdout) == (code, "")
    assert word in stderr
    assert not any(secret in stderr for secret in (TOKEN, SECRET, "x" * 31))


@pytest.mark.case(17)
async def test_a_secret_of_32_bytes_and_a_relative_path_will_do(
    target: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is relative to where the server is started; the shortest secret is as long as the digest."""
    monkeypatch.chdir(files)
    with running(start_daemon(target, *JWT_MODE, "--ws-shared-secret-file", "exact")) as daemon:
        assert (await knock(daemon, bearer(signed(soon(), key="y" * 32)))).status == 101
