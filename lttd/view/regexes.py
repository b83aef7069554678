r"""Regular expressions in ``--where``: ``comm =~ "^kworker/\d"``, ``comm !~ "ssh"``.

Python's grammar, which reads ``--where``, has no such operators.  Each is read as ``is`` or ``is
not``, which bind as tightly as ``==`` and have no other meaning there.  The text after an operator
is raw: its backslashes are those of the regular expression (Python's ``re``), which may match
anywhere in the field.
"""

import re
import warnings
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.view.glyphs import distinct_rows

Mask = npt.NDArray[np.bool_]

_WORDS: Final = {"=~": " is ", "!~": " is not "}
_TEXT: Final = r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'"""
_TOKEN: Final = re.compile(
    rf"(?P<text>{_TEXT})|(?P<sign>[=!]~)(?P<space>\s*)(?P<raw>{_TEXT})?|(?P<word>\bis\b)", re.DOTALL
)


def as_python(expression: str) -> tuple[str, list[int]]:
    """Return an expression in Python's grammar, and for each character of it where it comes from.

    Raises:
        ValueError: an operator has no text after it.
    """
    made: list[str] = []
    places: list[int] = []

    def add(text: str, begin: int) -> None:
        made.append(text)
        places.extend(range(begin, begin + len(text)))

    at = 0
    for found in _TOKEN.finditer(expression):
        if found["word"]:
            raise ValueError("is has no meaning here; equal is ==")
        if not found["sign"]:
            continue
        if not found["raw"]:
            sign = found["sign"]
            why = "a regular expression in quotes belongs after"
            raise ValueError(f'{why} {sign}: name {sign} "^kworker"')
        add(expression[at : found.start()], at)
        word = f"{_WORDS[found['sign']]}r"
        made.append(word)
        places.extend([found.start()] * len(word))
        at = found.start("raw")
    add(expression[at:], at)
    return "".join(made), places


def compiled(pattern: object) -> re.Pattern[str]:
    """Return a regular expression.

    Raises:
        ValueError: it is not a valid one.
    """
    if not isinstance(pattern, str):
        raise ValueError("=~ and !~ need a regular expression in quotes")  # noqa: TRY004  (as below)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read otherwise
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None


def matched(value: Any, pattern: re.Pattern[str], count: int) -> Mask:  # noqa: ANN401
    """Return a mask of *count* texts, or of one for all, in which *pattern* is found.

    Raises:
        TypeError: they are not texts.
    """
    known: dict[bytes, bool] = {}

    def is_in(text: bytes) -> bool:
        if text not in known:
            known[text] = pattern.search(text.decode("utf-8", "surrogateescape")) is not None
        return known[text]

    if isinstance(value, bytes):
        return np.full(count, is_in(value))
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "SO" or value.ndim > 1:
        raise TypeError("=~ and !~ are for texts")
    if value.dtype.kind == "O" or not len(value):
        return np.fromiter(map(is_in, value.tolist()), np.bool_, len(value))
    letters = np.ascontiguousarray(value).view(np.uint8).reshape(len(value), -1)
    first, which = distinct_rows(letters)
    found: Mask = np.fromiter(map(is_in, value[first].tolist()), np.bool_, len(first))[which]
    return found
