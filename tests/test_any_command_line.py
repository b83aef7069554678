"""Run lttd with any command line: its status is documented, and it prints no traceback."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lttd.cli import main
from tests.data import FIXTURES

pytestmark = pytest.mark.slow

VALUES = st.one_of(
    st.sampled_from(
        [
            *("", "0", "1", "-1", "4096", "1K", "4K", "64K", "1M", "1023G", "1024T", "9" * 5000),
            *("1e400", "nan", "\u00b2", "x", "ftrace", "ltt", "blktrace", "fixed:8", "fixed:0"),
            *(
                "fixed:" + "9" * 30,
                "a,b",
                "*",
                "[",
                "\n",
                "\t",
                "\udcff",
                "..",
                "/",
                "~",
                "x" * 300,
            ),
            *("read", "0-7", "9-3", f"0-{'9' * 30}", "yes", "no", "mono", "sundial"),
        ]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)
KEYS = st.sampled_from(
    [
        *("abi", "subbuffer-size", "buffer-size", "framing", "pattern", "time", "sequence", "pid"),
        *("overwrite", "unfinished", "actions", "sectors", "channels", "events", "clock", "x"),
    ]
)
# No own instance and no top level: these would change settings of this machine.
TARGETS = st.sampled_from(
    [
        *(
            "replay",
            "replay:",
            f"replay:{FIXTURES}/ftrace",
            "replay:/dev/null",
            "replay:/proc/self",
        ),
        *("replay:none", "replay:\n", "relay", "relay:empty", "relay:/dev/null", "relay:none"),
        *("blktrace", "blktrace:/dev/null", "blktrace:none", "blktrace:.", "blktrace:fifo"),
        *("ltt", "ltt:empty", "ltt:none", "ltt:fifo", "ftrace:\n", "ftrace:a/b", "ftrace:..", "x:"),
        *("ftrace:nobodys", "ftrace:" + "x" * 300, "ftrace:\u202e", "replay:" + "x" * 5000),
    ]
)
SPECS = st.builds(
    lambda target, options: target + "".join(f",{key}={value}" for key, value in options),
    TARGETS,
    st.lists(st.tuples(KEYS, VALUES), max_size=2),
)
OPTIONS = st.tuples(
    st.sampled_from(
        [
            *("--layout", "--flush-interval", "--backlog", "--on-write-error", "--metrics"),
            *("--web-allow-host", "--summary", "--events", "--clock", "--buffer-size", "-t"),
        ]
    ),
    st.one_of(
        VALUES,
        st.sampled_from(
            [
                *("127.0.0.1:0", "x" * 300 + ":1", "127.0.0.1:99999", "[::1", ":", "json:", "json"),
                *(
                    "json:/dev/full",
                    "json:none/x",
                    "json:empty",
                    "json:" + "x" * 300,
                    "fifo",
                    "none/x",
                ),
            ]
        ),
    ),
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").mkdir()
    return tmp_path


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SPECS, st.lists(OPTIONS, max_size=2))
@example("ftrace:\n", [])
@example(f"replay:{FIXTURES}/ftrace,subbuffer-size=1024T", [])
def test_every_command_line_is_obeyed_or_refused_in_one_line(
    here: Path, capfd: pytest.CaptureFixture[str], spec: str, options: list[tuple[str, str]]
) -> None:
    capfd.readouterr()
    line = ["-t", "trace", "--source", spec, "--duration", "1ms", "--summary", "none"]
    status = main([*line, *(f"{name}={value}" if name[1] == "-" else name + value
                            for name, value in options)])  # fmt: skip
    said = capfd.readouterr().err
    assert status in (0, 1, 2, 77)
    assert "unforeseen" not in said
    # Notes may come before the line with the reason of the failure.
    lines = said.splitlines()
    assert lines or not status
    assert all(line.startswith("lttd: ") for line in lines)
    for path in here.iterdir():
        if path.name not in ("fifo", "empty"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
