"""Whose certificates are believed: the system's authorities, and a bundle that the environment names."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping

from ._http_failure import HttpFailure

CA_VARIABLES = ("TSUPERVISE_CA_CERTIFICATE", "CODEX_CA_CERTIFICATE", "SSL_CERT_FILE")
"""The first that is set and not empty names a file of certificates in PEM."""

_USUAL_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
"""Where Linux distributions have theirs, for a Python that was built elsewhere."""


class Trust:
    """Makes the TLS contexts of one daemon.

    Args:
        environ: the environment of the daemon.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._variable = next((name for name in CA_VARIABLES if environ.get(name)), None)
        self._path = None if self._variable is None else environ[self._variable]
        self._made: tuple[object, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """A context that believes these authorities; it is made anew when the bundle has changed. Blocks.

        Raises:
            HttpFailure: the bundle cannot be used; the text names its variable.
        """
        try:
            version = None if self._path is None else _version_of(self._path)
            if self._made is None or self._made[0] != version:
                context = _system_context()
                if self._path is not None:
                    context.load_verify_locations(self._path)
                self._made = version, context
            return self._made[1]
        except ssl.SSLError:
            raise HttpFailure(f"{self._variable} names a file that has no certificate in PEM") from None
        except OSError as error:
            text = os.strerror(error.errno or 0)
            raise HttpFailure(f"{self._variable} names a file that cannot be read: {text}") from None


def _version_of(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _system_context() -> ssl.SSLContext:
    """The system's authorities, whatever SSL_CERT_FILE says: OpenSSL would put that one in their place."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    built_in = ssl.get_default_verify_paths()
    has_file, has_folder = os.path.isfile(built_in.openssl_cafile), os.path.isdir(built_in.openssl_capath)
    if has_file or has_folder:
        context.load_verify_locations(
            built_in.openssl_cafile if has_file else None, built_in.openssl_capath if has_folder else None
        )
    elif usual := next(filter(os.path.isfile, _USUAL_BUNDLES), None):
        context.load_verify_locations(usual)
    return context
