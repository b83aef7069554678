"""The errors of lttd: each is one line with the failure, its place and the remedy."""

import errno
import os
from pathlib import Path
from typing import ClassVar, Final


class LttdError(Exception):
    """Base of all errors that a public function may raise; its text is one line."""

    exit_status: ClassVar[int] = 1
    said: bool = False
    """Whether lttd has written a line about it, and must not write another."""


REMEDIES: Final = {
    errno.EMFILE: "let lttd open more files (ulimit -n; systemd: LimitNOFILE=)",
    errno.ENFILE: "let this machine open more files (sysctl fs.file-max)",
    errno.ENOMEM: "allow lttd more memory (ulimit -v; systemd: MemoryMax=)",
    errno.EAGAIN: "allow lttd more threads (ulimit -u; systemd: TasksMax=)",
}


def reason_of(error: OSError) -> str:
    """Return why the system refused, and what to do where that is known."""
    reason, remedy = error.strerror or str(error), REMEDIES.get(error.errno or 0)
    return f"{reason}: {remedy}" if remedy else reason


def refusal(error: BaseException) -> LttdError | None:
    """Return an LttdError with a remedy, if the system refused memory, a thread or a file.

    Return None if *error* is of another kind: then it is a bug.
    """
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0, "nothing more is recorded")
        return LttdError(f"{where}{error.strerror or error}; {remedy}")
    if isinstance(error, MemoryError):
        words = "memory is used up: allow lttd more, or give it a smaller --backlog"
        return MemoryUsedUpError(words)
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return LttdError(
            "no thread can be started: allow lttd more threads (ulimit -u; systemd: TasksMax=), "
            "or more memory (ulimit -v; systemd: MemoryMax=)"
        )
    return None


class MemoryUsedUpError(LttdError):
    """The system refused memory."""


class UsageError(LttdError):
    """The command line, the configuration or a SPEC is not valid."""

    exit_status = 2


class NothingToRecordError(LttdError):
    """This machine has nothing that the source can record from; carries the remedy."""

    exit_status = 77

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class SourceError(LttdError):
    """The kernel refused or failed an operation of a source, at its set-up or while reading."""


class StreamLostError(SourceError):
    """A stream can never be read again; after any other SourceError, try again."""


class StorageError(LttdError):
    """A file could not be written; the data before that is whole."""

    def __init__(
        self, path: Path, reason: str, errno_name: str = "EIO", *, end_bytes: int | None = None
    ) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.errno_name = errno_name
        self.end_bytes = end_bytes
        """The offset that a failed write reached; None: unknown, or not a write."""


class LostFileError(StorageError):
    """Somebody removed, replaced or truncated a file while lttd wrote it: its content is lost."""

    def __init__(self, path: Path, reason: str, left_bytes: int) -> None:
        super().__init__(path, reason)
        self.left_bytes = left_bytes
        """Bytes that are still there."""


class LockedError(LttdError):
    """Another process holds a resource that lttd needs alone."""


class TraceDamagedError(LttdError):
    """A file of a trace does not match its format; carries the path and the offset."""

    def __init__(self, path: Path, offset_bytes: int, reason: str) -> None:
        super().__init__(f"{path}: byte {offset_bytes}: {reason}")
        self.path = path
        self.offset_bytes = offset_bytes
        self.reason = reason


class OutputError(LttdError):
    """Standard output does not accept the output."""


class NotATraceError(LttdError):
    """The path holds no trace."""

    exit_status = 2


class RefusedError(OSError):
    """A file exists, but lttd refuses to use it; the text is the reason, safe for a terminal."""

    def __init__(self, number: int, reason: str, path: str | Path) -> None:
        super().__init__(number, reason, str(path))


_REMEDY: Final = {
    errno.ENOSPC: "no space left: free some, or record elsewhere",
    errno.EDQUOT: "the quota is used up: free some, or record elsewhere",
    errno.EROFS: "the file system is read-only: record elsewhere",
    errno.EACCES: "permission denied: choose a directory that this user may write",
    errno.EPERM: "not permitted here: record to a directory of an ordinary file system",
    errno.EFBIG: "the file is as large as the limit allows: raise it (ulimit -f)",
    errno.EMFILE: f"too many open files: {REMEDIES[errno.EMFILE]}",
    errno.ENFILE: f"too many open files: {REMEDIES[errno.ENFILE]}",
    errno.ENOMEM: f"no memory: {REMEDIES[errno.ENOMEM]}",
}


def storage_error(path: Path, error: OSError, *, end_bytes: int | None = None) -> StorageError:
    """Return the StorageError for an errno, with the remedy; *end_bytes* as in StorageError."""
    number = error.errno or 0
    reason = error.strerror or str(error)
    if not isinstance(error, RefusedError):
        reason = _REMEDY.get(number, reason)
    return StorageError(path, reason, errno.errorcode.get(number, "EIO"), end_bytes=end_bytes)
