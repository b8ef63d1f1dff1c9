"""The tokens that `--ws-auth` asks for: which options go together, and what an Authorization header is worth.

Two modes. With `capability-token` all peers show one secret, of which the daemon needs to know no more than
the digest. With `signed-bearer-token` each shows a JSON Web Token of its own, signed with a shared secret by
HMAC with SHA-256. The reasons of refusals are those that clients of this protocol know.

Nothing here ever has a token, or a part of one, in a text.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

MIN_SECRET_BYTES = 32
"""Of the secret that tokens are signed with: as long as the digest, as RFC 7518, 3.2 asks for."""

CLOCK_SKEW_S = 30
"""How far the clocks of issuer and daemon may be apart, in seconds."""

_INT64_MAX = 2**63 - 1

_AUTHORIZATION = re.compile(rb"bearer [ \t]*([\x21-\x7e][\x20-\x7e\t]*)", re.IGNORECASE)
"""The group is the token, with blanks behind it perhaps."""


class AuthRefused(Exception):
    """The options contradict one another, or a file that they name is not what it should be."""


@dataclass(frozen=True, slots=True)
class AuthOptions:
    """The `--ws-...` options as they were given, None for those that were not."""

    mode: Literal["capability-token", "signed-bearer-token"] | None = None
    token_file: str | None = None
    token_sha256: str | None = None
    shared_secret_file: str | None = None
    issuer: str | None = None
    audience: str | None = None
    max_clock_skew_s: int | None = None

    def check(self) -> None:
        """Raise AuthRefused unless the options go together. Reads no file."""
        for_token = (self.token_file, self.token_sha256)
        for_jwt = (self.shared_secret_file, self.issuer, self.audience, self.max_clock_skew_s)
        has_token_options = any(option is not None for option in for_token)
        has_jwt_options = any(option is not None for option in for_jwt)
        match self.mode:
            case None:
                if has_token_options or has_jwt_options:
                    raise AuthRefused(
                        "the other --ws-... options need --ws-auth capability-token or signed-bearer-token"
                    )
            case "capability-token":
                if has_jwt_options:
                    raise AuthRefused(
                        "--ws-shared-secret-file, --ws-issuer, --ws-audience and --ws-max-clock-skew-seconds "
                        "belong to --ws-auth signed-bearer-token, not capability-token"
                    )
                if None not in for_token:
                    raise AuthRefused("--ws-token-file and --ws-token-sha256 exclude each other: give one")
                if not has_token_options:
                    raise AuthRefused("--ws-auth capability-token needs --ws-token-file or --ws-token-sha256")
            case "signed-bearer-token":
                if has_token_options:
                    raise AuthRefused(
                        "--ws-token-file and --ws-token-sha256 belong to --ws-auth capability-token, not "
                        "signed-bearer-token"
                    )
                if self.shared_secret_file is None:
                    raise AuthRefused("--ws-auth signed-bearer-token needs --ws-shared-secret-file")
                if self.max_clock_skew_s is not None and self.max_clock_skew_s > _INT64_MAX:
                    raise AuthRefused("--ws-max-clock-skew-seconds must fit into 64 bits with a sign")


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """What a daemon with `--ws-auth` asks of every peer.

    Args:
        flaw: what is wrong with a token, None if nothing is.
        warnings: what the operator should hear at the start.
    """

    flaw: Callable[[bytes], str | None]
    warnings: tuple[str, ...] = ()

    def refusal(self, authorization: bytes | None) -> str | None:
        """Why a peer must stay outside, None if it need not.

        Args:
            authorization: its header of that name, None for without one.
        """
        if authorization is None:
            return "missing websocket bearer token"
        match = _AUTHORIZATION.fullmatch(authorization)
        if match is None:
            return "invalid authorization header"
        return self.flaw(match[1].rstrip(b" \t"))


def read_auth(options: AuthOptions) -> TokenAuth | None:
    """Make the check that the options describe, from the files that they name; None for no check.

    Raises:
        AuthRefused: the options contradict one another; a file cannot be read, is empty or too short.
    """
    options.check()
    if options.shared_secret_file is not None:
        secret, warnings = _read_secret(options.shared_secret_file)
        if len(secret) < MIN_SECRET_BYTES:
            text = (
                f"the secret in {options.shared_secret_file} is too short: {MIN_SECRET_BYTES} bytes at least"
            )
            raise AuthRefused(text)
        return TokenAuth(_jwt_check(secret, options), warnings)
    if options.token_file is not None:
        token, warnings = _read_secret(options.token_file)
        return TokenAuth(_digest_check(hashlib.sha256(token).digest()), warnings)
    if options.token_sha256 is not None:
        digits = options.token_sha256.strip()
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
            raise AuthRefused("--ws-token-sha256 must be 64 hexadecimal digits, the SHA-256 of the token")
        return TokenAuth(_digest_check(bytes.fromhex(digits)))
    return None


def _read_secret(path: str) -> tuple[bytes, tuple[str, ...]]:
    try:
        with open(path, encoding="utf-8") as file:
            secret = file.read().strip().encode()
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as error:
        raise AuthRefused(f"cannot read {path}: {error.strerror} (os error {error.errno})") from None
    except UnicodeDecodeError:
        raise AuthRefused(f"cannot read {path}: it is not UTF-8") from None
    if not secret:
        raise AuthRefused(f"the secret in {path} is empty")
    if mode & 0o077:
        return secret, (
            f"{path} holds a secret and is open to other users (mode {mode:04o}): `chmod 600` it",
        )
    return secret, ()


def _digest_check(expected: bytes) -> Callable[[bytes], str | None]:
    def flaw(token: bytes) -> str | None:
        is_right = hmac.compare_digest(hashlib.sha256(token).digest(), expected)
        return None if is_right else "invalid websocket bearer token"

    return flaw


_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=_INT64_MAX)]


class _Claims(msgspec.Struct, frozen=True):
    """What is looked at of a token's payload; of another type, each makes the whole token invalid."""

    exp: _Int64
    nbf: _Int64 | None = None
    iss: str | None = None
    aud: str | list[str] | None = None


def _jwt_check(secret: bytes, options: AuthOptions) -> Callable[[bytes], str | None]:
    """Checks in the order of RFC 7519's claims as clients of this protocol know it, the first flaw being told."""
    import jwt  # it is not small, and most daemons do not need it

    library = jwt.PyJWS(algorithms=["HS256"])
    try:
        library.encode(b"", secret)
    except jwt.PyJWTError as error:
        raise AuthRefused(f"the secret in {options.shared_secret_file} cannot sign tokens: {error}") from None
    issuer = (options.issuer or "").strip() or None
    audience = (options.audience or "").strip() or None
    skew = CLOCK_SKEW_S if options.max_clock_skew_s is None else options.max_clock_skew_s

    def flaw(token: bytes) -> str | None:
        # The library for the form and the signature; not for the claims, of which it allows more types.
        try:
            claims = msgspec.json.decode(library.decode(token, secret, algorithms=["HS256"]), type=_Claims)
        except (jwt.PyJWTError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "invalid websocket jwt"
        now = int(time.time())
        if now > claims.exp + skew:
            return "expired websocket jwt"
        if claims.nbf is not None and now < claims.nbf - skew:
            return "websocket jwt is not valid yet"
        if issuer is not None and claims.iss != issuer:
            return "websocket jwt issuer mismatch"
        if audience is not None:
            audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
            if audience not in audiences:
                return "websocket jwt audience mismatch"
        return None

    return flaw
