"""kept.json: reasons survive a rewrite, and a file that cannot be read keeps its segment."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.errors import LttdError, StorageError, TraceDamagedError
from lttd.files import Disk
from lttd.kept import BY_PERSON, NOT_KEPT, Kept, next_trigger_number, read_kept, write_kept
from lttd.limits import KEPT, KEPT_TRIGGERS
from lttd.tracedir import SegmentPaths, create_segment, segment_name
from lttd.trigger import SENDERS, Trigger

ONE = Trigger(
    "p99 of db1 is above 2 s", {"job": "db1"}, by="http", at_ns=5, before_ns=3, after_ns=1, number=1
)


@pytest.fixture
def segment(tmp_path: Path) -> tuple[SegmentPaths, Disk]:
    tmp_path.chmod(0o750)
    disk = Disk()
    return create_segment(disk, tmp_path, segment_name(1, "ftrace")), disk


@given(st.booleans(), st.lists(st.sampled_from(SENDERS), max_size=4))
def test_reasons_are_read_back_as_they_were_written(by_person: bool, senders: list[str]) -> None:
    triggers = tuple(replace(ONE, number=n, by=by) for n, by in enumerate(senders, 1))
    kept = Kept(by_person, triggers)
    assert Kept.from_json(json.loads(json.dumps(kept.to_json()))) == kept
    assert bool(kept) == (by_person or bool(senders))
    assert kept.by_http_only == (not by_person and set(senders) == {"http"})


def test_a_segment_without_the_file_is_not_kept(segment: tuple[SegmentPaths, Disk]) -> None:
    paths, disk = segment
    assert read_kept(paths) == NOT_KEPT
    write_kept(paths, NOT_KEPT, disk)
    assert not paths.kept.exists()


def test_the_file_is_removed_with_the_last_reason(segment: tuple[SegmentPaths, Disk]) -> None:
    paths, disk = segment
    kept = BY_PERSON.with_trigger(replace(ONE, reason="größer als 2 s"))
    write_kept(paths, kept, disk)
    assert read_kept(paths) == kept
    assert sorted(os.listdir(paths.directory)) == ["kept.json", "streams"]
    write_kept(paths, NOT_KEPT, disk)
    assert os.listdir(paths.directory) == ["streams"]


def test_a_trigger_of_the_same_number_is_replaced_and_the_others_stay_in_order() -> None:
    kept = NOT_KEPT.with_trigger(replace(ONE, number=7)).with_trigger(ONE)
    done = kept.with_trigger(replace(ONE, complete=True, begin_ns=2, end_ns=6))
    assert [(t.number, t.complete) for t in done.triggers] == [(1, True), (7, False)]
    assert next_trigger_number([NOT_KEPT, done, BY_PERSON]) == 8
    assert next_trigger_number([]) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"by_person": false}',
        b'{"by_person": 0, "triggers": []}',
        b'{"by_person": false, "triggers": {}}',
        b'{"by_person": false, "triggers": [{"number": 1}]}',
        b'{"by_person": false, "triggers": [' + b"[" * 100_000,
        b'{"by_person": false, "triggers": [' + b",".join([b"1"] * 5000) + b"]}",
        b"\xff",
    ],
)
def test_an_unreadable_file_is_reported_with_its_name(
    segment: tuple[SegmentPaths, Disk], content: bytes
) -> None:
    paths, _ = segment
    paths.kept.write_bytes(content)
    with pytest.raises(TraceDamagedError) as caught:
        read_kept(paths)
    assert str(caught.value).startswith(f"{paths.kept}: byte 0: ")
    assert "\n" not in str(caught.value)


def test_a_huge_file_and_a_symbolic_link_are_refused(segment: tuple[SegmentPaths, Disk]) -> None:
    paths, _ = segment
    with paths.kept.open("wb") as file:
        file.truncate(KEPT.most + 1)
    with pytest.raises(TraceDamagedError, match="16 MiB"):
        read_kept(paths)
    paths.kept.unlink()
    paths.kept.symlink_to("/etc/passwd")
    with pytest.raises(TraceDamagedError, match="symbolic link"):
        read_kept(paths)


def test_more_triggers_than_can_be_read_back_are_refused(
    segment: tuple[SegmentPaths, Disk],
) -> None:
    paths, disk = segment
    full = Kept(triggers=tuple(replace(ONE, number=n + 1) for n in range(KEPT_TRIGGERS.most)))
    assert full.with_trigger(ONE) == full
    with pytest.raises(LttdError, match="trigger 5000: 4,096 others"):
        full.with_trigger(replace(ONE, number=5000))
    longest = {f"{n}".rjust(128): "\u20ac" * 1024 for n in range(64)}
    huge = Kept(triggers=tuple(replace(ONE, number=n + 1, labels=longest) for n in range(90)))
    write_kept(paths, full, disk)
    with pytest.raises(LttdError, match="16 MiB") as raised:
        write_kept(paths, huge, disk)
    assert not isinstance(raised.value, StorageError), "no later attempt helps"
    assert read_kept(paths) == full
