"""Check the types, ranges and counts of a manifest's JSON, before any code uses it.

Rule: pure.  Code may compute with every value that passes: integers are integers (a bool is not
one), counts are below 2^63, times below 2^64, texts are UTF-8, and short enough for a file name if
they become one.  Unknown keys pass, because the manifest ignores them.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from lttd.limits import CPUS, STREAMS

MOST_COUNT: Final = (1 << 63) - 1
MOST_TIME: Final = (1 << 64) - 1
MOST_SUM: Final = 1 << 100
"""The largest sum of the counts of a gaps file, each below 2^63; nothing computes with it."""
# The largest size that trace-cmd, numpy and the kernel's own u32 fields can state.
MOST_SIZE: Final = (1 << 31) - 1
MOST_NAME_BYTES: Final = 255
MOST_TEXT_BYTES: Final = 4096

Test = Callable[[Any], bool]


class _NoNumberError(ValueError):
    """A constant of JavaScript."""


def parse_json(data: bytes) -> Any:  # noqa: ANN401
    """Parse JSON that another user may have written.

    Raises:
        ValueError: it is not JSON, nests too deeply, or has a number that JSON lacks (NaN); the
            words are lttd's own, not those of Python's parser.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the error is at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except _NoNumberError:
        raise
    except ValueError:
        raise ValueError("a number has too many digits") from None


def _refuse_constant(word: str) -> NoReturn:
    raise _NoNumberError(f"{word} is not a number of JSON")


def is_count(value: object, most: int = MOST_COUNT) -> bool:
    """Tell whether a value is an integer from 0 to *most*."""
    return type(value) is int and 0 <= value <= most


def is_text(value: object, most_bytes: int = MOST_TEXT_BYTES) -> bool:
    """Tell whether a value is text that UTF-8 can encode; half a surrogate pair is not."""
    if not isinstance(value, str):
        return False
    try:
        return len(value.encode()) <= most_bytes
    except UnicodeEncodeError:
        return False


def is_name(value: object) -> bool:
    """Tell whether a value can be the name of a channel, which becomes part of a file name."""
    return is_text(value, MOST_NAME_BYTES) and "\0" not in str(value)


def _are(test: Test) -> Test:
    """Return a test of a mapping's values."""
    return lambda value: (
        isinstance(value, dict) and all(map(is_text, value)) and all(map(test, value.values()))
    )


def _is_size(value: object) -> bool:
    return is_count(value, MOST_SIZE)


def _is_time(value: object) -> bool:
    return is_count(value, MOST_TIME)


def _is_sum(value: object) -> bool:
    return is_count(value, MOST_SUM)


def _is_uncertainty(value: object) -> bool:
    """Tell whether a value is a clock's uncertainty; it is negative if the clock was set."""
    return type(value) is int and abs(value) <= MOST_COUNT


def _is_cpu(value: object) -> bool:
    return is_count(value, CPUS.most - 1)


def _is_order(value: object) -> bool:
    return value in ("little", "big")


_MANIFEST: Final[dict[str, Test]] = {"layout": lambda value: value in ("packed", "sparse")}
_MAY_MANIFEST: Final[dict[str, Test]] = {
    "state": lambda value: value in ("open", "closed"),
    "compression": lambda value: value in ("", "zstd"),
    "machine": _are(is_text),
    "lttd_version": is_text,
}
_STREAM: Final[dict[str, Test]] = {
    "channel": is_name,
    "cpu": _is_cpu,
    "abi": is_name,
    "subbuffer_bytes": _is_size,
    "header_bytes": _is_size,
    "ctf_stream_id": is_count,
    "baseline_discarded": is_count,
    "counters": _are(is_count),
}
_SUMMARY: Final[dict[str, Test]] = {
    "name": is_text,
    "cpu": _is_cpu,
    "subbuffers": _is_sum,
    "payload_bytes": _is_sum,
    "padding_bytes": _is_sum,
    "events_lost": _is_sum,
    "lost": _are(_is_sum),
}
_SNAPSHOT: Final[dict[str, Test]] = {
    "trace": _is_time,
    "monotonic_ns": is_count,
    "boottime_ns": is_count,
    "realtime_ns": is_count,
    "uncertainty_ns": _is_uncertainty,
}
_MAY_SUMMARY: Final[dict[str, Test]] = {"gaps_unknown": is_count, "unwanted_events": _is_sum}
_MAY_STREAM: Final[dict[str, Test]] = {
    "page_bytes": _is_size,
    "read_events_before": is_count,
    "packet_layout": is_text,
    "time_scale": is_text,
    "subbuffers_before": lambda value: value is None or is_count(value),
}
_MAY_SOURCE: Final[dict[str, Test]] = {
    "kind": is_name,
    "spec": is_text,
    "continues": is_name,
    "rolled_from": is_name,
    "rolled_at": _is_time,
    "mode": is_text,
    "own_threads": _are(is_text),
}
_MAY_MACHINE: Final[dict[str, Test]] = {"byteorder": _is_order}


def refuse_implausible(manifest: Mapping[str, Any]) -> None:
    """Reject a manifest with missing keys, wrong types or impossible values.

    Raises:
        ValueError: the message names the key.
    """
    refuse_unless(manifest, "manifest", _MANIFEST, _MAY_MANIFEST)
    refuse_unless(manifest["source"], "source", {"clock": is_text}, _MAY_SOURCE)
    refuse_unless(manifest.get("machine", {}), "machine", {}, _MAY_MACHINE)
    for number, snapshot in enumerate(_listed(manifest, "clock_snapshots")):
        refuse_unless(snapshot, f"clock_snapshots[{number}]", _SNAPSHOT, {})
    streams = _listed(manifest, "streams")
    if len(streams) > STREAMS.most:
        raise ValueError(f"{len(streams):,} streams; {STREAMS}")
    for number, stream in enumerate(streams):
        where = f"streams[{number}]"
        refuse_unless(stream, where, _STREAM, _MAY_STREAM)
        if stream["summary"] is not None:
            refuse_unless(stream["summary"], f"{where}.summary", _SUMMARY, _MAY_SUMMARY)
    if len({(one["channel"], one["cpu"]) for one in streams}) < len(streams):
        raise ValueError("two streams of one channel and CPU")


def _shown(value: object) -> str:
    told = ascii(value) if not isinstance(value, list | dict) else type(value).__name__
    return told if len(told) <= 40 else f"{told[:40]}..."


def _listed(manifest: Mapping[str, Any], key: str) -> list[Any]:
    value = manifest[key]
    if not isinstance(value, list):
        raise ValueError(f"{key}: not a list")  # noqa: TRY004  (of the file, not of a caller)
    return value


def refuse_unless(
    value: object, where: str, must: Mapping[str, Test], may: Mapping[str, Test]
) -> Mapping[str, Any]:
    """Return a mapping that has all keys of *must*, and whose values pass their tests.

    Raises:
        ValueError: the value is not such a mapping; the message begins with *where*.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: not a mapping")  # noqa: TRY004  (of the file, not of a caller)
    tests = dict(must) | {key: test for key, test in may.items() if key in value}
    for key, test in tests.items():
        if not test(value[key]):
            raise ValueError(f"{where}.{key} has the impossible value {_shown(value[key])}")
    return value
