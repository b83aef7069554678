"""Reach files through an open directory, so that nobody can lead lttd to another file.

A user names a directory, and lttd opens it once; that name may contain symbolic links.  Below it,
lttd follows no symbolic link and no ``..`` (see ``lttd.openat``).  To rename or replace the
directory afterwards has no effect.

    trace = OpenDirectory.open(Path("/var/lib/lttd/t1"))
    manifest = trace.place(trace.path / "20261123T013005Z-000001-ftrace" / "trace.json")
    fd = manifest.open()

Rule: paths are full paths, as messages print them; each begins with the path of its directory.
Rule: only regular files are opened, and opening never waits: a FIFO, a device or a socket is
refused before it is opened.
Rule: lttd writes only to files that belong to its user and have one link.
Invariant: no method here reaches anything outside of the directory that it is called on.
"""

import errno
import os
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from lttd.errors import RefusedError
from lttd.limits import DEPTH
from lttd.openat import LOOK, Open, close_fd, way_to_open

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE: Final = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = _WRITE | os.O_CREAT | os.O_EXCL
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

_FILE_TYPES: Final = {
    stat.S_IFLNK: "a symbolic link, and none is followed here",
    stat.S_IFIFO: "a FIFO, not a regular file",
    stat.S_IFSOCK: "a socket, not a regular file",
    stat.S_IFCHR: "a device, not a regular file",
    stat.S_IFBLK: "a device, not a regular file",
    stat.S_IFDIR: "a directory, not a regular file",
}


class _Relative(NamedTuple):
    above: str
    name: str


class OpenDirectory:
    """An open directory, and every operation on files below it.

    All methods raise OSError, or its subclass RefusedError if lttd refuses, not the kernel.
    """

    _open: Open | None = None
    """The function that opens, chosen once."""

    def __init__(self, path: Path, fd: int) -> None:
        """Take over *fd*, which is open on the directory that *path* names."""
        self.path = path
        self.fd = fd
        self._prefix = {".": "", "/": "/"}.get(os.fspath(path), f"{path}/")
        self._closer = weakref.finalize(self, close_fd, fd)
        if OpenDirectory._open is None:
            OpenDirectory._open = staticmethod(way_to_open())

    @classmethod
    def open(cls, path: Path) -> "OpenDirectory":
        """Open the directory that a user names; follow symbolic links in *path* this once."""
        return cls(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}>"

    def renamed(self, path: Path) -> None:
        """Take *path* for the name of this directory from now on, which was renamed."""
        self.path, self._prefix = path, f"{path}/"

    def close(self) -> None:
        """Close the descriptor; garbage collection does so, too."""
        self._closer()

    def holds(self, path: str | Path) -> bool:
        """Tell whether *path* is this directory, or has the form of a path below it."""
        text = os.fspath(path)
        if not self._prefix:  # the directory is ``.``: every relative path is below it
            return not text.startswith(("/", "../"))
        return text == os.fspath(self.path) or text.startswith(self._prefix)

    def place(self, path: str | Path) -> "Place":
        """Return *path* as a place below this directory."""
        return Place(self, os.fspath(path))

    def enter(self, path: str | Path) -> "OpenDirectory":
        """Open a directory below this one, with a descriptor of its own."""
        return OpenDirectory(Path(path), self.open_directory(path))

    def open_directory(self, path: str | Path) -> int:
        """Open this directory or one below it; return the descriptor."""
        return self._reach(self._inside(path), _DIRECTORY)

    # -- looking

    def stat(self, path: str | Path) -> os.stat_result:
        """Return the status of a file; a symbolic link is not followed."""
        fd = self._reach(self._inside(path), LOOK)
        try:
            return os.fstat(fd)
        finally:
            close_fd(fd)

    def is_file(self, path: str | Path) -> bool:
        """Tell whether *path* is a regular file; False if it cannot be reached."""
        try:
            return stat.S_ISREG(self.stat(path).st_mode)
        except OSError:
            return False

    def is_directory(self, path: str | Path) -> bool:
        """Tell whether *path* is a directory; False if it cannot be reached."""
        try:
            return stat.S_ISDIR(self.stat(path).st_mode)
        except OSError:
            return False

    def is_missing(self, path: str | Path) -> bool:
        """Tell whether nothing has the name *path*; False if it cannot be reached."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    def names(self, path: str | Path) -> list[str]:
        """Return the names of everything in a directory, sorted."""
        with self._listed(path) as entries:
            return sorted(entry.name for entry in entries)

    def directories(self, path: str | Path) -> list[str]:
        """Return the names of the directories in a directory, sorted, without links."""
        with self._listed(path) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))

    def walk(self, path: str | Path) -> Iterator[tuple[Path, list[str], list[str]]]:
        """Yield each directory from *path* on with its directories and its other names.

        The caller may remove directories from the first list to skip them.  Symbolic links are in
        the second list.  More levels than any trace has are refused.
        """
        levels = [[os.fspath(path)]]
        while levels:
            if not levels[-1]:
                levels.pop()
                continue
            at = levels[-1].pop()
            if len(levels) > DEPTH.most:
                raise RefusedError(errno.ELOOP, f"is too deep: {DEPTH}", at)
            with self._listed(at) as entries:
                found = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries)
            below = [name for name, is_directory in found if is_directory]
            yield Path(at), below, [name for name, is_directory in found if not is_directory]
            levels.append([f"{at}/{name}" for name in reversed(below)])

    # -- reading

    def open_file(self, path: str | Path) -> int:
        """Open a regular file for reading; return the descriptor."""
        inside = self._inside(path)
        self._refuse_irregular(inside, path)
        fd = self._reach(inside, _READ)
        return self._checked(fd, path, lambda status: None)

    # -- writing

    def refuse_foreign(self) -> None:
        """Refuse to write into a directory that another user owns, or may write to."""
        status = os.fstat(self.fd)
        if status.st_uid != os.geteuid():
            reason = f"belongs to user {status.st_uid}, and only its owner may write a trace there"
            raise RefusedError(errno.EPERM, f"{reason}: name another directory", self.path)
        if status.st_mode & _WRITABLE_BY_OTHERS:
            shared = status.st_mode & stat.S_ISVTX  # such as /tmp, which has to stay so
            remedy = "name a new one below it" if shared else "chmod go-w, or name another"
            reason = f"other users may write to it: {remedy}"
            raise RefusedError(errno.EPERM, reason, self.path)

    def open_for_writing(self, path: str | Path, mode: int = FILE_MODE) -> int:
        """Open a file for writing, created if absent; return the descriptor.

        An existing file must be regular, belong to this user, and have no other name.
        """
        inside = self._inside(path)
        with suppress(FileExistsError):
            return self._reach(inside, _CREATE, mode)
        self._refuse_irregular(inside, path)
        return self._checked(self._reach(inside, _WRITE), path, _why_not_ours)

    def create(self, path: str | Path, mode: int = FILE_MODE) -> int:
        """Create a file under an unused name; return the descriptor."""
        return self._reach(self._inside(path), _CREATE, mode)

    def make_directory(self, path: str | Path) -> None:
        """Create a directory and its parents, if absent."""
        inside = self._inside(path)
        with suppress(FileNotFoundError):
            close_fd(self.open_directory(path))
            return
        for end in (*(at for at, letter in enumerate(inside) if letter == "/"), len(inside)):
            step = self._prefix + inside[:end]
            try:
                close_fd(self.open_directory(step))
            except FileNotFoundError:
                with suppress(FileExistsError):
                    self.create_directory(step)
                close_fd(self.open_directory(step))

    def create_directory(self, path: str | Path) -> None:
        """Create a directory, which must not exist."""
        with self._parent(path) as (fd, name):
            os.mkdir(name, DIRECTORY_MODE, dir_fd=fd)

    def rename(self, path: str | Path, to: str) -> None:
        """Give a file another name in its directory; replace a file of that name."""
        with self._parent(path) as (fd, name):
            os.rename(name, to, src_dir_fd=fd, dst_dir_fd=fd)

    def link(self, path: str | Path, to: "OpenDirectory", name: str | Path) -> None:
        """Give a file a second name below the directory *to*."""
        with self._parent(path) as (fd, old), to._parent(name) as (other, new):  # noqa: SLF001
            os.link(old, new, src_dir_fd=fd, dst_dir_fd=other, follow_symlinks=False)

    def remove_file(self, path: str | Path) -> None:
        """Remove a file; of a symbolic link, the link."""
        with self._parent(path) as (fd, name):
            os.unlink(name, dir_fd=fd)

    def remove_directory(self, path: str | Path) -> None:
        """Remove an empty directory."""
        with self._parent(path) as (fd, name):
            os.rmdir(name, dir_fd=fd)

    def remove_tree(self, path: str | Path) -> None:
        """Remove a directory with its content, without following symbolic links."""
        with self._parent(path) as (fd, name):
            shutil.rmtree(name, dir_fd=fd)

    # -- how

    def _inside(self, path: str | Path) -> str:
        text = os.fspath(path)
        if text == os.fspath(self.path):
            return "."
        if not self.holds(text):
            raise AssertionError(f"{text} is not below {self.path}")
        return text[len(self._prefix) :]

    def _reach(self, inside: str, flags: int, mode: int = 0) -> int:
        assert OpenDirectory._open is not None
        try:
            return OpenDirectory._open(self.fd, inside, flags, mode)
        except OSError as error:
            path = self._prefix + inside
            if error.errno == errno.ELOOP:
                raise RefusedError(errno.ELOOP, _FILE_TYPES[stat.S_IFLNK], path) from None
            if error.errno == errno.EXDEV:
                raise RefusedError(errno.EXDEV, "leads out of its directory", path) from None
            error.filename = path
            raise

    @contextmanager
    def _parent(self, path: str | Path) -> Iterator[tuple[int, str]]:
        above, name = _split(self._inside(path))
        if above == ".":
            yield self.fd, name
            return
        fd = self._reach(above, _DIRECTORY)
        try:
            yield fd, name
        finally:
            close_fd(fd)

    @contextmanager
    def _listed(self, path: str | Path) -> Iterator["os._ScandirIterator[str]"]:
        fd = self.open_directory(path)
        try:
            with os.scandir(fd) as entries:
                yield entries
        finally:
            close_fd(fd)

    def _refuse_irregular(self, inside: str, path: str | Path) -> None:
        """Check the type before opening, because opening a device may have effects."""
        self._checked(self._reach(inside, LOOK), path, lambda status: None, keep=False)

    def _checked(
        self,
        fd: int,
        path: str | Path,
        why_not: Callable[[os.stat_result], str | None],
        *,
        keep: bool = True,
    ) -> int:
        status = os.fstat(fd)
        regular = stat.S_ISREG(status.st_mode)
        reason = (
            why_not(status)
            if regular
            else _FILE_TYPES.get(stat.S_IFMT(status.st_mode), "not a file")
        )
        if reason is not None or not keep:
            close_fd(fd)
        if reason is not None:
            raise RefusedError(errno.EPERM if regular else errno.EINVAL, reason, path)
        return fd


def _why_not_ours(status: os.stat_result) -> str | None:
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}: only its owner may write to it"
    if status.st_nlink != 1:
        return f"has {status.st_nlink} names, and one of them may be elsewhere: not written to"
    return None


def _split(inside: str) -> _Relative:
    above, _, name = inside.rpartition("/")
    if name in ("", ".", ".."):
        raise AssertionError(f"{inside!r} is not a name below a directory")
    return _Relative(above or ".", name)


class Place(NamedTuple):
    """A path, and the open directory through which it is reached."""

    directory: OpenDirectory
    path: str

    def __str__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The last component of the path."""
        return self.path.rpartition("/")[2]

    def __truediv__(self, name: str) -> "Place":
        return Place(self.directory, f"{self.path}/{name}")

    def stat(self) -> os.stat_result:
        """See OpenDirectory.stat()."""
        return self.directory.stat(self.path)

    def open(self) -> int:
        """See OpenDirectory.open_file()."""
        return self.directory.open_file(self.path)


def place_of(where: Place | Path) -> Place:
    """Return a place unchanged, and a path as a place in its parent directory."""
    if isinstance(where, Place):
        return where
    return OpenDirectory.open(where.parent).place(where)
