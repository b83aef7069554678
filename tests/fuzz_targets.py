"""The targets that the fuzzer runs on a damaged directory: readers, exports, repair, recording.

Functions import lttd when they run, because atheris instruments only later imports.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Final

from tests.data import FIXTURES

Target = Callable[[Path, Path], object]
"""Arguments: the damaged directory, and a path that does not exist, for output."""


def columns(trace: Path, _: Path) -> None:
    """Read all columns of the events that a condition selects."""
    import lttd  # noqa: PLC0415

    for batch in lttd.open(trace).window(where="prev_pid == 7 or count > 1 or id"):
        for rows in batch.by_type():
            rows.columns()


def viewed(trace: Path, out: Path, *, arguments: Sequence[str]) -> None:
    """Run lttv; ``OUT`` in *arguments* becomes the output path."""
    from lttd.view.cli import main  # noqa: PLC0415

    words = [word.replace("OUT", str(out)) for word in arguments]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        main([*words, str(trace)])


def recovered(trace: Path, out: Path) -> None:
    """Append to the trace as if the recorder of its segments had been killed."""
    for path in trace.glob("*/trace.json"):
        if path.is_file() and path.stat().st_size < 1 << 20:
            path.write_bytes(path.read_bytes().replace(b'"closed"', b'"open"'))
    source = FIXTURES / "ftrace"
    recorded(trace, f"replay:{source}", "--append")


def replayed(directory: Path, out: Path, *, abi: str = "") -> None:
    """Replay damaged files into a new trace."""
    recorded(out, f"replay:{directory}" + (f",abi={abi}" if abi else ""))


def recorded(trace: Path, source: str, *more: str) -> None:
    """Run lttd."""
    from lttd.cli import main  # noqa: PLC0415

    main(["-t", str(trace), "--source", source, "--summary", "none", "--backlog", "8M", *more])


def lttv(*arguments: str) -> Target:
    """Return a target that runs ``lttv ARGUMENTS TRACE``."""
    return partial(viewed, arguments=arguments)


# Inputs are indexes into these tables: new entries go to the end.
TARGETS: Final[dict[str, Target]] = {
    "columns": columns,
    "text": lttv("text", "--jobs", "1"),
    "text --json": lttv("text", "--json", "--jobs", "1"),
    "info": lttv("info"),
    "check": lttv("check", "--events"),
    "cut": lttv("cut", "--begin", "+1us", "--end", "-1us", "-o", "OUT"),
    "plot": lttv("plot", "-o", "OUT.html"),
    "export trace.dat": lttv("export", "--to", "trace.dat", "-o", "OUT"),
    "export ctf": lttv("export", "--to", "ctf", "-o", "OUT"),
    "export perfetto": lttv("export", "--to", "perfetto", "-o", "OUT"),
    "export parquet": lttv("export", "--to", "parquet", "-o", "OUT"),
    "export blktrace": lttv("export", "--to", "blktrace", "-o", "OUT"),
    "export ltt": lttv("export", "--to", "ltt", "-o", "OUT"),
    "formats": lttv("formats"),
    "info --json": lttv("info", "--json"),
    "repair": lttv("check", "--repair"),
    "append": recovered,
    "compress": lttv("compress"),
    "decompress": lttv("decompress"),
    "index": lttv("index"),
    "text of an event": lttv("text", "--event", "sched_w*", "--where", "pid > 0", "--jobs", "1"),
    "export systrace": lttv("export", "--to", "systrace", "-o", "OUT"),
}
WRITERS: Final = ("repair", "append", "compress", "decompress", "index")
"""The targets that change the trace."""
REPLAYS: Final[dict[str, Target]] = {
    "replay": replayed,
    "replay abi=ftrace": partial(replayed, abi="ftrace"),
    "replay abi=blktrace": partial(replayed, abi="blktrace"),
    "replay abi=ltt": partial(replayed, abi="ltt"),
    "replay abi=ctf": partial(replayed, abi="ctf"),
}


def remove(path: Path) -> None:
    """Remove the output of a target."""
    for made in (path, path.with_name(f"{path.name}.html")):
        if made.is_dir():
            shutil.rmtree(made)
        made.unlink(missing_ok=True)
