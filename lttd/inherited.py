"""Take over the listening sockets that systemd opened for lttd (socket activation).

Source: sd_listen_fds(3).  The sockets are the descriptors from 3 on, LISTEN_FDS of them, and meant
for the process LISTEN_PID.
"""

import os
import socket
from typing import Final

from lttd.errors import UsageError

FIRST_FD: Final = 3
VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""Environment variables that are for lttd, not for its children."""


def take_sockets() -> list[socket.socket]:
    """Return the sockets, which no child inherits; a second call returns none.

    Raises:
        UsageError: one of them is not a TCP socket that listens.
    """
    count, pid, _ = (os.environ.pop(name, "") for name in VARIABLES)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    taken: list[socket.socket] = []
    try:
        for fd in range(FIRST_FD, FIRST_FD + int(count)):
            os.set_inheritable(fd, False)
            taken.append(socket.socket(fileno=fd))
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if all(map(_is_tcp_listener, taken)):
            return taken
        reason = "not every one is a TCP socket that listens"
    for each in taken:
        each.close()
    raise UsageError(f"the {count} descriptors of LISTEN_FDS, from {FIRST_FD} on: {reason}")


def _is_tcp_listener(each: socket.socket) -> bool:
    return (
        each.family in (socket.AF_INET, socket.AF_INET6)
        and each.type == socket.SOCK_STREAM
        and bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )
