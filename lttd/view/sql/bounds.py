"""Find the times, CPUs and names for which an Arrow filter can be true.

Arrow leaves out a part of a data set if what is known of that part contradicts the filter.  So we
ask it about parts that do not exist: "all times are below 5", "the CPU is 3".

Rule: an answer may be too wide, never too narrow.  The filter itself still selects the rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

Schema = Any  # pyarrow has no types
Expression = Any
Value = TypeVar("Value", int, str)

_FORMAT: Final = ds.ParquetFileFormat()
_FILES: Final = fs.LocalFileSystem()
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


class Chosen:
    """The rows of a view that a query asks for: those for which a filter is true."""

    def __init__(self, schema: Schema, expression: Expression) -> None:
        self._schema = schema
        self.expression = expression
        self._text = str(expression)

    def needs(self, name: str) -> bool:
        """Tell whether the filter may look at a column."""
        return name in self._text

    def can_hold(self, known: Expression) -> bool:
        """Tell whether the filter can be true for a row of which *known* is true."""
        # Nobody opens the file: the guarantee alone decides.
        part = _FORMAT.make_fragment("/", _FILES, partition_expression=known)
        parts = ds.FileSystemDataset([part], self._schema, _FORMAT, _FILES)
        try:
            return bool(list(parts.get_fragments(self.expression)))
        except pa.ArrowException:  # a filter that Arrow cannot simplify
            return True

    def span(self, name: str) -> tuple[int, int]:
        """Return the first and the last value of a column of 64-bit integers, both included.

        If the filter is never true, the first one is above the last one.
        """
        field, kind = pc.field(name), self._schema.field(name).type
        low, high = _LEAST, _MOST
        while low < high:  # the least value below which it can be true
            middle = (low + high) >> 1
            if self.can_hold(field <= pa.scalar(middle, kind)):
                high = middle
            else:
                low = middle + 1
        first, high = low, _MOST
        if not self.can_hold(field <= pa.scalar(first, kind)):
            return _MOST, _LEAST
        while low < high:
            middle = (low + high + 1) >> 1
            if self.can_hold(field >= pa.scalar(middle, kind)):
                low = middle
            else:
                high = middle - 1
        return first, low

    def among(self, name: str, values: Iterable[Value]) -> list[Value]:
        """Return the values of a column for which the filter can be true."""
        kind = self._schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return [each for each in values if self.can_hold(pc.field(name) == pa.scalar(each, kind))]


def chosen_of(batch: Any, names: Sequence[str], expression: Expression | None) -> Any:  # noqa: ANN401
    """Return some columns of a batch, for the rows for which a filter is true."""
    some = batch if expression is None or not batch.num_rows else batch.filter(expression)
    return some.select(list(names))
