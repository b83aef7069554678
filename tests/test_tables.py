"""The four tables: a source is added by a package and three rows, here by ``tests/toy``."""

import json
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import lttd
from lttd.abi.framing import UNKNOWN
from lttd.abi.table import ABIS, AbiRow
from lttd.cli import main as lttd_main
from lttd.config import parse_spec
from lttd.errors import UsageError
from lttd.sources.table import SOURCES, SourceRow
from lttd.view.cli import main as lttv_main
from lttd.view.export import FORMATS
from lttd.view.families import FAMILIES

EVENTS = [[(10, 0), (30, 1), (50, 2), (70, 3)], [(20, 4), (40, 5), (60, 6)]]
"""Times and values by CPU; two events fill a sub-buffer."""
LINES = [f"{at} [{cpu}] play: {value}" for at, cpu, value in sorted(
    (at, cpu, value) for cpu, events in enumerate(EVENTS) for at, value in events
)]  # fmt: skip


@pytest.fixture(autouse=True)
def three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    row = SourceRow("tests.toy.source", {"toy:DIR": "toys"}, {}, needs="the directory: toy:DIR")
    monkeypatch.setitem(SOURCES, "toy", row)
    monkeypatch.setitem(ABIS, "toy", AbiRow("tests.toy.abi", "{channel}.toy.{cpu}"))
    monkeypatch.setitem(FAMILIES, "toy", "tests.toy.family")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Record the toy's files with lttd itself."""
    for cpu, events in enumerate(EVENTS):
        with (tmp_path / f"cpu{cpu}").open("wb") as file:
            for first in range(0, len(events), 2):
                some = events[first : first + 2]
                words = [some[0][0], len(some), *(word for event in some for word in event)]
                file.write(struct.pack(f"<{len(words)}Q", *words).ljust(256, b"\xff"))
    words = ["-t", str(tmp_path / "t"), "--source", f"toy:{tmp_path}", "--summary", "none"]
    assert lttd_main(words) == 0
    return tmp_path / "t"


Lttv = Callable[..., tuple[int, str]]


@pytest.fixture
def lttv(trace: Path, capfd: pytest.CaptureFixture[str]) -> Lttv:
    def run(command: str, *options: str | Path) -> tuple[int, str]:
        capfd.readouterr()
        status = lttv_main([command, str(trace), *map(str, options)])
        return status, capfd.readouterr().out

    return run


def test_lttd_lists_and_refuses_a_source_by_its_row(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lttd_main(["--help"])
    assert "\n  toy:DIR           toys\n" in capfd.readouterr().out
    with pytest.raises(
        UsageError, match="must be one of ftrace, blktrace, relay, replay, ltt, lttng, toy"
    ):
        parse_spec("joy:x")
    assert lttd_main(["-t", "x", "--source", "toy"]) == 2
    assert "source toy: name the directory: toy:DIR" in capfd.readouterr().err
    assert lttd_main(["-t", "x", "--source", "toy:y,colour=red"]) == 2
    assert "'colour' is not a key of toy" in capfd.readouterr().err


def test_recorded_toys_have_no_padding_and_the_names_of_their_row(trace: Path) -> None:
    files = {path.name: path.read_bytes() for path in trace.glob("*-toy/streams/fun*")}
    assert set(files) == {"fun.toy.0", "fun.toy.1"}
    assert files["fun.toy.1"] == struct.pack("<10Q", 20, 2, 20, 4, 40, 5, 60, 1, 60, 6)


def test_lttv_prints_toys(lttv: Lttv) -> None:
    status, told = lttv("info")
    assert (status, "fun_0" in told, "fun_1" in told) == (0, True, True)
    assert lttv("text") == (0, "".join(f"{line}\n" for line in LINES))
    window = ["--begin", "0.00000003", "--end", "0.00000005", "--cpu", "0"]
    assert lttv("text", *window)[1].splitlines() == ["30 [0] play: 1", "50 [0] play: 2"]
    assert lttv("text", "--event", "toy:*", "--where", "value >= 6")[1] == "60 [1] play: 6\n"
    assert lttv("follow", "--from-begin", "--until-closed")[1].splitlines() == LINES
    found = [json.loads(line) for line in lttv("text", "--json")[1].splitlines()]
    assert [each["fields"]["value"] for each in found] == [0, 4, 1, 5, 2, 6, 3]


def test_lttv_checks_and_repairs_toys(lttv: Lttv, trace: Path) -> None:
    status, told = lttv("check", "--events", "--json")
    assert status == 0
    (segment,) = json.loads(told)["segments"]
    assert [stream["events"] for stream in segment["streams"]] == [4, 3]
    (index,) = trace.glob("*/streams/index/fun.toy.0.idx")
    before = index.read_bytes()
    index.unlink()
    assert lttv("check")[0] == 1
    assert lttv("check", "--repair")[0] == 0
    assert len(index.read_bytes()) == len(before)
    (data,) = trace.glob("*/streams/fun.toy.0")
    data.write_bytes(data.read_bytes()[:8] + b"\5" + data.read_bytes()[9:])
    assert lttv("check", "--events")[0] == 1


def test_lttv_cuts_plots_and_exports_toys(lttv: Lttv, trace: Path, tmp_path: Path) -> None:
    assert lttv("cut", "--begin", "0.00000005", "-o", tmp_path / "cut")[0] == 0
    cut = [event["value"] for event in lttd.open(tmp_path / "cut").events()]
    assert cut == [2, 6, 3]
    assert lttv("plot", "-o", tmp_path / "t.svg")[0] == 0
    assert "play" in (tmp_path / "t.svg").read_text()
    parquet = pytest.importorskip("pyarrow.parquet")
    assert lttv("export", "--to", "parquet", "-o", tmp_path / "p")[0] == 0
    (file,) = (tmp_path / "p").glob("system=toy/event=play/*.parquet")
    assert parquet.read_table(file)["value"].to_pylist() == [0, 4, 1, 5, 2, 6, 3]


def test_a_format_that_does_not_take_toys_names_those_that_do(
    trace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lttv_main(["export", str(trace), "--to", "ctf", "-o", str(tmp_path / "c")]) == 2
    told = "holds toy, and --to ctf takes only ctf, ftrace; formats for it: parquet\n"
    assert capfd.readouterr().err.endswith(told)


def test_every_row_names_a_module_with_what_the_table_says() -> None:
    for source in SOURCES.values():
        module = import_module(source.module)
        assert callable(module.open_source)
        assert not source.leaves_rings or callable(module.open_left_by_kill)
        for abi, replay in source.replays.items():
            assert abi in ABIS
            assert callable(import_module(replay).REPLAY.open)
    assert all(callable(import_module(row.module).ABI) for row in ABIS.values())
    named = {name: import_module(f"lttd.abi.{name}").NAME for name in ABIS if name != "toy"}
    assert all(stated == name for name, stated in named.items())
    assert all(import_module(module).FAMILY.decoder for module in FAMILIES.values())
    # Nothing reads the records of a relay channel on disk but its family.
    assert set(FAMILIES) == {*ABIS, UNKNOWN}
    for name, row in FORMATS.items():
        assert row.takes.keys() <= set(FAMILIES), name
        if name != "parquet":  # pyarrow is optional
            assert all(callable(import_module(one).export) for one in row.takes.values())
