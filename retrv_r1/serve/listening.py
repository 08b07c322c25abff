"""The sockets of a server, bound before all that takes long, so that mistakes show at once."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator

from retrv_r1.types import RetrvError


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Sockets that listen at all addresses of a host; they are closed at the end.

    Connections wait until somebody accepts them.

    Args:
        port: port; 0 for a free one.
    Raises:
        RetrvError: the port is taken, or the address is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise RetrvError(
            f"there is no address of the host {host}; name one of this machine's with --host"
        ) from error
    with contextlib.ExitStack() as stack:
        made: list[socket.socket] = []
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = stack.enter_context(socket.socket(family, kind, protocol))
            try:
                _listen(one, (address[0], port, *address[2:]))
            except OSError as error:
                if made and error.errno == errno.EADDRNOTAVAIL:
                    continue  # localhost may be ::1 on a machine without IPv6
                raise _refused(host, port, error) from error
            made.append(one)
            port = one.getsockname()[1]
        yield made


def _listen(one: socket.socket, address: tuple[object, ...]) -> None:
    if os.name == "posix":  # elsewhere it lets two servers have one port
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(address)
    one.listen()  # without, two servers that start together would both have it


def _refused(host: str, port: int, error: OSError) -> RetrvError:
    if error.errno == errno.EADDRINUSE:
        return RetrvError(f"port {port} of {host} is in use; choose another with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return RetrvError(f"{host} is no address of this machine; choose another with --host")
    if error.errno == errno.EACCES:
        return RetrvError(f"port {port} needs more rights; choose one above 1023 with --port")
    return RetrvError(f"cannot listen on port {port} of {host}: {error.strerror}")
