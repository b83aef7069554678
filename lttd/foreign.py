"""Name the kind of a path that is not a trace of lttd, and the program that reads it."""

import os
import stat
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 16
# The first bytes of a file, its kind, and the program that reads it.
_FILES: Final = (
    (
        b"\x17\x08\x44tracing",
        "a trace.dat of trace-cmd",
        "lttv text, which opens it, or lttv import, which makes a trace of lttd of it",
    ),
    (b"PERFILE2", "a perf.data", "perf script"),
    (b"PAR1", "a Parquet file", "Polars, DuckDB or pyarrow"),
    (b"\xc1\x1f\xfc\xc1", "a stream of a CTF trace", "babeltrace2 DIRECTORY"),
    (b"\x57\x1d\xd1\x75", "the metadata of a CTF trace", "babeltrace2 DIRECTORY"),
    (b"/* CTF", "the metadata of a CTF trace", "babeltrace2 DIRECTORY"),
    (b"# tracer:", "the text of a trace", "Perfetto's UI, or a pager"),
)
_FILE_TYPES: Final = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_OURS: Final = (
    "a trace is the directory that lttd --trace-dir named; of other programs' traces lttv opens"
    " trace.dat files, and directories of pages of trace_pipe_raw with their header_page"
)


def why_no_trace(path: Path) -> str:
    """Return in a few words the kind of *path*, and the program to use instead.

    It reads only the first bytes of a regular file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return "no such directory" if isinstance(error, FileNotFoundError) else f"{error.strerror}"
    if stat.S_ISREG(mode):
        head = head_of(path)
        for magic, what, reader in _FILES:
            if head.startswith(magic):
                return f"is {what}, not a trace of lttd; use {reader}"
    if stat.S_ISDIR(mode):
        return _why_no_trace_in(path)
    what = next((name for is_type, name in _FILE_TYPES if is_type(mode)), "something else")
    return f"is {what}, not a trace of lttd; {_OURS}"


def _why_no_trace_in(directory: Path) -> str:
    if not os.access(directory, os.R_OK | os.X_OK):
        return "permission denied: look at it as a user who may read it"
    if (directory / "metadata").is_file():
        return (
            "is a CTF trace, not one of lttd; use babeltrace2, or"
            " lttd -t NEW --source replay:DIR makes one of lttd of it"
        )
    if (directory / "metadata_0").is_file():
        return "is a trace of LTTng 0.x; lttd -t NEW --source replay:DIR makes one of lttd of it"
    return f"holds no trace of lttd; {_OURS}"


def head_of(path: Path, most_bytes: int = _HEAD_BYTES) -> bytes:
    """Return the first bytes of a file; none if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, most_bytes)
    except OSError:
        return b""
    finally:
        os.close(fd)
