"""What a client is told of the place where its processes run: shell, folders, capabilities.

Read once, when the daemon starts: nothing in it changes while a daemon lives.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import sys
from collections.abc import Iterable, Mapping

from tsupervise_protocol.messages import EnvironmentInfo, ShellInfo
from tsupervise_protocol.path_uri import PathUriError, file_uri

CAPABILITIES = (
    "capabilityDiscoverySandbox",
    "capabilityDiscoveryV2",
    "credentialMasking",
    "credentialMaskingCustomProviders",
    "environmentConfigRead",
    "fileWriteStreaming",
    "fsWatchMissing",
    "httpHeaderEnvVars",
    "linuxApprovedRootWritePreservesRestrictions",
    "linuxRootWritePreservesDevices",
    "networkProxyLaunch",
    "networkProxyReviewDomains",
    "sandboxedFileStreaming",
    "shellSnapshotV2",
    "windowsMxc",
)
"""Every capability that clients of the protocol ask about. One is true only when all it promises is kept."""

_KEPT = ("environmentConfigRead",)
"""Those of them that hold here."""

_SHELL_KINDS = {
    "bash": "bash",
    "zsh": "zsh",
    "sh": "sh",
    "pwsh": "powershell",
    "powershell": "powershell",
    "cmd": "cmd",
}
"""File name of a shell → its name on the wire; clients know how to drive these and no others."""

_USUAL_SHELLS = ("zsh", "bash") if sys.platform == "darwin" else ("bash", "zsh")
"""What to look for when the login shell is none of these kinds, as with `nologin` or `fish`."""

_SHELL_FOLDERS = ("/bin", "/usr/bin")
"""Searched after PATH, which a daemon may have been started without."""

_PLATFORMS = {"darwin": "macos"}


def environment_info(
    version: str, own_capabilities: Iterable[str], environ: Mapping[str, str] = os.environ
) -> EnvironmentInfo:
    """Return what `initialize` and `environment/info` answer.

    Args:
        version: our own version.
        own_capabilities: names beyond the protocol's that hold here.
        environ: the server's environment. Its SHELL is not asked: it tells how somebody works right now,
            the user database tells what the account is set up for.
    """
    account = _account()
    cwd = _working_directory()
    temp_dir = uri_or_none(os.path.join(cwd or "", environ["TMPDIR"])) if environ.get("TMPDIR") else None
    return EnvironmentInfo(
        shell=find_shell(account.pw_shell if account else "", environ.get("PATH", "")),
        cwd=uri_or_none(cwd),
        user_home_dir=uri_or_none(home_directory(environ)),
        platform_os=_PLATFORMS.get(sys.platform, sys.platform),
        executor_version=version,
        # What clients remember of a server holds for all of the same version.
        provider_id=f"sha256:{hashlib.sha256(f'tsupervise {version}'.encode()).hexdigest()}",
        temporary_directories=[temp_dir] if temp_dir else [],
        temp_dir=temp_dir or "file:///tmp",
        capabilities=dict.fromkeys(CAPABILITIES, False) | dict.fromkeys((*_KEPT, *own_capabilities), True),
    )


def find_shell(login_shell: str, search_path: str) -> ShellInfo:
    """Return the login shell if clients can drive it, else one that they can.

    Args:
        login_shell: the path in the user database; empty if there is none.
        search_path: a PATH. Its relative folders are passed over: the answer must hold in any cwd.
    """
    name = os.path.splitext(os.path.basename(login_shell))[0]
    if name in _SHELL_KINDS:
        if os.path.isabs(login_shell) and shutil.which(login_shell):
            return ShellInfo(name=_SHELL_KINDS[name], path=login_shell)
        candidates = (name, *_USUAL_SHELLS)
    else:
        candidates = _USUAL_SHELLS
    folders = [folder for folder in search_path.split(os.pathsep) if os.path.isabs(folder)]
    for candidate in candidates:
        if path := shutil.which(candidate, path=os.pathsep.join([*folders, *_SHELL_FOLDERS])):
            return ShellInfo(name=_SHELL_KINDS[candidate], path=path)
    return ShellInfo(name="sh", path="/bin/sh")


def home_directory(environ: Mapping[str, str]) -> str | None:
    """HOME, or where the user database says; None if nobody says."""
    account = _account()
    return environ.get("HOME") or (account.pw_dir if account else None)


def _account() -> pwd.struct_passwd | None:
    """The user's entry in the user database; a container may run under an id that has none."""
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None


def _working_directory() -> str | None:
    """Where the daemon runs; None if the folder has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def uri_or_none(path: str | None) -> str | None:
    """The URI of a path; None for one that has none, such as a relative HOME."""
    try:
        return None if path is None else file_uri(os.fsencode(path))
    except PathUriError:
        return None
