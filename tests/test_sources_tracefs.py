"""Read and write the small files of tracefs, on a tree of plain files."""

import errno
from pathlib import Path

import pytest

from lttd.errors import NothingToRecordError, SourceError, UsageError
from lttd.sources.ftrace.setup import wake_percent
from lttd.sources.tracefs import explained, find_events, parse_stats

STATS = b"""entries: 25
overrun: 3
commit overrun: 0
bytes: 1276
oldest event ts:   672.978993
now ts:   673.029233
dropped events: 7
read events: 11
"""


@pytest.fixture
def events(tmp_path: Path) -> str:
    for name in (
        "sched/sched_switch",
        "sched/sched_waking",
        "irq/irq_handler_entry",
        "ftrace/print",
    ):
        (tmp_path / "events" / name).mkdir(parents=True)
        (tmp_path / "events" / name / "enable").write_text("0\n")
    for system in ("sched", "irq"):
        (tmp_path / "events" / system / "enable").write_text("0\n")
    (tmp_path / "events" / "enable").write_text("0\n")
    return str(tmp_path / "events")


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("sched:*", ["sched:*"]),
        ("sched:", ["sched:*"]),
        ("*:*", ["*:*"]),
        ("sched_switch", ["sched:sched_switch"]),
        ("sched:sched_w*", ["sched:sched_waking"]),
        ("*:*_entry", ["irq:irq_handler_entry"]),
        ("?r?:*", ["irq:*"]),
    ],
)
def test_a_glob_for_a_whole_system_writes_one_file(
    events: str, glob: str, names: list[str]
) -> None:
    assert [file.name for file in find_events(events, [glob])] == names


def test_an_event_that_two_globs_name_is_enabled_once(events: str) -> None:
    assert len(find_events(events, ["sched_switch", "sched:sched_switch"])) == 1


@pytest.mark.parametrize(
    ("glob", "near"),
    [("sched:sched_swich", "sched:sched_switch"), ("shed:*", "sched:*"), ("sched_wakin", "waking")],
)
def test_a_glob_without_a_match_suggests_similar_names(events: str, glob: str, near: str) -> None:
    with pytest.raises(UsageError, match=r"no event .* matches") as caught:
        find_events(events, [glob])
    assert near in str(caught.value)


def test_the_ftrace_system_has_no_events_to_enable(events: str) -> None:
    with pytest.raises(UsageError):
        find_events(events, ["ftrace:print"])


def test_stats_have_the_names_of_the_kernel_and_times_in_ns() -> None:
    fields = parse_stats(STATS)
    assert fields["commit overrun"] == 0
    assert fields["dropped events"] == 7
    assert fields["now ts"] == 673_029_233_000
    assert parse_stats(b"now ts: 1234567\n") == {"now ts": 1234567}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_refused_access_is_reported_with_a_remedy(number: int) -> None:
    error = explained("/sys/x", OSError(number, "no"))
    assert isinstance(error, NothingToRecordError)
    assert str(error).startswith("/sys/x: ")
    assert error.remedy


def test_a_refused_write_names_the_file_and_the_value() -> None:
    error = explained("/sys/x", OSError(errno.EINVAL, "no"), "writing '5': ")
    assert isinstance(error, SourceError)
    assert str(error).startswith("/sys/x: writing '5': Invalid argument")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("ring_bytes", "percent"),
    [(64 << 10, 25), (4 << 20, 25), (16 << 20, 25), (64 << 20, 6), (1 << 30, 1), (0, 25)],
)
def test_poll_wakes_at_a_quarter_or_four_mebibytes_and_never_at_once(
    ring_bytes: int, percent: int
) -> None:
    assert wake_percent(ring_bytes) == percent
