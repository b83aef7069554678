"""Everything that lttd raises on purpose: one line that says what, where, and what to do."""

import errno
import os
from pathlib import Path
from typing import ClassVar, Final


class LttdError(Exception):
    """Base of all errors that a public function may raise; its text is fit for a terminal."""

    exit_status: ClassVar[int] = 1


REMEDIES: Final = {
    errno.EMFILE: "let lttd open more files (ulimit -n; systemd: LimitNOFILE=)",
    errno.ENFILE: "let this machine open more files (sysctl fs.file-max)",
    errno.ENOMEM: "allow lttd more memory (ulimit -v; systemd: MemoryMax=)",
    errno.EAGAIN: "allow lttd more threads (ulimit -u; systemd: TasksMax=)",
}


def refusal(error: BaseException) -> LttdError | None:
    """Return as one line what the system refused in a place that has no better words for it.

    None where *error* is not of that kind: then it is a bug.
    """
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0, "nothing more is recorded")
        return LttdError(f"{where}{error.strerror or error}; {remedy}")
    if isinstance(error, MemoryError):
        return LttdError("memory is used up: allow lttd more, or give it a smaller --backlog")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return LttdError(
            "no thread can be started: allow lttd more threads (ulimit -u; systemd: TasksMax=), "
            "or more memory (ulimit -v; systemd: MemoryMax=)"
        )
    return None


class UsageError(LttdError):
    """The command line, configuration or a SPEC asks for what cannot be."""

    exit_status = 2


class NothingToRecordError(LttdError):
    """This machine has nothing that the source could record from, and what to do about it."""

    exit_status = 77

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class SourceError(LttdError):
    """The kernel refused or failed what a source needs while it was being set up or read."""


class StreamLostError(SourceError):
    """A stream can never be read again; any other SourceError may be over when it is asked next."""


class StorageError(LttdError):
    """A file could not be written; what was written before is whole."""

    def __init__(
        self, path: Path, reason: str, errno_name: str = "EIO", *, end_bytes: int | None = None
    ) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.errno_name = errno_name
        self.end_bytes = end_bytes
        """Of a write: the offset up to which it went; None where nothing is known of that."""


class LostFileError(StorageError):
    """Somebody removed, replaced or cut a file while it was written: what it held is lost."""

    def __init__(self, path: Path, reason: str, left_bytes: int) -> None:
        super().__init__(path, reason)
        self.left_bytes = left_bytes
        """How much of it is still there."""


class LockedError(LttdError):
    """Somebody else has what would have to be ours alone."""


class TraceDamagedError(LttdError):
    """A trace on disk does not hold what its format says, and where."""

    def __init__(self, path: Path, offset_bytes: int, reason: str) -> None:
        super().__init__(f"{path}: byte {offset_bytes}: {reason}")
        self.path = path
        self.offset_bytes = offset_bytes
        self.reason = reason


class OutputError(LttdError):
    """Standard output does not take what was asked for."""


class NotATraceError(LttdError):
    """The path holds no trace."""

    exit_status = 2
