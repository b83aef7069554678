"""Which fields of the configuration a reload takes over, and by which part of the run.

A field without a row needs a restart.  Events of sources are no field: SOURCES names their keys.
"""

from lttd.config import Config
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.reloading import Taker
from lttd.retaining import Retaining
from lttd.rolling import Rolling
from lttd.status import Observer


def takers_of_reading(reader: Reader, observer: Observer, rolling: Rolling) -> dict[str, Taker]:
    """Return those of reading, rolling and printing."""

    def take_flush_interval(new: Config) -> None:
        reader.flush_interval_s = new.flush_interval_s
        observer.expect_ticks(new.flush_interval_s)

    roll = Taker(lambda new: rolling.limit(new.roll_limits))
    return {
        "flush_interval_s": Taker(take_flush_interval),
        "segment_bytes": roll,
        "segment_s": roll,
        "verbose": Taker(lambda _: None),  # whoever prints more reads the configuration
    }


def takers_of_writing(recorder: Recorder) -> dict[str, Taker]:
    """Return those of the disk: the ceiling of written data, and the reaction to a failed write."""

    def take_policy(new: Config) -> None:
        recorder.policy = new.disk_policy

    policy = Taker(take_policy)
    return {
        "max_rate_bytes": Taker(lambda new: recorder.limit_rate(new.max_rate_bytes)),
        "on_full": policy,
        "on_write_error": policy,
    }


def takers_of_retention(
    retaining: Retaining, recorder: Recorder, rolling: Rolling
) -> dict[str, Taker]:
    """Return those of the limits of the trace, which may not contradict its file system."""

    def take_limits(new: Config) -> None:
        retaining.limit(new.limits)
        rolling.limit(new.roll_limits)  # where the file does not say, these follow
        recorder.policy = new.disk_policy  # a store with a limit makes room on a full disk

    limit = Taker(take_limits, lambda new: retaining.check(new.limits))
    return dict.fromkeys(("max_bytes", "max_kept_bytes", "max_age_s", "min_free_bytes"), limit)
