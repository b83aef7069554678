"""A hole between windows of mode flight is no loss, and every command shows it."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

import lttd
from lttd.manifest import Manifest
from lttd.subbuffer import Gap, Reason, Unit
from lttd.view.export import export
from lttd.view.filters import Filter
from lttd.view.notes import WindowNotes
from lttd.view.rates import rates_of
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from tests.ftraced import Traced, pages_of, tick
from tests.viewer import run


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Record two windows in one segment; 900 events between them were not wanted."""
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    batch = made.rings[0].batch([pages_of(5000, [tick(2)])])
    hole = Gap(0, Reason.UNWANTED, Unit.EVENTS, 900, 1600, 5000)
    made.files[0].append(replace(batch, gaps=(hole,)))
    made.finish()
    return made.trace


def test_text_has_a_line_for_the_hole(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, out, _ = run(capfdbinary, "text", trace)
    first, hole, second = out.splitlines()
    assert b"count=1" in first
    assert hole == b"CPU:0 [NOT WANTED 900 EVENTS]"
    assert b"count=2" in second
    _, out, _ = run(capfdbinary, "text", trace, "--json")
    told = json.loads(out.splitlines()[1])
    assert (told["unwanted"], told["reason"], "lost" in told) == (900, "unwanted", False)


def test_it_counts_apart_from_the_losses(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, out, _ = run(capfdbinary, "info", trace)
    assert b"  nothing; 900 events not wanted\n" in out
    _, out, _ = run(capfdbinary, "info", trace, "--json")
    found = json.loads(out)
    (stream,) = found["streams"]
    assert (found["events_lost"], stream["lost"], stream["gaps_unknown"]) == (0, {}, 0)
    assert stream["unwanted_events"] == 900
    (opened,) = Trace(trace).segments
    record = Manifest.read(opened.paths.manifest).streams[0]
    assert record.summary == opened.streams[0].derived_summary(
        opened.streams[0].index, opened.streams[0].gaps
    )
    status, out, err = run(capfdbinary, "check", "--events", trace)
    assert (status, err) == (0, ""), out


def test_exports_have_the_hole_and_count_no_loss(trace: Path, tmp_path: Path) -> None:
    for form in ("parquet", "perfetto", "systrace"):
        told = export(Trace(trace), EVERYTHING, form, tmp_path / form)
        assert not any("1 losses" in line for line in told), told
    for form in ("ctf", "trace.dat"):
        (line,) = export(Trace(trace), EVERYTHING, form, tmp_path / form)
        assert line.endswith("0 events lost, 900 not wanted")
    assert b"[NOT WANTED 900 EVENTS]" in (tmp_path / "systrace").read_bytes()
    data = (tmp_path / "trace.dat").read_bytes()
    (commit,) = struct.unpack_from("<Q", data, data.index(struct.pack("<Q", 5000)) + 8)
    assert commit >> 30 == 3  # readers see that events are missing before the page


def test_a_plot_draws_no_loss(trace: Path) -> None:
    rates = rates_of(Trace(trace), EVERYTHING, Filter(), WindowNotes())
    assert rates.events == 2
    assert not any(one.losses.any() for one in rates.cpus.values())


def test_a_batch_says_that_nobody_wanted_them(trace: Path) -> None:
    losses = [loss for batch in lttd.open(trace).window() for loss in batch.losses]
    assert [(loss.lost, loss.reason, loss.was_wanted) for loss in losses] == [
        (900, Reason.UNWANTED, False)
    ]


def test_a_kill_leaves_the_hole_before_the_events_after_it(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (segment,) = Trace(trace).segments
    segment.manifest.state, segment.streams[0].record.summary = "open", None
    segment.paths.manifest.write_bytes(segment.manifest.encode())
    assert Trace(trace).summaries()[0].unwanted_events == 900
    status, _, err = run(capfdbinary, "check", "--repair", trace)
    assert (status, err) == (0, "")
    (summary,) = Trace(trace).summaries()
    assert (summary.unwanted_events, summary.lost, summary.gaps_unknown) == (900, {}, 0)
