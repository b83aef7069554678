"""Decide what follows a failed write: recording ends, waits, or the oldest segments make room.

Rule: a full disk (and a full quota) is a state that passes; ``--on-full`` decides.  Every other
error may mean that the disk is dying; ``--on-write-error`` decides.
"""

import enum
from typing import Final, NamedTuple

from lttd.errors import LostFileError, StorageError

FULL: Final = frozenset({"ENOSPC", "EDQUOT"})


class OnFailure(enum.Enum):
    """The reactions to a failed write."""

    STOP = "stop"
    WAIT = "wait"
    """Count the data that cannot be written, and write again when that is possible."""
    DROP_OLDEST = "drop-oldest"
    """Delete the oldest segments; where that does not help, wait."""


class DiskPolicy(NamedTuple):
    """The choices for the two kinds of failures."""

    full: OnFailure = OnFailure.STOP
    error: OnFailure = OnFailure.STOP

    @classmethod
    def of_options(
        cls, on_full: str | None, on_write_error: str | None, *, has_limit: bool
    ) -> "DiskPolicy":
        """Return the choices of ``--on-full`` and ``--on-write-error``; None: not given.

        *has_limit*: retention deletes old segments anyway, so a full disk may do it, too.
        """
        error = OnFailure.WAIT if on_write_error in ("continue", "wait") else OnFailure.STOP
        if on_full is not None:
            return cls(OnFailure(on_full), error)
        if on_write_error is not None:
            return cls(error, error)
        return cls(OnFailure.DROP_OLDEST if has_limit else OnFailure.STOP, error)

    def after(self, error: StorageError) -> OnFailure:
        """Return what follows *error*."""
        is_full = error.errno_name in FULL and not isinstance(error, LostFileError)
        return self.full if is_full else self.error


STOP_AT_ONCE: Final = DiskPolicy()
"""Recording ends at the first failed write."""
