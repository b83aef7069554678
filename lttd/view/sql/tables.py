"""Make a view an Arrow data set, of which DuckDB asks the columns and the rows that it needs.

DuckDB calls ``scanner(columns=..., filter=...)`` of a data set, then ``to_reader()`` of what it
returns, for each place at which a query reads the view, and only when it is going to read.
Source: DuckDB's duckdb-python, src/arrow/arrow_array_stream.cpp.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from lttd.view.sql.bounds import Chosen
from lttd.view.sql.reading import Reading
from lttd.view.sql.views import View


class ViewTable(ds.Dataset):  # type: ignore[misc,unused-ignore]  # pyarrow has no types
    """A view as DuckDB reads it."""

    def __init__(self, view: View, reading: Reading) -> None:
        self._view = view
        self._reading = reading

    @property
    def schema(self) -> Any:  # noqa: ANN401
        """The columns."""
        return self._view.schema

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: Any = None,  # noqa: A002, ANN401  (its name in Arrow)
        **_: object,
    ) -> "Scanner":
        """Return what reads some columns of the rows for which a filter is true."""
        names = list(self.schema.names) if columns is None else list(columns)
        chosen = None if filter is None else Chosen(self.schema, filter)
        return Scanner(self._view, self._reading, names, chosen)


class Scanner:
    """One scan of a view."""

    def __init__(
        self, view: View, reading: Reading, names: list[str], chosen: Chosen | None
    ) -> None:
        self._view = view
        self._reading = reading
        self._names = names
        self._chosen = chosen

    def to_reader(self) -> Any:  # noqa: ANN401
        """Return an Arrow stream of the rows, which reads nothing before it is asked."""
        schema = pa.schema([self._view.schema.field(name) for name in self._names])
        some = self._view.batches(self._names, self._chosen)
        return pa.RecordBatchReader.from_batches(schema, self._reading.guarded(some))
