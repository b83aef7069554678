"""Write the summary of a run: a table on stderr, or JSON on stdout or in a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lttd.errors import LttdError, OutputError
from lttd.stats import StreamSummary, summary_json, summary_table
from lttd.terminal import put_line, say_lines


def write_summary(how: str, streams: Sequence[StreamSummary], about: dict[str, Any]) -> None:
    """Write the summary as *how* says: ``table``, ``json``, ``json:FILE`` or ``none``.

    *about* holds the keys of the JSON object besides the streams.

    Raises:
        LttdError: it could not be written.
    """
    if how == "table" and streams:
        say_lines(summary_table(streams))
    elif how.startswith("json"):
        value: dict[str, Any] = {**summary_json(streams), **about}
        path = how.removeprefix("json").removeprefix(":")
        try:
            _write(json.dumps(value), path)
        except OutputError:
            raise
        except OSError as error:
            raise LttdError(f"--summary {how}: {error.strerror}") from None


def _write(text: str, path: str) -> None:
    if path:
        Path(path).write_text(f"{text}\n")
    else:
        put_line(text)
