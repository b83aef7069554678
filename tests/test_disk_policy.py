"""What follows a failed write."""

from pathlib import Path

import pytest

from lttd.disk_policy import DiskPolicy, OnFailure
from lttd.errors import LostFileError, StorageError

STOP, WAIT, DROP = OnFailure.STOP, OnFailure.WAIT, OnFailure.DROP_OLDEST


@pytest.mark.parametrize(
    ("on_full", "on_write_error", "has_limit", "policy"),
    [
        (None, None, False, (STOP, STOP)),
        (None, None, True, (DROP, STOP)),
        # Where only --on-write-error is given, it decides for both, as it always did.
        (None, "continue", False, (WAIT, WAIT)),
        (None, "continue", True, (WAIT, WAIT)),
        (None, "stop", True, (STOP, STOP)),
        ("wait", None, False, (WAIT, STOP)),
        ("drop-oldest", "continue", False, (DROP, WAIT)),
        ("stop", "continue", True, (STOP, WAIT)),
    ],
)
def test_the_options_decide_for_a_full_disk_and_for_other_errors(
    on_full: str | None,
    on_write_error: str | None,
    has_limit: bool,
    policy: tuple[OnFailure, OnFailure],
) -> None:
    assert DiskPolicy.of_options(on_full, on_write_error, has_limit=has_limit) == DiskPolicy(
        *policy
    )


def test_a_full_quota_is_a_full_disk_and_a_lost_file_is_neither() -> None:
    policy = DiskPolicy(full=DROP, error=WAIT)
    path = Path("/t/streams/ftrace_0")
    assert policy.after(StorageError(path, "no space", "ENOSPC")) is DROP
    assert policy.after(StorageError(path, "quota", "EDQUOT")) is DROP
    assert policy.after(StorageError(path, "i/o", "EIO")) is WAIT
    assert policy.after(StorageError(path, "read-only", "EROFS")) is WAIT
    assert policy.after(LostFileError(path, "removed", 0)) is WAIT
