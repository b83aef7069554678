"""What is written stays below a rate."""

from hypothesis import given
from hypothesis import strategies as st

from lttd.rate import BURST_S, RateLimit
from lttd.subbuffer import TAKE_BYTES

RATE = 64 << 20


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


@given(
    st.lists(st.tuples(st.integers(0, 3_000_000_000), st.integers(0, TAKE_BYTES)), max_size=200),
    st.integers(1, 1 << 32),
)
def test_the_bytes_written_never_exceed_rate_times_time_by_more_than_a_burst_and_a_batch(
    batches: list[tuple[int, int]], rate: int
) -> None:
    clock = Clock()
    limit = RateLimit(rate, clock)
    written = 0
    for pause_ns, size_bytes in batches:
        clock.ns += pause_ns
        if limit.admits(size_bytes):
            written += size_bytes
        allowed = rate * clock.ns / 1e9 + max(rate * BURST_S, TAKE_BYTES)
        assert written <= allowed + TAKE_BYTES


def test_a_storm_is_refused_until_time_has_passed() -> None:
    clock = Clock()
    limit = RateLimit(RATE, clock)
    batches = 0
    while limit.admits(TAKE_BYTES):
        batches += 1
    assert batches == RATE // TAKE_BYTES  # the burst of one second
    clock.ns += 10_000_000
    assert limit.admits(1)


def test_a_rate_below_one_take_still_lets_a_take_pass_now_and_then() -> None:
    clock = Clock()
    limit = RateLimit(1 << 20, clock)
    passed = 0
    for _ in range(80):
        passed += limit.admits(TAKE_BYTES)
        clock.ns += 1_000_000_000
    assert 18 <= passed <= 22  # 80 MiB in takes of 4 MiB


def test_an_idle_hour_saves_no_more_than_one_burst() -> None:
    clock = Clock()
    limit = RateLimit(RATE, clock)
    clock.ns += 3600 * 1_000_000_000
    assert sum(limit.admits(TAKE_BYTES) for _ in range(100)) == RATE // TAKE_BYTES
