"""The control socket in the file system: its name, its owner and mode, and how to reach it.

    /run/lttd/64768-131842.socket    root:lttd 0660; device and inode of the trace directory

The name depends on the directory alone, so ``--trace-dir`` finds the recorder however its path is
written.  /proc/self/fd reaches a socket in a runtime directory whose path exceeds the 107 bytes of
an address.

Rule: a socket appears only when it listens, with its final owner and mode.
Rule: it replaces only a socket on which nobody listens.  The caller holds the lock of the trace, so
no other recorder of this trace can appear meanwhile.
"""

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from lttd.errors import LttdError, reason_of
from lttd.runtime import ROOTS_DIRECTORY, RuntimeDirectory, directory_path

GROUP: Final = "lttd"
"""Its members may use the socket of root's recorder."""
GROUPS: Final = Path("/etc/group")
SUFFIX: Final = ".socket"
# Clients that come faster than they are accepted wait here.
BACKLOG: Final = 64
# A full queue refuses a client at once; it tries again this often.
RETRY_S: Final = 0.02


def socket_name(device: int, inode: int) -> str:
    """Return the name of the control socket of a trace directory."""
    return f"{device}-{inode}{SUFFIX}"


def group_id() -> int | None:
    """Return the number of the group, by /etc/group; None if there is none.

    A directory service, which the C library would ask, may be down when lttd starts.
    """
    try:
        lines = GROUPS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, number, *_ = [*line.split(":"), "", "", ""]
        if name == GROUP and number.isascii() and number.isdigit():
            return int(number)
    return None


class ControlSocket:
    """A listening socket in the runtime directory; close() removes it."""

    def __init__(self, name: str) -> None:
        """Make the socket called *name*; the caller holds the lock of its trace.

        Raises:
            LttdError: there is no runtime directory, or what has this name is not a stale socket.
        """
        self.notes: list[str] = []
        with ExitStack() as stack:
            self._directory = RuntimeDirectory()
            stack.callback(self._directory.close)
            self._name = name
            self.path = f"{self._directory.path}/{self._name}"
            _refuse_what_is_in_use(self._directory, self._name, self.path)
            self.listening = stack.enter_context(_new_socket())
            try:
                self._appear()
            except OSError as error:
                raise LttdError(f"{self.path}: {reason_of(error)}") from None
            stack.pop_all()

    def _appear(self) -> None:
        fd = self._directory.fileno()
        temporary = self._directory.temporary_name()
        self._directory.remove(temporary)  # left by a process that had this pid and was killed
        self.listening.bind(_address(fd, temporary))
        try:
            os.chmod(temporary, 0o660 if self._give_to_group(temporary) else 0o600, dir_fd=fd)
            self.listening.listen(BACKLOG)
            os.rename(temporary, self._name, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError:
            self._directory.remove(temporary)
            raise
        self._inode = os.stat(self._name, dir_fd=fd).st_ino

    def _give_to_group(self, name: str) -> bool:
        """Let the group use the socket of root's recorder; tell whether it can."""
        group = group_id() if os.geteuid() == 0 else None
        if group is None:
            return False
        fd = self._directory.fileno()
        try:
            directory = os.fstat(fd)
            if directory.st_gid != group:
                os.fchown(fd, -1, group)
            if directory.st_mode & 0o050 != 0o050:
                os.fchmod(fd, stat.S_IMODE(directory.st_mode) | 0o050)
            if os.stat(name, dir_fd=fd).st_gid != group:  # a setgid directory gives it its group
                os.chown(name, -1, group, dir_fd=fd)
        except OSError as error:
            what = f"the group {GROUP} cannot use this socket: {reason_of(error)}"
            self.notes.append(f"{self.path}: {what}; chgrp {GROUP} {self._directory.path}")
            return False
        return True

    def close(self) -> None:
        """Stop listening, and remove the socket unless somebody has replaced it."""
        with suppress(OSError):
            fd = self._directory.fileno()
            if os.stat(self._name, dir_fd=fd, follow_symlinks=False).st_ino == self._inode:
                self._directory.remove(self._name)
        self.listening.close()
        self._directory.close()


def _refuse_what_is_in_use(directory: RuntimeDirectory, name: str, path: str) -> None:
    """Refuse to replace anything but a socket on which nobody listens.

    Raises:
        LttdError: something else is there.
    """
    fd = directory.fileno()
    try:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise LttdError(f"{path}: exists and is not a socket; remove it")
    with _new_socket() as probe:
        probe.setblocking(False)
        try:
            probe.connect(_address(fd, name))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError as error:
            if error.errno != errno.EAGAIN:  # its queue is full
                raise LttdError(f"{path}: {reason_of(error)}; remove it") from None
    raise LttdError(f"{path}: another process listens on it; end that")


def client_directories() -> list[str]:
    """Return the runtime directories in which this user's clients look for recorders."""
    if os.environ.get("RUNTIME_DIRECTORY"):
        return [directory_path()]
    with suppress(LttdError):
        return list(dict.fromkeys((directory_path(), ROOTS_DIRECTORY)))
    return [ROOTS_DIRECTORY]


@contextmanager
def opened(directory: str) -> Iterator[int]:
    """Yield a descriptor of a runtime directory that belongs to this user or to root.

    Raises:
        OSError: it is missing, or this user may not enter it.
        LttdError: others can write in it.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise LttdError(f"{directory}: others can write in it, so it is not to be trusted")
        yield fd
    finally:
        os.close(fd)


def socket_names(directory_fd: int) -> list[str]:
    """Return the names of the control sockets in an opened runtime directory, live or not."""
    names = (path.name for path in Path(f"/proc/self/fd/{directory_fd}").iterdir())
    return sorted(name for name in names if name.endswith(SUFFIX) and not name.startswith("."))


def connected(directory_fd: int, name: str, patience_s: float) -> socket.socket | None:
    """Connect to a control socket; None: no process listens on it.

    Raises:
        OSError: this user may not, or its queue stays full.
    """
    deadline = time.monotonic() + patience_s
    client = _new_socket()
    with ExitStack() as stack:
        stack.callback(client.close)
        client.setblocking(False)
        while True:
            try:
                client.connect(_address(directory_fd, name))
            except (ConnectionRefusedError, FileNotFoundError):
                return None
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "it accepts no client") from None
                time.sleep(RETRY_S)
            else:
                break
        stack.pop_all()
    return client


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


def _address(directory_fd: int, name: str) -> str:
    return f"/proc/self/fd/{directory_fd}/{name}"
