"""Ask a trace in SQL; this loads pyarrow and DuckDB, which are extras."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lttd.errors import UsageError
from lttd.view.times import Window
from lttd.view.trace import Trace

if TYPE_CHECKING:
    from lttd.view.sql.catalogue import Catalogue
    from lttd.view.sql.result import SqlResult


def ask(
    trace: Trace, window: Window, cpus: Sequence[int] | None, query: str, jobs: int = 1
) -> "SqlResult":
    """Start a query over the events of some CPUs in a window.

    With several *jobs* this process is forked: it must not have threads yet.

    Raises:
        UsageError: pyarrow or DuckDB is missing, or the query is not valid for this trace.
    """
    try:
        from lttd.view.sql.reading import Reading  # noqa: PLC0415
        from lttd.view.sql.result import SqlResult  # noqa: PLC0415
    except ImportError as error:
        raise _missing(error) from None
    return SqlResult(Reading(trace, window, cpus, jobs), query)


def catalogue(trace: Trace, window: Window) -> "Catalogue":
    """Return the views of a trace.

    Raises:
        UsageError: pyarrow is missing.
    """
    try:
        from lttd.view.sql.catalogue import Catalogue  # noqa: PLC0415
        from lttd.view.sql.reading import Reading  # noqa: PLC0415
    except ImportError as error:
        raise _missing(error) from None
    return Catalogue(Reading(trace, window, None, 1))


def _missing(error: ImportError) -> UsageError:
    return UsageError(f"sql needs {error.name}: pip install 'lttd[sql]'")
