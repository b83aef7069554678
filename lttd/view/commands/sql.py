"""``lttv sql``: answer a question about a trace in SQL."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from lttd.clock import COUNTING_CLOCKS
from lttd.errors import UsageError
from lttd.files import Disk
from lttd.terminal import Level, printable, put, put_line, say
from lttd.view.arguments import SQL_FORMS
from lttd.view.output import new_output
from lttd.view.sql.asking import ask, catalogue
from lttd.view.times import Window
from lttd.view.trace import Trace
from lttd.view.worth import jobs_at_most

if TYPE_CHECKING:
    from lttd.view.sql.output import Put
    from lttd.view.sql.result import SqlResult

TABLE, CSV, JSON, PARQUET = SQL_FORMS
_OF_SUFFIX: Final = {
    ".csv": CSV,
    ".json": JSON,
    ".jsonl": JSON,
    ".parquet": PARQUET,
}


class Query(NamedTuple):
    """A question, and where its answer goes."""

    text: str | None
    """None: list the views."""
    cpus: Sequence[int] | None = None
    form: str | None = None
    """None: by the suffix of the output, else a table."""
    out: Path | None = None


def sql(trace: Trace, window: Window, query: Query) -> None:
    """Run a query, and write its rows to stdout, or to a file that appears as a whole.

    Raises:
        UsageError: the query is not valid; DuckDB is missing; the output exists already.
        StorageError: the output could not be written.
    """
    form = query.form or _OF_SUFFIX.get(query.out.suffix.lower() if query.out else "", TABLE)
    if form == PARQUET and query.out is None:
        raise UsageError("--format parquet is not text: name a file (-o FILE)")
    if query.text is None:
        put_line(views_text(trace, window))
        return
    with ask(trace, window, query.cpus, query.text, jobs_at_most()) as result:
        if query.out is None:
            _write(result, form, trace, put)
        else:
            disk = Disk()
            with new_output(query.out, disk, trace) as made, disk.create(made) as file:
                _write(result, form, trace, file.write, file)
        for note in result.notes:
            say(note, Level.NOTICE, "lttv")


def _write(
    result: "SqlResult", form: str, trace: Trace, take: "Put", file: IO[bytes] | None = None
) -> None:
    from lttd.view.sql import output  # noqa: PLC0415  (needs pyarrow)

    if form == PARQUET and file is not None:
        output.parquet(result, file)
    elif form == CSV:
        output.csv(result, take)
    elif form == JSON:
        output.json_lines(result, take)
    else:
        clocks = {segment.manifest.clock for segment in trace.segments}
        output.table(result, take, counts_ns=not clocks & COUNTING_CLOCKS)


def views_text(trace: Trace, window: Window) -> str:
    """Return a line per view: its name and its columns.

    Raises:
        UsageError: pyarrow is missing.
    """
    found = catalogue(trace, window)
    lines = list(found.columns())
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{printable(name):<{width}}  {printable(names)}" for name, names in lines)
