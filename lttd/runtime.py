"""Keep notes in the runtime directory on what of the kernel's state is lttd's.

It is ``/run/lttd`` for root and ``$XDG_RUNTIME_DIR/lttd`` for a user; ``$RUNTIME_DIRECTORY``, which
systemd (and tests) set, comes first.  A user who can write there decides which files lttd changes,
so the directory must belong to this user and be writable by nobody else, and so must each note.

Rule: the directory is opened once and checked; its files are reached by its descriptor, and no
symbolic link below it is followed.
Rule: a note appears only when it is whole and locked.  The lock lasts as long as its writer, so a
note that another process can lock is the note of a dead process.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from lttd.errors import LockedError, LttdError, NothingToRecordError, SourceError, reason_of
from lttd.limits import NOTE, NOTES
from lttd.locks import lock_now

ROOTS_DIRECTORY: Final = "/run/lttd"
DIRECTORY_MODE: Final = 0o750
NOTE_MODE: Final = 0o600
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_REMEDY: Final = (
    "run lttd as root, or set RUNTIME_DIRECTORY to a directory that only this user can write"
)
_MAY_PASS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
_TEMPORARY: Final = ".new-"
_number = itertools.count()


def boot_id() -> str:
    """Return the id of this boot; empty if /proc does not have it."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


class Recorder(NamedTuple):
    """The identity of a process within one boot."""

    pid: int
    start_ticks: int
    """Its start time, field 22 of ``/proc/PID/stat``; 0 if unknown."""
    pid_namespace: int
    """Inode of ``/proc/PID/ns/pid``: in another namespace, pids mean other processes."""

    @classmethod
    def this(cls) -> "Recorder":
        """Return this process."""
        try:
            text = Path("/proc/self/stat").read_text(errors="replace")
            # The command, in parentheses, may contain blanks and parentheses: proc(5).
            start_ticks = int(text.rpartition(")")[2].split()[19])
            namespace = Path("/proc/self/ns/pid").stat().st_ino
        except (OSError, IndexError, ValueError):
            start_ticks, namespace = 0, 0
        return cls(os.getpid(), start_ticks, namespace)


def directory_path() -> str:
    """Return the path of this user's runtime directory.

    Raises:
        NothingToRecordError: this user has none.
    """
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return given
    if os.geteuid() == 0:
        return ROOTS_DIRECTORY
    users = os.environ.get("XDG_RUNTIME_DIR", "")
    if users:
        return f"{users}/lttd"
    raise NothingToRecordError("no runtime directory: XDG_RUNTIME_DIR is not set", _REMEDY)


def known_notes() -> list[str]:
    """Return the names of all notes; none if the directory is missing or not trustworthy."""
    try:
        if not Path(directory_path()).is_dir():
            return []
        with RuntimeDirectory() as directory:
            return directory.names()
    except (NothingToRecordError, PermissionError):  # after su it may be another user's, say
        return []


def remove_half_made() -> None:
    """Remove notes that a process was killed at before they had their name."""
    with contextlib.suppress(LttdError, OSError):
        if Path(directory_path()).is_dir():
            with RuntimeDirectory() as directory:
                directory.remove_half_made()


class RuntimeDirectory:
    """This user's runtime directory, opened and checked."""

    def __init__(self) -> None:
        """Open the directory; make it if it is missing.

        Raises:
            LttdError: it cannot be made, or somebody else can write in it.
        """
        self.path = directory_path()
        self._fd = -1
        try:
            with contextlib.suppress(FileExistsError):
                Path(self.path).mkdir(DIRECTORY_MODE, parents=True)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            raise _refused(self.path, error) from None
        status = os.fstat(self._fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            self.close()
            raise _refused(self.path, "others can write in it, so it is not to be trusted")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; held notes stay held."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def fileno(self) -> int:
        """Return the directory's descriptor."""
        return self._fd

    @staticmethod
    def temporary_name() -> str:
        """Return a name that no other file has; remove_half_made() removes what a kill leaves."""
        return f"{_TEMPORARY}{os.getpid()}-{next(_number)}"

    def names(self) -> list[str]:
        """Return the names of all notes, sorted, up to the limit on their number.

        Raises:
            LttdError: the directory cannot be read.
        """
        try:
            with os.scandir(self._fd) as entries:
                visible = (entry.name for entry in entries if not entry.name.startswith("."))
                return sorted(itertools.islice(visible, NOTES.most))
        except OSError as error:
            raise _refused(self.path, error) from None

    def remove_half_made(self) -> None:
        """Remove notes whose writer died before they had their name."""
        with os.scandir(self._fd) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(_TEMPORARY)]
        for name in names:
            pid = name.removeprefix(_TEMPORARY).partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                self.remove(name)

    def create(self, name: str, content: bytes) -> "Note":
        """Make a note with *content*, and hold its lock.

        Raises:
            FileExistsError: there is one of that name.
            LttdError: it cannot be written.
        """
        return self._written(name, content, os.link)

    def replace(self, name: str, content: bytes) -> "Note":
        """Make a note, in place of an existing one of that name, and hold its lock.

        Raises:
            LttdError: it cannot be written.
        """
        return self._written(name, content, os.rename)

    def hold(self, name: str) -> "Note | None":
        """Lock the note of a dead process; None: there is no such note, or another user's.

        Raises:
            LockedError: its writer lives, or another process holds it at this moment.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(name, flags, dir_fd=self._fd)
        except OSError:
            return None
        try:
            if not _is_note(os.fstat(fd)):
                os.close(fd)
                return None
            lock_now(fd, lambda holder: f"{self.path}/{name}: in use by {holder}")
            if os.fstat(fd).st_ino == os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_ino:
                return Note(self, name, fd)
        except LockedError:
            os.close(fd)
            raise
        except OSError:
            pass  # it was removed meanwhile
        os.close(fd)
        return None

    def open_claim(self, name: str) -> int:
        """Return a descriptor of the file *name*; make the file if it is missing.

        Raises:
            LttdError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(name, flags, NOTE_MODE, dir_fd=self._fd)
        except OSError as error:
            raise _refused(f"{self.path}/{name}", error) from None
        if not _is_note(os.fstat(fd)):
            os.close(fd)
            raise _refused(f"{self.path}/{name}", "not a file that lttd made")
        return fd

    def remove(self, name: str) -> None:
        """Remove a note; it may be missing."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def is_foreign(self, name: str) -> bool:
        """Tell whether *name* is there and is not a note that lttd may have written."""
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return not _is_note(status)

    def written_ns(self, name: str) -> int:
        """Return when a note was last written to, by the wall clock.

        Raises:
            OSError: there is none.
        """
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mtime_ns

    def read(self, name: str) -> bytes | None:
        """Return a note's content; None: there is no such note, or it is not one of ours."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fd)
        except OSError:
            return None
        try:
            return os.pread(fd, NOTE.most, 0) if _is_note(os.fstat(fd)) else None
        finally:
            os.close(fd)

    def write(self, name: str, content: bytes) -> None:
        """Write a file without a lock, in place of an existing one of that name.

        Raises:
            LttdError: it cannot be written.
        """
        self.replace(name, content).release()

    def _written(self, name: str, content: bytes, appear: Callable[..., None]) -> "Note":
        """Write a locked new file; *appear* (os.link or os.rename) gives it its *name*."""
        temporary = self.temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW
        with contextlib.ExitStack() as stack:
            stack.callback(self.remove, temporary)
            try:
                self.remove(temporary)  # left by a process that had this pid and was killed here
                fd = os.open(temporary, flags, NOTE_MODE, dir_fd=self._fd)
                close_on_error = stack.enter_context(contextlib.ExitStack())
                close_on_error.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _write_whole(fd, content)
                appear(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            except FileExistsError:
                raise
            except OSError as error:
                raise _refused(f"{self.path}/{name}", error) from None
            close_on_error.pop_all()
            return Note(self, name, fd)


class Note:
    """A file of the runtime directory whose lock this process holds."""

    def __init__(self, directory: RuntimeDirectory, name: str, fd: int) -> None:
        self.name = name
        self._directory = directory
        self._fd = fd

    def content(self) -> bytes:
        """Return the whole content."""
        return os.pread(self._fd, NOTE.most, 0)

    def append(self, content: bytes) -> None:
        """Add *content* at the end, by one write.

        Raises:
            LttdError: it cannot be written.
        """
        try:
            _write_whole(self._fd, content)
        except OSError as error:
            path = f"{self._directory.path}/{self.name}"
            raise _refused(path, error) from None

    def remove(self) -> None:
        """Remove the file, then its lock."""
        self._directory.remove(self.name)
        self.release()

    def release(self) -> None:
        """Unlock the file, and keep it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _refused(path: str, why: OSError | str) -> LttdError:
    """Return the error.  A passing one, such as a full disk, is worth another start."""
    if isinstance(why, OSError) and why.errno in _MAY_PASS:
        return SourceError(f"{path}: {reason_of(why)}")
    reason = why if isinstance(why, str) else why.strerror or str(why)
    return NothingToRecordError(f"{path}: {reason}", _REMEDY)


def _is_note(status: os.stat_result) -> bool:
    ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return ours and stat.S_ISREG(status.st_mode) and status.st_size <= NOTE.most


def _write_whole(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]
