"""Tell for which event types an expression of ``--where`` can be true, without their events.

The names of an expression are known for a type where it has no such field, and where they are the
type's own name and system.  Of everything else any value is possible.

Rule: a type is left out only if its events would be, and without an error: one that the expression
does not fit is an error only where it occurs.
"""

import ast
from typing import Any, Final

from lttd.errors import UsageError
from lttd.view.columns import no_rows
from lttd.view.filters import COMMON, MISSING, Filter, Where, compared, truth
from lttd.view.formats import EventType

_ANY: Final = object()
"""A value that only an event has."""
_NAMED: Final = {"event": "name", "system": "system"}


def can_be_wanted(chosen: Filter, event_type: EventType) -> bool:
    """Tell whether the filter can select an event of a type."""
    if not chosen.wants(event_type):
        return False
    where = chosen.where
    if where is None or _truth(_value(where.body, event_type)) is not False:
        return True
    return not _fits(where, event_type)


def _fits(where: Where, event_type: EventType) -> bool:
    """Tell whether the expression has the right types for the fields of an event type."""
    try:
        where.mask(no_rows(event_type))
    except UsageError:
        return False
    return True


def _value(node: ast.AST, event_type: EventType) -> Any:  # noqa: ANN401, PLR0911  (a row per node)
    match node:
        case ast.Constant(value=value):
            return value.encode() if isinstance(value, str) else value
        case ast.Name(id=name):
            return _named(name, event_type)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            values = [_value(each, event_type) for each in elements]
            return _ANY if _ANY in values else tuple(values)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=int(at))):
            return _unless_missing(_named(f"{name}[{at}]", event_type), _named(name, event_type))
        case ast.BoolOp(op=op, values=operands):
            return _joined(op, [_truth(_value(each, event_type)) for each in operands])
        case ast.UnaryOp(op=op, operand=operand):
            value = _value(operand, event_type)
            return _negated(value) if isinstance(op, ast.Not) else _unless_missing(value)
        case ast.BinOp(left=left, right=right):
            sides = [_value(each, event_type) for each in (left, right)]
            return MISSING if MISSING in sides else _ANY
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            values = [_value(each, event_type) for each in (left, *comparators)]
            pairs = zip(ops, values, values[1:], strict=False)
            return _joined(ast.And(), [_compared(op, one, other) for op, one, other in pairs])
        case _:
            return _ANY


def _unless_missing(*values: Any) -> Any:  # noqa: ANN401
    return MISSING if all(value is MISSING for value in values) else _ANY


def _joined(op: ast.boolop, truths: list[Any]) -> Any:  # noqa: ANN401
    decisive = isinstance(op, ast.Or)
    if decisive in truths:
        return decisive
    return _ANY if _ANY in truths else not decisive


def _negated(value: Any) -> Any:  # noqa: ANN401
    known = _truth(value)
    return _ANY if known is _ANY else not known


def _named(name: str, event_type: EventType) -> Any:  # noqa: ANN401
    if event_type.format is not None and name in event_type.format.by_name:
        return _ANY
    common = name.removeprefix("common_")
    if common in _NAMED:
        return getattr(event_type, _NAMED[common]).encode()
    return _ANY if common in COMMON else MISSING


def _compared(op: ast.cmpop, one: Any, other: Any) -> Any:  # noqa: ANN401
    if MISSING in (one, other):
        return False
    if _ANY in (one, other):
        return _ANY
    try:
        return bool(compared(op, one, other, 1)[0])
    except (TypeError, ValueError, OverflowError):
        return _ANY


def _truth(value: Any) -> Any:  # noqa: ANN401
    """Return True, False, or _ANY."""
    if value is _ANY or isinstance(value, bool):
        return value
    try:
        return bool(truth(value, 1)[0])
    except (TypeError, ValueError):
        return _ANY
