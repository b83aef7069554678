"""``lttd doctor``: run every check and print what it found."""

import argparse
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from lttd.config import Config, NoTraceNamedError, parse_command_line
from lttd.doctor.finding import Mark, Report
from lttd.errors import NothingToRecordError
from lttd.start import raise_file_limit
from lttd.terminal import is_terminal, printable, put_line
from lttd.usage import Parser

_LEAST_COLUMNS: Final = 40
# Into a file or a pipe each finding is one line, for grep.
_NO_LIMIT: Final = 1 << 20
_EPILOG: Final = """\
OPTIONS are those of a recording.  This examines the service, whose unit names the directory:
lttd doctor --config /etc/lttd/lttd.toml --trace-dir /var/lib/lttd/trace
Exit status: 0 such a recording would work; 77 it would not; 2 usage."""


def run(words: Sequence[str]) -> int:
    """Run ``lttd doctor`` with the words after it; return the exit status."""
    parser = Parser(
        prog="lttd doctor",
        usage="lttd doctor [--json] [OPTIONS]",
        description="Print what this machine allows lttd, with remedies; nothing stays changed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    at = words.index("--") if "--" in words else len(words)  # argparse would drop it
    given, options = parser.parse_known_args(words[:at])
    options += words[at:]
    # numpy's OpenBLAS would start a spinning thread for each CPU.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    raise_file_limit()
    from lttd.doctor.checks import examine  # noqa: PLC0415  (loads numpy)

    report = examine(*_parsed(options))
    put_line(_as_json(report) if given.json else _as_text(report, _columns()))
    return 0 if report.works else NothingToRecordError.exit_status


def _parsed(options: Sequence[str]) -> tuple[Config, Path | None]:
    """Return the configuration and its trace directory; None if the options name none."""
    try:
        config = parse_command_line(options)
    except NoTraceNamedError:
        return parse_command_line(["--trace-dir", ".", *options]), None
    return config, config.trace_dir


def _columns() -> int:
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else _NO_LIMIT


def _as_json(report: Report) -> str:
    groups = {
        name: [{**each._asdict(), "mark": str(each.mark)} for each in found]
        for name, found in report.groups.items()
    }
    return json.dumps({"works": report.works, "groups": groups})


def _as_text(report: Report, columns: int) -> str:
    """Return a line for each finding, its remedy below; longer ones go on in further lines."""
    everything = [found for group in report.groups.values() for found in group]
    width = max(len(found.topic) for found in everything)
    lines = []
    for name, group in report.groups.items():
        lines.append(name)
        for found in group:
            head = f"  {found.mark:4}  {found.topic:{width}}  "
            lines += _folded(head, found.words, columns)
            if found.remedy and found.mark is not Mark.OK:
                lines += _folded(f"{'':{len(head)}}-> ", found.remedy, columns)
        lines.append("")
    count: Callable[[Mark], int] = [found.mark for found in everything].count
    verdict = "would work" if report.works else "would fail"
    lines.append(f"A recording {verdict} here: {count(Mark.BAD)} bad, {count(Mark.NOTE)} notes.")
    return "\n".join(lines)


def _folded(head: str, words: str, columns: int) -> list[str]:
    room = max(columns - len(head), _LEAST_COLUMNS)
    lines = textwrap.wrap(printable(words), room, break_long_words=False, break_on_hyphens=False)
    return [f"{head if at == 0 else ' ' * len(head)}{line}" for at, line in enumerate(lines)]
