"""Which user is at the other end of a connection inside this machine.

For a unix socket the kernel has noted it. For TCP its socket table tells, which is asked by sock_diag (netlink):
that looks one socket up, while /proc/net/tcp would be all of them, every time.
"""

from __future__ import annotations

import socket
import struct

_SOCK_DIAG_BY_FAMILY = 20
"""linux/sock_diag.h"""
_NLM_F_REQUEST = 1
"""linux/netlink.h; without NLM_F_DUMP the question is for the one socket that matches."""
_NLMSG_ERROR = 2
_NETLINK_SOCK_DIAG = 4
_ESTABLISHED = 1

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port"""
_QUESTION = struct.Struct("=BBBxI2s2s16s16sI8s")
"""struct inet_diag_req_v2: family, protocol, extensions, states, and the socket: its two ports and addresses in
network order, interface, cookie"""
_ANSWER = struct.Struct("=BBBB48xIIIII")
"""struct inet_diag_msg: family, state, timer, retransmits, (the socket), expires, two queues, uid, inode"""
_CREDENTIALS = struct.Struct("=iII")
"""struct ucred: the pid, uid and gid of who connected, as they were then"""
_NO_COOKIE = b"\xff" * 8

_ANSWER_S = 1.0
"""The kernel answers before the question's `send` returns; this is only so that nothing can ever hang."""


def peer_uid(sock: socket.socket) -> int | None:
    """The user whose socket is connected to this one.

    A blocking call that takes some ten microseconds.

    Returns:
        None if that cannot be known: the peer is on another machine or behind another network namespace, it
        has closed its end, or the kernel does not tell.
    """
    family = sock.family
    if family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return _CREDENTIALS.unpack(credentials)[1]
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        theirs, ours = sock.getpeername(), sock.getsockname()
        answer = _ask(
            family,
            _port(theirs[1]),
            _port(ours[1]),
            socket.inet_pton(family, theirs[0].partition("%")[0]),
            socket.inet_pton(family, ours[0].partition("%")[0]),
        )
    except OSError:
        return None
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _NLMSG_ERROR or len(answer) < _HEADER.size + _ANSWER.size:
        return None
    _, state, _, _, _, _, _, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    # A socket that its owner has closed belongs to nobody, and nobody is number 0 here: that is not root.
    return uid if state == _ESTABLISHED and inode else None


def _port(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _ask(family: int, their_port: bytes, our_port: bytes, them: bytes, us: bytes) -> bytes:
    question = _QUESTION.pack(
        family,
        socket.IPPROTO_TCP,
        0,
        1 << _ESTABLISHED,
        their_port,
        our_port,
        them,
        us,
        0,
        _NO_COOKIE,
    )
    length = _HEADER.size + len(question)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_ANSWER_S)
        kernel.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + question)
        return kernel.recv(4096)
