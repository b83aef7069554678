"""Turn batches of any family into lines: a JSON object per event and per loss."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lttd.abi.ftrace_format import Encoding
from lttd.view.columns import EventBatch, EventRows
from lttd.view.family import Block
from lttd.view.losses import Loss
from lttd.view.task_names import Names


class JsonLines:
    """Make lines of batches, one JSON object per line."""

    backwards = False
    """Whether the last event comes first."""

    def __init__(self, names: Names | None, fields: Sequence[str] | None) -> None:
        """*names*: None if events do not state their task; lines then name the channel."""
        self._names = names
        self._fields = fields

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """Yield the lines of *batch*: events, and losses between the events around them."""
        who = self._names.of(batch) if self._names else None
        told: list[tuple[int, int, dict[str, Any]]] = [
            (loss.time, -1, _loss_json(loss, channel=who is None)) for loss in batch.losses
        ]
        for rows in batch.by_type():
            names = [n for n in rows.names if self._fields is None or n in self._fields]
            columns = {name: _values(rows, name) for name in names}
            if rows.event_type.format is None:
                columns = {"bytes": [raw.hex() for raw in rows.raw()]}
            heads = zip(rows.rows.tolist(), rows.time.tolist(), rows.cpu.tolist(), strict=True)
            for number, (at, when, cpu) in enumerate(heads):
                fields = {name: _plain(values[number]) for name, values in columns.items()}
                head: dict[str, Any] = {"time": when, "cpu": cpu}
                if who is None:
                    head["channel"] = rows.event_type.system
                else:
                    head["comm"] = _plain(who[0]["comm"][who[1][at]].item())
                    head["pid"] = int(batch.pid[at])
                told.append((when, at, head | {"event": rows.event_type.name, "fields": fields}))
        told.sort(key=lambda one: one[:2], reverse=self.backwards)
        yield b"".join(json.dumps(value).encode() + b"\n" for _, _, value in told)


def _values(rows: EventRows, name: str) -> list[Any]:
    """Return one field of each event: an array of integers as a list, other bytes in hex."""
    field = rows.field(name)
    if field.encoding in (Encoding.DYNAMIC, Encoding.TAIL) and field.element_bytes > 1:
        return rows.lists(name)
    values: list[Any] = rows.column(name).tolist()
    text = field.is_text or (field.encoding is Encoding.TAIL and "char" in field.type)
    if text or field.encoding in (Encoding.INT, Encoding.ARRAY, Encoding.REAL):
        return values
    return [value.hex() for value in values]  # any bytes: not all of them are UTF-8


def _loss_json(loss: Loss, *, channel: bool) -> dict[str, Any]:
    reason = loss.reason.name.lower() if loss.reason else None
    unit = loss.unit.name.lower()
    head = {"time": loss.time, "cpu": loss.cpu} | ({"channel": loss.channel} if channel else {})
    what = "lost" if loss.was_wanted else "unwanted"
    return head | {what: loss.lost, "unit": unit, "reason": reason}


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
