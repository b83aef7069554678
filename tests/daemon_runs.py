"""The trace and the lines of a run of lttd."""

from pathlib import Path

from lttd.tracedir import segments
from tests.running import (
    Run,
)

TRACE = "trace"


def only_line(run: Run) -> str:
    """Return the one line that a run wrote to stderr."""
    assert "Traceback" not in run.stderr
    assert len(run.lines) == 1, run.stderr
    line = run.lines[0]
    assert line.startswith("lttd: ")
    return line


def mark(run: Run, text: str) -> None:
    (run.instance / "trace_marker").write_text(text)


def data_of(trace: Path) -> bytes:
    return b"".join(
        path.read_bytes()
        for segment in segments(trace)
        for path in sorted(segment.streams.iterdir())
        if path.is_file()
    )
