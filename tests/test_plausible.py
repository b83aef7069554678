"""Refuse manifests and synced records with impossible values in one line, before their use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lttd.errors import TraceDamagedError
from lttd.limits import STREAMS
from lttd.manifest import Manifest, read_synced
from lttd.plausible import parse_json
from tests.fuzz_traces import small
from tests.segment_builder import Made

Json = dict[str, Any]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (path,) = small(tmp_path / "t").glob("*/trace.json")
    return path


def refused(path: Path, change: Callable[[Json], object]) -> str:
    """Return the reason for refusing a manifest with one change."""
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(TraceDamagedError) as raised:
        Manifest.read(path)
    assert str(raised.value).startswith(f"{path}: byte ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(path)) + 300
    return raised.value.reason


NO_COUNT = [-1, True, 1.5, float("inf"), float("nan"), 1 << 63, 10**400, "7", None, [7]]


@pytest.mark.parametrize("value", NO_COUNT)
@pytest.mark.parametrize(
    "key",
    ["cpu", "subbuffer_bytes", "header_bytes", "page_bytes", "ctf_stream_id", "baseline_discarded"],
)
def test_a_stream_with_an_impossible_number_is_refused(
    manifest: Path, key: str, value: object
) -> None:
    refused(manifest, lambda told: told["streams"][0].update({key: value}))


@pytest.mark.parametrize("value", [*NO_COUNT[:-5], 1 << 64, *NO_COUNT[-4:]])
def test_a_clock_snapshot_with_an_impossible_number_is_refused(
    manifest: Path, value: object
) -> None:
    refused(manifest, lambda told: told["clock_snapshots"][0].update(trace=value))


@pytest.mark.parametrize("key", ["events_lost", "subbuffers", "payload_bytes", "gaps_unknown"])
@pytest.mark.parametrize("value", [-1, True, 1.5, "7", None, 10**400])
def test_a_summary_with_an_impossible_number_is_refused(
    manifest: Path, key: str, value: object
) -> None:
    refused(manifest, lambda told: told["streams"][0]["summary"].update({key: value}))


@pytest.mark.parametrize("value", ["\ud800", "a\0b", "x" * 300, "/" * 90, 7, None, ["a"]])
def test_a_channel_name_that_cannot_be_a_file_is_refused(manifest: Path, value: object) -> None:
    refused(manifest, lambda told: told["streams"][0].update(channel=value))


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(layout="round"),
        lambda told: told.update(state=["open"]),
        lambda told: told.update(source=[]),
        lambda told: told["source"].update(clock="\udc80"),
        lambda told: told["source"].update(kind=7),
        lambda told: told["machine"].update(byteorder="middle"),
        lambda told: told["machine"].update(host={"a": 1}),
        lambda told: told.update(streams={}),
        lambda told: told.update(clock_snapshots=[7]),
        lambda told: told["streams"][0].update(counters={"read events": -1}),
        lambda told: told["streams"][0].update(summary=7),
        lambda told: told["streams"].append(told["streams"][0]),
        lambda told: told.update(lttd_version=7),
        lambda told: told.update(format_version=[2] * 10_000),
        lambda told: told.pop("streams"),
        lambda told: told.update(compression="lzma"),
    ],
)
def test_a_manifest_with_another_shape_is_refused(
    manifest: Path, change: Callable[[Json], object]
) -> None:
    refused(manifest, change)


def test_keys_of_later_versions_are_ignored(manifest: Path) -> None:
    value = json.loads(manifest.read_bytes())
    value["more"] = value["streams"][0]["more"] = value["source"]["more"] = 1
    manifest.write_text(json.dumps(value))
    assert len(Manifest.read(manifest).streams) == len(value["streams"])


def test_a_manifest_with_too_many_streams_to_map_is_refused(manifest: Path) -> None:
    def more(told: Json) -> None:
        first = told["streams"][0]
        told["streams"] = [dict(first, channel=f"c{at}") for at in range(STREAMS.most + 1)]

    assert refused(manifest, more) == (
        "no manifest: 32,001 streams; at most 32,000 streams of a segment are read;"
        " move its segment elsewhere, and the others can be read"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"streams":' * 50_000, "nested too deeply"),
        (b"NaN", "NaN is not a number of JSON"),
        (b"{", "the error is at line 1, column 2"),
        (b"{}\n]", "the error is at line 2, column 1"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b"7" * 10_000, "a number has too many digits"),
    ],
)
def test_invalid_json_raises_a_value_error_in_our_words(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"streams":' * 50_000,
        b'{"streams": {"a": {"entries": 1e999, "data_bytes": 0, "gaps": 0}}}',
        b'{"streams": {"a": {"entries": -1, "data_bytes": 0, "gaps": 0}}}',
        b'{"streams": {"a": {"entries": true, "data_bytes": 0, "gaps": 0}}}',
        b'{"streams": {"a": {"entries": 1, "data_bytes": 100000000000000000000, "gaps": 0}}}',
        b'{"streams": {"a": "b"}}',
        b'{"streams": 7}',
        b"7",
    ],
)
def test_an_impossible_synced_record_is_not_trusted(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "synced.json"
    path.write_bytes(text)
    assert read_synced(path) == {}


def test_a_manifest_that_lttd_writes_is_accepted(tmp_path: Path) -> None:
    made = Made(tmp_path / "t", cpus=1)
    made.append([], trailing_loss=(1 << 63) - 1)
    made.finish()
    (record,) = Manifest.read(made.paths.manifest).streams
    assert record.summary is not None
    assert record.summary.events_lost == (1 << 63) - 1
