"""Find out which bytes of an unknown format are text.

Bytes are text if they are UTF-8 without control characters other than tab, line feed and carriage
return; NULs may follow them, as in a fixed array of characters.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

_TEXT: Final = np.isin(np.arange(256), [*b"\t\n\r", *range(0x20, 0x7F)])
_ASCII: Final = 0x80


def text_spans(data: memoryview, at: I64, size_bytes: I64) -> I64:
    """Return begin and end of the text in some spans of *data*, as offsets in the span.

    The end is the begin if the span is not text.
    """
    raw = np.frombuffer(data, np.uint8)
    end = at + size_bytes
    # The last byte at or before each place that is not NUL; and how many bytes before it are bad.
    last = np.maximum.accumulate(np.where(raw != 0, np.arange(len(raw)), -1))
    end = np.maximum(np.where(size_bytes > 0, last[end - 1] + 1, at), at)
    high = raw >= _ASCII
    bad = np.concatenate([[0], np.cumsum(~(_TEXT[raw] | high))])
    found = bad[end] == bad[at]
    highs = np.concatenate([[0], np.cumsum(high)])
    for row in np.flatnonzero(found & (highs[end] != highs[at])).tolist():
        found[row] = _is_utf8(bytes(data[at[row] : end[row]]))
    return np.stack((np.zeros(len(at), np.int64), np.where(found, end - at, 0)), axis=1)


def _is_utf8(raw: bytes) -> bool:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return False
    return text.translate({9: 32, 10: 32, 13: 32}).isprintable()
