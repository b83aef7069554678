"""A start and the record of the instance that it made itself."""

from pathlib import Path

import pytest

from lttd.runtime import RuntimeDirectory
from lttd.sources.base import Owner
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.sources.ftrace.left import Leftovers
from lttd.sources.ftrace.record import InstanceRecord


def test_a_start_does_not_wait_for_the_record_that_it_holds_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s over its own record")

    owner = Owner(1, 2, str(tmp_path))
    record = InstanceRecord.create(RuntimeDirectory(), "lttd-1", owner, own=True)
    monkeypatch.setattr(ftrace_instance.time, "sleep", wait)
    leftovers = Leftovers(str(tmp_path), owner)
    assert list(leftovers.own_instances()) == []
    assert leftovers.lines == []
    record.remove()
