"""Make a line of each system call, with names and result, in the manner of strace.

    bash-4711 [001] ..... 12.345678: openat(dfd: AT_FDCWD, filename: 0x7ffd1c, flags: O_RDONLY|
    O_CLOEXEC, mode: 0000) = 3 <12.345 us>

The line has the time of the begin.  A call that ends in a later piece of the window has two lines:
``read(fd: 0, buf: 0x55d0, count: 1 <unfinished ...>`` and ``<... read resumed>) = 1 <9.120 us>``.

Rule: the names of arguments are those of the event's format; ``raw_syscalls`` has none, so those of
syscalls.txt are used, on the architectures that it has.
Rule: strings are printed where the event has them (Linux 6.19 on); else the address is.
"""

import errno
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Encoding, Field
from lttd.terminal import printable_bytes
from lttd.view.columns import EventBatch, EventRows
from lttd.view.family import Block
from lttd.view.formats import EventType
from lttd.view.ftrace.lines import Texter
from lttd.view.ftrace.syscall_calls import (
    ENTER,
    JOINED,
    NO_LINE,
    RESUMED,
    UNKNOWN,
    UNTIMED,
    Calls,
    Joiner,
    Part,
    part_of,
)
from lttd.view.ftrace.syscall_table import (
    Argument,
    Syscall,
    by_name,
    by_number,
    named_by_function,
    values_of,
)
from lttd.view.glyphs import decimal, hexadecimal, per_distinct
from lttd.view.lines import Body, FieldPrinter, body_of
from lttd.view.strips import Column, Strip, joined, settled, words_of

I64 = npt.NDArray[np.int64]

_RETURN_ADDRESSES: Final = frozenset({"mmap", "mremap", "brk", "shmat"})
_MOST_ERRNO: Final = 4095
_ARGUMENTS: Final = 6
_NUMBERS: Final = {"d": np.int32, "u": np.uint32, "l": np.int64, "ul": np.uint64}
# Linux include/linux/errno.h: the kernel restarts the call; programs do not see these.
_RESTARTS: Final = {
    512: (b"ERESTARTSYS", b"To be restarted if SA_RESTART is set"),
    513: (b"ERESTARTNOINTR", b"To be restarted"),
    514: (b"ERESTARTNOHAND", b"To be restarted if no handler"),
    516: (b"ERESTART_RESTARTBLOCK", b"Interrupted by signal"),
}


class SyscallTexter(Texter):
    """Makes lines of system calls; other events have their usual lines."""

    _calls: Calls
    """Those of the batch whose lines are being made."""

    @cached_property
    def _joiner(self) -> Joiner:
        return Joiner()

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """See ``BlockTexter``."""
        calls = self._joiner.join(batch)
        wanted = calls.state != NO_LINE
        if not wanted.all():
            batch, calls = batch.select(wanted), calls.some(wanted)
        self._calls = calls
        yield from super().lines(batch, most)

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """See ``BlockTexter``."""
        yield from super().bodies(batch)
        calls = self._calls.some(slice(len(batch)))
        for rows in batch.by_type():
            part = part_of(rows.event_type)
            if part is None:
                continue
            mine = calls.some(rows.rows)
            # The events of one system call of which the same is known have the same words.
            key = mine.number.astype(np.int64) << 4 | mine.state.astype(np.int64) << 1
            key |= mine.duration != UNTIMED
            for one in np.unique(key).tolist():
                alike = key == one
                some = rows.some(alike)
                yield body_of(some.rows, self._strip(some, part, mine.some(alike)))

    def _alike(
        self, batch: EventBatch
    ) -> Iterator[tuple[list[EventType], EventRows, FieldPrinter]]:
        for types, rows, printer in super()._alike(batch):
            if part_of(types[0]) is None:
                yield types, rows, printer

    def _strip(self, rows: EventRows, part: Part, calls: Calls) -> Strip:
        state, number = int(calls.state[0]), int(calls.number[0])
        call = self._call(rows.event_type, part, number)
        name = call.name.encode()
        if state == RESUMED:
            strip: Strip = [b"<... ", name, b" resumed>)", *self._result(call.name, calls)]
        else:
            strip = [name, b"(", *self._arguments(rows, part, call)]
            if state == JOINED:
                strip += [b")", *self._result(call.name, calls)]
            else:
                lost = state == UNKNOWN
                strip.append(b") = ? <events were lost>" if lost else b" <unfinished ...>")
        return joined([*settled(strip, len(rows)), b"\n"])

    def _call(self, event_type: EventType, part: Part, number: int) -> Syscall:
        """Return the system call of some events."""
        known = by_number(self.machine).get(number)
        if part.is_raw:
            return known or Syscall(f"syscall_{number}", None)
        function = event_type.name.removeprefix(f"{ENTER}_").removeprefix("sys_exit_")
        name = named_by_function(function)
        return known or by_name().get(name) or Syscall(name, None)

    def _arguments(self, rows: EventRows, part: Part, call: Syscall) -> Strip:
        if part.is_raw:
            given = rows.records["args"].astype(np.uint64)
            known = call.arguments
            if known is None:
                known = tuple(Argument(f"arg{at}", "x") for at in range(_ARGUMENTS))
            columns = [(one, given[:, at]) for at, one in enumerate(known[: given.shape[1]])]
        else:
            columns = [
                (_argument(field, call), rows.records[field.name].astype(np.uint64))
                for field in rows.event_type.format.own  # type: ignore[union-attr]
                if field.encoding is Encoding.INT and not field.name.startswith("__")
                and field.name != part.number
            ]  # fmt: skip
        strip: Strip = []
        for one, column in columns:
            strip.append(f"{', ' if strip else ''}{one.name}: ".encode())
            strip += self._string(rows, one.name) or self._value(one.kind, column)
        return strip

    def _string(self, rows: EventRows, name: str) -> Strip:
        """Return the string to which an argument points, if the event has it."""
        saved = f"__{name}_val"
        field = rows.event_type.format.by_name.get(saved)  # type: ignore[union-attr]
        if field is None or field.encoding is not Encoding.STRING:
            return []
        text = [b'"%b"' % _quoted(piece) for piece in rows[saved]]
        return [words_of(np.array(text, np.bytes_))]

    def _value(self, kind: str, column: Column) -> Strip:
        if kind in _NUMBERS:
            return decimal(column.astype(_NUMBERS[kind]))
        if kind == "o":
            return [words_of(per_distinct(column, lambda mode: b"%04o" % (mode & 0xFFFF_FFFF)))]
        table = values_of(self.machine).get(kind)
        if table is not None:
            return [words_of(per_distinct(column, table.told))]
        return _address(column) if kind == "p" else [b"0x", *hexadecimal(column)]

    def _result(self, name: str, calls: Calls) -> Strip:
        returned, is_address = calls.returned, name in _RETURN_ADDRESSES
        if ((returned < 0) & (returned >= -_MOST_ERRNO)).any():
            strip: Strip = [words_of(per_distinct(returned, _failures(is_address=is_address)))]
        else:
            strip = _address(returned.astype(np.uint64)) if is_address else decimal(returned)
        return [b" = ", *strip, *self._time_taken(calls.duration)]

    def _time_taken(self, duration: I64) -> Strip:
        if self._counting or (duration == UNTIMED).any():
            return []
        us = duration // 1000
        return [b" <", *decimal(us), b".", *decimal(duration - us * 1000, 3), b" us>"]


def _argument(field: Field, call: Syscall) -> Argument:
    known = next((one for one in call.arguments or () if one.name == field.name), None)
    return known or Argument(field.name, _kind(field.type))


def _kind(type_: str) -> str:
    """Return how to print an argument of a type in C."""
    words = type_.split()
    if "*" in type_:
        return "p"
    if "long" in words:
        return "x" if "unsigned" in words else "l"
    if "unsigned" in words or type_.startswith("u") or type_ in ("size_t", "gid_t"):
        return "ul" if type_ in ("size_t", "u64") else "u"
    return "d"


def _address(column: Column) -> Strip:
    if not (column == 0).any():
        return [b"0x", *hexadecimal(column)]
    return [words_of(per_distinct(column, _address_told))]


def _address_told(value: int) -> bytes:
    return b"0x%x" % (value & (1 << 64) - 1) if value else b"NULL"


def _failures(*, is_address: bool) -> Callable[[int], bytes]:
    """Return the function that prints results of which some are errors."""

    def told(value: int) -> bytes:
        number = -value
        if number in _RESTARTS:
            return b"? %b (%b)" % _RESTARTS[number]
        if 0 < number <= _MOST_ERRNO:
            name = errno.errorcode.get(number)
            words = f" {name} ({os.strerror(number)})" if name else ""
            return b"-1" + words.encode() if name else b"%d" % value
        return _address_told(value) if is_address else b"%d" % value

    return told


def _quoted(text: bytes) -> bytes:
    return printable_bytes(text.replace(b"\\", b"\\\\").replace(b'"', b'\\"'))
