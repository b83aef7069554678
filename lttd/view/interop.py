"""Convert columns to tables of pyarrow and polars, if these are installed."""

from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]


def _plain(column: Column) -> Column | list[Any]:
    """Return a column for Arrow: native byte order, text decoded, arrays as lists."""
    if column.dtype.kind == "S":
        return np.char.decode(column, "utf-8", "replace")
    if column.dtype.kind == "O":
        return [value.decode("utf-8", "replace") for value in column.tolist()]
    native = column.astype(column.dtype.newbyteorder("="), copy=False)
    return native.tolist() if native.ndim > 1 else native


def arrow_table(columns: dict[str, Column]) -> Any:  # noqa: ANN401
    """Return a ``pyarrow.Table``; *pyarrow* must be installed."""
    import pyarrow as pa  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    return pa.table({name: pa.array(_plain(column)) for name, column in columns.items()})


def polars_frame(columns: dict[str, Column]) -> Any:  # noqa: ANN401
    """Return a ``polars.DataFrame``; *polars* must be installed."""
    import polars as pl  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    return pl.DataFrame({name: pl.Series(name, _plain(value)) for name, value in columns.items()})
