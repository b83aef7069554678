"""The decision which segments go: limits hold, the order is by number, and nothing else goes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.errors import UsageError
from lttd.retention import (
    PATIENCE_NS,
    FreeSpace,
    Held,
    Keeper,
    Limits,
    Reason,
    bytes_of,
    default_rolls,
    refuse_contradictions,
    what_goes,
    without_newest,
)
from lttd.roll import RollLimits

MIB = 1 << 20
SECOND = 1_000_000_000


def held(number: int, size_mib: int = 1, **more: object) -> Held:
    one = Held(number, f"{number:06d}", "ftrace", size_mib * MIB, end_ns=number * SECOND)
    return one._replace(**more)


def gone(*some: Held, limits: Limits, now_s: int = 100, **more: int) -> list[tuple[int, str]]:
    found = what_goes(some, limits, now_s * SECOND, **more)
    return [(deletion.held.number, deletion.reason.value) for deletion in found]


@st.composite
def catalogues(draw: st.DrawFn) -> list[Held]:
    numbers = sorted(draw(st.sets(st.integers(1, 60), max_size=20)))
    found = []
    for number in numbers:
        one = held(
            number,
            draw(st.integers(0, 9)),
            source=draw(st.sampled_from(["ftrace", "relay:/x", ""])),
            is_open=draw(st.booleans()),
            end_ns=draw(st.integers(-1000, 100)) * SECOND,
            keeper=draw(st.sampled_from(Keeper)),
            in_window=draw(st.booleans()),
            stuck=draw(st.booleans()),
        )
        found.append(one)
    return found


some_limits = st.builds(
    Limits,
    size_bytes=st.none() | st.integers(0, 80).map(lambda mib: mib * MIB),
    kept_bytes=st.none() | st.integers(0, 40).map(lambda mib: mib * MIB),
    age_ns=st.none() | st.integers(0, 1000).map(lambda s: s * SECOND),
)


@given(catalogues(), some_limits, st.integers(0, 30), st.integers(0, 30))
def test_the_limits_hold_or_nothing_more_may_go(
    there: list[Held], limits: Limits, hidden: int, missing: int
) -> None:
    found = what_goes(
        there, limits, 100 * SECOND, hidden_bytes=hidden * MIB, missing_bytes=missing * MIB
    )
    going = {deletion.held.number: deletion.reason for deletion in found}
    assert len(going) == len(found)
    rest = [one for one in there if one.number not in going]
    plain = [one for one in rest if not one.counts_as_kept]
    kept = [one for one in rest if one.counts_as_kept]
    if limits.size_bytes is not None and any(o.may_go and o is not there[-1] for o in plain):
        assert hidden * MIB + bytes_of(plain) <= limits.size_bytes
    newest = {one.source: one for one in there if one.counts_as_kept}.values()
    if limits.kept_bytes is not None and any(o.may_go and o not in newest for o in kept):
        assert bytes_of(kept) <= limits.kept_bytes
    if limits.age_ns is not None:
        assert not any(100 * SECOND - o.end_ns > limits.age_ns and o.may_go for o in plain)
    assert sum(d.held.allocated_bytes for d in found) >= missing * MIB or not without_newest(rest)


@given(catalogues(), some_limits, st.integers(0, 30))
def test_open_segments_windows_and_kept_ones_stay_and_so_do_the_newest_two_for_free_space(
    there: list[Held], limits: Limits, missing: int
) -> None:
    found = what_goes(there, limits, 100 * SECOND, missing_bytes=missing * MIB)
    for one, reason in found:
        assert one.may_go
        assert not one.in_window
        assert (one.keeper is Keeper.NOBODY) == (reason is not Reason.KEPT_SIZE)
        newest = [other.number for other in there if other.source == one.source][-2:]
        assert reason is not Reason.FREE or not one.source or one.number not in newest


@given(catalogues(), st.integers(0, 80))
def test_of_two_segments_the_lower_number_goes_first(there: list[Held], mib: int) -> None:
    found = what_goes(there, Limits(size_bytes=mib * MIB), 0)
    numbers = [deletion.held.number for deletion in found]
    could = [one.number for one in there[:-1] if one.may_go and not one.counts_as_kept]
    assert numbers == could[: len(numbers)]


def test_the_newest_segment_stays_even_if_it_alone_exceeds_the_size() -> None:
    assert gone(held(1, 9), held(2, 9), limits=Limits(size_bytes=MIB)) == [(1, "size")]
    there = [held(1, 9), held(2, 9), held(3, 0, is_open=True)]
    assert gone(*there, limits=Limits(size_bytes=MIB)) == [(1, "size"), (2, "size")]


def test_segments_that_only_http_keeps_go_before_those_of_a_person() -> None:
    person, http = Keeper.PERSON, Keeper.HTTP
    there = [held(1, keeper=person), held(2, keeper=http), held(3, keeper=person), held(4)]
    assert gone(*there, limits=Limits(kept_bytes=2 * MIB)) == [(2, "kept_size")]
    assert gone(*there, limits=Limits(kept_bytes=MIB)) == [(2, "kept_size"), (1, "kept_size")]


def test_the_newest_kept_segment_of_each_source_stays_even_if_it_alone_exceeds_the_limit() -> None:
    http = Keeper.HTTP
    there = [held(1, 9, keeper=Keeper.PERSON), held(2, 9, keeper=http), held(3, 9, keeper=http)]
    assert gone(*there, limits=Limits(kept_bytes=MIB)) == [(2, "kept_size"), (1, "kept_size")]
    assert gone(*there[:2], limits=Limits(kept_bytes=MIB)) == [(1, "kept_size")]
    assert gone(there[0], limits=Limits(kept_bytes=MIB)) == []


def test_a_window_that_is_awaited_pushes_out_older_kept_segments_but_never_its_own() -> None:
    there = [held(1, keeper=Keeper.PERSON), held(2, 5, in_window=True), held(3, in_window=True)]
    assert gone(*there, limits=Limits(kept_bytes=2 * MIB)) == [(1, "kept_size")]
    assert gone(*there, limits=Limits(size_bytes=0)) == []


def test_age_is_measured_from_a_segments_end_and_counts_no_kept_one() -> None:
    there = [held(1), held(2, keeper=Keeper.HTTP), held(3), held(70), held(99, is_open=True)]
    assert gone(*there, limits=Limits(age_ns=40 * SECOND)) == [(1, "age"), (3, "age")]
    assert gone(*there, limits=Limits(age_ns=40 * SECOND), now_s=-(10**9)) == []


def test_a_damaged_segment_goes_in_its_turn() -> None:
    there = [held(1), held(2, source=""), held(3)]
    assert gone(*there, limits=Limits(size_bytes=MIB)) == [(1, "size"), (2, "size")]
    assert gone(*there, limits=Limits(), missing_bytes=9 * MIB) == [(2, "free")]


def test_parts_of_segments_that_could_not_be_removed_count() -> None:
    there = [held(1), held(2), held(3)]
    assert gone(*there, limits=Limits(size_bytes=3 * MIB), hidden_bytes=1) == [(1, "size")]


def test_each_source_keeps_its_newest_two_when_space_is_missing() -> None:
    there = [held(n, source=f"relay:{n % 2}") for n in range(1, 9)]
    assert gone(*there, limits=Limits(), missing_bytes=99 * MIB) == [
        (n, "free") for n in range(1, 5)
    ]


def test_missing_space_is_what_age_and_size_do_not_free_already() -> None:
    there = [held(n) for n in range(1, 9)]
    limits = Limits(size_bytes=6 * MIB)
    assert gone(*there, limits=limits, missing_bytes=3 * MIB) == [
        (1, "size"), (2, "size"), (3, "free"),
    ]  # fmt: skip


def test_deleting_goes_on_while_it_helps_and_recording_uses_the_space() -> None:
    space, free, own = FreeSpace(), 90, 1000
    for second in range(500):
        missing = space.missing_bytes(100, free, own, second * SECOND)
        if free < 100:
            assert missing == 100 - free
            space.deleted(30, free, own, second * SECOND)
            free, own = free + 30, own - 30
        free, own = free - 7, own + 7
    assert not space.is_futile(500 * SECOND)


def test_deleting_ends_when_the_free_space_does_not_rise() -> None:
    space, own, deleted = FreeSpace(), 1000, 0
    for second in range(500):
        missing = space.missing_bytes(100, 90, own, second * SECOND)
        if missing:
            space.deleted(20, 90, own, second * SECOND)
            own, deleted = own - 20, deleted + 20
    assert deleted == 20
    assert space.is_futile(500 * SECOND)
    # Whoever held the blocks lets go of them.
    assert space.missing_bytes(100, 110, own, 501 * SECOND) == 0
    assert space.missing_bytes(100, 95, own, 502 * SECOND) == 5


def test_space_that_is_freed_late_is_not_deleted_twice() -> None:
    space = FreeSpace()
    assert space.missing_bytes(100, 60, 1000, 0) == 40
    space.deleted(50, 60, 1000, 0)
    assert space.missing_bytes(100, 60, 950, 5 * SECOND) == 0
    assert space.missing_bytes(100, 45, 950, 10 * SECOND) == 5
    assert space.missing_bytes(100, 98, 950, PATIENCE_NS) == 2


@pytest.mark.parametrize(
    ("limits", "sources", "line"),
    [
        (Limits(size_bytes=39 * MIB), 1, "max-size 39M: 2 segments need 40M; "),
        (Limits(kept_bytes=39 * MIB), 1, "max-kept-size 39M: 2 segments need 40M; "),
        (
            Limits(size_bytes=40 * MIB),
            2,
            "max-size 40M: 2 segments of each of 2 sources need 80M; ",
        ),
        (Limits(age_ns=19 * SECOND), 1, "max-age 19s: 2 segments take 20s; "),
    ],
)
def test_limits_below_two_segments_of_a_source_are_refused(
    limits: Limits, sources: int, line: str
) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_contradictions(limits, sources, RollLimits(20 * MIB, 10 * SECOND))
    assert str(caught.value).startswith(line)


def test_limits_of_two_segments_and_no_limits_are_accepted() -> None:
    most = Limits(40 * MIB, 40 * MIB, 20 * SECOND)
    refuse_contradictions(most, 1, RollLimits(20 * MIB, 10 * SECOND))
    refuse_contradictions(Limits(), 9, RollLimits(20 * MIB, 10 * SECOND))
    refuse_contradictions(Limits(1, 1, 1), 9, RollLimits())


def test_limits_without_a_size_of_segments_choose_one_so_that_the_limits_can_be_met() -> None:
    assert default_rolls(Limits(800 * MIB), 2, RollLimits()) == RollLimits(50 * MIB, None)
    assert default_rolls(Limits(800 * MIB), 1, RollLimits(MIB, 5)) == RollLimits(MIB, 5)
    assert default_rolls(Limits(age_ns=80), 1, RollLimits(MIB)).age_ns == 100_000_000
    assert default_rolls(Limits(age_ns=80 * SECOND), 1, RollLimits()).age_ns == 10 * SECOND
    assert default_rolls(Limits(free_bytes=1), 1, RollLimits()) == RollLimits(64 * MIB, None)
    assert default_rolls(Limits(free_bytes=1), 1, RollLimits(None, 9)) == RollLimits(None, 9)
    assert default_rolls(Limits(), 1, RollLimits()) == RollLimits()
