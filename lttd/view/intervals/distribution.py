"""Distributions of durations by group: count, sum, extremes, and quantiles from buckets.

A bucket holds one number below 256, and from there on 1/128 of a power of two.  So a quantile,
which is the middle of a bucket, is off by less than 0.4 %; count, total and extremes are exact.

Rule: memory grows with the number of different buckets of all groups, not with that of durations:
a hundred million durations of a thousand tasks take some megabytes.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

QUANTILE_ERROR: Final = 1 / 256
_EXACT: Final = 256
_STEPS: Final = 128
"""The number of buckets of a power of two."""
_STEP_BITS: Final = 7
_EXACT_BITS: Final = 8
_BUCKET_BITS: Final = 13
_MOST_PENDING: Final = 1 << 18


def buckets_of(values: I64) -> I64:
    """Return the bucket of each duration, which is at least 0."""
    power = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    over = np.maximum(power - _STEP_BITS, 0)
    large = _EXACT + (power - _EXACT_BITS) * _STEPS + (values >> over) - _STEPS
    return np.where(values < _EXACT, values, large)


def bounds_of(bucket: int) -> tuple[int, int]:
    """Return the least duration of a bucket, and that of the next one."""
    if bucket < _EXACT:
        return bucket, bucket + 1
    power, step = divmod(bucket - _EXACT, _STEPS)
    width = 1 << power + 1
    low = (_STEPS + step) * width
    return low, low + width


@dataclass(frozen=True)
class Durations:
    """The durations of one group, in ns."""

    count: int
    total_ns: int
    least_ns: int
    most_ns: int
    buckets: I64
    """In order."""
    counts: I64

    @property
    def mean_ns(self) -> float:
        """The mean; 0 of none."""
        return self.total_ns / self.count if self.count else 0.0

    def quantile_ns(self, share: float) -> int:
        """Return the least duration that at least this share of all does not exceed."""
        if not self.count:
            return 0
        rank = max(math.ceil(share * self.count), 1)
        at = int(np.searchsorted(np.cumsum(self.counts), rank, "left"))
        low, behind = bounds_of(int(self.buckets[at]))
        return min(max((low + behind - 1) // 2, self.least_ns), self.most_ns)

    def by_power(self) -> list[tuple[int, int]]:
        """Return ``(n, count)`` for the durations from 2^n on below 2^(n+1); n is -1 for 0."""
        found: dict[int, int] = {}
        for bucket, count in zip(self.buckets.tolist(), self.counts.tolist(), strict=True):
            power = bounds_of(bucket)[0].bit_length() - 1
            found[power] = found.get(power, 0) + count
        return sorted(found.items())


NONE: Final = Durations(0, 0, 0, 0, np.empty(0, np.int64), np.empty(0, np.int64))


class Distributions:
    """The durations of groups that are numbered from 0 on."""

    def __init__(self) -> None:
        self._count = np.zeros(0, np.int64)
        self._total = np.zeros(0, np.int64)
        self._least = np.zeros(0, np.int64)
        self._most = np.zeros(0, np.int64)
        self._keys = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._pending: list[tuple[I64, I64]] = []
        self._pending_size = 0

    def add(self, groups: I64, durations_ns: I64) -> None:
        """Add durations, each to its group."""
        if not len(groups):
            return
        self._grow(int(groups.max()) + 1)
        values = np.maximum(durations_ns, 0)
        size = len(self._count)
        self._count += np.bincount(groups, minlength=size)
        np.add.at(self._total, groups, values)
        np.minimum.at(self._least, groups, values)
        np.maximum.at(self._most, groups, values)
        keys = (groups << _BUCKET_BITS) + buckets_of(values)
        self._pend(*np.unique(keys, return_counts=True))

    def _grow(self, size: int) -> None:
        more = size - len(self._count)
        if more > 0:
            more = max(more, len(self._count))  # so that a group at a time is not dear
            self._count, self._total, self._most = (
                np.append(one, np.zeros(more, np.int64))
                for one in (self._count, self._total, self._most)
            )
            never = np.full(more, np.iinfo(np.int64).max)
            self._least = np.append(self._least, never)

    def _pend(self, keys: I64, counts: I64) -> None:
        self._pending.append((keys, counts))
        self._pending_size += len(keys)
        if self._pending_size > max(_MOST_PENDING, len(self._keys)):
            self._merge()

    def _merge(self) -> None:
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._pending)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._pending)])
        self._keys, which = np.unique(keys, return_inverse=True)
        self._counts = np.zeros(len(self._keys), np.int64)
        np.add.at(self._counts, which.reshape(-1), counts)
        self._pending, self._pending_size = [], 0

    def of(self, group: int) -> Durations:
        """Return the durations of a group."""
        if group >= len(self._count) or not self._count[group]:
            return NONE
        if self._pending:
            self._merge()
        low, behind = np.searchsorted(
            self._keys, [group << _BUCKET_BITS, group + 1 << _BUCKET_BITS]
        )
        return Durations(
            int(self._count[group]), int(self._total[group]),
            int(self._least[group]), int(self._most[group]),
            self._keys[low:behind] & (1 << _BUCKET_BITS) - 1, self._counts[low:behind],
        )  # fmt: skip

    def of_all(self) -> Durations:
        """Return the durations of all groups together."""
        self._merge()
        there = self._count > 0
        if not there.any():
            return NONE
        buckets, which = np.unique(self._keys & (1 << _BUCKET_BITS) - 1, return_inverse=True)
        counts = np.zeros(len(buckets), np.int64)
        np.add.at(counts, which.reshape(-1), self._counts)
        least, most = int(self._least[there].min()), int(self._most[there].max())
        return Durations(
            int(self._count.sum()), int(self._total.sum()), least, most, buckets, counts
        )
