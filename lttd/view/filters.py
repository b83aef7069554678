"""Select events by CPU, name and task, and by ``--where``, an expression over their fields.

    prev_pid == 42 and prev_prio < 100
    comm == "bash" or next_comm in ("sshd", "cron")
    len > 4096 and flags & 0x2 and not name == "lo"
    "ssh" in comm and args[0] == 3
    comm =~ "^(ba|z)sh$" and not filename !~ "[.]so$"

Names are the event's own fields, and ``event``, ``system``, ``time``, ``cpu``, ``pid``, ``flags``
and ``preempt_count`` of every event.  An event's own field of such a name hides it; ``common_pid``
is always the task that ran.  A comparison with a field that an event lacks is false.  ``"text" in
field`` finds a part of a string, ``field in ("one", "other")`` one of several strings, ``=~`` a
regular expression (``regexes.py``).  Trailing newlines of a string, as in markers, are ignored.

Rule: the expression is parsed into Python's syntax tree, and only this module gives its nodes a
meaning: Python never evaluates it.
"""

import ast
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.errors import UsageError
from lttd.view.columns import EventBatch, EventRows
from lttd.view.formats import EventType
from lttd.view.regexes import as_python, compiled, matched
from lttd.view.task_names import COMM_BYTES, Names

Mask = npt.NDArray[np.bool_]
Value = Any
"""A column, or a constant: int, bytes, or a tuple of them; or MISSING."""


class _Missing:
    """The value of a field that an event lacks, and of every expression over it."""


MISSING: Final = _Missing()
_ARITHMETIC: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ALLOWED: Final = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Invert,
    ast.UAdd, ast.BinOp, ast.Compare, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Name, ast.Load,
    ast.Constant, ast.Tuple, ast.List, ast.Subscript, *_ARITHMETIC, *_COMPARISONS,
)  # fmt: skip
COMMON: Final = frozenset(
    ("event", "system", "time", "timestamp", "cpu", "pid", "flags", "preempt_count")
)
"""Names that every event has, also as ``common_``*name*."""
MOST_NODES: Final = 500
MOST_BITS: Final = 63
_LEAST_INT: Final = -(1 << 63)
_MOST_INT: Final = (1 << 64) - 1
_MOST_SIGNED: Final = (1 << 63) - 1


class Where:
    """A parsed expression."""

    def __init__(self, text: str, option: str = "--where") -> None:
        """Parse *text*, which the user gave with an *option*.

        Raises:
            UsageError: it is not a valid expression.
        """
        self.text = text
        self._option = option
        try:
            words, places = as_python(text.strip())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a backslash that Python would not write so
                tree = ast.parse(words, mode="eval")
        except SyntaxError as error:
            hint = "; equal is ==" if re.search(r"[^=!<>]=(?![=~])", text) else ""
            offset = error.offset and places[min(error.offset, len(places)) - 1] + 1
            where = f"at character {offset}" if offset else "at its end"
            raise UsageError(f"{option} {text!r}: {error.msg} {where}{hint}") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise UsageError(f"{option} {text!r}: {error}") from None
        nodes = list(ast.walk(tree))
        if len(nodes) > MOST_NODES:
            raise UsageError(f"{option}: more than {MOST_NODES} terms")
        for node in nodes:
            self._check(node)
        for node in nodes:
            if isinstance(node, ast.Compare):
                self._compile(node)
        self.body: Final = tree.body
        self.names: Final = dict.fromkeys(n.id for n in nodes if isinstance(n, ast.Name))
        """The names in it, in the order of the tree."""

    def _check(self, node: ast.AST) -> None:
        what = type(node).__name__
        if not isinstance(node, _ALLOWED):
            raise UsageError(f"{self._option} {self.text!r}: {what} is not allowed here")
        if isinstance(node, ast.Constant):
            fits = isinstance(node.value, str | bytes | int) and (
                not isinstance(node.value, int) or abs(node.value) < 1 << 64
            )
            if not fits:
                raise UsageError(
                    f"{self._option} {self.text!r}: {node.value!r} is not allowed here"
                )

    def _compile(self, node: ast.Compare) -> None:
        """Put the compiled expression in the place of each text after ``=~`` and ``!~``."""
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.Is | ast.IsNot):
                constant = right if isinstance(right, ast.Constant) else ast.Constant(None)
                try:
                    pattern: Any = compiled(constant.value)
                except ValueError as error:
                    raise UsageError(f"{self._option} {self.text!r}: {error}") from None
                constant.value = pattern

    def mask(self, rows: EventRows) -> Mask:
        """Return a mask of the events for which the expression is true.

        Raises:
            UsageError: it combines types that do not fit.
        """
        mask: Mask = self._explained(rows, lambda value: truth(value, len(rows)))
        return mask

    def value(self, rows: EventRows) -> Value:
        """Return the expression's value for each event; see Value.

        Raises:
            UsageError: it combines types that do not fit.
        """
        return self._explained(rows, lambda value: value)

    def _explained(self, rows: EventRows, use: Callable[[Value], Value]) -> Value:
        """Compute the value and use it; say what does not fit."""
        try:
            with np.errstate(all="ignore"):
                return use(self._value(self.body, rows))
        except (TypeError, ValueError, OverflowError, np.exceptions.DTypePromotionError) as error:
            hidden = [name for name in self.names if name in COMMON and name in rows.names]
            hint = f"; {hidden[0]} is a field of it: try common_{hidden[0]}" if hidden else ""
            where = f"{self._option} {self.text!r}: {rows.event_type.name}"
            raise UsageError(f"{where}: {error}{hint}") from None

    def _value(self, node: ast.AST, rows: EventRows) -> Value:  # noqa: PLR0911  (a row per kind of node)
        match node:
            case ast.Constant(value=value):
                return value.encode() if isinstance(value, str) else value
            case ast.Name(id=name):
                return value_of(rows, name)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                return tuple(self._value(each, rows) for each in elements)
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=int(at))):
                one_of_strings = value_of(rows, f"{name}[{at}]")
                if one_of_strings is not MISSING:
                    return one_of_strings
                return _element(value_of(rows, name), at)
            case ast.BoolOp(op=op, values=values):
                masks = [truth(self._value(each, rows), len(rows)) for each in values]
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return join.reduce(masks)
            case ast.UnaryOp(op=op, operand=operand):
                return _unary(op, self._value(operand, rows), len(rows))
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self._value(left, rows), self._value(right, rows)
                return MISSING if MISSING in _either(a, b) else _arithmetic(op, a, b)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                values = [self._value(each, rows) for each in (left, *comparators)]
                masks = [
                    compared(op, a, b, len(rows))
                    for op, a, b in zip(ops, values, values[1:], strict=False)
                ]
                return np.logical_and.reduce(masks)
            case _:
                raise TypeError(f"{ast.unparse(node)} has no meaning")


def _either(a: Value, b: Value) -> list[Value]:
    return [value for value in (a, b) if isinstance(value, _Missing)]


def value_of(rows: EventRows, name: str) -> Value:
    """Return a column by the name that an expression uses, or MISSING."""
    try:
        column = rows.column(name)
    except KeyError:
        return _common(rows, name)
    if column.dtype.kind == "O" and rows.field(name).is_text:
        cut = np.empty(len(column), np.object_)
        cut[:] = [text.rstrip(b"\n") for text in column.tolist()]
        return cut
    return _comparable(column)


def _common(rows: EventRows, name: str) -> Value:
    batch, at, name = rows.batch, rows.rows, name.removeprefix("common_")
    named = {"event": rows.event_type.name, "system": rows.event_type.system}
    if name in named:
        return named[name].encode()
    if name in ("time", "timestamp"):
        return batch.time[at]
    small: dict[str, Any] = {
        "cpu": batch.cpu,
        "pid": batch.pid,
        "flags": batch.flags,
        "preempt_count": batch.preempt,
    }
    return small[name][at].astype(np.int64) if name in small else MISSING


def _comparable(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Widen integers, so that arithmetic with them does not wrap."""
    if column.dtype.kind in "iu" and column.dtype.itemsize < 8:
        return column.astype(np.int64)
    return column


def _element(column: Value, at: int) -> Value:
    if isinstance(column, _Missing):
        return MISSING
    if isinstance(column, bytes):
        raise TypeError("a string has no elements")
    if column.ndim < 2 or not -column.shape[1] <= at < column.shape[1]:
        raise TypeError(f"no element {at}")
    return column[:, at]


def truth(value: Value, count: int) -> Mask:
    """Return a value of *count* events as a mask."""
    if isinstance(value, _Missing):
        return np.zeros(count, np.bool_)
    if isinstance(value, tuple):
        raise TypeError("a list is for: in")
    if isinstance(value, np.ndarray) and value.ndim > 1:
        raise TypeError("an array is neither true nor false: name an element")
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        return np.asarray(value != b"", np.bool_)
    return np.broadcast_to(np.asarray(value, np.bool_), (count,)).copy()


def _unary(op: ast.unaryop, value: Value, count: int) -> Value:
    if isinstance(op, ast.Not):
        return ~truth(value, count)
    if isinstance(value, _Missing):
        return MISSING
    if _is_text(value):
        raise TypeError("a string is not a number")
    if isinstance(op, ast.USub):
        return -(value.astype(np.int64) if isinstance(value, np.ndarray) else value)
    return ~value if isinstance(op, ast.Invert) else value


def _arithmetic(op: ast.operator, a: Value, b: Value) -> Value:
    for value in (a, b):
        if isinstance(value, bytes | tuple) or (
            isinstance(value, np.ndarray) and value.dtype.kind in "SOV"
        ):
            raise TypeError("arithmetic needs numbers")
        _refuse_array(value)
    constants = all(isinstance(value, int) for value in (a, b))
    if isinstance(op, ast.LShift | ast.Mult) and constants:
        bits = b if isinstance(op, ast.LShift) else int(b).bit_length()
        if int(a).bit_length() + bits > MOST_BITS + 1:
            raise OverflowError("a constant beyond 64 bits")
    if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and isinstance(b, int) and b == 0:
        raise ValueError("division by zero")
    return _ARITHMETIC[type(op)](*_matched(a, b))


def _refuse_array(value: Value) -> None:
    if isinstance(value, np.ndarray) and value.ndim > 1:
        last = value.shape[1] - 1
        raise TypeError(f"an array has no single value: name an element, from [0] to [{last}]")


def _matched(a: Value, b: Value) -> tuple[Value, Value]:
    """Convert two operands of arithmetic to one integer type of 64 bits.

    Constants follow C: u64 stays u64 (-4096 becomes its two's complement), i64 becomes u64 with a
    constant from 2^63 on.  Of a signed and an unsigned column, the unsigned one becomes signed.
    """
    _refuse_beyond(a, b)
    dtypes = {value.dtype.str[1:] for value in (a, b) if isinstance(value, np.ndarray)}
    if dtypes == {"u8", "i8"}:
        return a.astype(np.int64), b.astype(np.int64)
    if dtypes == {"u8"}:
        a, b = (value & _MOST_INT if isinstance(value, int) else value for value in (a, b))
    elif dtypes == {"i8"} and any(isinstance(v, int) and v > _MOST_SIGNED for v in (a, b)):
        a, b = (v.astype(np.uint64) if isinstance(v, np.ndarray) else v for v in (a, b))
    return a, b


def _refuse_beyond(*values: Value) -> None:
    for value in values:
        if isinstance(value, int) and not _LEAST_INT <= value <= _MOST_INT:
            raise OverflowError("a constant beyond 64 bits")


def compared(op: ast.cmpop, a: Value, b: Value, count: int) -> Mask:
    """Return a mask of the events, of *count*, for which a comparison is true."""
    if MISSING in _either(a, b):
        return np.zeros(count, np.bool_)
    if isinstance(op, ast.Is | ast.IsNot):
        found = matched(a, b, count)
        return ~found if isinstance(op, ast.IsNot) else found
    if isinstance(op, ast.In | ast.NotIn):
        found = _contained(a, b, count)
        return ~found if isinstance(op, ast.NotIn) else found
    if isinstance(a, tuple) or isinstance(b, tuple):
        raise TypeError("a list is for: in")
    if _is_text(a) != _is_text(b):
        raise TypeError("a string is compared with a number")
    _refuse_array(a)
    _refuse_array(b)
    _refuse_beyond(a, b)
    a, b = (_signed_beside(value, other) for value, other in ((a, b), (b, a)))
    return np.broadcast_to(np.asarray(_COMPARISONS[type(op)](a, b), np.bool_), (count,))


def _signed_beside(value: Value, other: Value) -> Value:
    """Convert u64 to signed if the other operand is a negative constant: ``args[0] == -100``."""
    negative = isinstance(other, int) and other < 0
    return value.astype(np.int64) if negative and isinstance(value, np.ndarray) else value


def _contained(a: Value, b: Value, count: int) -> Mask:
    """Return a mask of the rows in which *a* is one of a list, or a part of a field's text."""
    if isinstance(b, np.ndarray) and _is_text(b):
        return _part_of(a, b)
    if isinstance(b, np.ndarray) or not isinstance(b, tuple | bytes):
        raise TypeError('in is for a list or a text: write (1, 2), or "part" in field')
    members = b if isinstance(b, tuple) else (b,)
    equal = [compared(ast.Eq(), a, member, count) for member in members]
    found: Mask = np.logical_or.reduce(equal) if equal else np.zeros(count, np.bool_)
    return found


def _part_of(part: Value, column: npt.NDArray[Any]) -> Mask:
    if not isinstance(part, bytes):
        raise TypeError('only a constant is looked for in a field\'s text: "part" in field')
    if column.dtype.kind == "S":
        return np.char.find(column, part) >= 0
    return np.array([part in text for text in column.tolist()], np.bool_)


def _is_text(value: Value) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "SOV"
    return isinstance(value, bytes)


def _comm_glob(text: str) -> bytes:
    """Return a glob for names of tasks, of which the kernel keeps 15 bytes."""
    glob = os.fsencode(text)
    return glob if set(glob) & set(b"*?[") else glob[:COMM_BYTES]


def matches(system: str, name: str, glob: str) -> bool:
    """Tell whether a glob of ``--event`` matches an event type."""
    names = (name, *(f"{system}{sign}{name}" for sign in ":/."))
    return any(fnmatchcase(each, glob) for each in names)


class Filter:
    """The selection of events in a window."""

    def __init__(
        self,
        cpus: Iterable[int] | None = None,
        events: Iterable[str] | None = None,
        where: str | None = None,
        comms: Iterable[str] | None = None,
    ) -> None:
        """Parse *where*.  *events* and *comms* are globs over names of events and of tasks.

        Raises:
            UsageError: *where* is not a valid expression.
        """
        self._cpus = frozenset(cpus) if cpus else None
        self.globs: Final = tuple(events) if events else None
        self.where: Final = Where(where) if where else None
        self.comms: Final = tuple(comms) if comms else None

    def __bool__(self) -> bool:
        """Tell whether the filter can leave out any event."""
        parts = (self._cpus, self.globs, self.where, self.comms)
        return any(part is not None for part in parts)

    def __str__(self) -> str:
        """Return the filter in words."""
        cpus = sorted(self._cpus or ())
        parts = [f"CPU {', '.join(map(str, cpus))}"] if cpus else []
        parts += [", ".join(self.globs)] if self.globs else []
        parts += [f"tasks {', '.join(self.comms)}"] if self.comms else []
        parts += [f"where {self.where.text}"] if self.where else []
        return "; ".join(parts)

    @property
    def bounds_types(self) -> bool:
        """Tell whether the filter can leave out all events of a type."""
        return self.globs is not None or self.where is not None

    def wants_cpu(self, cpu: int) -> bool:
        """Tell whether the filter allows events of a CPU."""
        return self._cpus is None or cpu in self._cpus

    def wants(self, event_type: EventType) -> bool:
        """Tell whether the filter allows events of a type."""
        if self.globs is None:
            return True
        return any(matches(event_type.system, event_type.name, glob) for glob in self.globs)

    def of(self, batch: EventBatch, names: Names | None = None) -> EventBatch:
        """Return the batch with the selected events; its losses stay.

        *names* tells the tasks; without it no event is of a task that has a name.
        """
        batch = self._of_types(batch)
        if self.comms is None or not len(batch):
            return batch
        if names is None:
            return batch.select(slice(0, 0))
        table, pair = names.of(batch)
        globs = [_comm_glob(one) for one in self.comms]
        comms = table["comm"].tolist()
        wanted = np.array(
            [any(fnmatchcase(one, glob) for glob in globs) for one in comms], np.bool_
        )
        # The lines have the names by which they were chosen, whatever the events left say.
        return replace(batch, named=(table, pair)).select(wanted[pair])

    def _of_types(self, batch: EventBatch) -> EventBatch:
        if self.globs is not None and len(batch):
            wanted = np.array([self.wants(event_type) for event_type in batch.types])
            keep = wanted[batch.type]
            batch = batch if keep.all() else batch.select(np.flatnonzero(keep))
        if self.where is None or not len(batch):
            return batch
        keep = np.zeros(len(batch), np.bool_)
        for rows in batch.by_type():
            keep[rows.rows] = self.where.mask(rows)
        return batch if keep.all() else batch.select(np.flatnonzero(keep))
