"""The result of a query, as batches of rows.

DuckDB runs in a thread of its own, because only Python code can be interrupted by Ctrl-C.  It is at
most some batches ahead of its reader.

Rule: after close() no thread and no process of the query is left.
"""

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from lttd.view.notes import Notes
from lttd.view.sql.catalogue import Catalogue
from lttd.view.sql.engine import ROWS, Engine
from lttd.view.sql.lost import lost_text
from lttd.view.sql.reading import Reading
from lttd.view.sql.values import rows_of

_AHEAD: Final = 2
_STEP_S: Final = 0.05


class SqlResult:
    """The rows that a query selects; read them once, in one of the ways."""

    def __init__(self, reading: Reading, query: str) -> None:
        """Start the query.

        Raises:
            UsageError: it is not valid for this trace.
            LttdError: the trace cannot be read.
        """
        self._reading = reading
        self._query = query
        self._engine = Engine(reading, Catalogue(reading))
        self._made: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._thread: threading.Thread | None = None
        self._is_closed = False
        try:
            self._engine.prepare(query)
            self._thread = threading.Thread(target=self._run, name="lttv sql", daemon=True)
            self._thread.start()
            self.schema: Any = self._next()
            """The names and Arrow types of its columns."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self.schema.names)

    @property
    def notes(self) -> list[str]:
        """Lines on what could not be read so far, and on losses among the events that were."""
        notes = Notes(self._reading.notes.told())
        if self._reading.losses:
            notes.add(lost_text(self._reading.losses))
        return notes.told()

    def batches(self) -> Iterator[Any]:
        """Yield the rows as ``pyarrow.RecordBatch``; memory holds some of them.

        Raises:
            LttdError: the query failed, or the trace cannot be read.
        """
        try:
            while (batch := self._next()) is not None:
                yield batch
        finally:
            self.close()

    def to_arrow(self) -> Any:  # noqa: ANN401
        """Return all rows as a ``pyarrow.Table``; raise the errors of batches()."""
        return pa.Table.from_batches(list(self.batches()), schema=self.schema)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows as tuples; raise the errors of batches()."""
        return [row for batch in self.batches() for row in rows_of(batch)]

    def close(self) -> None:
        """End the query; its other rows are not made."""
        if self._is_closed:
            return
        self._is_closed = self._reading.is_stopped = True
        if self._thread is not None:
            while self._thread.is_alive():
                self._engine.connection.interrupt()
                while not self._made.empty():
                    self._made.get_nowait()
                self._thread.join(_STEP_S)
            self._thread = None
        self._engine.close()
        self._reading.close()

    def _next(self) -> Any:  # noqa: ANN401
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        return made

    def _run(self) -> None:
        """Put schema, batches and None into the queue; or an error."""
        try:
            reader = self._engine.connection.sql(self._query).to_arrow_reader(ROWS)
            self._made.put(reader.schema)
            for batch in reader:
                if self._reading.is_stopped:
                    return
                self._made.put(batch)
            self._made.put(None)
        except BaseException as error:  # noqa: BLE001  (the reader of the queue raises it)
            self._made.put(self._engine.explained(error))
