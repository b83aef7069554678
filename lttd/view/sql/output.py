"""Write the rows of a result: a table for people, CSV, JSON lines or Parquet.

Rule: rows are written as they come, so memory does not grow with their number.  A table has the
widths of its first rows; later ones that are wider stick out.
"""

import io
import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from lttd.terminal import printable
from lttd.view.sql.result import SqlResult
from lttd.view.sql.values import is_number, other_json, readable, rows_of, texts

Put = Callable[[bytes], object]

_WIDTH_ROWS: Final = 1 << 10
_GAP: Final = "  "


def table(result: SqlResult, put: Put, *, counts_ns: bool) -> None:
    """Write a table; times of a trace clock in ns as seconds."""
    names = [printable(name) for name in result.names]
    on_right = [is_number(field.type) for field in result.schema]
    rows = (row for batch in result.batches() for row in _readable(batch, counts_ns=counts_ns))
    first = list(islice(rows, _WIDTH_ROWS))
    widths = [max(map(len, column)) for column in zip(names, *first, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        cells = zip(row, widths, on_right, strict=True)
        padded = [cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells]
        return _GAP.join(padded).rstrip() + "\n"

    put(line(tuple(names)).encode(errors="backslashreplace"))
    for some in _blocks(chain(first, rows)):
        put("".join(map(line, some)).encode(errors="backslashreplace"))


def _readable(batch: Any, *, counts_ns: bool) -> Iterator[tuple[str, ...]]:  # noqa: ANN401
    columns = zip(batch.schema.names, batch.columns, strict=True)
    return zip(
        *(readable(name, column, counts_ns=counts_ns) for name, column in columns), strict=True
    )


def _blocks(rows: Iterator[Any]) -> Iterator[list[Any]]:
    while block := list(islice(rows, _WIDTH_ROWS)):
        yield block


def csv(result: SqlResult, put: Put) -> None:
    """Write CSV with a head; null is empty."""
    kinds = (field.type if _is_bare(field.type) else pa.string() for field in result.schema)
    schema = pa.schema(list(zip(result.names, kinds, strict=True)))
    block = io.BytesIO()
    with pa_csv.CSVWriter(block, schema, write_options=_CSV) as writer:
        for batch in result.batches():
            columns = [
                column if _is_bare(column.type) else texts(column) for column in batch.columns
            ]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
            put(block.getvalue())
            block.seek(0)
            block.truncate()
        put(block.getvalue())


def _is_bare(kind: Any) -> bool:  # noqa: ANN401
    """Tell whether CSV has values of a type without quotes."""
    return is_number(kind) or bool(pa.types.is_boolean(kind))


_CSV: Final = pa_csv.WriteOptions(include_header=True, quoting_style="needed")


def json_lines(result: SqlResult, put: Put) -> None:
    """Write a JSON object per row."""
    for batch in result.batches():
        rows = rows_of(batch)
        lines = (
            json.dumps(dict(zip(result.names, row, strict=True)), default=other_json) + "\n"
            for row in rows
        )
        put("".join(lines).encode())


def parquet(result: SqlResult, file: IO[bytes]) -> None:
    """Write a Parquet file."""
    with pq.ParquetWriter(file, result.schema, compression="zstd") as writer:
        for batch in result.batches():
            writer.write_batch(batch)
