"""Traces that earlier versions recorded: every later lttd reads them, and appends to them.

Rule: fixtures/old/ is never changed, only added to; fixtures/README.md says how it was made.
"""

import tarfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.data import FIXTURES
from tests.running import assert_whole, info, lttv
from tests.tools import replayed

OLD: Final = FIXTURES / "old"
VERSIONS: Final = ("843b0aa", "34e80f5")
"""The commits whose code recorded the traces."""


class Known(NamedTuple):
    """What a trace holds, in one version after the other."""

    subbuffers: tuple[int, int]
    events: tuple[int, int]
    events_lost: int = 0


KNOWN: Final = {
    "live": Known((2, 2), (19, 18)),
    "killed": Known((36, 34), (38, 35)),
    "replayed-packed": Known((44, 44), (2248, 2248), 6384),
    "replayed-sparse": Known((44, 44), (2248, 2248), 6384),
    "ltt": Known((10, 10), (124, 124)),
    "blktrace": Known((2, 2), (66, 66)),
    "relay": Known((2, 2), (0, 0)),
}
WITH_TEXT: Final = ("live", "killed", "ltt", "blktrace")

each_version = pytest.mark.parametrize("version", VERSIONS)
each_trace = pytest.mark.parametrize("name", KNOWN)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the traces of each version below its name; tests only read it."""
    root = tmp_path_factory.mktemp("old")
    for version in VERSIONS:
        with tarfile.open(OLD / f"{version}.tar.xz") as archive:
            archive.extractall(root / version, filter="data")
    return root


@pytest.fixture
def copied(tmp_path: Path, version: str) -> Path:
    """Return a version's traces to write to."""
    with tarfile.open(OLD / f"{version}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "traces"


def text_of(trace: Path) -> str:
    """Return ``lttv text``, with the trace's name for its path."""
    run = lttv("text", trace)
    assert run.returncode == 0, run.stderr
    return run.stdout.replace(f"({trace.parent}/", "(")


def events_of(report: dict[str, Any]) -> int:
    streams = [stream for segment in report["segments"] for stream in segment["streams"]]
    return sum(stream["events"] or 0 for stream in streams)


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@each_version
@each_trace
def test_an_old_trace_is_whole_and_has_what_it_had(unpacked: Path, version: str, name: str) -> None:
    trace, known, number = (
        unpacked / version / "traces" / name,
        KNOWN[name],
        VERSIONS.index(version),
    )
    found = info(trace)
    assert found["state"] == ("open" if name == "killed" else "closed")
    assert (found["subbuffers"], found["events_lost"]) == (
        known.subbuffers[number],
        known.events_lost,
    )
    if name == "killed":
        checked = lttv("check", "--json", "--events", trace)
        assert checked.returncode == 1
        assert "its recorder is gone" in checked.stdout
    else:
        report = assert_whole(trace, "--events")
        assert events_of(report) == known.events[number]


@each_version
@pytest.mark.parametrize("name", WITH_TEXT)
def test_an_old_trace_prints_its_known_text(unpacked: Path, version: str, name: str) -> None:
    expected = (OLD / f"{version}-{name}.txt").read_text()
    assert text_of(unpacked / version / "traces" / name) == expected


@each_version
@pytest.mark.parametrize("layout", ["packed", "sparse"])
def test_an_old_replay_prints_what_a_replay_of_today_prints(
    unpacked: Path, version: str, layout: str, tmp_path: Path
) -> None:
    replayed(tmp_path / "t", "--layout", layout)
    printed = text_of(unpacked / version / f"traces/replayed-{layout}")
    assert printed == text_of(tmp_path / "t")
    assert printed.count("\n") == 2250


@each_version
@each_trace
def test_a_segment_is_appended_to_an_old_trace(
    unpacked: Path, copied: Path, version: str, name: str
) -> None:
    trace, known = copied / name, KNOWN[name].subbuffers[VERSIONS.index(version)]
    before, (old,) = text_of(trace), trace.glob("2*")
    files = contents(old)
    replayed(trace, "--append")
    report = assert_whole(trace, "--events")
    assert [segment["state"] for segment in report["segments"]] == ["closed", "closed"]
    if name == "killed":  # it is closed now
        assert old.name in report["segments"][0]["path"]
    else:
        assert contents(old) == files
    assert info(trace)["subbuffers"] == known + KNOWN["replayed-packed"].subbuffers[0]
    appended = text_of(unpacked / version / "traces/replayed-packed")
    assert sorted(text_of(trace).splitlines()) == sorted((before + appended).splitlines())


@each_version
def test_a_killed_old_recording_is_repaired(copied: Path) -> None:
    before = text_of(copied / "killed")
    assert_whole(copied / "killed", "--repair", "--events")
    assert info(copied / "killed")["state"] == "closed"
    assert text_of(copied / "killed") == before


@each_version
def test_an_old_relay_trace_keeps_its_records(unpacked: Path, version: str) -> None:
    """Each record is filled with its number's low byte; see tests/kernel/relaytest."""
    (segment,) = (unpacked / version / "traces/relay").iterdir()
    for cpu in (0, 1):
        data = (segment / f"streams/first_{cpu}").read_bytes()
        numbers = []
        while data:
            size = 4 + int.from_bytes(data[:4], "little")
            number = int.from_bytes(data[4:8], "little")
            assert data[24:size] == bytes([number]) * (size - 24)
            numbers.append(number)
            data = data[size:]
        assert numbers == list(range(20))
