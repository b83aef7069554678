"""``lttv plot`` counts events by slice of time and makes a picture in one file."""

import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lttd
from lttd.errors import NotATraceError, UsageError
from lttd.view.cli import main
from lttd.view.commands.plot import html, plot
from lttd.view.filters import Filter
from lttd.view.notes import Notes
from lttd.view.picture import Head, svg
from lttd.view.rates import Rates, rates_of
from lttd.view.svg import duration, moment, round_up, short, tick_step
from lttd.view.times import EVERYTHING, window_of
from lttd.view.trace import Span
from tests.ftraced import Traced, pages_of, tick
from tests.tools import replayed

ANY = Filter(None, None, None)
NOTHING = Span(0, 0, None, None)
SVG = "{http://www.w3.org/2000/svg}"


def counted(trace: Path, begin: str | None = None, end: str | None = None) -> Rates:
    opened = lttd.open(trace)
    return rates_of(opened, window_of(opened, begin, end), ANY, Notes())


def made(trace: Path, *, cpus: int = 2, pages: int = 50) -> Traced:
    """Write 10 ticks per ms on each CPU; the last comes 10 us before the next ms."""
    one = Traced(trace, cpus=cpus)
    for cpu in range(cpus):
        for number in range(pages):
            ticks = [tick(at) for at in range(10)]
            one.append([pages_of(1_000_000 * (number + 1), ticks, delta=99_000)], cpu=cpu)
    return one


def test_every_event_is_counted_once_in_its_slice_of_time(tmp_path: Path) -> None:
    made(tmp_path / "t").finish()
    rates = counted(tmp_path / "t")
    assert rates.events == 1000
    assert rates.types == {"clock:tick": 1000}
    times = [event.time for event in lttd.open(tmp_path / "t").events(cpus=[0])]
    at = (np.array(times) - 1_000_000 - rates.begin_ns) // rates.slice_ns
    expected = np.bincount(at, minlength=rates.slices)
    assert rates.cpus[0].events.tolist() == expected.tolist()
    assert rates.cpus[1].events.sum() == 500
    assert rates.recorded.all()


def test_a_window_is_counted_alone_on_the_time_axis_of_the_trace(tmp_path: Path) -> None:
    made(tmp_path / "t").finish()
    rates = counted(tmp_path / "t", "+10ms", "+20ms")
    assert rates.events == len(list(lttd.open(tmp_path / "t").events("+10ms", "+20ms")))
    assert (rates.begin_ns, rates.end_ns - rates.slice_ns) == (10_000_000, 20_000_000)
    with pytest.raises(NotATraceError, match="nothing was recorded within these times"):
        counted(tmp_path / "t", "+10s")


def test_few_events_need_few_slices(tmp_path: Path) -> None:
    made(tmp_path / "t", cpus=1, pages=10).finish()
    assert 20 < counted(tmp_path / "t").slices < 120


def test_the_time_between_segments_is_marked_as_not_recorded(tmp_path: Path) -> None:
    made(tmp_path / "t", pages=5).finish()
    later = Traced(tmp_path / "t", number=2)
    later.append([pages_of(100_000_000, [tick(1)])])
    later.finish()
    rates = counted(tmp_path / "t")
    assert rates.recorded[0]
    assert rates.recorded[-1]
    assert 0.5 < 1 - rates.recorded.mean() < 0.99


def test_several_boots_are_placed_by_the_wall_clock(tmp_path: Path) -> None:
    made(tmp_path / "t", cpus=1, pages=5).finish()
    again = Traced(tmp_path / "t", number=2, boot_id="later")
    again.append([pages_of(9_000_000, [tick(1)])])
    again.finish()
    rates = counted(tmp_path / "t")
    assert rates.events == 51
    assert rates.begin_ns == 0
    assert rates.end_ns >= 8_000_000


def test_losses_are_counted_in_their_slice(tmp_path: Path) -> None:
    page = bytearray(pages_of(2_000_000, [tick(1)]))
    body = page[16:36]
    struct.pack_into("<Q", page, 8, len(body) | 1 << 31 | 1 << 30)
    struct.pack_into("<Q", page, 16 + len(body), 77)
    one = Traced(tmp_path / "t")
    one.append([pages_of(1_000_000, [tick(0)]), bytes(page)])
    one.finish()
    rates = counted(tmp_path / "t")
    (at,) = rates.cpus[0].losses.nonzero()[0].tolist()
    assert (
        rates.begin_ns + at * rates.slice_ns
        <= 1_000_000
        < rates.begin_ns + (at + 1) * rates.slice_ns
    )
    assert rates.cpus[0].lost[at] == 77
    assert sum(rates.lost.values()) == 77


@given(st.integers(1, 70), st.integers(1, 480), st.integers(0, 10**9), st.booleans())
def test_any_number_of_cpus_and_any_counts_make_a_valid_picture(
    cpus: int, slices: int, most: int, flat: bool
) -> None:
    rates = Rates(NOTHING, -5, 1000, slices, recorded=np.arange(slices) % 7 > 0)
    rng = np.random.default_rng(most)
    for number in range(cpus):
        rates.cpu(number).events[:] = most if flat else rng.integers(0, most + 1, slices)
        rates.cpu(number).losses[0] = number % 2
    rates.types["a:<b>&\x00'\"" * 9] = int(sum(one.events.sum() for one in rates.cpus.values()))
    root = ET.fromstring(svg(Head("<&>\x1b", "", "", "9 events"), rates))
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    for one in root.iter(f"{SVG}rect"):
        assert 0 <= float(one.get("y", 0)) <= height
        assert float(one.get("x", 0)) + float(one.attrib["width"]) <= width + 0.1
    for path in root.iter(f"{SVG}path"):
        for y in re.findall(r"V(-?[\d.]+)", path.attrib["d"]):
            assert 0 <= float(y) <= height


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_lttv_plot_makes_a_picture_in_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    replayed(tmp_path / "t")
    out = tmp_path / f"picture.{ending}"
    assert main(["plot", str(tmp_path / "t"), "-o", str(out), "--event", "sys_*"]) == 0
    told = out.read_text()
    for word in ("CPU 0", "CPU 1", "sys_enter", "lost: 6,384 events, in 2 places", "(mono)"):
        assert word in told
    assert not re.search(r"(src|href)=|<script|url\(|@import", told)
    assert capsys.readouterr().err == ""


def test_a_picture_of_no_events_says_so(tmp_path: Path) -> None:
    made(tmp_path / "t").finish()
    trace = lttd.open(tmp_path / "t")
    plot(trace, EVERYTHING, Filter(None, ["nothing"], None), tmp_path / "p.svg")
    assert "no events here" in (tmp_path / "p.svg").read_text()


def test_a_picture_names_the_cpus_and_types_that_it_leaves_out(tmp_path: Path) -> None:
    made(tmp_path / "t").finish()
    words = ["--cpu", "1", "--event", "ti*", "--where", "count < 1000 and count >= 0 and pid == 5"]
    assert main(["plot", str(tmp_path / "t"), *words, "-o", str(tmp_path / "p.svg")]) == 0
    told = (tmp_path / "p.svg").read_text()
    assert "only CPU 1; ti*; where count &lt; 1000 and count &gt;" in told
    assert "pid == 5" not in told
    assert main(["plot", str(tmp_path / "t"), "-o", str(tmp_path / "whole.svg")]) == 0
    assert " only " not in (tmp_path / "whole.svg").read_text()


def test_the_picture_of_a_replay_does_not_name_this_machine(tmp_path: Path) -> None:
    replayed(tmp_path / "t")
    assert main(["plot", str(tmp_path / "t"), "-o", str(tmp_path / "p.svg")]) == 0
    assert "t: replayed on " in (tmp_path / "p.svg").read_text()


def test_a_trace_without_an_index_makes_a_picture_and_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "t", cpus=1).finish().stream().paths.index.unlink()
    assert main(["plot", str(tmp_path / "t"), "-o", str(tmp_path / "p.svg")]) == 0
    assert "no index" in capsys.readouterr().err


def test_a_png_is_made_or_the_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "t", pages=3).finish()
    trace = lttd.open(tmp_path / "t")
    with monkeypatch.context() as without:
        without.setitem(__import__("sys").modules, "resvg_py", None)
        with pytest.raises(UsageError, match=r"lttd\[png\]"):
            plot(trace, EVERYTHING, ANY, tmp_path / "p.png")
    with pytest.raises(UsageError, match=r"\.svg, \.html or \.png"):
        plot(trace, EVERYTHING, ANY, tmp_path / "p.jpg")
    assert list(tmp_path.glob("*p.*")) == []
    pytest.importorskip("resvg_py")
    plot(trace, EVERYTHING, ANY, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_lists_every_type_in_its_table() -> None:
    rates = Rates(NOTHING, 0, 1000, 10, recorded=np.ones(10, np.bool_))
    for number in range(30):
        rates.types[f"sys:event{number}"] = number + 1
    rates.cpu(0).events[0] = rates.events
    page = html(Head("t", "", "", ""), rates).decode()
    assert page.count("<tr><td>sys:event") == 30


def test_the_labels_of_axes_are_round_numbers() -> None:
    assert [round_up(value) for value in (0.7, 1, 1.3, 999, 1_260_000)] == [
        0.8, 1, 1.6, 1000, 1_600_000,
    ]  # fmt: skip
    assert [tick_step(span, 10) for span in (1, 99, 10_000_000_000, 10_000_000_001)] == [
        1, 10, 1_000_000_000, 2_000_000_000,
    ]  # fmt: skip
    times = ((1_500_000_000, 500_000_000), (12_345_000_000, 5_000_000), (-20, 5))
    assert [moment(*each) for each in times] == ["+1.5s", "+12.345s", "-0.020us"]
    assert [short(value) for value in (0.5, 987, 12_345, 999_999, 4.56e9)] == [
        "0.5", "987", "12.3 k", "1 M", "4.56 G",
    ]  # fmt: skip
    assert [duration(value) for value in (100_000_000, 5_000_000_000, 7)] == [
        "100 ms", "5 s", "7 ns",
    ]  # fmt: skip
